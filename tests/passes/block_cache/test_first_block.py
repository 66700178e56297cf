"""first-block: what is measured, by what formula, and which blocks it decides about."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import FileCheck

from dit_compile.errors import PassError, PipelineError
from dit_compile.ir.printer import print_graph
from dit_compile.ir.program import MAIN, InputKind, OutputKind, Program, placeholders
from dit_compile.ir.schedule import Step
from dit_compile.passes.block_cache.first_block import FirstBlock
from dit_compile.passes.block_cache.places import Places, places_of_samples
from dit_compile.pipeline.pipeline import Pipeline
from tests.analysis.structures import captured
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


def changes_of(now: Tensor, before: Tensor) -> Tensor:
    """The relative change of each sample ``[batch, ...]`` by itself."""
    size = [value.abs().flatten(1).mean(1) for value in (now - before, before)]
    return size[0] / size[1]


def judge(program: Program, now: Tensor, before: Tensor) -> float:
    (change,) = run(program, dict(zip(judged(program), (now, before), strict=True)), "judge")
    assert change.shape == ()
    return float(change)


class TestEachSample:
    """``decide=max``: the largest of the samples' changes, each measured by itself."""

    def test_its_judge(self, program: Program) -> None:
        text = print_graph(cached(program, ",decide=max"), "judge")
        FileCheck().run(
            """
            # CHECK: %sub_tensor = aten.sub(%_to_copy_default, %_to_copy_default_1)
            # CHECK: %mean_dim = aten.mean(%abs_default, [1, 2]) : f32[2]
            # CHECK: %mean_dim_1 = aten.mean(%abs_default_1, [1, 2]) : f32[2]
            # CHECK: %div_tensor = aten.div(%mean_dim, %mean_dim_1) : f32[2]
            # CHECK: aten.amax(%div_tensor, [0]) : f32[]
            """,
            text,
        )

    def test_the_mean_is_the_default(self, program: Program) -> None:
        given, default = (cached(program, text) for text in (",decide=mean", ""))
        assert print_graph(given, "judge") == print_graph(default, "judge")
        assert "amax" not in print_graph(default, "judge")

    @torch.no_grad()
    def test_one_sample_that_changes_is_not_hidden_by_one_that_does_not(
        self, program: Program
    ) -> None:
        before = torch.stack([randn(6, 8, seed=3), 9 * randn(6, 8, seed=4)])
        now = before.clone()
        now[0] *= 1.5
        for decide, want in (("mean", 0.05), ("max", 0.5)):
            change = judge(cached(program, f",decide={decide}"), now, before)
            assert change == pytest.approx(want, rel=0.25 if decide == "mean" else 1e-5)
        assert judge(cached(program, ",decide=max"), before, before) == 0

    @torch.no_grad()
    def test_what_is_no_number_computes(self, program: Program) -> None:
        before = randn(2, 6, 8, seed=3)
        before[1] = 0  # nothing was there: no relative change
        after = cached(program, ",decide=max")
        change = judge(after, before, before)
        assert change != change
        policy = after.schedule.policy
        assert policy is not None
        assert policy.computes("blocks", Step(3, 8, False, change=change), ())

    @torch.no_grad()
    def test_each_change_goes_through_the_polynomial_before_the_largest_is_taken(
        self, program: Program
    ) -> None:
        before = randn(2, 6, 8, seed=3)
        now = before * torch.tensor([1.1, 1.6])[:, None, None]
        options = ",measure=embedding,rescale=[1.0,-1.0,0.2]"  # 0.11 and -0.04
        after = cached(program, f"{options},decide=max")
        assert judge(after, now, before) == pytest.approx(0.1**2 - 0.1 + 0.2, rel=1e-3)
        policy = after.schedule.policy
        assert isinstance(policy, FirstBlock)
        assert policy._rescaled(0.11) == 0.11, "no second time"

    @torch.no_grad()
    def test_a_batch_of_any_size(self, model: Model) -> None:
        batch = torch.export.Dim("batch", min=2, max=64)
        shapes = ({0: batch}, {0: batch})
        after = cached(capture(model, X, C, dynamic_shapes=shapes), ",decide=max")
        before, now = randn(5, 6, 8, seed=3), randn(5, 6, 8, seed=4)
        assert judge(after, now, before) == pytest.approx(float(changes_of(now, before).max()))

    @torch.no_grad()
    def test_half_precision_is_measured_in_float32(self) -> None:
        model = weights(Model(torch.bfloat16))
        x, c = X.bfloat16(), C.bfloat16()
        text = "insert-block-cache{method=first-block,decide=max}"
        after = rewrite(text, capture(model, x, c), x, c).after
        before, now = randn(2, 6, 8, seed=3).bfloat16(), randn(2, 6, 8, seed=4).bfloat16()
        want = float(changes_of(now.float(), before.float()).max())
        assert judge(after, now, before) == pytest.approx(want, rel=1e-6)

    @torch.no_grad()
    def test_frames_of_one_video_are_one_sample(self) -> None:
        """Latte folds frames into the batch."""
        after = captured("latte", 1)[0].copy()
        Pipeline.parse("exact,insert-block-cache{method=first-block,decide=max}").run(after)
        shape = next(iter(placeholders(after.graphs["judge"].graph))).meta["val"].shape
        assert shape == (6, 48, 32), "three frames of each of two videos"
        old, new = randn(*shape, seed=3), randn(*shape, seed=4)
        new[-1] += 3  # one frame of the second video
        want = changes_of(new.unflatten(0, (2, 3)), old.unflatten(0, (2, 3))).max()
        assert judge(after, new, old) == pytest.approx(float(want))

    @pytest.mark.parametrize("mix", [lambda x: x + x.mean(0), lambda x: x + x.flip(0)])
    def test_samples_that_are_mixed_are_refused(
        self, model: Model, mix: Callable[[Tensor], Tensor]
    ) -> None:
        class Mixed(Deep):
            def forward(self, x: Tensor, c: Tensor) -> Tensor:
                return super().forward(mix(x), c)

        program = capture(weights(Mixed()), X, C)
        assert cached(program).schedule.judge
        message = "the samples of %.* are not known to stay apart: at %.*; give decide=mean"
        with pytest.raises(PassError, match=message):
            Pipeline.parse("insert-block-cache{method=first-block,decide=max}").run(program.copy())

    def test_places(self) -> None:
        def model(x: Tensor, t: Tensor) -> Tensor:
            return (x.transpose(0, 1) * t.sin()).transpose(0, 1)

        program = capture(model, randn(3, 5, 4), randn(4))
        found = {node.name: node for node in program.main.nodes}
        assert places_of_samples(program, found["sin"]) is None, "the same for all samples"
        assert places_of_samples(program, found["mul"]) == Places(1)
