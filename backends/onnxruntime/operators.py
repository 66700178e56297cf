"""Operators that torch's exporter does not translate well, written as decompositions in torch.

``torch.onnx.ops.symbolic`` stands for any ONNX operator within a torch graph. A decomposition that
returns ``NotImplemented`` leaves the operator to torch's own translation, in plain ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

#: The domain of ONNX Runtime's contrib operators.
CONTRIB = "com.microsoft"


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Attention without a mask as one ``MultiHeadAttention``, ``[B, heads, tokens, size]``.

    Its kernel keeps no ``[tokens, tokens]`` matrix: 73 against 100 ms at 1024 tokens, 16 heads of
    72 on two cores, and no slower at 256. With a mask it has no such kernel.
    """
    heads = query.shape[1]
    plain = attn_mask is None and not is_causal and dropout_p == 0.0 and not enable_gqa
    whole = query.dim() == key.dim() == value.dim() == 4 and isinstance(heads, int)
    if not (plain and whole and query.shape[-1] == key.shape[-1]):
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
    size = x.shape[dim]
    if not isinstance(size, int) or size == 1:
        return NotImplemented
    return torch.ops.aten.alias.default(x)


_REPAIRS: dict[Any, Callable[..., Any]] = {torch.ops.aten.squeeze.dim: _squeeze}

_FASTER: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
}


def decompositions(*, contrib: bool) -> dict[Any, Callable[..., Any]]:
    """What to take in place of an operator.

    The operators of ``ditc::`` need no entry: torch's exporter takes their decompositions.

    Args:
        contrib: use operators that ONNX Runtime alone has, where they are faster.
    """
    return _REPAIRS | _FASTER if contrib else dict(_REPAIRS)
