"""An input as it was at an earlier call: what has the same content need not be computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_compile.runtime.content import Array, Content, same_value
from dit_compile.runtime.identity import version_of
from dit_compile.runtime.offload import has_own_memory

#: Integers that have the bits of other types, by their bytes.
_INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Held:
    """An earlier input, compared by content.

    An object, an address and a version counter do not show what others write into the memory: an
    array that a tensor was made from, a storage, ``.data``. Where reading the content would stall
    a device, an input that is the same object at the same address and version is taken to be the
    same.

    Attributes:
        value: a number or another plain value.
        facts: shape, type and device of a tensor.
        content: of a tensor.
        source: a tensor on a device, held so that no other gets its address, and its version and
            address.
    """

    value: object = None
    facts: tuple[object, ...] | None = None
    content: Content | None = None
    source: tuple[torch.Tensor, int, int] | None = None

    @classmethod
    def of(cls, value: object) -> Held:
        """Hold an input as it is now."""
        if not isinstance(value, torch.Tensor):
            return cls(value)
        version = version_of(value)
        on_device = version is not None and has_own_memory(value.device.type)
        source = (value, version or 0, value.data_ptr()) if on_device else None
        content = None if value.is_meta else Content.of(_bits(value))
        return cls(None, _facts(value), content, source)

    def same(self, value: object) -> bool:
        """Whether ``value`` has the content of what was held."""
        if not isinstance(value, torch.Tensor):
            return self.facts is None and same_value(self.value, value)
        if self.facts != _facts(value) or self.content is None:
            return False
        return self._untouched(value) or self.content.same(_bits(value))

    def _untouched(self, value: torch.Tensor) -> bool:
        if self.source is None:
            return False
        source, version, address = self.source
        return source is value and value._version == version and value.data_ptr() == address


def _facts(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.dtype, tensor.device


def _bits(tensor: torch.Tensor) -> Array:
    """The content on the host, as integers; numpy does not have every type of torch."""
    tensor = tensor.detach().resolve_conj().resolve_neg()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    bits: Array = tensor.cpu().contiguous().view(_INTEGERS[tensor.itemsize]).numpy()
    return bits
