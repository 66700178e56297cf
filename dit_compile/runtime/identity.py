"""Which tensor a tensor is, without holding it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef


@dataclass(frozen=True)
class Identity:
    """A tensor's object and its place in a storage, wherever that keeps its memory now.

    The reference to the storage is weak, yet while it lives no other takes its place. A weak
    reference to the tensor itself would forbid torch to swap it, as ``module.to()`` may.
    """

    object: int
    storage: StorageWeakRef
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Identity:
        """The identity of ``tensor`` now."""
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        return cls(id(tensor), storage, tensor.storage_offset())  # type: ignore[arg-type]

    def is_of(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is the same object, at the same place."""
        place = (tensor.untyped_storage()._cdata, tensor.storage_offset())
        same = (self.object, self.storage.cdata, self.offset) == (id(tensor), *place)
        return same and not self.gone

    @property
    def gone(self) -> bool:
        """Whether the memory was freed."""
        return bool(self.storage.expired())  # type: ignore[no-untyped-call]


#: Whether the storage of a weak reference was freed; the method of the reference is slower.
_freed = torch.UntypedStorage._expired


def version_of(tensor: torch.Tensor) -> int | None:
    """Version counter of a tensor, which writes raise; inference tensors have none."""
    return None if tensor.is_inference() else tensor._version


@dataclass(frozen=True)
class Seen:
    """Several tensors as they were: objects, memory and versions.

    Every call compares all weights of a model, so each fact is one tuple: 0.2 us a tensor.

    Attributes:
        facts: objects and versions.
        addresses: of their memory.
        storages: where :attr:`identities` keep storages, for :func:`_freed`.
        identities: which tensors they are.
    """

    facts: tuple[tuple[int, ...], tuple[int | None, ...]]
    addresses: tuple[int, ...]
    storages: tuple[int, ...]
    identities: tuple[Identity, ...]

    @classmethod
    def of(cls, tensors: Sequence[torch.Tensor]) -> Seen:
        """What ``tensors`` are now."""
        identities = tuple(map(Identity.of, tensors))
        storages = tuple(seen.storage.cdata for seen in identities)
        return cls(_facts(tensors), _addresses(tensors), storages, identities)

    def still(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether ``tensors`` are the same objects, in the same storages, not written to since."""
        if self.facts != _facts(tensors) or any(map(_freed, self.storages)):
            return False
        addresses = _addresses(tensors)
        return addresses == self.addresses or all(  # or storages have moved
            seen.is_of(tensor)
            for seen, tensor, old, new in zip(
                self.identities, tensors, self.addresses, addresses, strict=True
            )
            if old != new
        )

    def same_memory(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether ``tensors`` are the same objects in the same storages, whatever is in them."""
        return self.facts[0] == tuple(map(id, tensors)) and all(
            seen.is_of(tensor) for seen, tensor in zip(self.identities, tensors, strict=True)
        )

    @property
    def gone(self) -> bool:
        """Whether the memory of any of the tensors was freed."""
        return any(map(_freed, self.storages))

    def holds_any(self, objects: Collection[int]) -> bool:
        """Whether one of the tensors has one of these ``id``s, and its memory."""
        return any(seen.object in objects and not seen.gone for seen in self.identities)


def _addresses(tensors: Sequence[torch.Tensor]) -> tuple[int, ...]:
    return tuple(map(torch.Tensor.data_ptr, tensors))


def _facts(tensors: Sequence[torch.Tensor]) -> tuple[tuple[int, ...], tuple[int | None, ...]]:
    """Objects and versions."""
    versions: tuple[int | None, ...]
    try:
        versions = tuple(tensor._version for tensor in tensors)
    except RuntimeError:  # inference tensors are among them
        versions = tuple(map(version_of, tensors))
    return tuple(map(id, tensors)), versions
