"""Which tensor a tensor is, without holding it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
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


@dataclass(frozen=True)
class Seen:
    """Several tensors as they were: objects, memory and versions.

    Every call compares all weights of a model, so each fact is one tuple: 0.2 us a tensor.
    """

    objects: tuple[int, ...]
    addresses: tuple[int, ...]
    versions: tuple[int | None, ...]
    storages: tuple[StorageWeakRef, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Seen:
        """What ``tensors`` are now."""
        storages = [StorageWeakRef(t.untyped_storage()) for t in tensors]  # type: ignore[no-untyped-call]
        return cls(*_facts(tensors), tuple(storages))

    def still(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether ``tensors`` are the same objects, in the same memory, not written to since."""
        facts = (self.objects, self.addresses, self.versions)
        return facts == _facts(tensors) and not any(map(StorageWeakRef.expired, self.storages))

    def holds_any(self, objects: Collection[int]) -> bool:
        """Whether one of the tensors has one of these ``id``s, and its memory."""
        pairs = zip(self.objects, self.storages, strict=True)
        return any(o in objects and not s.expired() for o, s in pairs)  # type: ignore[no-untyped-call]


def _facts(
    tensors: Sequence[torch.Tensor],
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int | None, ...]]:
    versions: tuple[int | None, ...]
    try:
        versions = tuple(tensor._version for tensor in tensors)
    except RuntimeError:  # inference tensors are among them
        versions = tuple(map(version_of, tensors))
    return tuple(map(id, tensors)), tuple(map(torch.Tensor.data_ptr, tensors)), versions
