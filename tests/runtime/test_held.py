"""When an input is certainly the one that was held."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dit_compile.runtime import held
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


@pytest.mark.parametrize("through", ["itself", "view", "base"])
def test_write_in_place(through: str) -> None:
    base = torch.zeros(4)
    x = base[:2] if through == "base" else base
    kept = Held.of(x)
    {"itself": x, "view": x[:1], "base": base}[through].add_(0)
    assert not kept.same(x)
    assert not kept.same(torch.zeros_like(x)), "what it was when held is not known any more"


def test_address_is_not_given_away() -> None:
    x = tensor()
    kept, address = Held.of(x), x.data_ptr()
    del x
    others = [torch.zeros(2, 3) for _ in range(50)]
    assert address not in [other.data_ptr() for other in others]
    assert not any(kept.same(other) for other in others)


def test_plain_values() -> None:
    assert Held.of(3).same(3)
    assert Held.of(None).same(None)
    assert not Held.of(1).same(True)
    assert not Held.of(1).same(1.0)


class TestLarge:
    @pytest.fixture(autouse=True)
    def _small_limit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(held, "_COMPARED", 4)

    def test_by_identity_only(self) -> None:
        x = tensor()
        kept = Held.of(x)
        assert kept.same(x)
        assert not kept.same(x.clone())

    def test_inference_tensor_is_not_copied(self) -> None:
        with torch.inference_mode():
            x = tensor()
            kept = Held.of(x)
            assert kept.value is None
            assert not kept.same(x)


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
