"""The reference interpreter against the model itself."""

from __future__ import annotations

import pytest
import torch

from dit_compile.capture.export import capture_module
from dit_compile.ir.program import InputKind, Program
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests.runtime.loops import Inputs, Loop, Toy, label


@pytest.fixture
def call() -> Inputs:
    return next(iter(Loop(label(1), times=(500.0,))))


@pytest.fixture
def program(toy: Toy, call: Inputs) -> Program:
    with torch.no_grad():
        return capture_module(toy, (), call)


def given(program: Program, call: Inputs) -> Inputs:
    return {spec.name: call[spec.path] for spec in program.of_kind(InputKind.USER)}


def test_captured_graph_gives_what_the_model_gives(
    toy: Toy, program: Program, call: Inputs
) -> None:
    results = run_reference(program, given(program, call))
    assert list(results) == ["full"]
    assert torch.equal(results["full"][0], toy(**call))


def test_every_graph_runs_on_what_earlier_ones_left(
    toy: Toy, program: Program, call: Inputs
) -> None:
    """On the same inputs, reusing every branch is the same as computing it."""
    Pipeline.parse("exact,insert-block-cache{interval=2}").run(program)
    results = run_reference(program, given(program, call))
    assert set(results) == {"full", "reuse"}
    assert torch.equal(results["full"][0], results["reuse"][0])
    torch.testing.assert_close(results["full"][0], toy(**call))


def test_double(toy: Toy, program: Program, call: Inputs) -> None:
    result = run_reference(program, given(program, call), double=True)["full"][0]
    assert result.dtype == torch.float64
    wide = Toy()
    wide.load_state_dict(toy.state_dict())
    single = toy(**call).double()
    error = (single - result).norm() / result.norm()
    assert 0 < error < 1e-5
