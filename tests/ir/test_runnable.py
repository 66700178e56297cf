"""Every stage as a module that runs and gives the same numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_compile.explanation import explain
from dit_compile.ir.program import Program
from dit_compile.ir.runnable import runnable
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests.ir.models import Function, Transformer, capture, noise, program_of, seeded


def executed(program: Program) -> Any:
    """The module that the source makes."""
    space: dict[str, Any] = {"__name__": "stage"}
    exec(compile(runnable(program), "stage.py", "exec"), space)
    return SimpleNamespace(**space)


def assert_same(program: Program, inputs: dict[str, Any]) -> None:
    module = executed(program)
    values = {**module.values(), **program.constants, **inputs}
    expected = run_reference(program, inputs)
    found = module.run(values)
    assert list(found) == list(expected)
    for graph, results in expected.items():
        for ours, reference in zip(found[graph], results, strict=True):
            assert torch.equal(ours, reference)


@pytest.mark.parametrize(
    "passes",
    [
        "",
        "fuse-qkv,fuse-adaln",
        "exact",
        "fast",
        "exact,insert-block-cache{method=taylor,interval=3,order=1}",
    ],
)
def test_stages(passes: str) -> None:
    inputs = {"x": noise(2, 4, 8), "c": noise(2, 8)}
    program = capture(seeded(lambda: Transformer(3)), *inputs.values())
    program.bind("c", next(b for b in type(program.inputs["c"].binding) if str(b) == "timestep"))
    Pipeline.parse(passes).run(program)
    with torch.no_grad():
        assert_same(program, inputs)


def test_arguments_of_every_kind() -> None:
    def forward(x: Tensor, flag: Tensor) -> tuple[Tensor, ...]:
        low, high = x.to(torch.float64).split([1, 3], dim=-1)
        turned = torch.roll(high[..., 1:], [1], [0]).clamp(min=float("-inf"))
        return low, turned.masked_fill(flag, float("inf")), torch.arange(3, device="cpu")

    inputs = {"args_0": noise(2, 4), "args_1": torch.tensor([True, False])}
    program = program_of(forward, *inputs.values())
    assert_same(program, dict(zip(program.inputs, inputs.values(), strict=True)))


def test_symbolic_sizes() -> None:
    model = Function(lambda x: x.reshape(x.shape[0] * x.shape[1], -1).sum(0))
    dims = {"args": ({1: torch.export.Dim("tokens", min=2, max=64)},)}
    program = capture(model, noise(2, 4, 8), dynamic_shapes=dims)
    (name,) = program.inputs
    assert_same(program, {name: noise(2, 6, 8)})


def test_it_is_a_model_again() -> None:
    """The command ``ditc explain`` takes the module: the passes find the same to do."""
    program = capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8))
    model, args, kwargs = executed(program).target()
    assert isinstance(model, nn.Module)
    assert set(dict(model.named_buffers())) == {
        spec.path for spec in program.inputs.values() if spec.kind.value == "weight"
    }
    report = explain(model, args, kwargs, passes="fuse-qkv,fuse-adaln").report
    qkv, adaln = report.passes
    assert len(qkv.rewrites) >= len(adaln.rewrites) == 3


def test_titles_cannot_break_out() -> None:
    program = program_of(lambda x: x + 1, noise(2))
    source = runnable(program, title='a """ b \\')
    compile(source, "stage.py", "exec")
