"""ditc's own operators, in the namespace ``ditc::``.

Each is defined by its reference decomposition in plain ATen. That decomposition also gives the
fake values, the derivative, and what Inductor compiles where no kernel is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_LIBRARY = torch.library.Library("ditc", "DEF")  # type: ignore[no-untyped-call]

#: What each operator is in plain ATen, for files that must do without this library.
DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {}


def _operator(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Define an operator by its schema and the decorated decomposition, and return it."""
    name = schema.partition("(")[0]

    def define(decomposition: Callable[..., Any]) -> Any:
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        # vmap, by which the rows of all steps are made at once, decomposes it too: said apart, or
        # it warns.
        for key in ("FuncTorchBatchedDecomposition", "CompositeImplicitAutograd"):
            torch.library.impl(_LIBRARY, name, key)(decomposition)
        operator = getattr(torch.ops.ditc, name).default
        DECOMPOSITIONS[operator] = decomposition
        return operator

    return define


@_operator("adaln_norm(Tensor x, Tensor scale, Tensor shift, float eps=1e-05) -> Tensor")
def adaln_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm without weights over the last axis, then ``* (1 + scale) + shift``.

    ``x`` is ``[..., D]``; ``scale`` and ``shift`` broadcast to it. Adaptive layer norm of
    "Scalable Diffusion Models with Transformers", Peebles and Xie, 2023.
    """
    normed: Tensor = aten.layer_norm.default(x, [x.shape[-1]], None, None, eps)
    return normed * (1 + scale) + shift


@_operator("gated_residual(Tensor x, Tensor y, Tensor gate) -> Tensor")
def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    """``x + gate * y`` in the dtype of ``x``; ``gate`` broadcasts to ``x`` and ``y``."""
    return (x + gate * y).to(x.dtype)


@_operator(
    "gated_residual_norm(Tensor x, Tensor y, Tensor gate, Tensor scale, Tensor shift,"
    " float eps=1e-05) -> (Tensor, Tensor)"
)
def gated_residual_norm(
    x: Tensor, y: Tensor, gate: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """:func:`gated_residual`, and :func:`adaln_norm` of it, both in the dtype of ``x``.

    The norm is computed in the widest dtype of its operands.
    """
    total = (x + gate * y).to(x.dtype)
    wide = torch.promote_types(torch.promote_types(x.dtype, scale.dtype), shift.dtype)
    normed: Tensor = aten.layer_norm.default(total.to(wide), [x.shape[-1]], None, None, eps)
    return total, (normed * (1 + scale) + shift).to(x.dtype)


@_operator(
    "norm_rotary(Tensor x, Tensor? weight, Tensor? bias, Tensor cos, Tensor sin, float eps,"
    " bool centered, bool across_heads, bool interleaved) -> Tensor"
)
def norm_rotary(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    eps: float,
    centered: bool,
    across_heads: bool,
    interleaved: bool,
) -> Tensor:
    """Norm of queries or keys, then rotary position embedding, in the dtype of ``x``.

    The pair ``(a, b)`` of channels becomes ``(a * cos - b * sin, b * cos + a * sin)``. Rotary
    position embedding of "RoFormer", Su et al., 2021.

    Args:
        x: ``[..., heads, D]`` or, unless the norm is across heads, any ``[..., D]``.
        weight: of the norm, ``[D]``, or ``[heads * D]`` across heads.
        bias: like ``weight``; only if ``centered``.
        cos: broadcasts to ``x`` but for the last axis, which has a value for each channel (D) or
            for each pair (D / 2).
        sin: like ``cos``.
        eps: of the norm.
        centered: layer norm, and not RMS norm.
        across_heads: the norm is over the last two axes together.
        interleaved: pairs are channels 2i and 2i + 1, and not i and D / 2 + i.
    """
    rows = x.flatten(-2) if across_heads else x
    if centered:
        normed: Tensor = aten.layer_norm.default(rows, [rows.shape[-1]], weight, bias, eps)
    else:
        normed = _rms_norm(rows, weight, eps)
    normed = normed.reshape(x.shape)
    left, right = _halves(normed, interleaved)
    if cos.shape[-1] == x.shape[-1]:
        return (normed * cos + _joined(-right, left, interleaved) * sin).to(x.dtype)
    turned = left * cos - right * sin, right * cos + left * sin
    return _joined(*turned, interleaved).to(x.dtype)


def _rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """As ``aten.rms_norm`` computes it, laid out as ``x``."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    normed = (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)
    return normed if weight is None else normed * weight


def _halves(value: Tensor, interleaved: bool) -> tuple[Tensor, ...]:
    """The first and the second channels of all pairs."""
    if interleaved:
        return value.reshape(*value.shape[:-1], -1, 2).unbind(-1)
    return value.chunk(2, -1)


def _joined(left: Tensor, right: Tensor, interleaved: bool) -> Tensor:
    """What :func:`_halves` took apart."""
    if interleaved:
        return torch.stack((left, right), -1).flatten(-2)
    return torch.cat((left, right), -1)


@_operator("forecast(Tensor coefficients, Tensor[] values) -> Tensor")
def forecast(coefficients: Tensor, values: list[Tensor]) -> Tensor:
    """``sum_i coefficients[i] * values[i]``, added up in float32 at least.

    ``coefficients`` is ``[n]``; ``values`` are n tensors of one shape and dtype, which the result
    has too. Finite differences, and so every polynomial forecast, are sums of this form.
    """
    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = coefficients[0] * values[0].to(wide)
    for i in range(1, len(values)):
        total = total + coefficients[i] * values[i].to(wide)
    return total.to(values[0].dtype)
