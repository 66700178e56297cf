"""Rotary position embedding in the forms in which it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import same_size
from dit_compile.passes.fusion.matching import is_cast, operands, uncast

aten = torch.ops.aten

_VIEWS = (aten.view.default, aten._unsafe_view.default, aten.reshape.default)
_SPLITS = (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default)


@dataclass(frozen=True)
class Rotation:
    """Pairs of channels turned by angles: ``(a cos - b sin, b cos + a sin)``.

    Attributes:
        source: what is turned, before any cast.
        cos, sin: a value for each channel or each pair; both the same node where they are the
            parts of one complex number for each pair.
        interleaved: pairs are channels 2i and 2i + 1, and not i and D / 2 + i.
    """

    source: fx.Node
    cos: fx.Node
    sin: fx.Node
    interleaved: bool

    @property
    def is_complex(self) -> bool:
        """Whether cosine and sine are parts of one number."""
        return self.cos is self.sin


def find_rotation(node: fx.Node) -> Rotation | None:
    """The rotation whose result is ``node``; a cast of it does not count."""
    if is_cast(node):
        return None
    return _by_channels(node) or _by_halves(node) or _complex(node)


def _by_channels(node: fx.Node) -> Rotation | None:
    """``x * cos + turned * sin``, where ``turned`` is x with each pair (a, b) as (-b, a)."""
    for kept, moved in _orders(node, aten.add.Tensor):
        for turned, sin in _orders(moved, aten.mul.Tensor):
            halves = _joined(turned)
            if halves is None or uncast(halves[0]).target is not aten.neg.default:
                continue
            source = _source(uncast(uncast(halves[0]).args[0]), uncast(halves[1]), halves[2])
            for value, cos in _orders(kept, aten.mul.Tensor):
                if source is not None and uncast(value) is source and cos is not sin:
                    return Rotation(source, cos, sin, halves[2])
    return None


def _by_halves(node: fx.Node) -> Rotation | None:
    """``join(a * cos - b * sin, a * sin + b * cos)``."""
    halves = _joined(node)
    if halves is None:
        return None
    difference = operands(uncast(halves[0]), aten.sub.Tensor)
    total = operands(uncast(halves[1]), aten.add.Tensor)
    if difference is None or total is None:
        return None
    for a, cos in _orders(difference[0], aten.mul.Tensor):
        for b, sin in _orders(difference[1], aten.mul.Tensor):
            crossed = {frozenset((a, sin)), frozenset((b, cos))}
            products = [operands(side, aten.mul.Tensor) for side in total]
            source = _source(uncast(b), uncast(a), halves[2])
            if source is not None and {frozenset(p or ()) for p in products} == crossed:
                return Rotation(source, cos, sin, halves[2]) if cos is not sin else None
    return None


def _complex(node: fx.Node) -> Rotation | None:
    """The product of complex numbers: pairs of channels, and one number for each pair."""
    if node.target not in _VIEWS or not _is_target(node.args[0], aten.view_as_real.default):
        return None
    product = node.args[0].args[0]  # type: ignore[union-attr]
    for value, factor in _orders(product, aten.mul.Tensor):
        if value.target is not aten.view_as_complex.default:
            continue
        source = _unpaired(value.args[0], -1)
        if source is not None and factor.meta["val"].is_complex() and _has_shape(node, source):
            return Rotation(source, factor, factor, interleaved=True)
    return None


def _source(second: Any, first: Any, interleaved: bool) -> fx.Node | None:
    """What ``first`` and ``second`` are the halves of, casts aside."""
    one, two = _half(first), _half(second)
    if one is None or two is None or (one[1], two[1]) != (0, 1):
        return None
    same = one[0] is two[0] and one[2] == two[2] == interleaved
    return uncast(one[0]) if same else None


def _half(node: Any) -> tuple[fx.Node, int, bool] | None:
    """What ``node`` is half of, which half of it, and whether every other channel."""
    if not isinstance(node, fx.Node):
        return None
    if node.target is aten.slice.Tensor:
        return _sliced(node)
    if not isinstance(node.args[0] if node.args else None, fx.Node) or "getitem" not in str(
        node.target
    ):
        return None
    parts, at = node.args[0], node.args[1]
    assert isinstance(parts, fx.Node)
    if parts.target is aten.unbind.int and len(parts.meta["val"]) == 2:
        axis = _from_the_end(parts.args[0], parts.args[1] if len(parts.args) > 1 else 0)
        source = _unpaired(parts.args[0], axis) if axis in (-1, -2) else None
        return None if source is None else (source, at, axis == -1)  # type: ignore[return-value]
    if parts.target in _SPLITS and len(parts.meta["val"]) == 2:
        source = parts.args[0]  # type: ignore[assignment]
        axis = _from_the_end(source, parts.args[2] if len(parts.args) > 2 else 0)
        if axis == -1 and _is_half(node, source):
            return source, at, False  # type: ignore[return-value]
    return None


def _sliced(node: fx.Node) -> tuple[fx.Node, int, bool] | None:
    defaults: tuple[Any, ...] = (0, None, None, 1)
    given: tuple[Any, ...] = node.args
    source, dim, start, _, step = given + defaults[len(given) - 1 :]
    if _from_the_end(source, dim) != -1 or not _is_half(node, source):
        return None
    start = start or 0
    if step == 2 and start in (0, 1):
        return source, start, True
    width = source.meta["val"].shape[-1]
    if step == 1 and isinstance(width, int) and start in (0, width // 2):
        return source, int(start != 0), False
    return None


def _joined(node: fx.Node) -> tuple[Any, Any, bool] | None:
    """The halves that ``node`` puts together, first and second, and whether channel by channel."""
    node = uncast(node)
    if node.target is aten.cat.default:
        parts: Any = node.args[0]
        axis = _from_the_end(node, node.args[1] if len(node.args) > 1 else 0)
        if len(parts) == 2 and axis == -1 and _is_half(parts[0], node):
            return parts[0], parts[1], False
    if node.target in _VIEWS and _is_target(node.args[0], aten.stack.default):
        stack: Any = node.args[0]
        parts = stack.args[0]
        axis = _from_the_end(stack, stack.args[1] if len(stack.args) > 1 else 0)
        if len(parts) == 2 and axis in (-1, -2) and _is_half(parts[0], node):
            return parts[0], parts[1], axis == -1
    if node.target is aten.slice_scatter.default:
        return _scattered(node)
    return None


def _scattered(node: fx.Node) -> tuple[Any, Any, bool] | None:
    """Every other channel written over, then the others."""
    written: dict[Any, Any] = {}
    at: Any = node
    for _ in range(2):
        if not _is_target(at, aten.slice_scatter.default) or len(at.args) != 6:
            return None
        base, part, dim, start, _, step = at.args
        if _from_the_end(at, dim) != -1 or step != 2 or not _is_half(part, at):
            return None
        written[start] = part
        at = base
    return (written[0], written[1], True) if written.keys() == {0, 1} else None


def _unpaired(node: Any, axis: int) -> fx.Node | None:
    """What is viewed with its last axis split in two, one of them of size 2 at ``axis``."""
    node = uncast(node)
    if not isinstance(node, fx.Node) or node.target not in _VIEWS:
        return None
    source, shape = node.args[0], node.meta["val"].shape
    assert isinstance(source, fx.Node)
    whole = source.meta["val"].shape
    same = len(shape) == len(whole) + 1 and all(map(same_size, shape[:-2], whole[:-1]))
    return uncast(source) if same and same_size(shape[axis], 2) else None


def _orders(node: Any, target: Any) -> Iterator[tuple[fx.Node, fx.Node]]:
    pair = operands(uncast(node), target)
    if pair is not None:
        yield pair
        yield pair[1], pair[0]


def _is_target(node: Any, target: Any) -> bool:
    return isinstance(node, fx.Node) and node.target is target


def _from_the_end(node: Any, dim: Any) -> int:
    """An axis, counted from the end: the last is -1."""
    rank: int = node.meta["val"].dim()
    return int(dim) % rank - rank


def _is_half(part: Any, whole: Any) -> bool:
    """Whether ``part`` has the shape of ``whole`` with half of the last axis."""
    have, want = part.meta["val"].shape, whole.meta["val"].shape
    return (
        len(have) == len(want)
        and all(map(same_size, have[:-1], want[:-1]))
        and same_size(2 * have[-1], want[-1])
    )


def _has_shape(left: fx.Node, right: fx.Node) -> bool:
    have, want = left.meta["val"].shape, right.meta["val"].shape
    return len(have) == len(want) and all(map(same_size, have, want))
