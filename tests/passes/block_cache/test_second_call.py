"""The second of guidance's two calls is left out where both agree, and only there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.errors import DitcWarning
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.printer import print_graph
from dit_compile.ir.program import MAIN, Program, placeholders
from dit_compile.ir.verifier import Verifier
from dit_compile.passes.block_cache.second_call import CRITIC, SKIP
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests.analysis.structures import plain, tokens
from tests.runtime.loops import TIMES, Inputs, Toy, compiled, prompt, run

GIVEN, EMPTY = prompt(0), prompt(1)


def inserted(program: Program, options: str = "") -> tuple[Program, Any]:
    """A copy with the cache, and what the pass recorded."""
    after = program.copy()
    text = f"insert-block-cache{{method=skip-guidance,conditional=first-call{options}}}"
    (record,) = Pipeline.parse(text).run(after).records
    return after, record


def closing() -> list[tuple[Inputs, Inputs]]:
    """Calls with a prompt and with an empty one, which matter less and less."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for step, t in enumerate(TIMES):
        x = (1 + step) ** 2 * torch.randn(1, 6, 8, generator=generator)
        call = {"x": x, "t": torch.full((1,), t)}
        pairs.append(({**call, "y": GIVEN}, {**call, "y": EMPTY}))
    return pairs


def apart(one: Tensor, two: Tensor) -> float:
    return 1 - float(torch.cosine_similarity(one.double().flatten(), two.double().flatten(), 0))


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.cos()


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.sin()


class Ranked(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.argmax(-1)


class Scored(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.sin(), x.mean((1, 2))


class TestGraphs:
    def test_what_the_peer_returned_stands_for_it(self) -> None:
        after, record = inserted(plain(nn.GELU(), tokens()))
        Verifier().check(after)
        assert len(record.rewrites) == 1
        assert after.schedule.helpers == (CRITIC,)
        skip = print_graph(after, SKIP)
        assert "aten.clone(%peer_guidance)" in skip
        assert "gelu" not in skip
        results = run_reference(after, {str(n.target): tokens() for n in placeholders(after.main)})
        torch.testing.assert_close(results[SKIP], results[MAIN])

    def test_the_largest_distance_of_all_results_counts(self) -> None:
        after, _ = inserted(plain(Pair(), tokens()))
        critic = after.graphs[CRITIC]
        x, y = torch.randn(2, 2, 6, 16, generator=torch.Generator().manual_seed(0)).unbind()
        values = {"state_guidance": x, "peer_guidance": x, "state_guidance_1": x}
        values["peer_guidance_1"] = y
        (found,) = critic(*(values[node.name] for node in placeholders(critic.graph)))
        assert float(found) == pytest.approx(max(map(apart, x, y)), rel=1e-5)

    def test_a_cosine_of_one_is_the_program_without(self) -> None:
        program = plain(nn.GELU(), tokens())
        after, record = inserted(program, ",gamma=1")
        assert fingerprint(after) == fingerprint(program)
        assert "computes every step" in record.notes[0]

    @pytest.mark.parametrize(
        ("model", "reason"),
        [
            (Counting(), "is no prediction"),
            (Ranked(), "does not hold a prediction"),
            (Scored(), "does not hold a prediction"),
        ],
    )
    def test_results_that_are_no_predictions_are_said(self, model: nn.Module, reason: str) -> None:
        program = plain(model, tokens())
        after, record = inserted(program)
        assert fingerprint(after) == fingerprint(program)
        assert reason in record.misses[0].reason


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Inputs, Inputs]]:
    return closing()


@pytest.fixture(scope="module")
def wanted(pairs: list[tuple[Inputs, Inputs]]) -> list[tuple[Tensor, Tensor]]:
    toy = Toy()
    with torch.no_grad():
        return [(toy(**given), toy(**empty)) for given, empty in pairs]


#: The step at which both predictions agree.
AT = 3


