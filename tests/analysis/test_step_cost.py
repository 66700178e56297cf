"""The cost of a step, averaged over the schedule."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from dit_compile.analysis.step_cost import DEFAULT_STEPS, step_cost
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Pipeline
from tests.analysis.structures import Chain, PreNorm, tokens
from tests.passes.irtest import capture, randn, weights

LINEAR = 2 * 6 * 4 * 8 + 6 * 8
"""Multiply-adds of 6 rows of 4 through a linear to 8, and its bias."""


@pytest.fixture(scope="module")
def cached() -> Program:
    program = capture(weights(Chain(PreNorm(), PreNorm())), tokens())
    Pipeline.parse("insert-block-cache{interval=4}").run(program)
    return program


def test_one_linear() -> None:
    cost = step_cost(capture(nn.Linear(4, 8), randn(6, 4)))
    assert cost.flops == cost.graphs["full"].flops
    assert cost.flops in (2 * 6 * 4 * 8, LINEAR)
    assert cost.computed == cost.steps == DEFAULT_STEPS
    assert cost.bytes_moved == 4 * (6 * 4 + 4 * 8 + 8 + 6 * 8)


def test_symbols_count_as_captured() -> None:
    sizes = {"input": {0: torch.export.Dim("rows")}}
    dynamic = step_cost(capture(nn.Linear(4, 8), randn(6, 4), dynamic_shapes=sizes))
    static = step_cost(capture(nn.Linear(4, 8), randn(6, 4)))
    assert dynamic.flops == static.flops
    assert dynamic.bytes_moved == static.bytes_moved


@given(steps=st.integers(1, 40))
def test_the_average_is_over_the_mask(cached: Program, steps: int) -> None:
    cost = step_cost(cached, steps)
    mask = cached.schedule.mask(steps)
    assert cost.computed == mask.count((1,))
    full, reuse = cost.graphs["full"].flops, cost.graphs["reuse"].flops
    assert reuse < full / 4
    expected = (cost.computed * full + (steps - cost.computed) * reuse) / steps
    assert cost.flops == pytest.approx(expected, rel=1e-12)
    assert cost.bytes_moved <= cost.graphs["full"].bytes_moved


def test_the_weights_graph_is_no_step() -> None:
    program = capture(weights(Chain(PreNorm(), PreNorm())), tokens())
    before = step_cost(program)
    Pipeline.parse("fuse-qkv").run(program)
    after = step_cost(program)
    assert set(program.graphs) == {"full", "weights"}
    assert set(after.graphs) == {"full"}
    assert after.flops == before.flops
