"""Half the batch is left out where both halves agree, and only there."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.analysis.binding import settle
from dit_compile.analysis.step_cost import step_cost
from dit_compile.errors import DitcWarning, PipelineError
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.program import MAIN, Program, placeholders
from dit_compile.ir.schedule import Done, Step
from dit_compile.ir.verifier import Verifier
from dit_compile.passes.block_cache.half_batch import HALF
from dit_compile.passes.block_cache.skip_guidance import SkipGuidance
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests.analysis.structures import FAMILIES, captured, each, plain, tokens
from tests.runtime.loops import TIMES, Inputs, Toy, closing_halves, compiled, label

FULL, LEFT_OUT = frozenset({"guidance"}), frozenset[str]()


def inserted(program: Program, options: str = "conditional=second") -> tuple[Program, Any]:
    """A copy with the cache, and what the pass recorded."""
    after = program.copy()
    text = f"insert-block-cache{{method=skip-guidance,{options}}}"
    (record,) = Pipeline.parse(text).run(after).records
    return after, record


@functools.cache
def exact(family: str) -> Program:
    """A family with what is known ahead computed ahead."""
    program = captured(family, 1)[0].copy()
    settle(program)
    Pipeline.parse("exact").run(program)
    return program


@pytest.mark.parametrize("family", each(FAMILIES, quick=("dit",)))
@pytest.mark.parametrize("which", ["first", "second"])
def test_the_conditional_half_stands_for_both(family: str, which: str) -> None:
    program, values = captured(family, 1)
    named = dict(zip([n.name for n in placeholders(program.main)], values, strict=True))
    after, record = inserted(exact(family), f"conditional={which}")
    assert after.schedule.stateful, record.misses
    Verifier().check(after)
    results = run_reference(after, named)
    for whole, half in zip(results[MAIN], results[HALF], strict=True):
        first, second = whole.chunk(2)
        assert not torch.allclose(first, second, atol=0.1), "there is something to tell"
        part = first if which == "first" else second
        torch.testing.assert_close(half, torch.cat([part, part]), rtol=1e-4, atol=1e-4)
    costs = step_cost(after).graphs
    assert costs[HALF].flops <= 0.51 * costs[MAIN].flops


def decided(changes: Sequence[float | None], **options: Any) -> str:
    """What is computed when the steps so far have measured ``changes``."""
    policy = SkipGuidance(conditional="second", **options)
    past: list[Done] = []
    for index, change in enumerate(changes):
        full = policy.computes("guidance", Step(index, None, False), past)
        past.append(Done(Step(index, None, False, change=change), FULL if full else LEFT_OUT))
    return "".join(str(int(bool(done.computed))) for done in past)


class TestPolicy:
    def test_the_step_after_the_cosine_is_reached_and_all_that_follow(self) -> None:
        assert decided([0.1, 0.05, 0.0091, 0.0089, 0.5, 0.5, 0.5]) == "1111000"
        assert decided([0.2, 0.05, 0.05], gamma=0.9) == "110"

    def test_what_was_not_measured_or_is_no_number_decides_nothing(self) -> None:
        assert decided([None, float("nan"), None, 0.0, None]) == "11110"

    def test_it_is_told_while_sampling_alone(self) -> None:
        after, _ = inserted(exact("dit"))
        assert after.schedule.mask(50) is None

    def test_which_half_is_conditional_is_never_guessed(self) -> None:
        with pytest.raises(PipelineError, match="is one of first, second, first-call, not"):
            Pipeline.parse("insert-block-cache{method=skip-guidance}")

    def test_what_holds_for_states_is_refused(self) -> None:
        with pytest.raises(
            PipelineError, match="keeps no values of blocks; leave out max-state-bytes"
        ):
            inserted(exact("dit"), "conditional=first,max-state-bytes=9")

    def test_a_cosine_of_one_is_the_program_without(self) -> None:
        after, record = inserted(exact("dit"), "conditional=first,gamma=1")
        assert fingerprint(after) == fingerprint(exact("dit"))
        assert "computes every step" in record.notes[0]


class Centred(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class Noisy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


class Summed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(-1).sum(-1).transpose(0, -1)[:, None].expand(-1, 2).transpose(0, 1)


@pytest.mark.parametrize(
    ("model", "batch", "reason"),
    [
        (nn.GELU(), 1, "a batch of 1 has no two halves"),
        (nn.GELU(), 3, "a batch of 3 has no two halves"),
        (Centred(), 2, "not known to stay apart: it works along the samples"),
        (Noisy(), 2, "draws random numbers"),
        (Summed(), 2, "does not hold a value for each sample"),
    ],
)
def test_what_cannot_be_halved_is_said(model: nn.Module, batch: int, reason: str) -> None:
    program = plain(model, tokens()[:1].repeat(batch, 1, 1))
    before = fingerprint(program)
    after, record = inserted(program)
    assert fingerprint(after) == before
    assert reason in record.misses[0].reason


def test_samples_that_are_mixed_ahead_of_the_steps_are_found_there() -> None:
    model = Toy()
    model.label = nn.Sequential(model.label, Centred())  # type: ignore[assignment]
    program = plain(model, torch.randn(2, 6, 8), torch.full((2,), 500.0), label(1, batch=2))
    settle(program)
    Pipeline.parse("exact").run(program)
    _, record = inserted(program)
    (miss,) = record.misses
    assert miss.graph in ("prologue", "table")
    assert "works along the samples" in miss.reason


def measured(outputs: Tensor) -> float:
    """The largest ``1 - cos`` over the pairs."""
    one, two = (part.double().flatten(1) for part in outputs.chunk(2))
    return float((1 - nn.functional.cosine_similarity(one, two)).max())


@pytest.fixture(scope="module")
def calls() -> list[Inputs]:
    return closing_halves()


@pytest.fixture(scope="module")
def wanted(calls: list[Inputs]) -> list[Tensor]:
    with torch.no_grad():
        return [Toy()(**call) for call in calls]


class TestSampling:
    def run(self, calls: list[Inputs], gamma: float) -> tuple[list[Tensor], Any]:
        torch._dynamo.reset()
        passes = (
            f"exact,insert-block-cache{{method=skip-guidance,conditional=second,gamma={gamma}}}"
        )
        fast = compiled(Toy(), passes=passes)
        with ditc.session(fast, timesteps=TIMES) as session, torch.no_grad():
            return [fast(**call) for call in calls], session.summary()

    def test_from_the_step_after_on_guidance_leaves_the_conditional_half_as_it_is(
        self, calls: list[Inputs], wanted: list[Tensor]
    ) -> None:
        changes = [measured(outputs) for outputs in wanted]
        at = 3
        gamma = 1 - (changes[at] + min(changes[:at])) / 2
        assert changes[at] < 1 - gamma < min(changes[:at])
        got, summary = self.run(calls, gamma)
        for step, (mine, theirs) in enumerate(zip(got, wanted, strict=True)):
            conditional = theirs.chunk(2)[1]
            want = theirs if step <= at else torch.cat([conditional, conditional])
            torch.testing.assert_close(mine, want, rtol=1e-5, atol=1e-5)
        assert (summary["computed"], summary["reused"]) == (at + 1, len(TIMES) - at - 1)

    def test_halves_that_never_agree_are_said(self, calls: list[Inputs]) -> None:
        with pytest.warns(DitcWarning, match="reused nothing .* allow more change"):
            _, summary = self.run(calls, gamma=0.9999999)
        assert summary["computed"] == len(TIMES)
