"""Layer norm and its adaptive modulation as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from dit_compile.ir.fake import mismatch
from dit_compile.ir.program import Program
from dit_compile.ops import adaln_norm
from dit_compile.passes.fusion.matching import other
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class _Match:
    norm: fx.Node
    plus_one: fx.Node
    product: fx.Node
    total: fx.Node
    scale: fx.Node
    shift: fx.Node


@dataclass(frozen=True, kw_only=True)
class FuseAdaLN(Pass):
    """Layer norm followed by ``* (1 + scale) + shift`` becomes one operator.

    Before:  %n = aten.layer_norm(%x, [D]); %s = aten.add(%scale, 1); %m = aten.mul(%n, %s)
             %y = aten.add(%m, %shift)
    After:   %y = ditc.adaln_norm(%x, %scale, %shift, eps)
    Fires only if: the norm is over the last axis alone, has no weight and no bias, and it and the
    product have no other user; the result keeps shape and dtype.
    """

    name: ClassVar[str] = "fuse-adaln"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        """Try each layer norm as the start of the pattern."""
        for graph in rw.graphs():
            for norm in list(graph.find_nodes(op="call_function", target=aten.layer_norm.default)):
                found = _match(norm, rw)
                if found is None:
                    continue
                rw.begin(found.total)
                fused = rw.call(
                    adaln_norm,
                    norm.args[0],
                    found.scale,
                    found.shift,
                    norm.args[4] if len(norm.args) > 4 else 1e-5,
                    before=found.total,
                    replaces=(norm, found.plus_one, found.product, found.total),
                )
                rw.replace(found.total, fused)


def _match(norm: fx.Node, rw: Rewriter) -> _Match | None:
    """The pattern that starts at ``norm``; near misses are recorded."""
    candidates = (_modulated(norm, user) for user in norm.users)
    found = next((match for match in candidates if match is not None), None)
    if found is None:
        return None
    obstacle = _obstacle(found)
    if obstacle is not None:
        rw.miss(norm, *obstacle)
        return None
    return found


def _obstacle(found: _Match) -> tuple[str, fx.Node | None] | None:
    """Why the pattern cannot be replaced, and because of whom."""
    norm, product, total = found.norm, found.product, found.total
    affine = [arg for arg in norm.args[2:4] if isinstance(arg, fx.Node)]
    if len(norm.args[1]) != 1:  # type: ignore[arg-type]
        return "the layer norm is over more than the last axis", None
    if affine:
        return "the layer norm has an affine weight", affine[0]
    if len(norm.users) > 1:
        return "the layer norm has another user", _another(norm, product)
    if len(product.users) > 1:
        return "the scaled value has another user", _another(product, total)
    if mismatch(norm.meta["val"], total.meta["val"]):
        return "the modulation changes the shape or dtype", found.shift
    return None


def _another(node: fx.Node, known: fx.Node) -> fx.Node:
    return next(user for user in node.users if user is not known)


def _modulated(norm: fx.Node, product: fx.Node) -> _Match | None:
    """``norm * (1 + scale) + shift`` with any order of operands."""
    if product.target is not aten.mul.Tensor or product.kwargs:
        return None
    plus_one = other(product, norm)
    scale = _one_plus(plus_one)
    if plus_one is None or scale is None:
        return None
    for total in product.users:
        if total.target is aten.add.Tensor and not total.kwargs:
            shift = other(total, product)
            if shift is not None:
                return _Match(norm, plus_one, product, total, scale, shift)
    return None


def _one_plus(node: fx.Node | None) -> fx.Node | None:
    """``scale`` if ``node`` is ``scale + 1``."""
    if node is None or node.target is not aten.add.Tensor or node.kwargs:
        return None
    left, right = node.args
    one = right if isinstance(left, fx.Node) else left
    value = left if isinstance(left, fx.Node) else right
    is_one = isinstance(one, (int, float)) and one == 1
    return value if is_one and isinstance(value, fx.Node) else None
