"""ditc's own operators: the reference decomposition, fake values, derivative, registration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from dit_compile.ops import adaln_norm
from tests.passes.irtest import randn

D = 6


def written_out(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """The formula of the paper, without torch's layer norm."""
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * (1 + scale) + shift


@given(
    lead=st.lists(st.integers(1, 3), min_size=0, max_size=3),
    broadcast=st.lists(st.booleans(), min_size=3, max_size=3),
    eps=st.sampled_from([1e-6, 1e-5, 1e-2]),
)
@settings(deadline=None, max_examples=40)
def test_it_is_the_formula_for_every_broadcast(
    lead: list[int], broadcast: list[bool], eps: float
) -> None:
    modulation = [1 if flat else size for size, flat in zip(lead, broadcast, strict=False)]
    x, scale, shift = (
        randn(*shape, D, seed=seed).double()
        for seed, shape in enumerate((lead, modulation, modulation))
    )
    torch.testing.assert_close(
        adaln_norm(x, scale, shift, eps), written_out(x, scale, shift, eps), rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_it_rounds_as_the_operators_that_it_replaces(dtype: torch.dtype) -> None:
    x, scale, shift = (randn(2, 4, D, seed=seed, dtype=dtype) for seed in range(3))
    wanted = F.layer_norm(x, (D,), eps=1e-6) * (1 + scale) + shift
    made = adaln_norm(x, scale, shift, 1e-6)
    assert made.dtype == dtype
    assert torch.equal(made, wanted)


def test_eps_has_layer_norms_default() -> None:
    x, scale, shift = (randn(2, D, seed=seed) for seed in range(3))
    assert torch.equal(adaln_norm(x, scale, shift), adaln_norm(x, scale, shift, 1e-5))
    assert not torch.equal(adaln_norm(x, scale, shift), adaln_norm(x, scale, shift, 1e-2))


def test_fake_values_have_the_real_ones_shape_and_dtype() -> None:
    with FakeTensorMode():
        x = torch.empty(2, 3, D, dtype=torch.bfloat16)
        modulation = torch.empty(2, 1, D, dtype=torch.bfloat16)
        made = adaln_norm(x, modulation, modulation)
    assert made.shape == (2, 3, D)
    assert made.dtype == torch.bfloat16


def test_gradient() -> None:
    inputs = [randn(2, 3, D, seed=seed).double().requires_grad_() for seed in range(3)]
    assert torch.autograd.gradcheck(adaln_norm, inputs)


@pytest.mark.parametrize("shape", [(2, 1, D), (2, 3, D), (D,)])
def test_opcheck(shape: tuple[int, ...]) -> None:
    scale, shift = (randn(*shape, seed=seed).requires_grad_() for seed in (1, 2))
    torch.library.opcheck(adaln_norm, (randn(2, 3, D).requires_grad_(), scale, shift, 1e-6))


def test_vmap_decomposes_it_without_a_complaint(capfd: pytest.CaptureFixture[str]) -> None:
    x, scale, shift = randn(2, 3, D, seed=0), randn(5, 2, 1, D, seed=1), randn(5, 2, 1, D, seed=2)
    made = torch.func.vmap(lambda a, b: adaln_norm(x, a, b))(scale, shift)
    wanted = torch.stack([adaln_norm(x, a, b) for a, b in zip(scale, shift, strict=True)])
    torch.testing.assert_close(made, wanted)
    assert "performance drop" not in capfd.readouterr().err  # torch's slow path, one by one


def test_exported_it_is_one_operator_and_decomposes_on_request() -> None:
    class Model(torch.nn.Module):
        def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return adaln_norm(x, scale, shift)

    def count(program: torch.export.ExportedProgram) -> int:
        return sum(node.target is adaln_norm for node in program.graph.nodes)

    exported = torch.export.export(Model(), tuple(randn(2, D, seed=seed) for seed in range(3)))
    assert count(exported) == 1
    assert count(exported.run_decompositions()) == 0
