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
