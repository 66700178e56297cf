"""ditc's own operators: the reference decomposition, fake values, derivative, registration."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.nn import functional as F

from dit_compile.ops import adaln_norm, gated_residual, gated_residual_norm, norm_rotary
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gated_residual_and_its_norm_are_the_operators_that_they_replace(
    dtype: torch.dtype,
) -> None:
    x, y = (randn(2, 4, D, seed=seed, dtype=dtype) for seed in range(2))
    gate, scale, shift = (randn(2, 1, D, seed=seed, dtype=dtype) for seed in range(2, 5))
    total = x + gate * y
    assert torch.equal(gated_residual(x, y, gate), total)
    both = gated_residual_norm(x, y, gate, scale, shift, 1e-6)
    assert torch.equal(both[0], total)
    assert torch.equal(both[1], adaln_norm(total, scale, shift, 1e-6))


def test_results_have_the_streams_dtype_and_the_norm_is_wide() -> None:
    x, y = (randn(2, 4, D, seed=seed, dtype=torch.bfloat16) for seed in range(2))
    gate, scale, shift = (randn(2, 1, D, seed=seed) for seed in range(2, 5))
    total, normed = gated_residual_norm(x, y, gate, scale, shift)
    assert torch.equal(total, (x.float() + gate * y).bfloat16())
    assert torch.equal(normed, adaln_norm(total.float(), scale, shift).bfloat16())
    assert gated_residual(x, y, gate).dtype == torch.bfloat16


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("centered", [True, False])
@pytest.mark.parametrize("across_heads", [True, False])
def test_norm_rotary_is_a_norm_and_a_rotation(
    interleaved: bool, centered: bool, across_heads: bool
) -> None:
    x, angles = randn(2, 4, 3, D).double(), randn(1, 4, 1, D // 2, seed=1).double()
    weight = randn(3 * D if across_heads else D, seed=2).double()
    flags = 1e-6, centered, across_heads, interleaved
    made = norm_rotary(x, weight, None, angles.cos(), angles.sin(), *flags)
    rows = x.flatten(-2) if across_heads else x
    normed = F.layer_norm(rows, rows.shape[-1:], weight, eps=1e-6)
    if not centered:
        normed = F.rms_norm(rows, rows.shape[-1:], weight, 1e-6)
    pairs = normed.view(2, 4, 3, *((-1, 2) if interleaved else (2, -1)))
    first, second = pairs.unbind(-1 if interleaved else -2)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)
    wanted = torch.stack((turned.real, turned.imag), -1 if interleaved else -2).view_as(x)
    torch.testing.assert_close(made, wanted, rtol=1e-10, atol=1e-12)
    wide = angles.repeat_interleave(2, -1) if interleaved else torch.cat([angles] * 2, -1)
    again = norm_rotary(x, weight, None, wide.cos(), wide.sin(), *flags)
    torch.testing.assert_close(again, made, rtol=1e-10, atol=1e-12)


def test_opcheck_of_the_others() -> None:
    x, y = (randn(2, 3, D, seed=seed).requires_grad_() for seed in (0, 1))
    vectors = [randn(2, 1, D, seed=seed).requires_grad_() for seed in (2, 3, 4)]
    torch.library.opcheck(gated_residual, (x, y, vectors[0]))
    torch.library.opcheck(gated_residual_norm, (x, y, *vectors, 1e-6))
    angles = randn(1, 3, D, seed=5)
    flags = 1e-6, False, False, True
    torch.library.opcheck(norm_rotary, (x, None, None, angles.cos(), angles.sin(), *flags))
