"""ditc.calibrate: the user's own loop tells what a pipeline must know."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from rich.progress import Progress

import dit_compile as ditc
from dit_compile.calibration import budget, runs
from dit_compile.calibration.recorder import Recorder
from dit_compile.calibration.runs import Runs
from dit_compile.errors import DitcWarning, OptionError, PipelineError, PlanError
from dit_compile.passes.block_cache.insert_block_cache import InsertBlockCache
from dit_compile.passes.block_cache.smooth import Smooth
from dit_compile.runtime.watch import watching
from tests.runtime.loops import TIMES, Loop, Toy, label, run

SMOOTH = "exact,insert-block-cache{method=smooth,alpha=0.5}"
MAGNITUDE = "exact,insert-block-cache{method=magnitude,threshold=0.5,retention=0}"
EAGER = {"target": "eager"}


@pytest.fixture
def toy() -> Toy:
    torch._dynamo.reset()
    return Toy()


def sampler(model: Any) -> Callable[[int], torch.Tensor]:
    """An Euler loop over ``model``."""

    @torch.no_grad()
    def sample(seed: int) -> torch.Tensor:
        x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))
        for t in TIMES:
            x = x - 0.1 * model(x, torch.full((1,), t), label(1))
        return x

    return sample


def calibrated(toy: Toy, passes: str | None = SMOOTH, **how: Any) -> ditc.Plan:
    return ditc.calibrate(
        sampler(toy), toy, passes=passes, samples=2, options=EAGER, progress=False, **how
    )


def test_smooth_gets_a_mask_for_each_type(toy: Toy) -> None:
    plan = calibrated(toy)
    policy = cast("Smooth", ditc.Pipeline.parse(plan.passes).passes[-1].policy)
    assert policy.by_group.keys() == {"attn", "mlp"}
    assert policy.steps == plan.steps == len(TIMES)
    assert policy.times == TIMES
    assert not policy.uncalibrated
    assert 0 in policy.by_group["attn"] + policy.by_group["mlp"]


def test_the_recorder_s_numbers_on_a_known_trajectory() -> None:
    model = Toy()
    outputs: dict[int, list[torch.Tensor]] = {0: [], 1: [], 2: []}
    handles = [
        block.attn.register_forward_hook(lambda m, a, out, i=i: outputs[i].append(out))
        for i, block in enumerate(model.blocks)
    ]
    sampler(model)(0)
    for handle in handles:
        handle.remove()
    torch._dynamo.reset()
    recorder = Recorder(3)
    passes = "insert-block-cache{method=record}"
    fast = torch.compile(model, backend="ditc", options=EAGER | {"passes": passes, "strict": True})
    with watching(recorder):
        sampler(fast)(0)
    found = recorder.measured()
    assert found.times == list(TIMES)
    assert [len(row) for row in found.changes["mlp"]] == [3] * 5 + [2, 1, 0]
    assert found.ratios["attn"][0] == 1
    for step, distance in ((0, 1), (2, 3), (4, 2)):
        each = [
            (ys[step + distance] - ys[step]).abs().sum() / ys[step].abs().sum()
            for ys in outputs.values()
        ]
        want = float(sum(each) / 3)
        assert found.changes["attn"][step][distance - 1] == pytest.approx(want, rel=1e-4)
    ratios = [(ys[5].norm(dim=-1) / ys[4].norm(dim=-1)).mean() for ys in outputs.values()]
    assert found.ratios["attn"][5] == pytest.approx(float(sum(ratios) / 3), rel=1e-4)


def test_the_model_is_put_back(toy: Toy) -> None:
    calibrated(toy, MAGNITUDE)
    assert toy._compiled_call_impl is None


def test_trials_do_not_use_up_the_recompile_limit() -> None:
    """Some of diffusers' classes decorate ``forward``; Dynamo then compiles the decorator."""

    class Decorated(Toy):
        @functools.wraps(Toy.forward)
        def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
            return Toy.forward(self, *args, **kwargs)

    torch._dynamo.reset()
    model = Decorated()
    with Progress(disable=True) as progress, torch._dynamo.config.patch(recompile_limit=1):
        run = Runs(sampler(model), model, range(1), EAGER, progress)
        for interval in (1, 2, 3):
            text = f"insert-block-cache{{method=interval,interval={interval}}}"
            assert run.outcome(ditc.Pipeline.parse(text)).flops > 0


