"""Elements of latents and results: which inputs are denoised, and the same places of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.bundle.arrays import array_elements
from dit_compile.runtime.elements import Denoised, Elements, match
from dit_compile.runtime.samples import torch_elements


class TestMatch:
    def test_the_input_that_a_result_fits(self) -> None:
        found = match({"x": (2, 4, 8, 8), "control": (2, 16)}, [(2, 4, 8, 8)])
        assert found == {"x": Denoised(0, (None,) * 4)}

    @pytest.mark.parametrize("returned", [4, 16, 36])
    def test_other_channels(self, returned: int) -> None:
        """Learned variances come behind; conditions that are concatenated too."""
        found = match({"x": (2, 8, 4, 4)}, [(2, returned, 4, 4)])
        assert found == {"x": Denoised(0, (None, min(8, returned), None, None))}

    def test_several_latents(self) -> None:
        found = match({"video": (1, "n", 8), "audio": (1, "m", 8)}, [(1, "m", 8), (1, "n", 8)])
        assert (found["video"].result, found["audio"].result) == (1, 0)

    def test_one_result_for_two(self) -> None:
        """The first one that it fits; a control signal may have the same sizes."""
        assert match({"x": (1, 4), "control": (1, 4)}, [(1, 4)]).keys() == {"x"}

    def test_none_fits(self) -> None:
        found = match({"x": (2, 4, 8, 8)}, [(2, 64, 16)])
        assert found == {"x": Denoised(None, (None,) * 4)}

    def test_another_batch(self) -> None:
        assert match({"x": (2, 4, 8)}, [(4, 4, 8)])["x"].result is None


sizes = st.lists(st.integers(1, 9), min_size=1, max_size=4)


@given(sizes, st.data())
def test_both_kinds_of_tensors_give_the_same_places(shape: list[int], data: st.DataObject) -> None:
    value = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    denoised = match({"x": shape}, [shape])
    known = Elements(array_elements, denoised).latents({"x": value})
    also = torch_elements(denoised).latents({"x": torch.from_numpy(value)})
    assert all(np.array_equal(a, b) for a, b in zip(known, also, strict=True))
    assert {*np.concatenate(known)} <= {*value.ravel()}


def test_a_result_with_more_channels() -> None:
    x = torch.randn(2, 4, 8, 8)
    result = torch.cat([x * 3, torch.randn(2, 4, 8, 8)], dim=1)
    elements = torch_elements(match({"x": tuple(x.shape)}, [tuple(result.shape)]))
    latents, results = elements.latents({"x": x}), elements.results({"x": x}, [result])
    assert len(latents) == len(results) == 2, "one row a sample"
    for latent, row in zip(latents, results, strict=True):
        assert row is not None
        np.testing.assert_allclose(row, 3 * latent, rtol=1e-6)


def test_a_latent_with_more_channels() -> None:
    """As models that get an image beside the latent."""
    x = torch.randn(1, 8, 4, 4)
    elements = torch_elements(match({"x": (1, 8, 4, 4)}, [(1, 4, 4, 4)]))
    (latent,), (row,) = elements.latents({"x": x}), elements.results({"x": x}, [x[:, :4] * 3])
    assert row is not None
    np.testing.assert_allclose(row, 3 * latent, rtol=1e-6)


@pytest.mark.parametrize("result", [torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 4)])
def test_a_result_that_is_smaller_than_known(result: Any) -> None:
    elements = torch_elements(match({"x": (1, 8, 4, 4)}, [(1, 8, 4, 4)]))
    assert elements.results({"x": torch.zeros(1, 8, 4, 4)}, [result]) == [None]


def test_few_are_read_of_many() -> None:
    elements = torch_elements(match({"x": (32, 16, 64, 64)}, [(32, 16, 64, 64)]))
    rows = elements.latents({"x": torch.randn(32, 16, 64, 64)})
    assert (len(rows), sum(map(len, rows))) == (8, 2048)


def test_small_samples_are_read_as_one() -> None:
    elements = torch_elements(match({"x": (64, 2)}, [(64, 2)]))
    assert [len(row) for row in elements.latents({"x": torch.randn(64, 2)})] == [128]


def test_complex_ones_and_bfloat16() -> None:
    elements = torch_elements(match({"x": (1, 4, 16)}, [(1, 4, 16)]))
    for dtype in (torch.complex64, torch.bfloat16):
        (row,) = elements.latents({"x": torch.ones(1, 4, 16, dtype=dtype)})
        assert {*row} == {1.0}
