"""The Inductor backend on one tiny graph, static and dynamic."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dit_compile as ditc
from dit_compile.backends.inductor import Inductor
from dit_compile.errors import BackendError
from dit_compile.ir.fake import leaves
from dit_compile.ir.program import MAIN, placeholders
from dit_compile.passes.lower import pack_keys, pack_weights, select_attention
from dit_compile.pipeline.pipeline import Pipeline
from tests import zoo
from tests.analysis.structures import FAMILIES
from tests.passes.irtest import capture, ops, randn, weights

#: Two unlike families with the slow tests, the others with those outside CI.
EACH = [
    pytest.param(family, marks=pytest.mark.slow if family in ("dit", "sd3") else pytest.mark.full)
    for family in FAMILIES
]


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        return F.layer_norm(self.linear(x), (8,)) * (1 + c) + c


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_own_operators_compile_and_sizes_stay_free(dynamic: bool) -> None:
    model = weights(Model())
    rows = torch.export.Dim("rows")
    sizes = {"x": {0: rows}, "c": {0: rows}} if dynamic else None
    program = capture(model, randn(3, 8), randn(3, 8), dynamic_shapes=sizes)
    Pipeline.parse("exact").run(program)
    assert ops(program)["ditc.adaln_norm"] == 1
    run = Inductor().compile(program, MAIN)
    for count in (3, 5) if dynamic else (3,):
        given = {"x": randn(count, 8), "c": randn(count, 8, seed=1)}
        values = {**program.constants, **given}
        with torch.no_grad():
            (made,) = run(*(values[node.name] for node in placeholders(program.main)))
            torch.testing.assert_close(made, model(**given))
            with torch.autocast("cpu", torch.bfloat16):
                (again,) = run(*(values[node.name] for node in placeholders(program.main)))
        assert torch.equal(made, again), "ambient autocast does not reach the graph"


def test_what_cannot_be_compiled_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr("dit_compile.backends.inductor.backend.compile_fx", refuse)
    program = capture(weights(Model()), randn(3, 8), randn(3, 8))
    assert Inductor().supports(program) == []
    with pytest.raises(BackendError, match="cannot compile graph @full: RuntimeError: no compiler"):
        Inductor().compile(program, MAIN)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_those_of_the_model(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(pack_weights, "speedup", lambda *_: 2.0)
    case = zoo.case("dit")
    model = zoo.build(case, dtype=dtype)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    inputs["hidden_states"] = inputs["hidden_states"].to(dtype)
    passes = "exact,insert-block-cache{method=interval,interval=2}"
    fast = torch.compile(
        model, backend="ditc", fullgraph=True, options={"strict": True, "passes": passes}
    )

    def matches(times: list[int]) -> None:
        with torch.no_grad(), ditc.session(fast, timesteps=torch.tensor(times)):
            for time in times:
                given = {**inputs, "timestep": torch.full_like(inputs["timestep"], time)}
                made = fast(**given)[0]
                if time == times[0]:
                    exact = deepcopy(model).double()(
                        **{**given, "hidden_states": given["hidden_states"].double()}
                    )[0]
                    wrong, due = (made - exact).norm(), (model(**given)[0] - exact).norm()
                    assert wrong <= 3 * due + torch.finfo(dtype).eps * exact.norm()

    matches([900, 800, 700, 600])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    matches([900, 800])
    for parameter in model.parameters():
        parameter.data = parameter.data * 0.9
    matches([900, 800])


@pytest.mark.parametrize("family", EACH)
def test_packed_keys_change_no_result(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    """Inductor gives operators the strides that they were traced with, those of views included."""
    monkeypatch.setattr(pack_keys, "measured_speedup", lambda *_: 2.0)
    torch._dynamo.reset()
    case = zoo.case(family)
    model = zoo.build(case)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    fast = torch.compile(model, backend="ditc", fullgraph=True, options={"strict": True})
    with torch.no_grad():
        want, have = model(**inputs), fast(**inputs)
    for left, right in zip(leaves(have), leaves(want), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", EACH)
def test_own_attention_is_as_close_as_torchs(monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(select_attention, "has_avx512_bf16", lambda: True)
    asked = []
    monkeypatch.setattr(
        select_attention, "measured_speedup", lambda _, node, *rest: asked.append(node) or 2.0
    )
    torch._dynamo.reset()
    case = zoo.case(family)
    inputs = case.inputs(0, torch.Generator().manual_seed(0))
    model, half = zoo.build(case).double(), zoo.build(case).bfloat16()
    rounded = _cast(inputs, torch.bfloat16)
    fast = torch.compile(half, backend="ditc", fullgraph=True, options={"strict": True})
    with torch.no_grad():
        want, eager, own = model(**_cast(rounded, torch.double)), half(**rounded), fast(**rounded)
    assert asked
    for exact, theirs, ours in zip(*map(leaves, (want, eager, own)), strict=True):
        error = (ours - exact).norm() / exact.norm()
        assert error <= 1.2 * (theirs - exact).norm() / exact.norm()


def _cast(inputs: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    def cast(value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    return torch.utils._pytree.tree_map(cast, inputs)