def test_a_plan_is_used_by_torch_compile(toy: Toy, tmp_path: Any) -> None:
    plan = calibrated(toy, MAGNITUDE)
    path = plan.save(tmp_path / "toy.plan.json")
    fast = torch.compile(
        toy, backend="ditc", fullgraph=True, options=EAGER | {"plan": path, "strict": True}
    )
    with ditc.session(fast, timesteps=TIMES) as session:
        sampler(fast)(7)
    assert session.summary()["reused"] > 0


class TestMeasurements:
    OTHER = SMOOTH.replace("0.5", "0.2")

    def test_another_threshold_needs_no_sampling(self, toy: Toy, tmp_path: Path) -> None:
        plan = calibrated(toy)
        loaded = ditc.Plan.load(plan.save(tmp_path / "toy.plan.json"))
        assert loaded == plan
        assert loaded.fitted(self.OTHER).passes == calibrated(toy, self.OTHER).passes != plan.passes

    def test_what_was_not_recorded_is_said(self, toy: Toy) -> None:
        with pytest.raises(PlanError, match=r"no measurements by .*scope=span.* ditc.calibrate"):
            calibrated(toy).fitted(MAGNITUDE)

    def test_a_search_over_methods_records_once(
        self, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = []
        monkeypatch.setattr(runs, "Recorder", lambda *how: made.append(how) or Recorder(*how))
        monkeypatch.setattr(budget, "SEARCHED", (SMOOTH, MAGNITUDE))
        monkeypatch.setattr(InsertBlockCache, "ladder", lambda item: [item])
        plan = calibrated(toy, None, max_rel_l2=1.0)
        assert len(made) == 1
        for passes in (SMOOTH, MAGNITUDE):
            alone = calibrated(toy, passes)
            assert plan.fitted(passes).passes == alone.passes
            assert plan.measured.items() >= alone.measured.items()
        assert len(made) == 3

    def test_decisions_do_without_their_file(self, toy: Toy, tmp_path: Path) -> None:
        plan = calibrated(toy)
        path = plan.save(tmp_path / "toy.plan.json")
        (beside,) = tmp_path.glob("toy.plan.*.safetensors")
        beside.unlink()
        assert ditc.Plan.load(path) == replace(plan, measured={})

    def test_a_plan_that_recorded_nothing_has_no_file(self, toy: Toy, tmp_path: Path) -> None:
        ditc.Plan("exact", 8, {}).save(tmp_path / "toy.plan.json")
        assert [path.name for path in tmp_path.iterdir()] == ["toy.plan.json"]

    @pytest.mark.parametrize("damage", [b"", b"{}", b"not tensors at all"])
    def test_another_file_is_refused(self, toy: Toy, tmp_path: Path, damage: bytes) -> None:
        path = calibrated(toy).save(tmp_path / "toy.plan.json")
        (beside,) = tmp_path.glob("toy.plan.*.safetensors")
        beside.write_bytes(damage)
        with pytest.raises(PlanError, match="are not those of the plan beside them"):
            ditc.Plan.load(path)


def test_a_plan_for_another_structure_is_an_error(toy: Toy) -> None:
    plan = calibrated(toy)

    class Wider(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(16, 8, bias=False)
            self.embed = torch.nn.Linear(8, 16, bias=False)
            self.blocks.append(self.blocks[0])
            self.more = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, *args: Any) -> torch.Tensor:
            return super().forward(self.more(x), *args)

    fast = torch.compile(Wider(), backend="ditc", options=EAGER | {"plan": plan})
    with pytest.raises(Exception, match="made for another model: it knows no weight more"):
        sampler(fast)(0)


def test_a_plan_for_other_widths_is_an_error(toy: Toy) -> None:
    plan = calibrated(toy)
    toy.label = torch.nn.Embedding(7, toy.label.embedding_dim)
    fast = torch.compile(toy, backend="ditc", options=EAGER | {"plan": plan})
    misfit = r"label.weight is \[7, \d+\], not \[5, \d+\]"
    with pytest.raises(Exception, match=f"made for another model: {misfit}; calibrate this one"):
        sampler(fast)(0)


class TestDepth:
    """A model with fewer blocks has no weight that the plan does not know."""

    SHORTER = "blocks ends with number 2 there and with number 1 here; calibrate this one"

    def test_fewer_blocks_are_an_error(self, toy: Toy, tmp_path: Path) -> None:
        plan = calibrated(toy)
        path = plan.save(tmp_path / "toy.plan.json")
        assert ditc.Plan.load(path) == plan
        toy.blocks = toy.blocks[:2]
        fast = torch.compile(toy, backend="ditc", options=EAGER | {"plan": path})
        with pytest.raises(Exception, match=self.SHORTER):
            sampler(fast)(0)
        inputs = (torch.randn(1, 6, 8), torch.ones(1), label(1))
        with pytest.raises(PlanError, match=self.SHORTER):
            ditc.export(toy, inputs, {}, tmp_path / "bundle", plan=plan)

    def test_a_whole_list_less_is_an_error(self, toy: Toy) -> None:
        plan = calibrated(toy)
        toy.blocks = torch.nn.ModuleList()
        fast = torch.compile(toy, backend="ditc", options=EAGER | {"plan": plan})
        with pytest.raises(Exception, match="blocks ends with number 2 there and with none here"):
            sampler(fast)(0)

    def test_lists_that_nothing_calls_do_not_count(self, toy: Toy, tmp_path: Path) -> None:
        toy.spare = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
        plan = calibrated(toy)
        inputs = (torch.randn(1, 6, 8), torch.ones(1), label(1))
        manifest = ditc.export(toy, inputs, {}, tmp_path / "bundle", plan=plan)
        assert manifest.pipeline == plan.passes

    def test_each_graph_of_a_generation_has_its_own(self, toy: Toy) -> None:
        """Skip-layer guidance leaves the last block out of every second call."""

        @torch.no_grad()
        def sample(seed: int, model: Any = toy) -> torch.Tensor:
            x = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(seed))
            for t in TIMES:
                time = torch.full((1,), t)
                whole, less = model(x, time, label(1)), model(x, time, label(1), skip=[2])
                x = x - 0.1 * (whole + 0.5 * (whole - less))
            return x

        how: dict[str, Any] = {"samples": 1, "options": EAGER, "progress": False}
        plan = ditc.calibrate(sample, toy, passes=SMOOTH, **how)
        assert sorted(depths["blocks"] for depths in plan.depths) == [1, 2]
        fast = torch.compile(toy, backend="ditc", options=EAGER | {"plan": plan, "strict": True})
        with ditc.session(fast, timesteps=TIMES):
            assert sample(7, fast).isfinite().all()


