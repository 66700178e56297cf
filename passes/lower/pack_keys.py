"""Lay the keys and values of attention out head by head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from dit_compile.ir.program import Program
from dit_compile.kernels.attention import torch_attention
from dit_compile.passes.lower.attention import (
    attentions_on_cpu,
    measured_speedup,
    operands_of,
)
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


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
        for node, hints in attentions_on_cpu(rw):
            if not _scattered(node):
                continue
            gain = measured_speedup("packed keys", node, hints, _attend_packed)
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
    packed = operands_of(node)[1:]
    return dict.fromkeys(each for each in packed if not each.meta["val"].is_contiguous())


def _attend_packed(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return torch_attention(query, key.contiguous(), value.contiguous())
