"""Identity of tensors that nobody holds."""

from __future__ import annotations

import gc

import torch
from torch import nn

from dit_compile.runtime.identity import Identity, version_of


def test_same_object() -> None:
    x = torch.ones(4)
    seen = Identity.of(x)
    x.add_(1)
    assert seen.is_of(x)
    assert not seen.gone


def test_other_objects() -> None:
    x = torch.ones(4)
    seen = Identity.of(x)
    for other in (x.clone(), x[:], nn.Parameter(x)):
        assert not seen.is_of(other)


def test_same_object_in_other_memory() -> None:
    x = torch.ones(4)
    seen = Identity.of(x)
    x.data = torch.ones(4)
    assert not seen.is_of(x)


def test_memory_is_not_kept_and_no_successor_is_mistaken_for_it() -> None:
    """The allocator gives the same addresses out again, to tensors that look the same."""
    for _ in range(50):
        seen = Identity.of(torch.ones(4))
        assert seen.gone
        assert not seen.is_of(torch.ones(4))


def test_alias_keeps_the_memory() -> None:
    x = torch.ones(4)
    seen, alias = Identity.of(x), x.data
    del x
    gc.collect()
    assert not seen.gone
    assert not seen.is_of(alias)


def test_versions() -> None:
    x = torch.zeros(1)
    assert version_of(x) == 0
    x.add_(1)
    assert version_of(x) == 1
    with torch.inference_mode():
        assert version_of(torch.zeros(1)) is None
