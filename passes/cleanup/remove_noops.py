"""Remove operators that return their argument unchanged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dit_compile.ir.fake import mismatch, same_laziness
from dit_compile.ir.memory import would_share
from dit_compile.ir.program import Program
from dit_compile.ir.purity import is_idle_dropout
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class RemoveNoops(Pass):
    """Remove operators that return their argument unchanged.

    Before:  %a = aten.dropout(%x, 0.0, False); %b = aten.div(%a, 1.0); %c = aten.linear(%b, @w)
    After:   %c = aten.linear(%x, @w)
    Fires only if: shape, dtype, device and, for copies, layout of the result are the argument's;
    a copy stays where the caller would get memory of an input or of another result in its place.
    """

    name: ClassVar[str] = "remove-noops"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        """Look at each node once, in order, so that chains collapse."""
        for graph in rw.graphs():
            for node in list(graph.nodes):
                rule = _RULES.get(node.target)
                if rule is None or not isinstance(node.args[0], fx.Node):
                    continue
                source = node.args[0]
                if program.training and node.target in _GRADIENT:
                    continue
                if not rule(node) or mismatch(node.meta["val"], source.meta["val"]):
                    continue
                if not same_laziness(node.meta["val"], source.meta["val"]):
                    rw.miss(node, "it writes out a conjugation or negation", source)
                    continue
                if shared := would_share(node, source):
                    rw.miss(node, shared, source)
                    continue
                rw.begin(node)
                rw.replace(node, source)


def _always(node: fx.Node) -> bool:
    """Equal shape and dtype is all it takes."""
    return True


def _by(neutral: float) -> Callable[[fx.Node], bool]:
    """A binary operator with a Python number that changes nothing, without other options."""

    def rule(node: fx.Node) -> bool:
        other: Any = node.args[1] if len(node.args) > 1 else None
        plain = isinstance(other, (int, float)) and not isinstance(other, bool)
        return plain and other == neutral and not node.kwargs and len(node.args) == 2

    return rule


def _same_layout(node: fx.Node) -> bool:
    """A copy into a layout that the argument already has."""
    if set(node.kwargs) - {"memory_format", "dtype", "device"}:
        return False
    made, source = node.meta["val"], node.args[0].meta["val"]  # type: ignore[union-attr]
    return tuple(made.stride()) == tuple(source.stride())


def _full_range(node: fx.Node) -> bool:
    """A slice whose result has its argument's shape and whose step is one."""
    return len(node.args) < 5 or bool(node.args[4] == 1)


def _identity_permutation(node: fx.Node) -> bool:
    order: Any = node.args[1]
    return [dim % len(order) for dim in order] == list(range(len(order)))


_RULES: dict[Any, Callable[[fx.Node], bool]] = {
    aten.dropout.default: is_idle_dropout,
    aten.div.Tensor: _by(1),
    aten.mul.Tensor: _by(1),
    aten.add.Tensor: _by(0),
    aten.sub.Tensor: _by(0),
    aten.pow.Tensor_Scalar: _by(1),
    aten.view.default: _always,
    aten.reshape.default: _always,
    aten._unsafe_view.default: _always,
    aten.expand.default: _always,
    aten.permute.default: _identity_permutation,
    aten.slice.Tensor: _full_range,
    aten.alias.default: _always,
    aten.detach.default: _always,
    aten.lift_fresh_copy.default: _always,
    aten.clone.default: _same_layout,
    aten.contiguous.default: _same_layout,
    aten._to_copy.default: _same_layout,
    aten.to.dtype: _always,
}

#: Operators that cut or carry the gradient's path and so mean something while autograd records.
_GRADIENT = {aten.detach.default, aten.alias.default}
