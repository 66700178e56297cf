"""Which tensor a tensor is, without holding it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Identity:
    """A tensor's object and memory.

    The reference to its storage is weak, yet while it lives no other storage gets that address. A
    weak reference to the tensor itself would forbid torch to swap it, as ``module.to()`` may.
    """

    object: int
    storage: StorageWeakRef
    address: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Identity:
        """The identity of ``tensor`` now."""
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return cls(id(tensor), storage, tensor.data_ptr())

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is the same object, in the same memory.

        As long as the old storage lives, nothing else can be at its address.
        """
        return self.object == id(tensor) and self.address == tensor.data_ptr() and not self.gone

    @property
    def gone(self) -> bool:
        """Whether the memory was freed."""
        return bool(self.storage.expired())  # type: ignore[no-untyped-call]


def version_of(tensor: torch.Tensor) -> int | None:
    """Version counter of a tensor, which writes raise; inference tensors have none."""
    return None if tensor.is_inference() else tensor._version
