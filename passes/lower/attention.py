"""What the lowerings of attention ask about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, fx

from dit_compile.analysis.cost_rules import expression_of
from dit_compile.analysis.measured import Ways, speedup_of
from dit_compile.ir.fake import dtype_name
from dit_compile.ir.hints import Hints, symbol_hints
from dit_compile.ir.schema import argument
from dit_compile.kernels.attention import SDPA, torch_attention
from dit_compile.pipeline.rewriter import Rewriter

#: Attention is measured on at most so many heads, queries and keys, of one sample.
_HEADS, _QUERIES, _KEYS = 8, 1024, 2048

#: Sizes and strides of a tensor.
_Layout = tuple[Sequence[int], Sequence[int]]


def attentions_on_cpu(rw: Rewriter) -> Iterator[tuple[fx.Node, Hints]]:
    """Each attention of heads on a CPU in the graphs that serve steps, and its graph's sizes."""
    for graph in rw.graphs():
        hints = symbol_hints(graph)
        for node in graph.find_nodes(op="call_function", target=SDPA):
            values = [operand.meta["val"] for operand in operands_of(node)]
            if all(value.dim() == 4 and value.device.type == "cpu" for value in values):
                yield node, hints


def operands_of(node: fx.Node) -> list[fx.Node]:
    """Query, key and value."""
    return [argument(node, name) for name in ("query", "key", "value")]


def measured_speedup(
    what: str, node: fx.Node, hints: Hints, other: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> float:
    """How many times as fast attention of a node's sizes, type and layout is another way.

    It is measured once on a machine. Large ones are measured by smaller ones of the same strides,
    which flatters nothing: the fewer the queries, the more it weighs what is done once for all.

    Args:
        what: the other way, in words.
        node: attention of ``[batch, heads, tokens, width]``.
        hints: for symbolic sizes.
        other: that way, given query, key and value.
    """
    dtype = node.meta["val"].dtype
    query, key, value = (_layout(operand.meta["val"], hints) for operand in operands_of(node))
    layouts = _part(query, _QUERIES), _part(key, _KEYS), _part(value, _KEYS)
    shown = " ".join("x".join(map(str, (*sizes, *strides))) for sizes, strides in layouts)

    def make() -> Ways:
        q, k, v = (torch.empty_strided(*layout, dtype=dtype).fill_(1) for layout in layouts)
        return partial(torch_attention, q, k, v), partial(other, q, k, v)

    return speedup_of(f"{what} {shown} {dtype_name(dtype)}", make)


def _layout(value: Tensor, hints: Hints) -> _Layout:
    def known(sizes: Sequence[int]) -> list[int]:
        return [int(expression_of(size).xreplace(dict(hints))) for size in sizes]

    return known(value.shape), known(value.stride())


def _part(layout: _Layout, tokens: int) -> _Layout:
    """The heads of one sample that are measured."""
    (_, *sizes), (_, *strides) = layout
    return (1, *map(min, sizes, (_HEADS, tokens, sizes[-1]))), (0, *strides)
