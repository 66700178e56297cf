"""Operations that are really executed, counted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from dit_compile.bench.tally import Tally
from dit_compile.kernels.attention import flash_attention
from tests.ir.models import noise


@pytest.mark.parametrize("attention", [F.scaled_dot_product_attention, flash_attention])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_attention(attention: Callable[..., Any], dtype: torch.dtype) -> None:
    tally = Tally()
    x, q = noise(3, 4), noise(1, 2, 5, 8).to(dtype)
    with tally.counting():
        x @ noise(4, 6)
    assert tally.flops == 2 * 3 * 4 * 6
    with tally.counting():
        attention(q, q, q)
    assert tally.flops == 2 * 3 * 4 * 6 + 2 * 2 * (2 * 5 * 5 * 8)
