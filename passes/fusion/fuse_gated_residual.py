"""A gated residual addition and the adaptive norm that reads it as one operator."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dit_compile.ir.fake import mismatch, same_size
from dit_compile.ir.program import Program
from dit_compile.ops import adaln_norm, gated_residual, gated_residual_norm
from dit_compile.passes.fusion.matching import is_cast, operands, through_cast, uncast
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


@dataclass(frozen=True)
class _Match:
    """``stream + gate * branch``, cast to the stream's dtype at ``last``."""

    stream: fx.Node
    branch: fx.Node
    gate: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]


@dataclass(frozen=True)
class _Norm:
    """The adaptive norm of a sum, cast to its dtype at ``last``."""

    adaln: fx.Node
    nodes: tuple[fx.Node, ...]

    @property
    def last(self) -> fx.Node:
        return self.nodes[-1]

    @property
    def scale(self) -> Any:
        return self.adaln.args[1]

    @property
    def shift(self) -> Any:
        return self.adaln.args[2]

    @property
    def eps(self) -> Any:
        return self.adaln.args[3] if len(self.adaln.args) > 3 else 1e-5


@dataclass(frozen=True, kw_only=True)
class FuseGatedResidual(Pass):
    """A gated residual addition becomes one operator, with the adaptive norm that reads it.

    Before:  %g = aten.mul(%gate, %y); %r = aten.add(%x, %g)
             %n = ditc.adaln_norm(%r, %scale, %shift, eps)
    After:   %p = ditc.gated_residual_norm(%x, %y, %gate, %scale, %shift, eps)
             %r, %n = %p; or, with no such norm, %r = ditc.gated_residual(%x, %y, %gate)
    Fires only if: nobody else reads the product; stream, branch and sum have one shape; the sum has
    the stream's dtype, after a cast perhaps. With no norm, the gate must be the same for all
    tokens.

    Caching looks for residual additions, so it runs before.
    """

    name: ClassVar[str] = "fuse-gated-residual"
    kind: ClassVar[Kind] = Kind.EXACT
    after: ClassVar[tuple[str, ...]] = ("fuse-adaln", "insert-block-cache")

    def run(self, program: Program, rw: Rewriter) -> None:
        """Try each addition of two tensors."""
        for graph in rw.graphs():
            for add in list(graph.find_nodes(op="call_function", target=aten.add.Tensor)):
                found = _match(add, rw)
                if found is None:
                    continue
                norm = _norm(found.last)
                if norm is not None and (place := _place(found, norm, rw)):
                    _replace_both(found, norm, place, rw)
                elif _is_same_for_all_tokens(found.gate, add):
                    _replace(found, rw)


def _replace(found: _Match, rw: Rewriter) -> None:
    rw.begin(found.last)
    fused = rw.call(
        gated_residual,
        found.stream,
        found.branch,
        found.gate,
        before=found.last,
        replaces=found.nodes,
    )
    rw.replace(found.last, fused)


def _replace_both(found: _Match, norm: _Norm, place: fx.Node, rw: Rewriter) -> None:
    rw.begin(found.last)
    both = rw.call(
        gated_residual_norm,
        found.stream,
        found.branch,
        found.gate,
        norm.scale,
        norm.shift,
        norm.eps,
        before=place,
        replaces=(*found.nodes, *norm.nodes),
    )
    parts = [(norm.last, 1, norm.nodes)]
    if any(user not in norm.nodes for user in found.last.users):
        parts.insert(0, (found.last, 0, found.nodes))
    results = [
        rw.call(operator.getitem, both, at, before=place, replaces=old) for _, at, old in parts
    ]
    for (last, _, _), result in zip(reversed(parts), reversed(results), strict=True):
        rw.replace(last, result)


def _place(found: _Match, norm: _Norm, rw: Rewriter) -> fx.Node | None:
    """The first reader of the sum, if the norm's modulation is known before it."""
    readers = [user for user in found.last.users if user is not norm.nodes[0]]
    place = min((norm.adaln, *readers))
    late = [node for node in (norm.scale, norm.shift) if not node < place]
    if late:
        rw.miss(found.last, "the sum is read before the norm's modulation is known", late[0])
    return None if late else place


def _match(add: fx.Node, rw: Rewriter) -> _Match | None:
    """The gated addition at ``add``; near misses are recorded."""
    for stream, product in _orders(add, aten.add.Tensor):
        for branch, gate in _orders(product, aten.mul.Tensor):
            if not (_like(stream, add) and _like(branch, add)) or stream is product:
                continue
            source, last = _ends(stream, add)
            if not (_is_same_for_all_tokens(gate, add) or _norm(last)):
                continue
            if len(product.users) > 1:
                user = next(user for user in product.users if user is not add)
                rw.miss(add, "the gated value has another user", user)
                return None
            if mismatch(source.meta["val"], last.meta["val"]):
                rw.miss(add, "the sum has another dtype than the stream", source)
                return None
            return _Match(source, branch, gate, tuple(dict.fromkeys((product, add, last))))
    return None


def _ends(stream: fx.Node, add: fx.Node) -> tuple[fx.Node, fx.Node]:
    """The stream and the sum, both before or both behind the casts around the addition."""
    source, last = uncast(stream), through_cast(add)
    for pair in ((source, add), (source, last), (stream, add)):
        if not mismatch(pair[0].meta["val"], pair[1].meta["val"]):
            return pair
    return stream, add


def _orders(node: fx.Node, target: Any) -> list[tuple[fx.Node, fx.Node]]:
    """The operands of a binary operator in both orders; none if it is another one."""
    pair = operands(node, target)
    return [] if pair is None else [pair, (pair[1], pair[0])]


def _norm(total: fx.Node) -> _Norm | None:
    """The adaptive norm that reads ``total``, by way of a cast perhaps."""
    for user in total.users:
        is_between = is_cast(user) and user.args[0] is total and len(user.users) == 1
        adaln = next(iter(user.users)) if is_between else user
        read = user if is_between else total
        if adaln.target is not adaln_norm or adaln.args[0] is not read or read in adaln.args[1:3]:
            continue
        same = adaln.meta["val"].dtype == total.meta["val"].dtype
        last = adaln if same else through_cast(adaln)
        if not mismatch(total.meta["val"], last.meta["val"]):
            return _Norm(adaln, tuple(dict.fromkeys((user, adaln, last))))
    return None


def _like(node: fx.Node, add: fx.Node) -> bool:
    """Whether ``node`` has the shape of the sum."""
    have, want = node.meta["val"].shape, add.meta["val"].shape
    return len(have) == len(want) and all(map(same_size, have, want))


def _is_same_for_all_tokens(gate: fx.Node, add: fx.Node) -> bool:
    """Whether ``gate`` has a value for each channel and at most the first of the other axes."""
    have, want = gate.meta["val"].shape, add.meta["val"].shape
    if len(want) < 2 or not 0 < len(have) <= len(want) or not same_size(have[-1], want[-1]):
        return False
    first = have[: len(have) - 1] if len(have) < len(want) or len(want) == 2 else have[1:-1]
    return all(same_size(size, 1) for size in first)
