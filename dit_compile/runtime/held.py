"""An input as it was at an earlier call: what is certainly the same need not be computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from dit_compile.runtime.identity import version_of

#: Tensors up to this many elements are compared by content where identity does not settle it; the
#: embeddings of two prompts of 512 tokens are among them.
_COMPARED = 1 << 22


@dataclass(frozen=True)
class Held:
    """An earlier input. The tensor is held, so that its address cannot be used by another.

    Attributes:
        value: the input; a copy where nothing would tell of a later write; ``None`` for a tensor
            too large to copy.
        version: the version counter of the tensor when it was stored.
    """

    value: object
    version: int | None = None

    @classmethod
    def of(cls, value: object) -> Held:
        """Hold an input as it is now."""
        if not isinstance(value, torch.Tensor):
            return cls(value)
        if value.is_inference():  # these have no version counter
            return cls(value.clone() if value.numel() <= _COMPARED else None)
        return cls(value, value._version)

    def same(self, value: object) -> bool:
        """Whether ``value`` is certainly what was held, by identity or by content."""
        old = self.value
        if not isinstance(old, torch.Tensor) or not isinstance(value, torch.Tensor):
            return type(old) is type(value) and old == value
        if (old.shape, old.dtype, old.device) != (value.shape, value.dtype, value.device):
            return False
        if self.version is not None:
            if old._version != self.version:
                return False  # written to since: what it was is lost
            if _same_memory(old, value):
                return version_of(value) == self.version
        return value.numel() <= _COMPARED and bool(torch.equal(old, value))


def _same_memory(old: torch.Tensor, new: torch.Tensor) -> bool:
    return old is new or (old.data_ptr() == new.data_ptr() and old.stride() == new.stride())
