"""One safetensors file with the weights of all graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS_FILE = "weights.safetensors"


class Weights:
    """Collects tensors; equal ones are kept once, under the path that came first."""

    def __init__(self) -> None:
        self._tensors: dict[str, torch.Tensor] = {}
        self._names: dict[tuple[object, ...], str] = {}

    def add(self, path: str, tensor: torch.Tensor) -> str:
        """Keep ``tensor`` and return the name that it has in the file."""
        dense = tensor.detach().contiguous()
        raw = dense.cpu().reshape(-1).view(torch.uint8).numpy().data
        key = (dense.dtype, dense.shape, hashlib.sha256(raw).digest())
        if key not in self._names:
            name, number = path, 1
            while name in self._tensors:
                number += 1
                name = f"{path}.{number}"
            whole = dense.untyped_storage().nbytes() == dense.nbytes
            self._tensors[name] = dense if whole else dense.clone()  # a part of a larger one
            self._names[key] = name
        return self._names[key]

    def save(self, folder: Path) -> str:
        """Write the file into ``folder`` and return its name."""
        save_file(self._tensors, folder / WEIGHTS_FILE)
        return WEIGHTS_FILE


def load_weights(path: Path, device: str) -> dict[str, torch.Tensor]:
    """The tensors of a weights file; on the CPU they stay mapped from it."""
    return load_file(path, device=device)
