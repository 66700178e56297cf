"""ditc::flash_attention: as precise as torch's own attention, for every size, layout and mask."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._inductor import cpp_builder
from torch.nn import functional as F

from dit_compile.analysis.machine import has_avx512_bf16
from dit_compile.errors import BackendError
from dit_compile.kernels import library
from dit_compile.kernels.attention import flash_attention, load

needs_kernel = pytest.mark.skipif(
    not has_avx512_bf16(), reason="this processor does not multiply pairs of bfloat16"
)

pytestmark = pytest.mark.processor

BFLOAT16 = torch.bfloat16


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = BFLOAT16) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def heads(batch: int, tokens: int, count: int, width: int, seed: int) -> Tensor:
    """``[batch, heads, tokens, width]``, the heads of a token side by side."""
    return normal(batch, tokens, count, width, seed=seed).transpose(1, 2)


def assert_precise(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **more: Any
) -> None:
    """No further from float64 than torch's attention is."""
    grouped = q.shape[1] != k.shape[1]
    wide = mask if mask is None or mask.dtype == torch.bool else mask.double()
    given = (q.double(), k.double(), v.double(), wide)
    want = F.scaled_dot_product_attention(*given, **more, enable_gqa=grouped)
    theirs = F.scaled_dot_product_attention(q, k, v, mask, **more, enable_gqa=grouped)
    ours = flash_attention(q, k, v, mask, **more)
    assert (ours.shape, ours.dtype, ours.stride()) == (
        q.shape,
        q.dtype,
        torch.empty_like(q).stride(),
    )

    def error(value: Tensor) -> float:
        return float((value.double() - want).norm() / want.norm())

    assert error(ours) <= 1.03 * error(theirs) + 1e-5


@pytest.mark.parametrize("width", [2, 16, 40, 64, 72, 96, 128, 160, 256])
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (7, 64), (61, 65), (121, 515), (59, 1100)])
def test_sizes(queries: int, keys: int, width: int) -> None:
    assert_precise(
        heads(2, queries, 3, width, 0), heads(2, keys, 3, width, 1), heads(2, keys, 3, width, 2)
    )


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 150),
    st.integers(1, 600),
    st.integers(1, 50),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([None, 0.05, 0.7]),
)
def test_any_sizes(
    batch: int, queries: int, keys: int, pairs: int, groups: int, scale: float | None
) -> None:
    q = heads(batch, queries, 4, 2 * pairs, 0)
    k, v = (heads(batch, keys, 4 // groups, 2 * pairs, seed) for seed in (1, 2))
    assert_precise(q, k, v, scale=scale)


def test_layouts() -> None:
    merged = normal(2, 70, 3 * 4 * 24)
    q, k, v = (x.unflatten(-1, (4, 24)).transpose(1, 2) for x in merged.chunk(3, -1))
    dense = q.contiguous(), k.contiguous(), v.contiguous()
    across = tuple(x.transpose(2, 3).contiguous().transpose(2, 3) for x in dense)
    for operands in ((q, k, v), dense, (dense[0], k, dense[2])):
        assert_precise(*operands)
    assert flash_attention(*across).stride() == torch.empty_like(across[0]).stride()
    for operands in (across, (dense[0], k, across[2])):  # torch has no kernel for these
        assert torch.equal(flash_attention(*operands), flash_attention(*dense))


@pytest.mark.parametrize("dtype", [BFLOAT16, torch.float32, torch.bool])
@pytest.mark.parametrize(
    "shape", [(2, 3, 65, 530), (2, 1, 1, 530), (65, 530), (1, 1, 65, 1), (2, 3, 1, 1)]
)
def test_masks(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    mask = normal(*shape, seed=3, dtype=torch.float32)
    mask = (mask > -1).contiguous() if dtype == torch.bool else mask.to(dtype)
    assert_precise(*(heads(2, n, 3, 32, seed) for seed, n in enumerate((65, 530, 530))), mask)


@pytest.mark.parametrize("dtype", [BFLOAT16, torch.bool])
def test_queries_that_see_nothing_are_zero(dtype: torch.dtype) -> None:
    seen = torch.ones(1, 1, 70, 600, dtype=torch.bool)
    seen[:, :, 3] = False
    seen[:, :, 5, :520] = False  # nothing in the first block of keys
    seen[:, :, 6, 10:] = False  # nothing in the second
    mask = seen if dtype == torch.bool else torch.zeros(seen.shape, dtype=dtype)
    mask = mask if dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
    q, k, v = (heads(1, n, 2, 16, seed) for seed, n in enumerate((70, 600, 600)))
    assert_precise(q, k, v, mask)
    assert not flash_attention(q, k, v, mask)[:, :, 3].any()


def test_large_logits_and_what_is_no_number() -> None:
    q, k, v = (heads(1, n, 2, 16, seed) for seed, n in enumerate((70, 600, 600)))
    assert_precise(100 * q, 100 * k, v)
    assert flash_attention(100 * q, 100 * k, v).isfinite().all()
    broken = k.clone()
    broken[0, 1, 530] = math.nan
    result = flash_attention(q, broken, v)
    assert result[0, 0].isfinite().all()
    assert result[0, 1].isnan().all()


@needs_kernel
@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_each_sample_is_alone(count: int) -> None:
    """Heads are shared out in another way for each number of threads and of samples."""
    q, k, v = (heads(count, n, 3, 40, seed) for seed, n in enumerate((200, 70, 70)))
    whole = flash_attention(q, k, v)
    for at in range(count):
        one = flash_attention(*(x[at : at + 1] for x in (q, k, v)))
        assert torch.equal(whole[at : at + 1], one)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 2)
        assert torch.equal(flash_attention(q, k, v), whole)
    finally:
        torch.set_num_threads(threads)


def test_other_types_are_torchs() -> None:
    q, k, v = (heads(1, n, 2, 16, seed).double() for seed, n in enumerate((5, 9, 9)))
    torch.testing.assert_close(flash_attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("masked", [False, True])
def test_the_operator_is_a_good_one(masked: bool) -> None:
    q, k, v = (heads(1, n, 2, 16, seed) for seed, n in enumerate((5, 9, 9)))
    mask = normal(5, 9) if masked else None
    torch.library.opcheck(
        flash_attention, (q, k, v, mask), test_utils=("test_schema", "test_faketensor")
    )


@needs_kernel
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
    library.load.cache_clear()
    load()
    (made,) = (tmp_path / "kernels").iterdir()
    written = made.stat().st_mtime_ns
    library.load.cache_clear()
    monkeypatch.setattr(subprocess, "run", None)
    load()
    assert made.stat().st_mtime_ns == written
    library.load.cache_clear()


def test_what_cannot_be_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
    with pytest.raises(BackendError, match=r"cannot compile attention\.cpp: .*-mno-such"):
        library.load("attention", "-mno-such-instructions")
    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", lambda: str(tmp_path / "missing"))
    with pytest.raises(BackendError, match=r"cannot compile attention\.cpp: .*missing"):
        library.load("attention", "-mavx512f")
    assert not list((tmp_path / "kernels").iterdir())
