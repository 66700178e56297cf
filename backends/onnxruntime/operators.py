"""Operators that torch's exporter does not translate well, written as decompositions in torch.

``torch.onnx.ops.symbolic`` stands for any ONNX operator within a torch graph. A decomposition that
returns ``NotImplemented`` leaves the operator to torch's own translation, in plain ONNX.

Of ONNX Runtime's own operators, attention alone is worth it on a CPU (1.31, two cores):
``SkipLayerNormalization`` takes 6.6 ms where ``Add`` and ``LayerNormalization`` take 0.9, and
``RotaryEmbedding``, four times as fast as what it stands for, would save 0.4 % of a FLUX.1 step.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

#: The domain of ONNX Runtime's contrib operators.
CONTRIB = "com.microsoft"


def _attention(
    contrib: bool,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention as one contrib operator where that is faster, and on four axes always.

    Torch's exporter takes ``[B, heads, tokens, size]`` alone; with fewer axes there is one sample,
    or one head.
    """
    axes = query.dim()
    if axes not in (2, 3):
        plain = attn_mask is None and not is_causal and dropout_p == 0.0 and not enable_gqa
        return _merged_heads(query, key, value, scale) if contrib and plain else NotImplemented
    at = 1 if axes == 3 else 0
    query, key, value = (item.unsqueeze(at) for item in (query, key, value))
    mask = attn_mask.unsqueeze(at) if attn_mask is not None and attn_mask.dim() == 3 else attn_mask
    if axes == 2:
        query, key, value = (item.unsqueeze(0) for item in (query, key, value))
    mixed = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
    )
    return mixed.squeeze(1) if axes == 3 else mixed.squeeze(1).squeeze(0)


def _merged_heads(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Any:
    """Attention without a mask as ``MultiHeadAttention``.

    Its kernel keeps no ``[tokens, tokens]`` matrix: 73 against 100 ms at 1024 tokens, 16 heads of
    72 on two cores, and no slower at 256. With a mask it has no such kernel.
    """
    heads = query.shape[1]
    whole = query.dim() == key.dim() == value.dim() == 4 and isinstance(heads, int)
    if not whole or query.shape[-1] != key.shape[-1]:
        return NotImplemented
    flat = [item.transpose(1, 2).flatten(2) for item in (query, key, value)]
    attributes: dict[str, Any] = {"num_heads": heads}
    if scale is not None:
        attributes["scale"] = scale
    merged = torch.onnx.ops.symbolic(
        f"{CONTRIB}::MultiHeadAttention",
        flat,
        attributes,
        dtype=query.dtype,
        shape=(*flat[0].shape[:2], flat[2].shape[2]),
        version=1,
    )
    return merged.reshape(*merged.shape[:2], heads, -1).transpose(1, 2)


def _squeeze(x: Tensor, dim: int) -> Any:
    """An axis longer than 1 stays as it is, which the exporter's ``Squeeze`` does not know."""
    if x.shape[dim] == 1:
        return NotImplemented
    return torch.ops.aten.alias.default(x)


def decompositions(*, contrib: bool) -> dict[Any, Callable[..., Any]]:
    """What to take in place of an operator.

    The operators of ``ditc::`` need no entry: torch's exporter takes their decompositions.

    Args:
        contrib: use operators that ONNX Runtime alone has, where they are faster.
    """
    return {
        torch.ops.aten.squeeze.dim: _squeeze,
        torch.ops.aten.scaled_dot_product_attention.default: partial(_attention, contrib),
    }