@pytest.mark.filterwarnings("ignore::dit_compile.errors.DitcWarning")
def test_a_plan_for_other_weights_is_a_warning(toy: Toy) -> None:
    plan = calibrated(toy)
    fast = torch.compile(Toy(seed=5), backend="ditc", options=EAGER | {"plan": plan})
    with pytest.warns(DitcWarning, match="made with other weights"):
        sampler(fast)(0)


@pytest.mark.filterwarnings("ignore::dit_compile.errors.DitcWarning")
def test_another_step_count_stretches_the_mask(toy: Toy) -> None:
    plan = calibrated(toy)
    fast = torch.compile(toy, backend="ditc", options=EAGER | {"plan": plan, "strict": True})
    times = [t for t in TIMES if t != 361.0]
    loop = Loop(label(1), times=times)
    with (
        ditc.session(fast, timesteps=times) as session,
        pytest.warns(DitcWarning, match="calibrated for 8 steps and is stretched to 7"),
    ):
        run(fast, loop)
    assert session.summary()["reused"] > 0


class TestBudget:
    def test_the_least_work_that_is_good_enough(self, toy: Toy) -> None:
        passes = "exact,insert-block-cache{method=interval}"
        plan = calibrated(toy, passes, max_rel_l2=0.05)
        uncached, *tried = plan.curve
        assert uncached.flop_ratio == 1
        good = [trial for trial in plan.curve if trial.rel_l2 <= 0.05]
        assert plan.passes == max(good, key=lambda trial: trial.flop_ratio).passes
        assert [trial.rel_l2 <= 0.05 for trial in tried[:-1]] == [True] * (len(tried) - 1)

    def test_the_best_that_is_fast_enough(self, toy: Toy) -> None:
        passes = "exact,insert-block-cache{method=interval}"
        plan = calibrated(toy, passes, min_speedup=1.3)
        fast = [trial for trial in plan.curve if trial.flop_ratio >= 1.3]
        assert plan.passes == max(fast, key=lambda trial: trial.psnr).passes

    def test_psnr_is_the_same_whatever_the_samples_go_from_and_to(self, toy: Toy) -> None:
        draw = sampler(toy)
        passes = "exact,insert-block-cache{method=interval}"

        def curve(sample: Callable[[int], torch.Tensor], **how: Any) -> list[float]:
            plan = ditc.calibrate(
                sample, toy, passes=passes, samples=2, options=EAGER, progress=False, **how
            )
            return [trial.psnr for trial in plan.curve[1:]]

        def unit(seed: int) -> torch.Tensor:
            return draw(seed).clamp(-1, 1) / 2 + 0.5

        want = curve(draw, max_rel_l2=0.05)
        least = min(want) - 0.1
        have = curve(unit, min_psnr=least, value_range=(0, 1))
        assert have[: len(want)] == pytest.approx(want, abs=1e-3)
        with pytest.warns(DitcWarning, match=r"go from 0 to 1; .* give value_range=\(0, 1\)"):
            curve(unit, min_psnr=least)
        with pytest.warns(DitcWarning, match=r"far beyond value_range=\(-1, 1\); return images"):
            curve(lambda seed: 10 * draw(seed), min_psnr=1.0)
        with pytest.raises(OptionError, match=r"such as \(0, 1\), not \(1, 0\)"):
            curve(unit, min_psnr=1.0, value_range=(1, 0))

    def test_out_of_reach(self, toy: Toy) -> None:
        passes = "exact,insert-block-cache{method=interval}"
        with pytest.raises(PlanError, match="nothing that was tried meets the budget; the nearest"):
            calibrated(toy, passes, min_psnr=300.0, min_speedup=2.0)

    def test_nothing_to_choose(self, toy: Toy) -> None:
        with pytest.raises(OptionError, match="nothing in 'eliminate-dead' approximates"):
            calibrated(toy, "eliminate-dead", min_psnr=30.0)


