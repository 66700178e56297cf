"""Costs that are shared between like nodes are those of the nodes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dit_compile.analysis.cost import node_cost
from dit_compile.analysis.shared_cost import SharedCosts
from dit_compile.ir.hints import symbol_hints
from dit_compile.pipeline.pipeline import Pipeline
from tests.ir.models import Transformer, capture, noise, program_of, seeded


@pytest.mark.parametrize("dynamic", [False, True])
def test_every_node_of_every_graph(dynamic: bool) -> None:
    tokens = torch.export.Dim("tokens", min=2, max=64)
    options: dict[str, Any] = {"dynamic_shapes": ({1: tokens}, None)} if dynamic else {}
    model = seeded(lambda: Transformer(3, affine=(1,)))
    program = capture(model, noise(2, 4, 8), noise(2, 8), **options)
    Pipeline.parse("exact,insert-block-cache{interval=2}").run(program)
    shared = SharedCosts()
    for module in program.graphs.values():
        weights = frozenset(program.weight_nodes(module.graph))
        hints = symbol_hints(module.graph)
        for node in module.graph.nodes:
            assert shared.of(node, weights) == node_cost(node, weights).evaluate(hints)


def test_what_looks_alike_and_is_not() -> None:
    """The same sizes from a weight, from an expanded tensor, and from one tensor twice."""

    def forward(weight: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> Any:
        wide = y.expand(4, 4)
        return x + weight, x + x, x + wide, weight + x, x + x.t().contiguous()

    program = program_of(forward, noise(4, 4), noise(1, 4), weights=(noise(4, 4),))
    weights, shared = frozenset(program.weight_nodes(program.main)), SharedCosts()
    costs = set()
    for node in program.main.nodes:
        cost = shared.of(node, weights)
        assert cost == node_cost(node, weights).evaluate()
        costs.add(cost)
    assert len(costs) > 4
