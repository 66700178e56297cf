"""How far two predictions are apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import tensor_of
from dit_compile.ir.program import output_node
from dit_compile.pipeline.rewriter import Rewriter

aten = torch.ops.aten


def angle(rw: Rewriter, one: fx.Node, two: fx.Node) -> fx.Node:
    """The largest ``1 - cos`` between a sample of ``one`` and its fellow in ``two``.

    Args:
        rw: the rewriter, in whose current graph it is computed, in float32.
        one: samples ``[N, ...]``.
        two: as many of the same sizes.
    """
    end = output_node(rw.graph)

    def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return rw.call(target, *args, before=end, replaces=[one, two], **kwargs)

    def dot(left: fx.Node, right: fx.Node) -> fx.Node:
        rest = list(range(1, tensor_of(left).dim()))
        return call(aten.sum.dim_IntList, call(aten.mul.Tensor, left, right), rest)

    a, b = (call(aten._to_copy.default, node, dtype=torch.float32) for node in (one, two))
    sizes = call(aten.mul.Tensor, dot(a, a), dot(b, b))
    cosine = call(aten.mul.Tensor, dot(a, b), call(aten.rsqrt.default, sizes))
    return call(aten.rsub.Scalar, call(aten.amin.default, cosine, [0]), 1.0)
