"""What may be merged or dropped, and what may not."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx
from torch.nn import functional as F

from dit_compile.ir.purity import is_idle_dropout, is_pure, is_random, mutates
from tests.ir.models import aten, calls, noise, program_of


def call(target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    graph = fx.Graph()
    return graph.call_function(target, (graph.placeholder("x"), *args), kwargs)


@pytest.mark.parametrize(
    "node",
    [
        call(aten.add.Tensor, 1),
        call(aten.layer_norm.default, [4]),
        call(aten.dropout.default, 0.5, False),
        call(aten.dropout.default, 0.0, True),
        call(aten.scaled_dot_product_attention.default, 1, 2),
        call(operator.getitem, 0),
        call(operator.mul, 2),
    ],
    ids=str,
)
def test_pure(node: fx.Node) -> None:
    assert is_pure(node)
    assert not is_random(node)
    assert not mutates(node)


@pytest.mark.parametrize(
    ("node", "random", "writes"),
    [
        (call(aten.dropout.default, 0.5, True), True, False),
        (call(aten.rand_like.default), True, False),
        (call(aten.bernoulli.p, 0.5), True, False),
        (call(aten.scaled_dot_product_attention.default, 1, 2, None, 0.1), True, False),
        (call(aten.scaled_dot_product_attention.default, 1, 2, dropout_p=0.1), True, False),
        (call(aten.add_.Tensor, 1), False, True),
        (call(aten.add.out, 1), False, True),
        (call(aten._assert_async.msg, "no"), False, False),
        (call(torch._C._set_grad_enabled), False, False),
    ],
    ids=str,
)
def test_impure(node: fx.Node, random: bool, writes: bool) -> None:
    assert not is_pure(node)
    assert is_random(node) is random
    assert mutates(node) is writes


def test_inputs_and_results_are_not_for_dropping() -> None:
    program = program_of(lambda x: x + 1, noise(2))
    kinds = {node.op: is_pure(node) for node in program.main.nodes}
    assert kinds == {"placeholder": False, "call_function": True, "output": False}


def test_idle_dropout_of_a_captured_model() -> None:
    program = program_of(lambda x: F.dropout(x, 0.5, training=False) + 1, noise(2))
    assert all(is_idle_dropout(node) for node in calls(program, aten.dropout.default))
    assert not is_idle_dropout(call(aten.add.Tensor, 1))
