"""Arguments that are lazily conjugated or negated: what eager computes, whatever came before."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.passes.irtest import randn, weights

TARGETS = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]


class Model(nn.Module):
    """A layer, and a condition that each case uses in its own way."""

    def __init__(self, use: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.use = nn.Linear(4, 4), use

    def forward(self, x: Tensor, *conditions: Tensor) -> Any:
        return self.use(self.layer(x), *conditions)


def rotated(y: Tensor, c: Tensor) -> Tensor:
    pairs = torch.view_as_complex(y.unflatten(-1, (2, 2)).contiguous())
    return torch.view_as_real(pairs * c[:, :2].clone()).flatten(-2)


def added(y: Tensor, c: Tensor) -> Tensor:
    return y + c * 2


def written(y: Tensor, c: Tensor) -> Tensor:
    c.mul_(3)
    return y + (c.real if c.is_complex() else c)


COMPLEX, REAL = torch.complex(randn(2, 4), randn(2, 4, seed=1)), randn(2, 4, seed=2)
PLAIN_AND_LAZY: dict[str, tuple[Callable[..., Any], Sequence[Callable[[], Tensor]]]] = {
    "cloned": (
        lambda y, c: y + torch.view_as_real(c.clone())[..., 1],
        [COMPLEX.clone, COMPLEX.conj],
    ),
    "resolved": (
        lambda y, c: y + torch.view_as_real(c.resolve_conj())[..., 1],
        [COMPLEX.conj, COMPLEX.clone],
    ),
    "rotated": (rotated, [COMPLEX.clone, COMPLEX.conj, COMPLEX.clone]),
    "negated": (added, [REAL.clone, lambda: torch._neg_view(REAL)]),
    "imaginary": (added, [REAL.clone, lambda: COMPLEX.conj().imag, lambda: COMPLEX.imag]),
    "written, conjugated": (written, [COMPLEX.clone, lambda: COMPLEX.clone().conj()]),
    "written, negated": (written, [REAL.clone, lambda: torch._neg_view(REAL.clone())]),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", PLAIN_AND_LAZY)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_plain_and_lazy_in_turn(name: str, target: str, mode: Callable[[], Any]) -> None:
    use, conditions = PLAIN_AND_LAZY[name]
    torch._dynamo.reset()
    model, x = weights(Model(use)), randn(2, 4, seed=3)
    fast = torch.compile(model, backend="ditc", options={"strict": True, "target": target})
    with mode():
        for condition in conditions:
            ours, theirs = condition(), condition()
            torch.testing.assert_close(fast(x, ours), model(x, theirs))
            torch.testing.assert_close(ours, theirs)


def test_both_in_one_call() -> None:
    model = weights(Model(lambda y, c, d: y + (c * d).real + torch.view_as_real(d.clone())[..., 1]))
    fast = torch.compile(model, backend="ditc", options={"strict": True, "target": "eager"})
    x = randn(2, 4, seed=3)
    with torch.no_grad():
        got = fast(x, COMPLEX, COMPLEX.conj())
        torch.testing.assert_close(got, model(x, COMPLEX, COMPLEX.conj()))


def test_gradients_pass_through() -> None:
    model, x = weights(Model(lambda y, c: y * torch.view_as_real(c.clone())[..., 1])), randn(2, 4)
    grads = []
    for each in (
        model,
        torch.compile(model, backend="ditc", options={"strict": True, "target": "eager"}),
    ):
        leaf = COMPLEX.clone().requires_grad_()
        each(x, leaf.conj()).square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(grads[1], grads[0])


def test_plain_inductor_gets_no_lazy_input(monkeypatch: pytest.MonkeyPatch) -> None:
    """It reads the memory alone, and would take the other sign."""
    given: list[Any] = []

    def compile_fx(module: Any, inputs: Any) -> Any:
        given.extend(inputs)
        return module.forward

    def fail(*_: Any) -> Any:
        raise RuntimeError("not today")

    monkeypatch.setattr("dit_compile.torch_backend.compile_fx", compile_fx)
    monkeypatch.setattr("dit_compile.torch_backend.capture_dynamo", fail)
    torch._dynamo.reset()
    model, x = weights(Model(added)), randn(2, 4, seed=3)
    fast = torch.compile(model, backend="ditc", options={"strict": False})
    with torch.no_grad(), pytest.warns(UserWarning, match="not today"):
        got = fast(x, torch._neg_view(REAL))
    torch.testing.assert_close(got, added(model.layer(x), -REAL))
    assert not any(value.is_neg() for value in given if isinstance(value, Tensor))
