"""The unconditional prediction is forecast from directions that guidance took before."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile.analysis.binding import settle
from dit_compile.analysis.step_cost import step_cost
from dit_compile.calibration.measured import GUIDANCE, Measured
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import DitcError, PipelineError
from dit_compile.ir.program import MAIN, placeholders
from dit_compile.ir.schedule import Step
from dit_compile.ir.verifier import Verifier
from dit_compile.passes.block_cache.half_batch import HALF
from dit_compile.passes.block_cache.insert_block_cache import InsertBlockCache
from dit_compile.passes.block_cache.linear_guidance import LinearGuidance
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.quality.metrics import psnr
from dit_compile.runtime.reference import run_reference
from tests.analysis.structures import FAMILIES, captured, each, plain
from tests.runtime.loops import TIMES, Toy, compiled, label

STEPS = len(TIMES)
EAGER = {"target": "eager", "strict": True}


def weights(*pair: float) -> str:
    """The same weights at every forecast step."""
    return f"weights={[*pair] * STEPS}"


def measured(trajectory: np.ndarray) -> Measured:
    """What calibration measures of directions ``[steps, elements]``."""
    steps = len(trajectory)
    ratios = {GUIDANCE: [1.0] * steps}
    return Measured([], {}, ratios, {GUIDANCE: (trajectory @ trajectory.T).tolist()})


def forecast(policy: LinearGuidance, trajectory: np.ndarray, total: int) -> np.ndarray:
    """The trajectory as guidance takes it: computed, or forecast from what was computed."""
    taken, computed = [], list[Step]()
    for index, direction in enumerate(trajectory):
        step = Step(index, total, last=index == total - 1)
        if policy.computes(GUIDANCE, step, ()):
            computed.insert(0, step)
            taken.append(direction)
            continue
        known = computed[: policy.depth]
        row = policy.coefficients(step, known)
        taken.append(sum(w * trajectory[each.index] for w, each in zip(row, known, strict=True)))
    return np.array(taken)


class TestMathematics:
    def test_lines_and_exponentials_are_forecast_without_error(self) -> None:
        """Two directions span both, and so does the one that is forecast."""
        a, b = np.random.default_rng(0).normal(size=(2, 40))
        t = np.arange(12.0)[:, None]
        for trajectory in (a + t * b, a * 0.8**t + b * 1.1**t):
            policy = LinearGuidance(conditional="first").fitted(measured(trajectory))
            got = forecast(policy, trajectory, 12)
            np.testing.assert_allclose(got[2:], trajectory[2:], rtol=1e-6, atol=1e-6)

    def test_the_weights_are_those_of_least_squares(self) -> None:
        trajectory = np.random.default_rng(1).normal(size=(9, 30))
        policy = LinearGuidance(conditional="second", interval=3, terms=3)
        rows = np.reshape(policy.fitted(measured(trajectory)).weights, (9, 3))
        assert not rows[[0, 3, 6, 8]].any()
        for step, known in ((1, [0]), (5, [3, 0]), (7, [6, 3, 0])):
            want = np.linalg.lstsq(trajectory[known].T, trajectory[step], rcond=None)[0]
            np.testing.assert_allclose(rows[step, : len(known)], want, rtol=1e-9)
            assert not rows[step, len(known) :].any()

    def test_directions_that_vanish_are_no_trouble(self) -> None:
        policy = LinearGuidance(conditional="first").fitted(measured(np.zeros((6, 4))))
        assert not any(policy.weights)
        assert not forecast(policy, np.zeros((6, 4)), 6).any()

    @pytest.mark.parametrize(("interval", "mask"), [(2, "10101011"), (3, "10010011"), (1, "1" * 8)])
    def test_steps_alternate_and_the_last_is_computed(self, interval: int, mask: str) -> None:
        policy = LinearGuidance(conditional="first", interval=interval)
        steps = (Step(i, 8, last=i == 7) for i in range(8))
        assert "".join(str(int(policy.computes(GUIDANCE, s, ()))) for s in steps) == mask

    @pytest.mark.parametrize("total", [8, 20, 33])
    def test_another_step_count_takes_the_nearest_weights(self, total: int) -> None:
        """A smooth trajectory, calibrated at 12 steps: far better than the last direction."""

        def smooth(steps: int) -> np.ndarray:
            t = np.linspace(0, 1, steps)[:, None]
            a, b, c = np.random.default_rng(2).normal(size=(3, 20))
            return a + t * b + 0.3 * np.sin(3 * t) * c

        policy = LinearGuidance(conditional="first").fitted(measured(smooth(12)))
        held = LinearGuidance(conditional="first", weights=(1.0, 0.0) * 12)
        assert policy.steps == 12
        want = smooth(total)
        # the first forecast has one direction to rest on either way
        error, worse = (
            np.linalg.norm(forecast(each, want, total)[2:] - want[2:]) for each in (policy, held)
        )
        assert error < 0.5 * worse

    def test_with_fewer_directions_than_terms_it_rests_on_those(self) -> None:
        trajectory = np.random.default_rng(3).normal(size=(12, 30))
        policy = LinearGuidance(conditional="first", terms=3).fitted(measured(trajectory))
        first = policy.coefficients(Step(9, 12, last=False), [Step(8, 12, last=False)])
        assert first == pytest.approx([policy.weights[3]])  # those of step 1
        only = LinearGuidance(conditional="first", weights=(0.5, 0.4) * 8)
        assert only.coefficients(Step(1, 8, last=False), [Step(0, 8, last=False)]) == [1.0]


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ("", "conditional is one of first, second, first-call, not"),
            ("conditional=first,terms=1", "terms must be at least 2, not 1"),
            ("conditional=first,interval=0", "interval must be at least 1, not 0"),
            ("conditional=first,weights=[1,2,3]", "weights must be 2 for each step"),
        ],
    )
    def test_wrong_ones(self, options: str, message: str) -> None:
        with pytest.raises(PipelineError, match=message):
            Pipeline.parse(f"insert-block-cache{{method=linear-guidance,{options}}}")

    @pytest.mark.parametrize(
        ("conditional", "scope"),
        [("first", "halves"), ("second", "halves"), ("first-call", "calls")],
    )
    def test_it_must_be_calibrated_unless_it_forecasts_nothing(
        self, conditional: str, scope: str
    ) -> None:
        assert LinearGuidance(conditional=conditional).uncalibrated == scope
        assert not LinearGuidance(conditional=conditional, interval=1).uncalibrated
        text = f"insert-block-cache{{method=linear-guidance,conditional={conditional}}}"
        with pytest.raises(PipelineError, match="must be calibrated first"):
            ditc.explain(Toy(), (), {}, passes=text)


@pytest.mark.parametrize("family", each(FAMILIES, quick=("dit",)))
@pytest.mark.parametrize("which", ["first", "second"])
def test_half_the_batch_and_a_forecast(family: str, which: str) -> None:
    program, values = captured(family, 1)
    program = program.copy()
    settle(program)
    options = f"method=linear-guidance,conditional={which},{weights(1.5, -0.5)}"
    Pipeline.parse(f"exact,insert-block-cache{{{options}}}").run(program)
    Verifier().check(program)
    named = dict(
        zip([n.name for n in placeholders(captured(family, 1)[0].main)], values, strict=True)
    )
    results = run_reference(program, named)
    states = [spec for spec in program.inputs.values() if spec.path.startswith("direction")]
    assert len(states) == 2 * len(results[HALF])
    for whole, half in zip(results[MAIN], results[HALF], strict=True):
        conditional = whole.chunk(2)[which == "second"]
        computed, forecast = half.chunk(2)[:: 1 if which == "first" else -1]
        torch.testing.assert_close(computed, conditional, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(forecast, computed, atol=0.1), "a direction is taken off"
    costs = step_cost(program).graphs
    assert costs[HALF].flops <= 0.51 * costs[MAIN].flops


@pytest.mark.parametrize("conditional", ["first", "first-call"])
def test_the_cost_of_a_step_is_that_of_both_predictions(conditional: str) -> None:
    y = label(1, batch=4)
    program = plain(Toy(), torch.randn(4, 6, 8), torch.full((4,), 500.0), y)
    options = f"method=linear-guidance,conditional={conditional},{weights(1.5, -0.5)}"
    Pipeline.parse(f"insert-block-cache{{{options}}}").run(program)
    cost = step_cost(program)
    full, less = (cost.graphs[graph].flops for _, graph in program.schedule.variants)
    assert (cost.steps, cost.computed) == (STEPS, 5)
    if conditional == "first":
        assert 0.5 * full <= less <= 0.51 * full
        assert cost.flops == pytest.approx((5 * full + 3 * less) / 8)
    else:
        assert less < 0.01 * full
        assert cost.flops == pytest.approx((13 * full + 3 * less) / 16)


def guided(model: Any, seed: int, two_calls: bool, swap: bool = False) -> Iterator[Tensor]:
    """The latents of an Euler loop with guidance; the conditional half is the first, or swapped."""
    x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(seed))
    classes = [label(1, batch=2), label(2, batch=2)]
    both = torch.cat(classes[::-1] if swap else classes)
    for t in TIMES:
        time = torch.full((2,), t)
        if two_calls:
            given, empty = (model(x, time, y) for y in classes)
        else:
            parts = model(torch.cat([x, x]), torch.cat([time, time]), both).chunk(2)
            given, empty = parts[::-1] if swap else parts
        x = x - 0.1 * (empty + 3 * (given - empty))
        yield x


def last(latents: Iterator[Tensor]) -> Tensor:
    return list(latents)[-1]


WAYS = {"first": (False, False), "second": (False, True), "first-call": (True, False)}


def plan_for(toy: Toy, conditional: str, **how: Any) -> ditc.Plan:
    torch._dynamo.reset()
    return ditc.calibrate(
        lambda seed: last(guided(toy, seed, *WAYS[conditional])),
        toy,
        passes=f"exact,insert-block-cache{{method=linear-guidance,conditional={conditional}}}",
        samples=2,
        options=EAGER,
        progress=False,
        **how,
    )


@pytest.fixture(autouse=True)
def inference() -> Any:
    with torch.no_grad():
        yield


class TestSampling:
    def sample(self, toy: Toy, conditional: str, passes: str, seed: int = 7) -> tuple[Tensor, Any]:
        fast = compiled(toy, passes=passes)
        with ditc.session(fast, timesteps=TIMES) as session:
            return last(guided(fast, seed, *WAYS[conditional])), session.summary()

    def test_halves_and_calls_are_calibrated_and_sampled_alike(self) -> None:
        toy = Toy()
        results = {}
        for conditional in WAYS:
            plan = plan_for(toy, conditional)
            got, counted = self.sample(toy, conditional, plan.passes)
            policy: Any = plan.pipeline().passes[-1]
            results[conditional] = got, policy.policy.weights
            lanes = 2 if conditional == "first-call" else 1
            assert (counted["forecast"], counted["computed"]) == (3, lanes * STEPS - 3)
            assert counted["why"] == {"nothing was computed before": 1}
        got, fitted = results["first"]
        for other, theirs in results.values():
            torch.testing.assert_close(other, got, rtol=1e-4, atol=1e-5)
            assert theirs == pytest.approx(fitted, rel=1e-3, abs=1e-4)

    def test_a_plan_keeps_what_was_measured(self, tmp_path: Any) -> None:
        toy = Toy()
        plan = plan_for(toy, "first")
        loaded = ditc.Plan.load(plan.save(tmp_path / "toy.plan.json"))
        assert loaded == plan
        third = plan.passes.partition("insert")[0] + (
            "insert-block-cache{method=linear-guidance,conditional=first,interval=3}"
        )
        again = loaded.fitted(third)
        assert "interval=3" in again.passes
        _, counted = self.sample(toy, "first", again.passes)
        assert counted["forecast"] == 4

    def test_a_budget_chooses_the_interval(self) -> None:
        plan = plan_for(Toy(), "first", max_rel_l2=1.0)
        assert "interval=6" in plan.passes
        assert [trial.flop_ratio for trial in plan.curve] == sorted(
            trial.flop_ratio for trial in plan.curve
        )

    @pytest.mark.parametrize("conditional", ["second", "first-call"])
    def test_interleaved_generations_are_the_same_as_alone(self, conditional: str) -> None:
        toy = Toy()
        passes = plan_for(toy, conditional).passes
        alone = [self.sample(toy, conditional, passes, seed)[0] for seed in (7, 8)]
        fast = compiled(toy, passes=passes)
        both = [guided(fast, seed, *WAYS[conditional]) for seed in (7, 8)]
        with ExitStack() as stack:
            opened = [stack.enter_context(ditc.session(fast, timesteps=TIMES)) for _ in both]
            for _ in TIMES:
                latents = []
                for session, latent in zip(opened, both, strict=True):
                    with session:
                        latents.append(next(latent))
            assert all(session.summary()["forecast"] == 3 for session in opened)
        assert all(map(torch.equal, latents, alone))


def test_a_batch_that_has_no_halves_is_said_when_it_is_calibrated() -> None:
    torch._dynamo.reset()
    toy = Toy()

    def sample(seed: int) -> Tensor:
        return toy(torch.randn(1, 6, 8), torch.ones(1), label(1))

    with pytest.raises(DitcError, match=r"found nothing to record; ditc.explain says why"):
        ditc.calibrate(
            sample,
            toy,
            passes="insert-block-cache{method=linear-guidance,conditional=first}",
            options=EAGER,
            progress=False,
        )


@pytest.mark.slow
def test_on_a_trained_model_it_is_nearer_than_the_last_direction() -> None:
    """And both are far nearer than one prediction for both."""
    torch._dynamo.reset()
    digits = BUNDLED["digits"]
    model, labels, steps = digits.load(), torch.arange(10), 20

    def draw(seed: int, model: Any = model) -> Tensor:
        return digits.sample(model, labels, num_inference_steps=steps, seed=seed)

    passes = "insert-block-cache{method=linear-guidance,conditional=first}"
    plan = ditc.calibrate(draw, model, passes=passes, samples=2, options=EAGER, progress=False)
    (cache,) = plan.pipeline().passes
    assert isinstance(cache, InsertBlockCache)
    want, quality = draw(1000), []
    for row in (None, (1.0, 0.0), (1e-9, 1e-9)):
        torch._dynamo.reset()
        given = replace(cache.policy, weights=row * steps) if row else cache.policy
        text = str(Pipeline((replace(cache, policy=given),)))
        fast = torch.compile(model, backend="ditc", options=EAGER | {"passes": text})
        with ditc.session(fast, timesteps=digits.timesteps(steps)) as session:
            quality.append(psnr(draw(1000, fast), want))
            assert session.summary()["forecast"] == 9
    fitted, last, none = quality
    assert fitted > last + 1 > none + 10
