"""What the lowerings of attention ask about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx

from dit_compile.analysis.cost import Hints
from dit_compile.analysis.cost_rules import expression_of
from dit_compile.analysis.measured import Ways, speedup_of
from dit_compile.ir.fake import dtype_name
from dit_compile.ir.schema import argument

SDPA = torch.ops.aten.scaled_dot_product_attention.default

#: Attention is measured on at most so many heads, queries and keys, of one sample.
_HEADS, _QUERIES, _KEYS = 8, 1024, 2048

#: Sizes and strides of a tensor.
_Layout = tuple[Sequence[int], Sequence[int]]


def operands_of(node: fx.Node) -> list[fx.Node]:
    """Query, key and value."""
    return [argument(node, name) for name in ("query", "key", "value")]


def measured_speedup(
    what: str,
    node: fx.Node,
    hints: Hints,
    ways: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], Ways],
) -> float:
    """How many times as fast attention of a node's sizes, type and layout is another way.

    It is measured once on a machine. Large ones are measured by smaller ones of the same strides,
    which flatters nothing: the fewer the queries, the more it weighs what is done once for all.

    Args:
        what: the other way, in words.
        node: attention of ``[batch, heads, tokens, width]``.
        hints: for symbolic sizes.
        ways: torch's way and the other, given query, key and value.
    """
    dtype = node.meta["val"].dtype
    query, key, value = (_layout(operand.meta["val"], hints) for operand in operands_of(node))
    layouts = _part(query, _QUERIES), _part(key, _KEYS), _part(value, _KEYS)
    shown = " ".join("x".join(map(str, (*sizes, *strides))) for sizes, strides in layouts)

    def make() -> Ways:
        return ways(*(torch.empty_strided(*layout, dtype=dtype).fill_(1) for layout in layouts))

    return speedup_of(f"{what} {shown} {dtype_name(dtype)}", make)


def _layout(value: torch.Tensor, hints: Hints) -> _Layout:
    def known(sizes: Sequence[int]) -> list[int]:
        return [int(expression_of(size).xreplace(dict(hints))) for size in sizes]

    return known(value.shape), known(value.stride())


def _part(layout: _Layout, tokens: int) -> _Layout:
    """The heads of one sample that are measured."""
    (_, *sizes), (_, *strides) = layout
    return (1, *map(min, sizes, (_HEADS, tokens, sizes[-1]))), (0, *strides)
