"""eliminate-common: equal expressions are computed once, and only equal ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dit_compile.ir.program import InputKind, placeholders
from dit_compile.pipeline.pipeline import Pipeline
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import capture, check, ops, randn, weights


def test_equal_chains_merge() -> None:
    # RUN: eliminate-common
    # CHECK-COUNT-1: aten.silu(
    # CHECK-COUNT-1: aten.mul(%silu, 2)
    # CHECK-NOT: aten.silu
    # CHECK: aten.add(%mul, %mul)
    def forward(x):
        return nn.functional.silu(x) * 2 + nn.functional.silu(x) * 2

    check(forward, randn(2, 4))


def test_all_users_read_the_first() -> None:
    # RUN: eliminate-common
    # CHECK: %silu = aten.silu(%x)
    # CHECK-NOT: aten.silu
    # CHECK: aten.relu(%silu)
    # CHECK: aten.sigmoid(%silu)
    # CHECK: aten.tanh(%silu)
    def forward(x):
        first, second, third = (nn.functional.silu(x) for _ in range(3))
        return first.relu() + second.sigmoid() + third.tanh()

    check(forward, randn(2, 4))


def test_different_arguments_do_not_merge() -> None:
    # RUN: eliminate-common
    # CHECK: aten.relu(%x)
    def forward(x):
        pairs = (
            (x * 1.5, x * 2.5),
            (x.sum(0), x.sum(1)),
            (x.relu(), x.sigmoid()),
            (x - 2, torch.rsub(x, 2)),
            (x.to(torch.float64), x.to(torch.float16)),
            (x.new_full((), 1), x.new_full((), 0)),
            x.chunk(2, 1),
            (torch.add(x, x, alpha=1), torch.add(x, x, alpha=2)),
        )
        return [item.sin() for pair in pairs for item in pair]

    assert not check(forward, randn(2, 4)).records[0].changed


def test_a_python_number_is_not_its_equal_of_another_type() -> None:
    # RUN: eliminate-common
    # CHECK: aten.mul(%x, 2)
    # CHECK: aten.mul(%x, 2.0)
    def forward(x):
        return (x * 2).sin() + (x * 2.0).cos()

    done = check(forward, torch.arange(4))
    assert not done.records[0].changed


def test_random_operators_stay_apart() -> None:
    def forward(x):
        return torch.randn_like(x) * torch.randn_like(x) + torch.rand(2, 4) - torch.rand(2, 4)

    program = capture(forward, randn(2, 4))
    before = ops(program)
    Pipeline.parse("eliminate-common").run(program)
    assert ops(program) == before
    assert before["aten.randn_like"] == before["aten.rand"] == 2


def test_active_dropout_stays_apart_and_idle_dropout_merges() -> None:
    def double(p: float):
        drop = nn.Dropout(p).train()
        return lambda x: drop(x).sin() * drop(x).cos()

    for p, left in ((0.5, 2), (0.0, 1)):
        program, _ = from_dynamo(double(p), randn(2, 4))
        Pipeline.parse("eliminate-common").run(program)
        assert ops(program)["aten.dropout"] == left


def test_two_results_keep_memory_of_their_own() -> None:
    # RUN: eliminate-common
    # CHECK-COUNT-2: aten.silu
    # CHECK: return %silu, %silu_1
    # MISS: two results would share their memory
    def forward(x):
        return nn.functional.silu(x), nn.functional.silu(x)

    check(forward, randn(2, 4))


def test_tied_weights_are_one_expression() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias

        def forward(self, x):
            return self.a(x).sin() + self.b(x).cos()

    program, _ = from_dynamo(Model(), randn(2, 4))
    Pipeline.parse("eliminate-common").run(program)
    assert ops(program)["aten.linear"] == 1
    assert len([n for n in placeholders(program.main) if program.is_weight(n)]) == 2
    assert len(program.of_kind(InputKind.WEIGHT)) == 2


def test_dynamic_sizes() -> None:
    # RUN: eliminate-common
    # CHECK-COUNT-1: aten.view(
    # CHECK-NOT: aten.view(
    # CHECK: aten.sin(%view)
    # CHECK: aten.cos(%view)
    def forward(x):
        flat = [x.view(x.shape[0] * x.shape[1], -1) for _ in range(2)]
        return flat[0].sin() + flat[1].cos()

    batch, tokens = torch.export.Dim("batch"), torch.export.Dim("tokens")
    check(forward, randn(2, 3, 4), dynamic_shapes={"x": {0: batch, 1: tokens}})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    # RUN: eliminate-common
    # CHECK-COUNT-1: aten._to_copy(%x
    # CHECK-NOT: aten._to_copy(%x
    # CHECK: return
    def forward(x):
        return (x.float().sin() + x.float().cos()).to(dtype)

    check(forward, randn(2, 4, dtype=dtype))


def test_in_the_exact_preset_it_uncovers_siblings() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Linear(4, 4), nn.Linear(4, 4)

        # RUN: exact
        # CHECK-COUNT-1: aten.silu
        # CHECK-COUNT-1: aten.linear(%silu, @scale.weight|shift.weight, @scale.bias|shift.bias)
        # CHECK-NOT: aten.linear
        # CHECK: ditc.adaln_norm(%x, %getitem, %getitem_1, 1e-05)
        def forward(self, x, c):
            scale = self.scale(nn.functional.silu(c))
            shift = self.shift(nn.functional.silu(c))
            return nn.functional.layer_norm(x, (4,)) * (1 + scale) + shift

    check(weights(Model()), randn(2, 4), randn(2, 4, seed=1))


def test_a_value_without_gradient_does_not_stand_in_for_one_with() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            with torch.no_grad():
                frozen = self.linear(x)
            return (frozen * self.linear(x)).sum()

    model, x = weights(Model()), randn(2, 4)
    model(x).backward()
    wanted = model.linear.weight.grad.clone()
    program, values = from_dynamo(model, x, grad=True)
    Pipeline.parse("eliminate-common").run(program)
    assert ops(program)["aten.linear"] == 1
    model.zero_grad()
    run(program, values)[0].backward()
    torch.testing.assert_close(model.linear.weight.grad, wanted)


class Chosen(nn.Module):
    """Reads the same rows of two inputs, found twice, as each block of a masked model does."""

    def forward(self, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        left = x[torch.nonzero(mask.flatten()).flatten()]
        right = y[torch.nonzero(mask.flatten()).flatten()]
        return left.exp().sum() + right.sin().sum()


@pytest.mark.parametrize("target", ["eager", "inductor"])
def test_sizes_told_by_equal_data_are_one(target: str) -> None:
    torch._dynamo.reset()
    program, _ = from_dynamo(Chosen(), randn(6, 3), randn(6, 3), torch.eye(2, 3).bool())
    Pipeline.parse("eliminate-common").run(program)
    assert ops(program)["aten.nonzero"] == 1
    chosen = Chosen()
    options = {"passes": "eliminate-common", "target": target, "strict": True}
    compiled = torch.compile(chosen, backend="ditc", fullgraph=True, options=options)
    for on in (0, 1, 4):
        inputs = randn(6, 3), randn(6, 3), torch.arange(6) < on
        torch.testing.assert_close(compiled(*inputs), chosen(*inputs))
