"""The norm of queries and keys and their rotary embedding as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx
from torch._prims_common import make_contiguous_strides_for

from dit_compile.ir.fake import same_size
from dit_compile.ir.program import Program
from dit_compile.ops import norm_rotary
from dit_compile.passes.fusion.matching import Obstacle, interior, outsider, through_cast, uncast
from dit_compile.passes.fusion.norms import Norm, find_norm
from dit_compile.passes.fusion.rotary import Rotation, find_rotation
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten

_LAYOUTS = (
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    aten.transpose.int,
    aten.permute.default,
)


@dataclass(frozen=True)
class _Part:
    """Tokens of one norm: the norm, and how its result is laid out until it is turned."""

    norm: Norm
    layout: tuple[fx.Node, ...]
    across_heads: bool


@dataclass(frozen=True)
class _Match:
    """The rotation of one part, or of several that are put side by side along ``axis``."""

    rotation: Rotation
    parts: tuple[_Part, ...]
    axis: int
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True, kw_only=True)
class FuseNormRotary(Pass):
    """The norm of queries or keys and the rotary embedding that follows become one operator.

    Before:  %n = aten.rms_norm(%q, [D], @w, eps); %a, %b = aten.unbind(aten.view(%n, ...), -1)
             %t = aten.view(aten.stack([aten.neg(%b), %a], -1), ...)
             %r = aten.add(aten.mul(%n, %cos), aten.mul(%t, %sin))
    After:   %r = ditc.norm_rotary(%q, @w, None, %cos, %sin, eps, False, False, True)
    Fires only if: nobody else reads what lies between; the norm is over the channels of a head or
    of all heads, with nothing but views and transposes behind it; the result has the dtype of what
    is normed.
    Where the tokens of two norms are put together first, each part is turned by itself.

    Pairs may be neighbours or halves, turned by real or complex numbers.
    """

    name: ClassVar[str] = "fuse-norm-rotary"
    kind: ClassVar[Kind] = Kind.EXACT
    after: ClassVar[tuple[str, ...]] = ("insert-block-cache",)

    def run(self, program: Program, rw: Rewriter) -> None:
        """Try each node that may end a rotation."""
        for graph in rw.graphs():
            angles: dict[fx.Node, tuple[fx.Node, fx.Node]] = {}
            for node, rotation in _rotations(graph):
                try:
                    found = _match(node, rotation)
                except Obstacle as obstacle:
                    rw.miss(node, obstacle.reason, obstacle.culprit)
                    continue
                _replace(found, angles, rw)


def _rotations(graph: fx.Graph) -> list[tuple[fx.Node, Rotation]]:
    """All rotations, each with the node that ends it."""
    tried = ((node, find_rotation(node)) for node in graph.nodes if node.op == "call_function")
    return [(node, rotation) for node, rotation in tried if rotation is not None]


def _match(node: fx.Node, rotation: Rotation) -> _Match:
    """What to replace.

    Raises:
        Obstacle: there is no norm, or the operator would not do the same.
    """
    turned = rotation.source
    pieces, axis = (turned,), 0
    if turned.target is aten.cat.default:
        pieces = tuple(turned.args[0])  # type: ignore[arg-type]
        rank = turned.meta["val"].dim()
        axis = int(turned.args[1] if len(turned.args) > 1 else 0) % rank - rank  # type: ignore[arg-type]
        _check_pieces(turned, pieces, axis)
    parts = tuple(_part(piece) for piece in pieces)
    last = through_cast(node)
    given = {rotation.cos, rotation.sin}
    for norm in (part.norm for part in parts):
        given |= {norm.source, *filter(None, (norm.weight, norm.bias))}
    nodes = interior(last, given)
    if leak := outsider(nodes, last):
        raise Obstacle("what lies between norm and rotation has another user", leak)
    made, wanted = turned.meta["val"], last.meta["val"]
    if len({wanted.dtype, *(part.norm.source.meta["val"].dtype for part in parts)}) > 1:
        raise Obstacle("the result has another dtype than what is normed", last)
    if len(made.shape) != len(wanted.shape) or not all(map(same_size, made.shape, wanted.shape)):
        raise Obstacle("the rotation changes the shape", rotation.cos)
    return _Match(rotation, parts, axis, tuple(nodes))


def _check_pieces(turned: fx.Node, pieces: tuple[fx.Node, ...], axis: int) -> None:
    if axis == -1:
        raise Obstacle("channels are put together before the rotation", turned)
    for piece in pieces:
        if not isinstance(piece.meta["val"].shape[axis], int):
            raise Obstacle("tokens are put together, and their number is open", piece)


def _part(piece: fx.Node) -> _Part:
    """The norm behind one part of what is turned.

    Raises:
        Obstacle: there is none, or it does not stay in place until the rotation.
    """
    layout: list[fx.Node] = []
    node = uncast(piece)
    while (norm := find_norm(node)) is None:
        if node.target not in _LAYOUTS:
            raise Obstacle("no norm comes before the rotation", node)
        layout.insert(0, node)
        node = uncast(node.args[0])
    before = norm.source.meta["val"].shape
    if all(map(_keeps_channels, layout)):
        return _Part(norm, tuple(layout), across_heads=False)
    if len(layout) == 1 and _splits_heads(before, layout[0].meta["val"].shape):
        return _Part(norm, tuple(layout), across_heads=True)
    raise Obstacle("channels are moved between norm and rotation", layout[-1])


def _keeps_channels(step: fx.Node) -> bool:
    """Whether a change of layout leaves the last axis alone."""
    source, rest = step.args[0], step.args[1:]
    assert isinstance(source, fx.Node)
    rank = source.meta["val"].dim()
    if step.target is aten.transpose.int:
        return all(int(axis) % rank != rank - 1 for axis in rest)  # type: ignore[arg-type]
    if step.target is aten.permute.default:
        return bool(rest[0][-1] % rank == rank - 1)  # type: ignore[index]
    return same_size(source.meta["val"].shape[-1], step.meta["val"].shape[-1])


def _splits_heads(before: Any, after: Any) -> bool:
    """Whether a view only splits the last axis in two."""
    return len(after) == len(before) + 1 and all(map(same_size, before[:-1], after[:-2]))


def _replace(found: _Match, angles: dict[fx.Node, tuple[fx.Node, fx.Node]], rw: Rewriter) -> None:
    last = found.nodes[-1]
    rw.begin(last)

    def call(target: Any, *args: Any) -> fx.Node:
        return rw.call(target, *args, before=last, replaces=found.nodes)

    cos, sin = found.rotation.cos, found.rotation.sin
    if cos is sin:
        if cos not in angles:
            real = call(aten.view_as_real.default, cos)
            angles[cos] = call(aten.select.int, real, -1, 0), call(aten.select.int, real, -1, 1)
        cos, sin = angles[cos]
    made, start = [], 0
    for part in found.parts:
        value, norm = part.norm.source, part.norm
        for step in part.layout:
            value = call(step.target, value, *step.args[1:])
        near = []
        for angle in (cos, sin):
            shape = angle.meta["val"].shape
            is_cut = len(found.parts) > 1 and len(shape) >= -found.axis and shape[found.axis] != 1
            stop = start + value.meta["val"].shape[found.axis] if is_cut else None
            near.append(call(aten.slice.Tensor, angle, found.axis, start, stop) if stop else angle)
        start += value.meta["val"].shape[found.axis]
        flags = norm.centered, part.across_heads, found.rotation.interleaved
        made.append(call(norm_rotary, value, norm.weight, norm.bias, *near, norm.eps, *flags))
    whole = made[0] if len(made) == 1 else call(aten.cat.default, made, found.axis)
    if _is_contiguous(last) and not _is_contiguous(whole):  # a view of it may rely on that
        whole = call(aten.contiguous.default, whole)
    rw.replace(last, whole)


def _is_contiguous(node: fx.Node) -> bool:
    value = node.meta["val"]
    return all(map(same_size, value.stride(), make_contiguous_strides_for(value.shape)))
