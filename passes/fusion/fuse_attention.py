"""Attention written out by hand as one operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from dit_compile.ir.fake import same_size
from dit_compile.ir.program import Program
from dit_compile.passes.fusion.matching import Obstacle, is_cast
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten

_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_SCORES = (*_PRODUCTS, aten.baddbmm.default)
_SOFTMAX = (aten.softmax.int, aten._softmax.default)


@dataclass(frozen=True)
class _Match:
    """``softmax(scale * q @ kt + mask) @ v``, and all the nodes that it is made of."""

    q: fx.Node
    kt: fx.Node
    v: fx.Node
    scale: float
    mask: fx.Node | None
    nodes: tuple[fx.Node, ...]


@dataclass(frozen=True, kw_only=True)
class FuseAttention(Pass):
    """Attention written out by hand becomes ``scaled_dot_product_attention``.

    Before:  %s = aten.matmul(%q, %kt); %t = aten.mul(%s, 0.125); %m = aten.add(%t, %mask)
             %p = aten.softmax(%m, -1); %o = aten.matmul(%p, %v)
    After:   %o = aten.scaled_dot_product_attention(%q, %k, %v, %mask, scale=0.125)
    Fires only if: the softmax is over the last axis; nobody else reads what lies between; scale is
    a number that comes before the mask; the mask has the dtype of the query; query, key and value
    have the same leading axes. The softmax may be computed in a wider dtype.
    """

    name: ClassVar[str] = "fuse-attention"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        """Try each softmax as the middle of the pattern."""
        for graph in rw.graphs():
            for node in [n for n in graph.nodes if n.target in _SOFTMAX]:
                try:
                    found = _match(node)
                except Obstacle as obstacle:
                    rw.miss(node, obstacle.reason, obstacle.culprit)
                    continue
                if found is not None:
                    _replace(found, rw)


def _replace(found: _Match, rw: Rewriter) -> None:
    last = found.nodes[-1]
    rw.begin(last)

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return rw.call(target, *args, before=last, replaces=found.nodes, **kwargs)

    key = _transposed(found.kt) or call(aten.transpose.int, found.kt, -2, -1)
    given = [found.q, key, found.v]
    flat = found.q.meta["val"].dim() == 3  # the fast kernels want [batch, heads, tokens, width]
    if flat:
        given = [call(aten.unsqueeze.default, value, 1) for value in given]
    mask = found.mask
    if mask is not None and flat and mask.meta["val"].dim() == 3:
        mask = call(aten.unsqueeze.default, mask, 1)
    fused = call(
        aten.scaled_dot_product_attention.default, *given, mask, 0.0, False, scale=found.scale
    )
    rw.replace(last, call(aten.squeeze.dim, fused, 1) if flat else fused)


def _transposed(node: fx.Node) -> fx.Node | None:
    """What ``node`` is the transpose of, in the last two axes."""
    if node.target is not aten.transpose.int:
        return None
    source, *axes = node.args
    assert isinstance(source, fx.Node)
    rank = node.meta["val"].dim()
    return source if {int(axis) % rank for axis in axes} == {rank - 1, rank - 2} else None  # type: ignore[arg-type]


def _match(softmax: fx.Node) -> _Match | None:
    """The pattern around ``softmax``; ``None`` if it is something else.

    Raises:
        Obstacle: it is attention, but cannot be replaced.
    """
    probabilities, below = _through_casts(softmax)
    product = next((user for user in probabilities.users if user.target in _PRODUCTS), None)
    if product is None or product.args[0] is not probabilities:
        return None
    scores, above, scale, mask = _scores(softmax)
    if scores is None:
        return None
    between = (*above, softmax, *below)
    for node in (scores, *between):
        if len(node.users) > 1:
            raise Obstacle("what lies between the products has another user", node)
    (q, kt), v = scores.args[-2:], product.args[1]
    if scores.target is aten.baddbmm.default:
        scale, mask = _with_input(scores, scale, mask)
    assert isinstance(q, fx.Node)
    assert isinstance(kt, fx.Node)
    assert isinstance(v, fx.Node)
    _check_axes(softmax, q, kt, v)
    _check_mask(mask, q, scores)
    return _Match(q, kt, v, scale, mask, (scores, *between, product))


def _scores(softmax: fx.Node) -> tuple[fx.Node | None, tuple[fx.Node, ...], float, fx.Node | None]:
    """From the softmax up: the product of query and key, what lies between, scale and mask."""
    node, scale = softmax.args[0], 1.0
    mask: fx.Node | None = None
    above: list[fx.Node] = []
    while isinstance(node, fx.Node) and node.target not in _SCORES:
        factor = _factor(node)
        if factor is not None:
            scale *= factor
            above.insert(0, node)
            node = node.args[0]
        elif is_cast(node):
            above.insert(0, node)
            node = node.args[0]
        elif node.target is aten.add.Tensor and not node.kwargs and mask is None and scale == 1.0:
            scored = _scored(node)
            if scored is None:
                return None, (), 1.0, None
            above.insert(0, node)
            mask = next(arg for arg in node.args if arg is not scored)  # type: ignore[assignment]
            node = scored
        else:
            return None, (), 1.0, None
    return (node if isinstance(node, fx.Node) else None), tuple(above), scale, mask


def _with_input(
    scores: fx.Node, scale: float, mask: fx.Node | None
) -> tuple[float, fx.Node | None]:
    """Scale and mask when the product is ``beta * input + alpha * q @ kt`` itself.

    Raises:
        Obstacle: two masks are added, or one that is scaled.
    """
    beta, alpha = scores.kwargs.get("beta", 1), scores.kwargs.get("alpha", 1)
    assert isinstance(beta, (int, float))
    assert isinstance(alpha, (int, float))
    if beta == 0:
        return scale * alpha, mask
    added = scores.args[0]
    if mask is not None or beta != 1 or scale != 1:
        raise Obstacle("the mask is scaled, or there are two", added)  # type: ignore[arg-type]
    return alpha, added  # type: ignore[return-value]


def _scored(total: fx.Node) -> fx.Node | None:
    """The operand of ``total`` that leads up to a product through scales and casts alone."""
    for arg in total.args:
        node = arg
        while isinstance(node, fx.Node) and (_factor(node) is not None or is_cast(node)):
            node = node.args[0]
        if isinstance(node, fx.Node) and node.target in _SCORES and len(total.args) == 2:
            return arg  # type: ignore[return-value]
    return None


def _factor(node: fx.Node) -> float | None:
    """The number that ``node`` multiplies its first argument by."""
    if node.kwargs or node.target not in (aten.mul.Tensor, aten.mul.Scalar, aten.div.Tensor):
        return None
    number = node.args[1]
    if not isinstance(number, (int, float)) or number == 0:
        return None
    return 1 / number if node.target is aten.div.Tensor else float(number)


def _through_casts(softmax: fx.Node) -> tuple[fx.Node, tuple[fx.Node, ...]]:
    """The probabilities after casts, and those casts."""
    node, casts = softmax, []
    while len(node.users) == 1 and is_cast(user := next(iter(node.users))):
        node = user
        casts.append(user)
    return node, tuple(casts)


def _check_axes(softmax: fx.Node, q: fx.Node, kt: fx.Node, v: fx.Node) -> None:
    values = [node.meta["val"] for node in (q, kt, v)]
    dims = {value.dim() for value in values}
    if len(dims) > 1 or not dims <= {3, 4}:
        raise Obstacle("query, key and value do not all have 3 or all 4 axes", kt)
    (dim,) = dims
    if softmax.args[1] not in (-1, dim - 1):
        raise Obstacle("the softmax is not over the last axis")
    for value, node in zip(values[1:], (kt, v), strict=True):
        if not all(map(same_size, values[0].shape[:-2], value.shape[:-2])):
            raise Obstacle("the leading axes of query, key and value differ", node)
    if len({value.dtype for value in values}) > 1:
        raise Obstacle("query, key and value differ in dtype", v)


def _check_mask(mask: fx.Node | None, q: fx.Node, scores: fx.Node) -> None:
    if mask is None:
        return
    if not isinstance(mask, fx.Node):
        raise Obstacle("a number is added to the scores")
    value = mask.meta["val"]
    if value.dtype != q.meta["val"].dtype:
        raise Obstacle("the mask has another dtype than the query", mask)
    if not 2 <= value.dim() <= scores.meta["val"].dim():
        raise Obstacle("the mask has fewer than 2 axes, or more than the scores", mask)
