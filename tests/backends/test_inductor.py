"""The Inductor backend on one tiny graph, static and dynamic."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.backends.inductor import Inductor
from dit_compile.errors import BackendError
from dit_compile.ir.program import MAIN, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from tests.passes.irtest import capture, ops, randn, weights


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
