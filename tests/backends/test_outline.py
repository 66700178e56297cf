"""Outlining: repeated regions become calls of one subgraph, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from dit_compile.backends.inductor import Inductor
from dit_compile.backends.inductor import backend as inductor_backend
from dit_compile.backends.inductor.outline import outline
from dit_compile.ir.program import MAIN, Program, copy_graph, placeholders
from tests.analysis.structures import FAMILIES, captured
from tests.analysis.test_repeats import HEAVY, Block, Chain, D, program_of
from tests.passes.irtest import capture, randn, weights

invoke = torch.ops.higher_order.invoke_subgraph


def values_of(program: Program, *inputs: Tensor) -> list[Any]:
    given = iter(inputs)
    names = [node.name for node in placeholders(program.main)]
    return [program.constants[n] if n in program.constants else next(given) for n in names]


def calls(module: fx.GraphModule) -> int:
    return len(module.graph.find_nodes(op="call_function", target=invoke))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from([(D, 1e-5), (2 * D, 1e-5), (D, 1e-6)]), min_size=1, max_size=8))
def test_any_chain_of_blocks_computes_the_same(kinds: list[tuple[int, float]]) -> None:
    program = program_of(*(Block(*kind) for kind in kinds))
    values = values_of(program, randn(2, 4, D), randn(2, 1, D))
    module = copy_graph(program.graphs[MAIN])
    replaced = outline(module, HEAVY, name="region")
    module.graph.lint()
    assert calls(module) == replaced
    (want,) = fx.Interpreter(program.graphs[MAIN]).run(*values)
    (have,) = fx.Interpreter(module).run(*values)
    assert torch.equal(want, have)


@pytest.mark.parametrize("name", FAMILIES)
def test_six_families(name: str) -> None:
    program, values = captured(name)
    module = copy_graph(program.graphs[MAIN])
    assert outline(module, inductor_backend._HEAVY, name="region") >= 2
    assert len(list(module.graph.nodes)) < len(list(program.main.nodes))
    want = fx.Interpreter(program.graphs[MAIN]).run(*values)
    have = fx.Interpreter(module).run(*values)
    assert all(map(torch.equal, want, have))


@pytest.mark.slow
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_once_and_called_often(dynamic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = weights(Chain(*(Block() for _ in range(5))))
    torch._dynamo.reset()
    seen: list[int] = []

    def watch(module: fx.GraphModule, *args: Any, **kwargs: Any) -> int:
        seen.append(outline(module, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(inductor_backend, "outline", watch)
    strict = {"strict": True}
    compiled = torch.compile(model, backend="ditc", fullgraph=True, dynamic=dynamic, options=strict)
    with torch.no_grad():
        for rows in (4, 6) if dynamic else (4,):
            given = randn(2, rows, D), randn(2, 1, D)
            torch.testing.assert_close(compiled(*given), model(*given))
    assert seen[-1] == (0 if dynamic else 4), "the first norm and the end of the last block stay"


def test_symbolic_sizes_stay_in_place() -> None:
    rows = torch.export.Dim("rows")
    model = weights(Chain(*(Block() for _ in range(4))))
    shapes = {"x": {1: rows}, "c": None}
    program = capture(model, randn(2, 4, D), randn(2, 1, D), dynamic_shapes=shapes)
    assert outline(copy_graph(program.graphs[MAIN]), HEAVY, name="region") == 0
    run = Inductor().compile(program, MAIN)
    for count in (4, 7):
        given = randn(2, count, D), randn(2, 1, D)
        torch.testing.assert_close(run(*values_of(program, *given))[0], model(*given))


def test_nothing_is_outlined_while_autograd_records() -> None:
    model = weights(Chain(*(Block() for _ in range(4)))).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="ditc", fullgraph=True, options={"strict": True})
    given = randn(2, 4, D), randn(2, 1, D)
    compiled(*given).square().sum().backward()
    made = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(*given).square().sum().backward()
    for have, parameter in zip(made, model.parameters(), strict=True):
        torch.testing.assert_close(have, parameter.grad)