def test_neither_pipeline_nor_budget(toy: Toy) -> None:
    with pytest.raises(OptionError, match="give passes= to calibrate, or a budget"):
        calibrated(toy, None)


def test_a_loop_that_does_not_call_the_model(toy: Toy) -> None:
    with pytest.raises(PlanError, match="did not call the model"):
        ditc.calibrate(
            lambda seed: torch.zeros(1), toy, passes=SMOOTH, options=EAGER, progress=False
        )


@pytest.mark.parametrize("passes", [SMOOTH, MAGNITUDE])
def test_a_model_that_has_nothing_to_record(passes: str) -> None:
    torch._dynamo.reset()
    model = torch.nn.Linear(4, 4)

    def sample(seed: int) -> torch.Tensor:
        return model(torch.randn(2, 4, generator=torch.Generator().manual_seed(seed)))

    with (
        torch.no_grad(),
        pytest.raises(PlanError, match=r"method=record.* found nothing to record; ditc.explain"),
    ):
        ditc.calibrate(sample, model, passes=passes, options=EAGER, progress=False)


def test_samples_must_be_a_tensor(toy: Toy) -> None:
    with pytest.raises(OptionError, match="must return its samples as one tensor, not list"):
        ditc.calibrate(
            lambda seed: [sampler(toy)(seed)], toy, passes=SMOOTH, options=EAGER, progress=False
        )


def test_an_uncalibrated_pipeline_is_refused_at_once() -> None:
    with pytest.raises(Exception, match="must be calibrated first: plan = "):
        sampler(torch.compile(Toy(), backend="ditc", options={"passes": SMOOTH}))(0)
    with pytest.raises(PipelineError, match="must be calibrated first"):
        ditc.explain(Toy(), (), {}, passes=MAGNITUDE)
