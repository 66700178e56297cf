"""Layer norm and RMS norm over the last axis, as one operator or written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import same_size
from dit_compile.passes.fusion.matching import operands, uncast

aten = torch.ops.aten


@dataclass(frozen=True)
class Norm:
    """``weight * norm(source) + bias`` over the last axis of ``source``.

    Attributes:
        source: what is normed, before any cast.
        weight, bias: one value for each channel, or none.
        eps: added to the variance, or to the mean square.
        centered: layer norm, and not RMS norm.
    """

    source: fx.Node
    weight: fx.Node | None
    bias: fx.Node | None
    eps: float
    centered: bool


def find_norm(node: fx.Node) -> Norm | None:
    """The norm whose result is ``node``, casts aside."""
    node = uncast(node)
    if node.target in (aten.layer_norm.default, aten.rms_norm.default):
        return _whole(node)
    if (bare := _written(node)) is not None:
        return Norm(bare[0], None, None, bare[1], centered=False)
    for inner, weight in _orders(node):
        bare = _written(uncast(inner))
        if bare is not None and _is_vector(weight, node):
            return Norm(bare[0], weight, None, bare[1], centered=False)
    return None


def _whole(node: fx.Node) -> Norm | None:
    centered = node.target is aten.layer_norm.default
    source, shape, weight, *rest = (*node.args, None, None, None)[: 5 if centered else 4]
    bias, eps = rest if centered else (None, rest[0])
    assert isinstance(source, fx.Node)
    if len(shape) != 1:  # type: ignore[arg-type]
        return None
    if eps is None:
        eps = 1e-5 if centered else torch.finfo(source.meta["val"].dtype).eps
    return Norm(uncast(source), weight, bias, eps, centered)  # type: ignore[arg-type]


def _written(node: Any) -> tuple[fx.Node, float] | None:
    """``x`` and ``eps`` where ``node`` is ``x * rsqrt(mean(x ** 2) + eps)``."""
    for value, factor in _orders(node):
        total = factor.args[0] if factor.target is aten.rsqrt.default else None
        if not isinstance(total, fx.Node) or total.target is not aten.add.Tensor or total.kwargs:
            continue
        mean, eps = uncast(total.args[0]), total.args[1]
        if not isinstance(eps, (int, float)) or not _is_mean_of_last(mean):
            continue
        source: fx.Node = uncast(value)
        if _squared(uncast(mean.args[0])) is source:
            return source, float(eps)
    return None


def _is_mean_of_last(node: Any) -> bool:
    if not isinstance(node, fx.Node) or node.target is not aten.mean.dim:
        return False
    rank = node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    dims: Any = node.args[1]
    keeps = len(node.args) > 2 and node.args[2] is True
    return keeps and [int(dim) % rank for dim in dims] == [rank - 1]


def _squared(node: fx.Node) -> fx.Node | None:
    """What ``node`` is the square of, casts aside."""
    if node.target is aten.pow.Tensor_Scalar and node.args[1] == 2:
        return uncast(node.args[0])  # type: ignore[no-any-return]
    if node.target is aten.square.default:
        return uncast(node.args[0])  # type: ignore[no-any-return]
    pair = operands(node, aten.mul.Tensor)
    return uncast(pair[0]) if pair and pair[0] is pair[1] else None


def _orders(node: Any) -> list[tuple[fx.Node, fx.Node]]:
    pair = operands(node, aten.mul.Tensor)
    return [] if pair is None else [pair, (pair[1], pair[0])]


def _is_vector(weight: fx.Node, node: fx.Node) -> bool:
    """Whether ``weight`` has one axis, the last of ``node``."""
    shape = weight.meta["val"].shape
    return len(shape) == 1 and same_size(shape[0], node.meta["val"].shape[-1])
