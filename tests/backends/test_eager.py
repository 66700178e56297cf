"""The eager backend is the model, node by node; InDouble is the model in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.backends.eager import Eager, InDouble, widen
from dit_compile.ir.program import MAIN, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from tests.passes.irtest import capture, randn, weights


class Model(nn.Module):
    """Casts, constants, a complex rotation and tensors made inside, all dtype-sensitive."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(8, 8, dtype=dtype), nn.Linear(8, 8, dtype=dtype)
        self.register_buffer("table", torch.linspace(0, 1, 8))

    def forward(self, x: Tensor) -> Tensor:
        q = F.layer_norm(self.q(x).float(), (8,)) * torch.ones(8, 8)[0]
        mixed = q @ torch.eye(8) + self.table.to(q.dtype)
        turned = torch.view_as_complex(mixed.unflatten(-1, (4, 2))) * torch.polar(
            torch.ones(4), torch.arange(4, dtype=torch.float32)
        )
        return torch.view_as_real(turned).flatten(-2).to(x.dtype) + self.k(x)


def values(program, *inputs: Tensor) -> list[Tensor]:
    given = iter(inputs)
    names = [node.name for node in placeholders(program.main)]
    return [program.constants[n] if n in program.constants else next(given) for n in names]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_eager_is_the_model_bit_for_bit(dtype: torch.dtype) -> None:
    model, x = weights(Model(dtype)), randn(2, 3, 8, dtype=dtype)
    program = capture(model, x)
    run = Eager().compile(program, MAIN)
    for _ in range(2):
        (made,) = run(*values(program, x))
        assert torch.equal(made, model(x))
    assert Eager().supports(program) == []


def test_eager_runs_the_graph_asked_for() -> None:
    program = capture(weights(Model()), x := randn(2, 3, 8))
    Pipeline.parse("fuse-qkv").run(program)
    assert set(program.graphs) == {"full", "weights"}
    sources = [program.constants[n.name] for n in placeholders(program.graphs["weights"].graph)]
    made = Eager().compile(program, "weights")(*sources)
    assert [tuple(value.shape) for value in made] == [(16, 8), (16,)]
    assert x.shape == (2, 3, 8)


def test_ambient_autocast_does_not_reach_the_graph() -> None:
    model, x = weights(nn.Linear(8, 8)), randn(2, 8)
    program = capture(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        (made,) = Eager().compile(program, MAIN)(*values(program, x))
    assert torch.equal(made, model(x))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_in_double_is_the_model_in_double(dtype: torch.dtype) -> None:
    model, x = weights(Model(dtype)), randn(2, 3, 8, dtype=dtype)
    program = capture(model, x)
    (made,) = InDouble(program.graphs[MAIN]).run(*values(program, x))
    assert made.dtype == torch.float64
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        wide = Model(torch.float64)
        wide.load_state_dict(model.state_dict())
        wide.float = lambda: wide
        with torch.no_grad():
            wanted = _in_double(wide, x.double())
    finally:
        torch.set_default_dtype(previous)
    torch.testing.assert_close(made, wanted, rtol=1e-12, atol=1e-12)


def _in_double(model: Model, x: Tensor) -> Tensor:
    """``Model.forward`` with every dtype written as float64."""
    q = F.layer_norm(model.q(x), (8,)) * torch.ones(8, 8)[0]
    mixed = q @ torch.eye(8) + model.table.double()
    turned = torch.view_as_complex(mixed.unflatten(-1, (4, 2))) * torch.polar(
        torch.ones(4), torch.arange(4.0)
    )
    return torch.view_as_real(turned).flatten(-2) + model.k(x)


def test_in_double_leaves_integers_and_numbers() -> None:
    program = capture(lambda x, i: x[i] * 3 + i.to(torch.int32), randn(4), torch.tensor([2, 0]))
    x, i = randn(4), torch.tensor([2, 0])
    (made,) = InDouble(program.graphs[MAIN]).run(x, i)
    assert torch.equal(made, x.double()[i] * 3 + i)


def test_widen() -> None:
    assert widen(torch.ones(1, dtype=torch.bfloat16)).dtype == torch.float64
    assert widen(torch.ones(1, dtype=torch.complex64)).dtype == torch.complex128
    assert widen(torch.ones(1, dtype=torch.int32)).dtype == torch.int32
    assert widen(1.5) == 1.5
    assert widen(None) is None
