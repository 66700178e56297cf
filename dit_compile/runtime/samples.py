"""Elements of tensors of torch on the host."""

from __future__ import annotations

from typing import Any

import torch

from dit_compile.runtime.descent import Row
from dit_compile.runtime.elements import Elements


def torch_elements() -> Elements:
    """Reads elements of tensors of torch."""
    return Elements(_take, torch.from_numpy)


def _take(tensor: Any, places: torch.Tensor) -> Row:
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = tensor.real
    taken = torch.take(tensor, places.to(tensor.device))
    rows: Row = taken.cpu().to(torch.float64).numpy()
    return rows