@pytest.fixture(scope="module")
def gamma(wanted: list[tuple[Tensor, Tensor]]) -> float:
    changes = [apart(given, empty) for given, empty in wanted]
    found = 1 - (changes[AT] + min(changes[:AT])) / 2
    assert changes[AT] < 1 - found < min(changes[:AT])
    return found


@pytest.fixture(scope="module", params=["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def fast(request: pytest.FixtureRequest, gamma: float) -> Any:
    torch._dynamo.reset()
    return skipping(gamma, request.param)


def skipping(gamma: float, target: str) -> Any:
    method = f"method=skip-guidance,conditional=first-call,gamma={gamma}"
    return compiled(Toy(), passes=f"exact,insert-block-cache{{{method}}}", target=target)


def close(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.fixture(autouse=True)
def inference() -> Iterator[None]:
    with torch.no_grad():
        yield


class TestSampling:
    def test_from_the_step_after_on_the_first_prediction_stands_for_both(
        self, fast: Any, pairs: Any, wanted: Any
    ) -> None:
        with ditc.session(fast, timesteps=TIMES) as session:
            for step, (calls, wants) in enumerate(zip(pairs, wanted, strict=True)):
                given = fast(**calls[0])
                close(given, wants[0])
                given.zero_()  # callers may write to what they get
                close(fast(**calls[1]), wants[1] if step <= AT else wants[0])
            counted = session.summary()
        left_out = len(TIMES) - AT - 1
        assert (counted["computed"], counted["reused"]) == (2 * len(TIMES) - left_out, left_out)

    def test_the_other_order_reuses_nothing(self, fast: Any, pairs: Any, wanted: Any) -> None:
        with ditc.session(fast, timesteps=TIMES) as session:
            for step, (calls, wants) in enumerate(zip(pairs, wanted, strict=True)):
                order = (0, 1) if step == 0 else (1, 0)
                for which in order:
                    close(fast(**calls[which]), wants[which])
            assert session.summary()["reused"] == 0

    def test_a_third_stream_is_always_computed(self, fast: Any, pairs: Any, wanted: Any) -> None:
        with ditc.session(fast, timesteps=TIMES) as session:
            for calls, wants in zip(pairs, wanted, strict=True):
                fast(**calls[0])
                fast(**calls[1])
                with ditc.lane("perturbed"):
                    close(fast(**calls[1]), wants[1])
            assert session.summary()["reused"] == len(TIMES) - AT - 1

    def test_one_stream_alone_has_no_peer(self, fast: Any, pairs: Any, wanted: Any) -> None:
        with ditc.session(fast, timesteps=TIMES) as session, warnings.catch_warnings():
            warnings.simplefilter("error", DitcWarning)
            for calls, wants in zip(pairs, wanted, strict=True):
                close(fast(**calls[0]), wants[0])
            assert session.summary()["computed"] == len(TIMES)

    def test_interleaved_generations_are_the_same_as_alone(self, fast: Any, pairs: Any) -> None:
        def draw(*seeds: float) -> list[list[Tensor]]:
            got: list[list[Tensor]] = [[] for _ in seeds]
            with ExitStack() as stack:
                opened = [stack.enter_context(ditc.session(fast, timesteps=TIMES)) for _ in seeds]
                for pair in pairs:
                    for seed, session, mine in zip(seeds, opened, got, strict=True):
                        with session:
                            mine += run(fast, [{**c, "x": seed * c["x"]} for c in pair])
                assert all(session.summary()["reused"] for session in opened)
            return got

        both = draw(1.0, 0.5)
        for mine, alone in zip(both, (*draw(1.0), *draw(0.5)), strict=True):
            assert all(map(torch.equal, mine, alone))

    def test_predictions_that_never_agree_are_said(self, pairs: Any) -> None:
        torch._dynamo.reset()
        never = skipping(0.9999999, "eager")
        calls = [call for pair in pairs for call in pair]
        with (
            ditc.session(never, timesteps=TIMES),
            pytest.warns(DitcWarning, match=r"reused nothing .* allow more change"),
        ):
            run(never, calls)
