"""Elements of tensors of torch on the host."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from dit_compile.runtime.descent import Row
from dit_compile.runtime.elements import Denoised, Elements


def torch_elements(denoised: Mapping[str, Denoised]) -> Elements:
    """Reads elements of tensors of torch."""
    return Elements(_take, denoised, torch.from_numpy)


def _take(tensor: Any, places: torch.Tensor) -> Row:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = tensor.real
    taken = torch.take(tensor, places.to(tensor.device))
    rows: Row = taken.cpu().to(torch.float64).numpy()
    return rows
