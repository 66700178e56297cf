"""Fake values: their text, their comparison, and what is said where they are missing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx

from dit_compile.errors import VerificationError
from dit_compile.ir.fake import (
    describe,
    dtype_name,
    evaluate,
    mismatch,
    same_size,
    tensor_of,
    value_of,
)
from tests.ir.models import Function, aten, calls, capture, layers, noise, program_of


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (torch.empty(2, 3, dtype=torch.bfloat16), "bf16[2,3]"),
        (torch.empty((), dtype=torch.bool), "b8[]"),
        ([torch.empty(2), torch.empty(0, dtype=torch.int64)], "(f32[2], i64[0])"),
        (3, "int"),
        (None, "NoneType"),
    ],
)
def test_describe(value: object, text: str) -> None:
    assert describe(value) == text


def test_dtypes_without_a_short_name_keep_torchs() -> None:
    assert dtype_name(torch.float8_e4m3fn) == "float8_e4m3fn"


@pytest.mark.parametrize(
    ("have", "text"),
    [
        (torch.empty(2, 3), None),
        (torch.empty(3, 2).T, None),  # strides are a backend's choice
        (torch.empty(2, 3, dtype=torch.float16), "dtype f16, not f32"),
        (torch.empty(2, 3, device="meta"), "device meta, not cpu"),
        (torch.empty(3, 2), "shape f32[3,2], not f32[2,3]"),
        (torch.empty(2, 3, 1), "shape f32[2,3,1], not f32[2,3]"),
        ([torch.empty(2, 3), torch.empty(2, 3)], "2 results, not 1"),
        (3, "a int, not a Tensor"),
    ],
)
def test_mismatch(have: object, text: str | None) -> None:
    assert mismatch(torch.empty(2, 3), have) == text


def test_numbers_are_not_compared_by_value() -> None:
    assert mismatch([torch.empty(2), 3], [torch.empty(2), 4]) is None


def test_sizes_are_compared_for_every_binding_and_without_a_guard() -> None:
    program = capture(
        Function(lambda x, y: (x + 1, y + 1)),
        noise(4, 2),
        noise(5, 2),
        dynamic_shapes=(({0: torch.export.Dim("a")}, {0: torch.export.Dim("b")}),),
    )
    a, b = (node.meta["val"].shape[0] for node in calls(program, aten.add.Tensor))
    shapes = program.fake_mode.shape_env
    guards = len(shapes.guards)
    assert same_size(a, a)
    assert same_size(a + a, 2 * a)
    assert not same_size(a, b)
    assert not same_size(a, 4)
    assert len(shapes.guards) == guards


def test_a_guard_that_settles_a_quotient_settles_products_with_it() -> None:
    program = capture(
        Function(lambda x, y: (x + 1, y + 1)),
        noise(8, 2),
        noise(5, 2),
        dynamic_shapes=(({0: torch.export.Dim("a")}, {0: torch.export.Dim("b")}),),
    )
    a, b = (node.meta["val"].shape[0] for node in calls(program, aten.add.Tensor))
    assert not same_size((a // 2) * b, 4 * b)
    assert 32 * (a // 2) == 128  # a guard
    assert same_size((a // 2) * b, 4 * b)
    assert same_size(a // 2, 4)
    assert not same_size((a // 2) * b, 5 * b)
    assert not same_size((a // 3) * b, 4 * b)


def test_a_node_without_a_value_says_how_to_make_one() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    with pytest.raises(VerificationError, match=r"%x has no fake value; make nodes with Rewriter"):
        value_of(node)


def test_several_results_are_no_tensor() -> None:
    program = program_of(lambda x: x.chunk(2), noise(4))
    (split,) = calls(program, aten.split.Tensor)
    with pytest.raises(VerificationError, match=r"%split does not yield a tensor"):
        tensor_of(split)


def test_evaluate_runs_nothing_for_real() -> None:
    program = layers()
    linear = calls(program, aten.linear.default)[0]
    made = evaluate(linear, program.fake_mode)
    assert isinstance(made, torch._subclasses.FakeTensor)
    assert isinstance(made, Tensor)
    assert mismatch(linear.meta["val"], made) is None
