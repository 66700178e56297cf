"""Lay the keys and values of attention out head by head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import fx

from dit_compile.analysis.cost import Hints, symbol_hints
from dit_compile.analysis.cost_rules import expression_of
from dit_compile.analysis.measured import Ways, speedup_of
from dit_compile.ir.fake import dtype_name
from dit_compile.ir.program import Program
from dit_compile.ir.schema import argument
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten

_SDPA = aten.scaled_dot_product_attention.default

#: Attention is measured on at most so many heads, queries and keys, of one sample.
_PROBE_HEADS, _PROBE_QUERIES, _PROBE_KEYS = 8, 1024, 2048

#: Sizes and strides of a tensor.
Layout = tuple[Sequence[int], Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class PackKeys(Pass):
    """Lay the keys and values of attention out head by head.

    Before:  %o = aten.scaled_dot_product_attention(%q, %k, %v)
    After:   %o = aten.scaled_dot_product_attention(%q, aten.clone(%k), aten.clone(%v))
    Fires only if: on a CPU, the heads of a token lie side by side, as projections leave them, and
    attention of this size and layout was measured to be ``min_speedup`` times as fast with
    copies in which the tokens of a head do, copying included. Queries stay as they are, since the
    result has their layout.

    Attributes:
        min_speedup: how much faster attention must be.
    """

    name: ClassVar[str] = "pack-keys"
    kind: ClassVar[Kind] = Kind.LOWER
    min_speedup: float = 1.03

    def run(self, program: Program, rw: Rewriter) -> None:
        """Look at each attention of the graphs that serve steps."""
        for graph in rw.graphs():
            hints = symbol_hints(graph)
            for node in graph.find_nodes(op="call_function", target=_SDPA):
                if not _could_gain(node):
                    continue
                gain = _speedup(node, hints)
                if gain >= self.min_speedup:
                    _pack(node, rw)
                else:
                    rw.miss(node, f"with packed keys it is {gain:.2f}x as fast")


def _pack(node: fx.Node, rw: Rewriter) -> None:
    rw.begin(node)
    layout = torch.contiguous_format
    for old in _scattered(node):
        new = rw.call(aten.clone.default, old, memory_format=layout, before=node, replaces=[old])
        rw.replace_input(node, old, new)


def _scattered(node: fx.Node) -> dict[fx.Node, None]:
    """Keys and values whose heads are not in one piece each."""
    packed = _operands(node)[1:]
    return dict.fromkeys(each for each in packed if not each.meta["val"].is_contiguous())


def _could_gain(node: fx.Node) -> bool:
    """On a CPU, with a batch of heads, some of them scattered."""
    values = [operand.meta["val"] for operand in _operands(node)]
    heads = all(value.dim() == 4 and value.device.type == "cpu" for value in values)
    return heads and bool(_scattered(node))


def _speedup(node: fx.Node, hints: Hints) -> float:
    dtype = node.meta["val"].dtype
    return speedup(dtype, *(_layout(operand.meta["val"], hints) for operand in _operands(node)))


def speedup(dtype: torch.dtype, queries: Layout, keys: Layout, values: Layout) -> float:
    """How many times as fast attention is with packed keys, measured once on this machine.

    Large ones are measured by smaller ones of the same strides, which flatters nothing: the fewer
    the queries, the more the copies weigh.

    Args:
        dtype: of all.
        queries: sizes ``[batch, heads, tokens, width]`` and strides.
        keys: likewise.
        values: likewise.
    """
    layouts = [
        _part(queries, _PROBE_QUERIES),
        _part(keys, _PROBE_KEYS),
        _part(values, _PROBE_KEYS),
    ]
    shown = " ".join("x".join(map(str, (*sizes, *strides))) for sizes, strides in layouts)
    return speedup_of(f"packed keys {shown} {dtype_name(dtype)}", partial(_ways, dtype, layouts))


def _part(layout: Layout, tokens: int) -> Layout:
    """The heads of one sample that are measured."""
    (_, *sizes), (_, *strides) = layout
    return (1, *map(min, sizes, (_PROBE_HEADS, tokens, sizes[-1]))), (0, *strides)


def _ways(dtype: torch.dtype, layouts: Sequence[Layout]) -> Ways:
    q, k, v = (torch.empty_strided(*layout, dtype=dtype).fill_(1) for layout in layouts)
    grouped = q.shape[1] != k.shape[1]
    return (
        lambda: _SDPA(q, k, v, enable_gqa=grouped),
        lambda: _SDPA(q, k.contiguous(), v.contiguous(), enable_gqa=grouped),
    )


def _layout(value: torch.Tensor, hints: Hints) -> Layout:
    def known(sizes: Sequence[int]) -> list[int]:
        return [int(expression_of(size).xreplace(dict(hints))) for size in sizes]

    return known(value.shape), known(value.stride())


def _operands(node: fx.Node) -> list[fx.Node]:
    """Query, key and value."""
    return [argument(node, name) for name in ("query", "key", "value")]
