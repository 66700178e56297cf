"""Weights that only work ahead of the steps reads, kept in host memory while the steps run.

A tensor that is away keeps its object, sizes and device, but its storage is empty: until its
Session ends, only ditc may read it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from dit_compile.ir.program import InputKind, Program, placeholders

#: Held while weights move.
_lock = threading.RLock()


@dataclass(frozen=True)
class _Away:
    """An empty storage, and its content."""

    storage: torch.UntypedStorage
    content: torch.Tensor

    @classmethod
    def take(cls, storage: torch.UntypedStorage) -> _Away:
        on_gpu = storage.device.type == "cuda"
        content = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=on_gpu)
        content.copy_(_bytes(storage))
        storage.resize_(0)
        return cls(storage, content)

    def put_back(self) -> None:
        self.storage.resize_(self.content.nbytes)
        _bytes(self.storage).copy_(self.content)


#: What is away, by storage: the Programs of one model share its weights.
_away: dict[int, _Away] = {}
#: Threads that need weights to stay.
_readers = 0


class Offload:
    """The weights that no step of a Program reads, though what runs ahead of the steps does.

    Args:
        program: the Program.
    """

    def __init__(self, program: Program) -> None:
        self._steps = _weights(program, (module for _, module in program.step_graphs()))
        ahead = _weights(program, (module for _, module in program.ahead_graphs()))
        self._names = [name for name in ahead if name not in self._steps]
        self._taken: dict[int, int] = {}

    @property
    def done(self) -> bool:
        """Whether all that :meth:`release` took is away still."""
        return bool(self._taken) and self._taken.keys() <= _away.keys()

    def release(self, values: Mapping[str, Any]) -> int:
        """Move the weights away from their device.

        Those in host memory stay, as do storages that are not one weight's alone, and all while
        another thread works ahead of its steps.

        Args:
            values: the weights by name.

        Returns:
            The bytes that are free on the device now.
        """
        with _lock, torch.no_grad():
            kept = {values[name].untyped_storage()._cdata for name in self._steps}
            for name in self._names if not _readers else ():
                storage = values[name].untyped_storage()
                key = storage._cdata
                if key not in kept | _away.keys() and _can_leave(values[name]):
                    self._taken[key] = storage.nbytes()
                    _away[key] = _Away.take(storage)
            return sum(self._taken[key] for key in self._taken.keys() & _away.keys())

    def bring_back(self) -> None:
        """Move all that is away of these weights back."""
        with _lock:
            _put_back(self._taken)
            self._taken = {}


@contextmanager
def present(tensors: Iterable[Any]) -> Iterator[None]:
    """Have ``tensors`` where they belong, and keep them there."""
    global _readers
    with _lock:
        recall(tensors)
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1


def recall(tensors: Iterable[Any]) -> None:
    """Move what is away of ``tensors`` back."""
    if _away:
        given = [value for value in tensors if isinstance(value, torch.Tensor)]
        with _lock:
            _put_back(value.untyped_storage()._cdata for value in given)


def _put_back(keys: Iterable[int]) -> None:
    with torch.no_grad():
        for key in keys:
            if key in _away:
                _away.pop(key).put_back()


def _weights(program: Program, modules: Iterable[fx.GraphModule]) -> list[str]:
    """The weights that graphs read, but for those that the Program owns."""
    reads = (str(node.target) for module in modules for node in placeholders(module.graph))
    return [
        name
        for name in dict.fromkeys(reads)
        if program.inputs[name].kind is InputKind.WEIGHT and name not in program.constants
    ]


def _can_leave(tensor: torch.Tensor) -> bool:
    """Whether a tensor fills a storage that is its own, on a device apart from the host."""
    storage = tensor.untyped_storage()
    whole = storage.resizable() and storage.nbytes() == tensor.nbytes
    return whole and has_own_memory(tensor.device.type)


def has_own_memory(device_type: str) -> bool:
    """Whether devices of a type do not work in host memory."""
    return device_type not in ("cpu", "meta")


def _bytes(storage: torch.UntypedStorage) -> torch.Tensor:
    """A storage as a vector."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
