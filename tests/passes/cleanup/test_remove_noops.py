"""remove-noops: what returns its argument goes, what only looks like it stays."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dit_compile.pipeline.pipeline import Pipeline
from tests.capture.through_dynamo import from_dynamo, run
from tests.passes.irtest import capture, check, ops, randn, rewrite, weights


def test_a_chain_of_noops_collapses() -> None:
    # RUN: remove-noops
    # CHECK: @full
    # CHECK-NEXT: %relu = aten.relu(%x)
    # CHECK-NEXT: return %relu
    def forward(x):
        x = nn.functional.dropout(x, 0.5, training=False) / 1
        x = (x * 1.0 + 0 - 0.0) ** 1
        x = x.reshape(2, 4).view(2, 4).expand(2, 4).permute(0, -1)[:, :]
        return x.clone().contiguous().to(torch.float32).detach().relu()

    check(forward, randn(2, 4))


def test_every_user_reads_the_argument() -> None:
    # RUN: remove-noops
    # CHECK-NOT: aten.view
    # CHECK: aten.relu(%x)
    # CHECK: aten.sigmoid(%x)
    # CHECK: aten.mul(%x
    def forward(x):
        same = x.view(2, 4)
        return same.relu() + same.sigmoid() * (same * 2)

    check(forward, randn(2, 4))


def test_what_changes_a_value_stays() -> None:
    # RUN: remove-noops
    # CHECK: aten.relu(%x)
    def forward(x):
        x = x.relu()
        number = (x / 2, x * -1, x + 1, 0 - x, x**2, torch.add(x, 0, alpha=2), x * x.new_ones(()))
        shape = (x.view(4, 2), x.t(), x[:, ::2], x[:, :2], x[:, 1:], x.expand(3, 2, 4))
        layout = (x.double(), x.t().contiguous(), x.t().clone(memory_format=torch.preserve_format))
        return [y.sin() for y in (*number, *shape, *layout)]

    done = check(forward, randn(2, 4))
    copies = ops(done.before)["aten.clone"]
    assert ops(done.after)["aten.clone"] == copies - 1, "only the one that preserves the layout"
    assert done.records[0].nodes_after == done.records[0].nodes_before - 1


def test_integer_division_by_one_changes_the_dtype() -> None:
    # RUN: remove-noops
    # CHECK: aten.div(%x, 1)
    def forward(x):
        return (x / 1).relu()

    check(forward, torch.arange(4))


def test_active_dropout_stays() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Dropout(0.0), nn.Linear(4, 4)).train()
    program, _ = from_dynamo(model, randn(2, 4))
    Pipeline.parse("remove-noops").run(program)
    assert ops(program) == {"aten.dropout": 1, "aten.linear": 1}


def test_the_caller_never_gets_memory_of_an_input() -> None:
    def forward(x):
        views = (x, x.t(), x.chunk(2)[1])
        return [copy for view in views for copy in (view.clone(), view * 1, view + 0)]

    program = capture(forward, x := randn(2, 4))
    done = rewrite("remove-noops", program, x)
    assert done.misses == ["the caller would get an input itself, not a copy"] * 9
    for result in run(done.after, {"x": x}):
        assert result.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()


def test_a_returned_view_of_a_copy_counts_as_returned() -> None:
    # RUN: remove-noops
    # CHECK: aten.clone(%x)
    # MISS: the caller would get an input itself, not a copy
    def forward(x):
        return x.clone().t()

    check(forward, randn(2, 4))


def test_two_results_keep_memory_of_their_own() -> None:
    # RUN: remove-noops
    # CHECK: aten.clone
    # MISS: two results would share their memory
    def forward(x):
        y = x.relu()
        return y, y.clone()

    check(forward, randn(2, 4))


def test_views_of_an_input_may_be_returned() -> None:
    # RUN: remove-noops
    # CHECK: %t = aten.t(%x)
    # CHECK-NEXT: return %t
    def forward(x):
        return x.t().view(4, 2)

    check(forward, randn(2, 4))


def test_dynamic_sizes_equal_for_every_binding() -> None:
    # RUN: remove-noops
    # CHECK-NOT: aten.view(%x
    # CHECK: aten.relu(%x)
    # CHECK: aten.view(
    def forward(x):
        x = x.reshape(x.shape[0], x.shape[1]).relu()
        return x.reshape(x.shape[1], x.shape[0]).sigmoid()

    batch, width = torch.export.Dim("batch"), torch.export.Dim("width")
    check(forward, randn(3, 5), dynamic_shapes={"x": {0: batch, 1: width}})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_in_half_precision(dtype: torch.dtype) -> None:
    # RUN: remove-noops
    # CHECK: = aten._to_copy(%x, dtype=f32)
    # CHECK-NEXT: %relu = aten.relu(
    # CHECK-NEXT: aten._to_copy(%relu, dtype=
    # CHECK-NEXT: return
    def forward(x):
        return (torch.ops.aten._to_copy(x, dtype=dtype).float() * 1).relu().to(dtype)

    check(forward, randn(2, 4, dtype=dtype))


def test_detach_means_something_while_autograd_records() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(x) + self.linear(x).detach()

    for grad, kept in ((True, 1), (False, 0)):
        program, _ = from_dynamo(Model(), randn(2, 4), grad=grad)
        Pipeline.parse("remove-noops").run(program)
        assert ops(program)["aten.detach"] == kept


def test_in_the_exact_preset_it_uncovers_siblings() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k = nn.Linear(4, 4), nn.Linear(4, 4)

        # RUN: exact
        # CHECK: aten.linear(%x, @q.weight|k.weight, @q.bias|k.bias)
        # CHECK-NOT: aten.linear
        def forward(self, x):
            return self.q(nn.functional.dropout(x, 0.1, training=False)).sigmoid() * self.k(x / 1)

    check(weights(Model()), randn(2, 4))


def test_what_writes_out_a_conjugation_stays() -> None:
    # RUN: remove-noops
    # CHECK: %_conj = aten._conj(%x)
    # CHECK: %clone = aten.clone(%_conj)
    # CHECK: aten.view_as_real(%clone)
    # CHECK-NOT: aten.clone
    # CHECK: aten.view_as_real(%x)
    # MISS: it writes out a conjugation or negation
    def forward(x):
        return torch.view_as_real(x.conj().clone()) + torch.view_as_real(x.clone())

    check(forward, torch.complex(randn(2, 4), randn(2, 4, seed=1)))


def test_what_writes_out_a_negation_stays() -> None:
    # RUN: remove-noops
    # CHECK: %_neg_view = aten._neg_view(%x)
    # CHECK: aten.clone(%_neg_view
    # CHECK: aten.sin(%x)
    # MISS: it writes out a conjugation or negation
    def forward(x):
        return torch._neg_view(x).clone().cos() + x.clone().sin()

    check(forward, randn(2, 4))
