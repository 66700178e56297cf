"""Numbers for symbolic sizes, those among them that only the data tells."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from dit_compile.ir.hints import UNBOUNDED, hint_of, symbol_hints
from dit_compile.ir.program import output_args
from tests.capture.through_dynamo import from_dynamo
from tests.passes.irtest import randn


@pytest.fixture(autouse=True)
def _told_by_data() -> Iterator[None]:
    with torch._dynamo.config.patch(
        capture_scalar_outputs=True, capture_dynamic_output_shape_ops=True
    ):
        yield


def cut(x: Tensor, mask: Tensor) -> Tensor:
    return x[: mask.sum().item()]


def cut_twice(x: Tensor, mask: Tensor) -> Tensor:
    joined = torch.cat([x, x[: mask.sum().item()]])
    return joined[: mask.argmax().item()]


def chosen(x: Tensor, mask: Tensor) -> Tensor:
    return x[mask.bool()]


def promised(x: Tensor, mask: Tensor) -> Tensor:
    count = mask.sum().item()
    torch._check(count >= 3)
    torch._check(count < 12)
    return x.new_ones(count)


def promised_the_most(x: Tensor, mask: Tensor) -> Tensor:
    count, other = mask.sum().item(), (mask + 5).amax().item()
    torch._check(count <= 2 * other)
    torch._check(other <= x.shape[0])
    return x.new_ones(count)


def in_a_circle(x: Tensor, mask: Tensor) -> Tensor:
    count, other = mask.sum().item(), (mask + 5).amax().item()
    torch._check(count <= other)
    torch._check(other <= count)
    return x.new_ones(count)


def cut_over_and_over(x: Tensor, mask: Tensor) -> Tensor:
    for _ in range(8):
        joined = torch.cat([x, x[: mask.sum().item()]])
        x = joined[:, :4][: mask.argmax().item() + 2] + joined[: -x.shape[0]].mean()
    return x


def test_many_sizes_that_bound_each_other_take_no_time() -> None:
    mask = torch.tensor([1, 1, 1, 1, 1, 0])
    program, _ = from_dynamo(cut_over_and_over, randn(6, 4), mask, dynamic=True)
    begun = time.perf_counter()
    assert max(symbol_hints(program.main).values()) < 2**20
    assert time.perf_counter() - begun < 5


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("function", "most"),
    [
        (cut, 6),
        (cut_twice, 12),
        (chosen, 6),
        (promised, 11),
        (promised_the_most, 12),
        (in_a_circle, UNBOUNDED),
    ],
)
def test_what_bounds_a_size_stands_for_it(
    function: Callable[[Tensor, Tensor], Tensor], most: int, dynamic: bool
) -> None:
    program, _ = from_dynamo(
        function, randn(6, 4), torch.ones(6, dtype=torch.int64), dynamic=dynamic
    )
    size = output_args(program.main)[0].meta["val"].shape[0]
    most = UNBOUNDED if function is chosen and dynamic else most  # torch bounds no symbol by one
    assert hint_of(size) == most
    assert size.node.expr.xreplace(symbol_hints(program.main)) == most


def test_a_size_that_the_capture_knew_is_itself() -> None:
    program, _ = from_dynamo(lambda x: x + 1, randn(6, 4), dynamic=True)
    size = output_args(program.main)[0].meta["val"].shape[0]
    assert not isinstance(size, int)
    assert (hint_of(size), hint_of(6)) == (6, 6)
