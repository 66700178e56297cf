"""One file with the weights of all graphs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx_ir as ir
import torch

#: Offsets are multiples of this, so that a reader can map each tensor into memory.
_ALIGNMENT = 4096


class WeightsFile:
    """Writes tensors one after the other; equal ones are written once.

    Args:
        path: the file, made anew. Models refer to it by its name alone, so they must lie beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._end = 0
        self._offsets: dict[str, int] = {}
        path.write_bytes(b"")

    def add(self, name: str, tensor: torch.Tensor, dtype: ir.DataType) -> ir.ExternalTensor:
        """Append ``tensor``, unless its bytes are there already, and return a reference to it.

        Args:
            name: what models call it.
            tensor: its values, on any device.
            dtype: its element type.
        """
        dense = tensor.detach().to("cpu").contiguous()
        raw = dense.reshape(-1).view(torch.uint8).numpy().data
        digest = hashlib.sha256(raw).hexdigest()
        if digest not in self._offsets:
            offset = -(-self._end // _ALIGNMENT) * _ALIGNMENT
            with self.path.open("r+b") as file:
                file.seek(offset)
                file.write(raw)
            self._offsets[digest], self._end = offset, offset + len(raw)
        return ir.ExternalTensor(
            self.path.name,
            self._offsets[digest],
            len(raw),
            dtype,
            shape=ir.Shape(tensor.shape),
            name=name,
            base_dir=str(self.path.parent),
        )
