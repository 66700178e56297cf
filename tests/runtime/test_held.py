"""When an input is certainly the one that was held."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from dit_compile.runtime import content
from dit_compile.runtime.held import Held


def tensor() -> Tensor:
    return torch.arange(6.0).view(2, 3)


def test_same_object_and_view() -> None:
    x = tensor()
    kept = Held.of(x)
    assert kept.same(x)
    assert kept.same(x.view(2, 3))
    assert kept.same(x.detach())


def test_equal_content() -> None:
    kept = Held.of(tensor())
    assert kept.same(tensor())
    assert not kept.same(tensor() + 1)


@pytest.mark.parametrize(
    "other",
    [tensor().view(3, 2), tensor().double(), tensor().to("meta"), 3, None],
    ids=["shape", "dtype", "device", "number", "none"],
)
def test_other_kinds(other: object) -> None:
    assert not Held.of(tensor()).same(other)


def test_transposed_view_of_the_same_memory() -> None:
    x = torch.arange(4.0).view(2, 2)
    assert not Held.of(x).same(x.t())


def test_same_memory_under_other_strides_and_equal_values() -> None:
    x = torch.ones(2, 2)
    assert Held.of(x).same(x.t())


@pytest.mark.parametrize("through", ["itself", "view", "base", "data", "array", "storage"])
def test_write_in_place(through: str) -> None:
    array = np.zeros(4, np.float32)
    base = torch.from_numpy(array)
    x = base[:2] if through == "base" else base
    kept = Held.of(x)
    writers = {"itself": x, "view": x[:1], "base": base, "data": x.data}
    if through == "array":
        array += 1
    elif through == "storage":
        x.untyped_storage().fill_(1)
    else:
        writers[through].add_(1)
    assert not kept.same(x)
    assert kept.same(torch.zeros_like(x)), "what it was is known still"


def test_other_memory_under_the_same_object() -> None:
    x = tensor()
    kept = Held.of(x)
    x.data = tensor() + 1
    assert not kept.same(x)


def test_an_array_that_is_used_again() -> None:
    array = np.ones(6, np.float32)
    kept = Held.of(torch.from_numpy(array))
    array[:] = 2
    assert not kept.same(torch.from_numpy(array))


def test_bits_count() -> None:
    assert not Held.of(torch.tensor([0.0])).same(torch.tensor([-0.0]))
    assert Held.of(torch.tensor([torch.nan])).same(torch.tensor([torch.nan]))
    assert not Held.of(0.0).same(-0.0)
    assert Held.of(float("nan")).same(float("nan"))


@pytest.mark.parametrize("dtype", [torch.bool, torch.bfloat16, torch.complex64, torch.float64])
def test_every_type(dtype: torch.dtype) -> None:
    x = torch.ones(3, dtype=dtype)
    kept = Held.of(x)
    assert kept.same(x.clone())
    assert not kept.same(torch.zeros_like(x))


def test_conjugates_are_their_content() -> None:
    x = torch.tensor([1 + 2j])
    assert Held.of(x.conj()).same(torch.tensor([1 - 2j]))
    assert not Held.of(x.conj()).same(x)


def test_an_address_that_another_tensor_gets() -> None:
    x = tensor()
    kept = Held.of(x)
    del x
    others = [torch.zeros(2, 3) for _ in range(50)]
    assert not any(kept.same(other) for other in others)


def test_plain_values() -> None:
    assert Held.of(3).same(3)
    assert Held.of(None).same(None)
    assert not Held.of(1).same(True)
    assert not Held.of(1).same(1.0)


class TestLarge:
    @pytest.fixture(autouse=True)
    def _small_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(content, "WHOLE", 4)

    @pytest.mark.parametrize("size", [6, 5000, 2**20 + 3])
    def test_a_sample_and_a_checksum(self, size: int) -> None:
        x = torch.arange(float(size))
        kept = Held.of(x)
        assert kept.same(x.clone())
        for place in (0, size // 2, size - 1):
            other = x.clone()
            other[place] += 1
            assert not kept.same(other)

    def test_two_that_change_places(self) -> None:
        x = torch.arange(100_000.0)
        other = x.clone()
        other[77], other[79] = x[79], x[77]
        assert not Held.of(x).same(other)


class TestInference:
    def test_by_content(self) -> None:
        with torch.inference_mode():
            x = tensor()
            kept = Held.of(x)
            assert kept.same(x)
            assert kept.same(x.clone())
            x.mul_(2)
            assert not kept.same(x)

    def test_against_a_plain_tensor(self) -> None:
        plain = tensor()
        with torch.inference_mode():
            made = tensor()
        assert Held.of(plain).same(made)
        assert Held.of(made).same(plain)
