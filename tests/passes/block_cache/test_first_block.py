"""first-block: what is measured, by what formula, and which blocks it decides about."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.errors import PipelineError
from dit_compile.ir.program import MAIN, InputKind, OutputKind, Program, placeholders
from dit_compile.passes.block_cache.first_block import FirstBlock
from tests.capture.through_dynamo import run
from tests.passes.block_cache.test_insert_block_cache import Block, C, Model, X
from tests.passes.irtest import capture, randn, rewrite, weights


class Deep(Model):
    """Five blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(torch.float32) for _ in range(5))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return weights(Deep())


@pytest.fixture(scope="module")
def program(model: nn.Module) -> Program:
    return capture(model, X, C)


def cached(program: Program, options: str = "") -> Program:
    return rewrite(f"insert-block-cache{{method=first-block{options}}}", program, X, C).after


def blocks_of(program: Program, graph: str) -> set[int]:
    """The blocks whose weights a graph reads."""
    names = (str(node.target) for node in placeholders(program.graphs[graph].graph))
    return {int(name.split("_")[1]) for name in names if name.startswith("blocks_")}


def named(program: Program, graph: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    """The results of a graph by the name of the input that they become."""
    outputs = program.outputs[graph]
    found = run(program, {**program.constants, **values}, graph)
    return {out.name: value for out, value in zip(outputs, found, strict=True)}


@pytest.mark.parametrize(("front", "back"), [(1, 0), (2, 0), (1, 2), (2, 1)])
def test_first_and_last_blocks_are_always_computed(program: Program, front: int, back: int) -> None:
    after = cached(program, f",front={front},back={back}")
    assert blocks_of(after, "probe") == set(range(front))
    assert blocks_of(after, "rest") == set(range(front, 5))
    assert blocks_of(after, "reuse") == set(range(5 - back, 5))


def test_no_block_between(program: Program) -> None:
    with pytest.raises(PipelineError, match="of 5 blocks, front=3 and back=2 leave none to reuse"):
        cached(program, ",front=3,back=2")


@torch.no_grad()
@pytest.mark.parametrize("front", [1, 2])
def test_the_residual_of_the_first_blocks_is_measured(
    model: Model, program: Program, front: int
) -> None:
    after = cached(program, f",front={front}")
    stream = model.embed(X)
    for block in model.blocks[:front]:
        stream = block(stream, C)
    found = named(after, "probe", {"x": X, "c": C})
    residual = next(found[name] for name in judged(after) if name in found)
    torch.testing.assert_close(residual, stream - model.embed(X))


def judged(program: Program) -> list[str]:
    return [str(node.target) for node in placeholders(program.graphs["judge"].graph)]


@torch.no_grad()
def test_the_change_is_relative_to_what_was_there_before(program: Program) -> None:
    after = cached(program)
    now, before = judged(after)
    assert after.inputs[now].kind is InputKind.DERIVED
    assert after.inputs[before].kind is InputKind.STATE
    new, old = randn(2, 6, 8, seed=3), 2 * randn(2, 6, 8, seed=4)
    (change,) = run(after, {now: new, before: old}, "judge")
    assert float(change) == pytest.approx(float((new - old).abs().mean() / old.abs().mean()))
    assert float(change) != pytest.approx(float((new - old).abs().mean() / new.abs().mean()))


class TestEmbedding:
    @torch.no_grad()
    def test_the_modulated_input_of_the_first_block_is_measured(
        self, model: Model, program: Program
    ) -> None:
        after = cached(program, ",measure=embedding")
        found = named(after, "probe", {"x": X, "c": C})
        measured = next(found[name] for name in judged(after) if name in found)
        torch.testing.assert_close(measured, F.layer_norm(model.embed(X), (8,)))
        assert blocks_of(after, "reuse") == set(), "all blocks are one span"

    @pytest.mark.parametrize(("measure", "kept"), [("residual", False), ("embedding", True)])
    def test_what_it_is_compared_with(self, program: Program, measure: str, kept: bool) -> None:
        """TeaCache compares with the previous step, the others with the last computed one."""
        after = cached(program, f",measure={measure}")
        (before,) = (n for n in judged(after) if after.inputs[n].kind is InputKind.STATE)
        told = {o.name for o in after.outputs["reuse"] if o.kind is OutputKind.STATE}
        assert (before in told) is kept
        for graph in (MAIN, "rest"):
            assert before in {output.name for output in after.outputs[graph]}

    def test_changes_add_up_through_the_polynomial(self) -> None:
        policy = FirstBlock(measure="embedding", rescale=(2.0, 1.0, -0.5))
        assert policy._rescaled(0.5) == pytest.approx(abs(2 * 0.5**2 + 0.5 - 0.5))
        assert policy._rescaled(0.1) == pytest.approx(abs(2 * 0.1**2 + 0.1 - 0.5))
