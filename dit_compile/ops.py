"""ditc's own operators, in the namespace ``ditc::``.

Each is defined by its reference decomposition in plain ATen. That decomposition also gives the
fake values, the derivative, and what Inductor compiles on CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("ditc", "DEF")  # type: ignore[no-untyped-call]

_LIBRARY.define(  # type: ignore[no-untyped-call]
    "adaln_norm(Tensor x, Tensor scale, Tensor shift, float eps=1e-05) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


# vmap, by which the rows of all steps are made at once, decomposes it too: said apart, or it warns.
@torch.library.impl(_LIBRARY, "adaln_norm", "FuncTorchBatchedDecomposition")
@torch.library.impl(_LIBRARY, "adaln_norm", "CompositeImplicitAutograd")
def _adaln_norm(x: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    """Layer norm without weights over the last axis, then ``* (1 + scale) + shift``.

    ``x`` is ``[..., D]``; ``scale`` and ``shift`` broadcast to it. Adaptive layer norm of
    "Scalable Diffusion Models with Transformers", Peebles and Xie, 2023.
    """
    normed: Tensor = torch.ops.aten.layer_norm.default(x, [x.shape[-1]], None, None, eps)
    return normed * (1 + scale) + shift


adaln_norm = torch.ops.ditc.adaln_norm.default

_LIBRARY.define(  # type: ignore[no-untyped-call]
    "forecast(Tensor coefficients, Tensor[] values) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


@torch.library.impl(_LIBRARY, "forecast", "CompositeImplicitAutograd")
def _forecast(coefficients: Tensor, values: list[Tensor]) -> Tensor:
    """``sum_i coefficients[i] * values[i]``, added up in float32 at least.

    ``coefficients`` is ``[n]``; ``values`` are n tensors of one shape and dtype, which the result
    has too. Finite differences, and so every polynomial forecast, are sums of this form.
    """
    wide = torch.promote_types(values[0].dtype, torch.float32)
    total = coefficients[0] * values[0].to(wide)
    for i in range(1, len(values)):
        total = total + coefficients[i] * values[i].to(wide)
    return total.to(values[0].dtype)


forecast = torch.ops.ditc.forecast.default

#: What each operator is in plain ATen, for files that must do without this library.
DECOMPOSITIONS = {adaln_norm: _adaln_norm, forecast: _forecast}
