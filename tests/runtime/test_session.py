"""Sessions: each generation gives what it gives alone, whatever ran before or beside it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import dit_compile as ditc
from dit_compile.errors import DitcWarning, SessionError
from dit_compile.runtime import content
from dit_compile.runtime.session import current
from tests.runtime.loops import (
    TIMES,
    Loop,
    Toy,
    alone,
    assert_same,
    compiled,
    counters,
    every,
    label,
    prompt,
    run,
)

pytestmark = pytest.mark.filterwarnings("error::dit_compile.errors.DitcWarning")

STEPS = len(TIMES)
ALTERNATE = every(2, STEPS)


@pytest.fixture
def moved(toy: Toy) -> Iterator[Any]:
    """A compiled model that nobody else has, since it will learn which conditions move."""
    torch._dynamo.reset()
    yield compiled(toy)
    torch._dynamo.reset()


def test_patterns_differ_by_more_than_rounding(toy: Toy) -> None:
    loop = Loop(label(1))
    full, cached = alone(toy, loop, "c" * STEPS), alone(toy, loop, ALTERNATE)
    for mode, a, b in zip(ALTERNATE, full, cached, strict=True):
        assert float((a - b).norm() / a.norm()) > 0.02 if mode == "r" else torch.equal(a, b)


class TestOneLoop:
    @pytest.mark.parametrize("stated", [TIMES, torch.tensor(TIMES), None])
    def test_stated_and_recognised(self, toy: Toy, fast: Any, stated: Any) -> None:
        loop = Loop(label(1))
        with ditc.session(fast, timesteps=stated) as session:
            assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))
        assert counters(session) == {"generations": 1, "lanes": 1, "computed": 5, "reused": 3}

    def test_interval_3(self, toy: Toy) -> None:
        fast, loop = compiled(toy, interval=3), Loop(label(1))
        with ditc.session(fast):
            assert_same(run(fast, loop), alone(toy, loop, every(3, STEPS)))

    def test_default_session(self, toy: Toy, fast: Any) -> None:
        loop = Loop(label(1))
        assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))

    def test_stated_values_need_not_be_those_the_model_sees(self, toy: Toy, fast: Any) -> None:
        rising = Loop(label(1), times=[1 - t / 1000 for t in TIMES])
        with ditc.session(fast, timesteps=TIMES):
            assert_same(run(fast, rising), alone(toy, rising, ALTERNATE))

    def test_doubled_batch(self, toy: Toy, fast: Any) -> None:
        loop = Loop(torch.tensor([1, 4]))
        with ditc.session(fast) as session:
            assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))
        assert session.summary()["lanes"] == 1

    def test_single_step(self, toy: Toy, fast: Any) -> None:
        loop = Loop(label(1), times=[999.0])
        with ditc.session(fast, timesteps=[999.0]) as session:
            for _ in range(3):
                assert_same(run(fast, loop), alone(toy, loop, "c"))
        assert session.summary()["generations"] == 3


class TestLanes:
    @pytest.mark.parametrize("stated", [TIMES, None])
    @pytest.mark.parametrize("make", [label, prompt])
    def test_guidance_by_two_calls(
        self, toy: Toy, fast: Any, stated: Any, make: Callable[[int], Tensor]
    ) -> None:
        lanes = [Loop(make(1), seed=1), Loop(make(2), seed=1)]
        with ditc.session(fast, timesteps=stated) as session:
            got = take_turns(fast, *lanes)
        for outputs, lane in zip(got, lanes, strict=True):
            assert_same(outputs, alone(toy, lane, ALTERNATE))
        assert counters(session) == {"generations": 1, "lanes": 2, "computed": 10, "reused": 6}

    def test_third_lane_that_skips_a_layer(self, toy: Toy, fast: Any) -> None:
        lanes = [list(Loop(label(1))), list(Loop(label(2)))]
        lanes.append([call | {"skip": (1,)} for call in lanes[0]])
        with ditc.session(fast, timesteps=TIMES) as session:
            got = take_turns(fast, *lanes)
        for outputs, lane in zip(got, lanes, strict=True):
            assert_same(outputs, alone(toy, lane, ALTERNATE))
        assert session.summary()["lanes"] == 2, "another form of the model keeps its own state"

    def test_lane_that_starts_late_and_stops_early(self, toy: Toy, fast: Any) -> None:
        first, second = list(Loop(label(1))), list(Loop(label(2)))
        got: list[Tensor] = []
        with ditc.session(fast, timesteps=TIMES), torch.no_grad():
            for step in range(STEPS):
                fast(**first[step])
                if 3 <= step < 7:
                    got.append(fast(**second[step]))
        # its first call has nothing to reuse; from there on it follows the generation's steps
        assert_same(got, alone(toy, second[3:7], "ccrc"))

    def test_lane_that_leaves_out_a_step(self, toy: Toy, fast: Any) -> None:
        first, second = list(Loop(label(1))), list(Loop(label(2)))
        got: list[Tensor] = []
        with ditc.session(fast, timesteps=TIMES), torch.no_grad():
            for step in range(STEPS):
                fast(**first[step])
                if step != 2:
                    got.append(fast(**second[step]))
        assert_same(got, alone(toy, second[:2] + second[3:], "crccrcc"))

    def test_labels_rebuilt_each_step(self, toy: Toy, fast: Any) -> None:
        calls = [call | {"y": label(1)} for call in Loop(label(1))]
        with ditc.session(fast) as session:
            assert_same(run(fast, calls), alone(toy, calls, ALTERNATE))
        assert session.summary()["lanes"] == 1

    def test_prompt_changed_in_place(self, toy: Toy, fast: Any) -> None:
        y = prompt(1)

        def calls() -> Iterator[dict[str, Any]]:
            y.copy_(prompt(1))
            for step, call in enumerate(Loop(y)):
                if step == 3:
                    y.mul_(-1)
                yield call

        with ditc.session(fast):
            assert_same(run(fast, calls()), alone(toy, calls(), "crcccrcc"))

    def test_address_reused_by_another_prompt(self, toy: Toy, moved: Any) -> None:
        """Each prompt dies before the next is made, which then gets its memory.

        Three new ones show that prompts change at each step; from there on they are no condition.
        """

        def calls() -> Iterator[dict[str, Any]]:
            for step, call in enumerate(Loop(label(0), times=TIMES[:6])):
                yield call | {"y": prompt(step)}

        with ditc.session(moved), pytest.warns(DitcWarning, match="y changes from step to step"):
            assert_same(run(moved, calls()), alone(toy, calls(), "ccccrc"))

    def test_scalar_condition_beside_the_timestep(self, toy: Toy, fast: Any) -> None:
        """A guidance scale has a timestep's form; the first move shows which of them is one."""
        calls = [call | {"g": torch.full((1,), 3.5)} for call in Loop(label(1))]
        with ditc.session(fast):
            for _ in range(2):  # the first generation gives what the second gives
                assert_same(run(fast, calls), alone(toy, calls, ALTERNATE))
        other = [call | {"g": torch.full((1,), 1.0)} for call in calls]
        with ditc.session(fast) as session:  # what was seen stays known
            got = take_turns(fast, calls, other)
        assert_same(got[0], alone(toy, calls, ALTERNATE))
        assert_same(got[1], alone(toy, other, ALTERNATE))
        assert session.summary()["lanes"] == 2

    def test_lanes_by_a_scalar_that_may_be_the_timestep(self, toy: Toy) -> None:
        """The latent stands still while one candidate moves: that is another lane, no step."""
        fast = compiled(Toy())  # has not yet seen which one moves
        torch._dynamo.reset()
        lanes = [[call | {"g": torch.full((1,), g)} for call in Loop(label(1))] for g in (3.5, 3.0)]
        with ditc.session(fast):
            got = take_turns(fast, *lanes)
        for outputs, lane in zip(got, lanes, strict=True):
            assert_same(outputs, alone(toy, lane, ALTERNATE))


class TestNextGeneration:
    """The second generation gives what it gives alone."""

    @pytest.mark.parametrize("stated", [True, False])
    @pytest.mark.parametrize(
        "second",
        [
            Loop(label(1), seed=7),
            Loop(label(3), seed=7),
            Loop(label(1), seed=7, times=TIMES[3:]),
            Loop(label(1), seed=7, times=(801.0, 601.0, 401.0, 201.0, 1.0)),
            Loop(label(1), seed=7, tokens=10),
            Loop(label(1, batch=2), seed=7),
        ],
        ids=["seed", "prompt", "late start", "step count", "resolution", "batch"],
    )
    def test_after_a_whole_one(self, toy: Toy, fast: Any, second: Loop, stated: bool) -> None:
        def session(loop: Loop) -> Any:
            return ditc.session(fast, timesteps=loop.times if stated else None)

        want = alone(toy, second, every(2, len(second.times)))
        first = Loop(label(1))
        if stated:
            with session(first):
                run(fast, first)
            with session(second):
                assert_same(run(fast, second), want)
        else:
            with session(first):
                run(fast, first)
                assert_same(run(fast, second), want)

    def test_restart_in_a_stated_session(self, toy: Toy, fast: Any) -> None:
        with ditc.session(fast, timesteps=TIMES) as session:
            for seed in range(3):
                loop = Loop(label(1), seed)
                assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))
        assert counters(session) == {"generations": 3, "lanes": 1, "computed": 5, "reused": 3}

    def test_after_a_single_call(self, toy: Toy, fast: Any) -> None:
        """A warm-up at any timestep is no first step of what follows."""
        loop = Loop(label(1), seed=3)
        with ditc.session(fast):
            run(fast, Loop(label(1), times=[500.0]))
            assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))

    def test_after_an_interruption(self, toy: Toy, fast: Any) -> None:
        second = Loop(label(1), seed=3)
        with ditc.session(fast):
            run(fast, list(Loop(label(1)))[:3])
            assert_same(run(fast, second), alone(toy, second, ALTERNATE))

    def test_after_an_exception(self, toy: Toy, fast: Any) -> None:
        """The second one starts later than the first one failed, as if it went on."""
        second = Loop(label(1), seed=3, times=TIMES[5:])
        with ditc.session(fast) as session:
            calls = list(Loop(label(1)))
            run(fast, calls[:4])
            with pytest.raises(IndexError):
                run(fast, [calls[4] | {"y": label(99)}])
            assert_same(run(fast, second), alone(toy, second, "crc"))
        assert counters(session) == {"generations": 2, "lanes": 1, "computed": 2, "reused": 1}

    def test_after_an_exception_in_the_loop(self, toy: Toy, fast: Any) -> None:
        second = Loop(label(1), seed=3, times=TIMES[5:])
        session = ditc.session(fast)

        def interrupted() -> None:
            with session:
                run(fast, list(Loop(label(1)))[:4])
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        with session:
            assert_same(run(fast, second), alone(toy, second, "crc"))

    def test_inversion(self, toy: Toy, fast: Any) -> None:
        """Time that rises after one step is an inversion where the latent follows."""
        up = TIMES[::-1]
        with ditc.session(fast, timesteps=up):
            loop = Loop(label(1), times=up)
            assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))
        with ditc.session(fast):
            for seed in (1, 2):
                loop = Loop(label(1), seed, times=up)
                assert_same(run(fast, loop), alone(toy, loop, "crcrcrcr"))

    def test_samples_of_a_batch_at_their_own_steps(self, toy: Toy, fast: Any) -> None:
        """One sample moves on while another one starts anew."""
        times = [(841.0, 481.0), (721.0, 841.0), (601.0, 721.0), (481.0, 601.0)]
        loop = Loop(label(1, batch=2), times=TIMES[:4])
        calls = [call | {"t": torch.tensor(t)} for call, t in zip(loop, times, strict=True)]
        with ditc.session(fast):
            assert_same(run(fast, calls), alone(toy, calls, "ccrc"))


class TestSolvers:
    HEUN = (TIMES[0], *(t for t in TIMES[1:-1] for _ in range(2)))

    @pytest.mark.parametrize("stated", [True, False])
    def test_two_evaluations_at_one_timestep(self, toy: Toy, fast: Any, stated: bool) -> None:
        """Heun's timesteps come in pairs, as diffusers' scheduler states them."""
        lanes = [list(Loop(label(k), times=self.HEUN)) for k in (1, 2)]
        with ditc.session(fast, timesteps=self.HEUN if stated else None) as session:
            got = take_turns(fast, *lanes)
        for outputs, lane in zip(got, lanes, strict=True):
            firsts, seconds = lane[:1] + lane[1::2], lane[2::2]
            assert_same(outputs[:1] + outputs[1::2], alone(toy, firsts, "crcrcrc"))
            assert_same(outputs[2::2], alone(toy, seconds, "ccrcrc"))
        assert session.summary()["lanes"] == 4

    def test_the_same_latent_twice_is_computed_in_full(self, toy: Toy, fast: Any) -> None:
        """Nothing shows which of two lanes each call is of."""
        calls = [call for call in Loop(label(1)) for _ in range(2)]
        with ditc.session(fast) as session, pytest.warns(DitcWarning) as caught:
            assert_same(run(fast, calls), alone(toy, calls, "c" * 2 * STEPS))
        assert [str(w.message) for w in caught] == [
            "ditc: one step was evaluated twice with the same conditions, so nothing is reused in "
            "this generation; name the evaluations with ditc.lane(...), or state the loop with "
            "ditc.session(model, timesteps=...) to cache it"
        ]
        assert session.summary()["reused"] == 0

    def test_midpoint(self, toy: Toy, fast: Any) -> None:
        times = tuple(t for a in TIMES[:4] for t in (a, a - 60))
        loop = Loop(label(1), times=times)
        with ditc.session(fast):
            assert_same(run(fast, loop), alone(toy, loop, "crcrcrcr"))

    def test_conditions_that_change_at_every_call(self, toy: Toy, moved: Any) -> None:
        calls = list(Loop(label(0), times=range(900, 300, -50)))
        calls = [call | {"y": prompt(step)} for step, call in enumerate(calls)]
        with ditc.session(moved) as session, pytest.warns(DitcWarning) as caught:
            assert_same(run(moved, calls), alone(toy, calls, "cccc" + "rc" * 4))
        assert len(caught) == 1
        assert str(caught[0].message).startswith("ditc: y changes from step to step")
        assert session.summary()["lanes"] == 1

    def test_next_generation_is_certain_again(self, toy: Toy, fast: Any) -> None:
        with ditc.session(fast):
            with pytest.warns(DitcWarning):
                run(fast, [call for call in Loop(label(1)) for _ in range(2)])
            loop = Loop(label(1), seed=1)
            assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))

    def test_warns_once_for_many_generations(self, fast: Any) -> None:
        calls = [call for seed in range(3) for call in Loop(label(1), seed) for _ in range(2)]
        with ditc.session(fast), pytest.warns(DitcWarning) as caught:
            run(fast, calls)
        assert len(caught) == 1


class TestWeights:
    """State is never reused with other weights than those that made it."""

    @pytest.mark.parametrize("stated", [False, True])
    def test_written_to_without_a_trace(self, stated: bool) -> None:
        """The user says so, before a step that would reuse."""
        torch._dynamo.reset()
        toy = Toy()
        fast = compiled(toy)
        calls = list(Loop(label(1)))
        with ditc.session(fast, timesteps=TIMES if stated else None):
            run(fast, calls[:3])
            toy.blocks[0].attn.q.weight.data.mul_(1.5)
            toy.blocks[1].mlp[0].weight.data.mul_(1.5)
            ditc.reset(toy)
            pattern = "cc" if stated else "cr"  # a stated step keeps its number
            assert_same(run(fast, calls[3:5]), alone(toy, calls[3:5], pattern))


class TestInferenceMode:
    def test_same_prompt(self, toy: Toy, fast: Any) -> None:
        with torch.inference_mode():
            loop = Loop(prompt(1))
            with ditc.session(fast) as session:
                got = [fast(**call) for call in loop]
            assert_same(got, alone(toy, loop, ALTERNATE))
        assert session.summary()["lanes"] == 1

    def test_prompt_changed_in_place(self, toy: Toy, fast: Any) -> None:
        """There is no version counter: the same object must be told from itself by content."""

        def calls(y: Tensor) -> Iterator[dict[str, Any]]:
            for step, call in enumerate(Loop(y)):
                if step == 3:
                    y.mul_(-1)
                yield call

        with torch.inference_mode():
            with ditc.session(fast):
                got = [fast(**call) for call in calls(prompt(1))]
            assert_same(got, alone(toy, calls(prompt(1)), "crcccrcc"))

    def test_large_prompt_by_its_checksum(
        self, toy: Toy, fast: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(content, "WHOLE", 4)
        with torch.inference_mode():
            loop = Loop(prompt(1), times=TIMES[:6])
            with ditc.session(fast):
                got = [fast(**call) for call in loop]
            assert_same(got, alone(toy, loop, "crcrcr"))


class TestAtOnce:
    """Two generations at the same time, with the same prompt, one behind the other."""

    LOOPS = (Loop(label(1), seed=1), Loop(label(1), seed=2))

    def check(self, toy: Toy, got: list[list[Tensor]]) -> None:
        for outputs, loop in zip(got, self.LOOPS, strict=True):
            assert_same(outputs, alone(toy, loop, ALTERNATE))

    @pytest.mark.parametrize("stated", [TIMES, None])
    def test_open_sessions_take_turns(self, toy: Toy, fast: Any, stated: Any) -> None:
        got: list[list[Tensor]] = [[], []]
        with (
            ditc.session(fast, timesteps=stated) as first,
            ditc.session(fast, timesteps=stated) as second,
        ):
            for a, b in staggered(*self.LOOPS):
                with first:
                    got[0] += run(fast, a)
                with second:
                    got[1] += run(fast, b)
        self.check(toy, got)
        assert first.summary() == second.summary()

    def test_generators(self, toy: Toy, fast: Any) -> None:
        """Sessions that generators hold open end in any order, and none stays behind."""

        def sample(loop: Loop) -> Iterator[Tensor]:
            with ditc.session(fast) as session:
                for call in loop:
                    with session:
                        result = run(fast, [call])
                    yield from result

        first, second = sample(self.LOOPS[0]), sample(self.LOOPS[1])
        got = [[next(first)], []]
        for _ in range(STEPS - 1):
            got[1].append(next(second))
            got[0].append(next(first))
        assert next(first, None) is None  # ends while the one opened after it is still open
        got[1] += list(second)
        self.check(toy, got)
        loop = Loop(label(1), seed=5)
        with ditc.session(fast) as outer:
            assert_same(run(fast, loop), alone(toy, loop, ALTERNATE))
        assert outer.summary()["computed"] == 5

    def test_threads(self, toy: Toy, fast: Any) -> None:
        run(fast, self.LOOPS[0])  # compile before the race
        turn = threading.Barrier(2, timeout=30)

        def sample(loop: Loop) -> list[Tensor]:
            got = []
            for call in loop:
                turn.wait()
                got += run(fast, [call])
            return got

        with ThreadPoolExecutor(2) as pool:
            self.check(toy, list(pool.map(sample, self.LOOPS)))

    def test_tasks(self, toy: Toy, fast: Any) -> None:
        async def sample(loop: Loop) -> list[Tensor]:
            got = []
            for call in loop:
                got += run(fast, [call])
                await asyncio.sleep(0)
            return got

        async def both() -> list[list[Tensor]]:
            run(fast, list(self.LOOPS[0])[:3])  # the parent's own generation is not passed on
            return await asyncio.gather(*map(sample, self.LOOPS))

        self.check(toy, asyncio.run(both()))

    def test_tasks_that_send_each_step_to_a_worker(self, toy: Toy, fast: Any) -> None:
        """The one worker sees steps of both in turn, so nothing it keeps is certain."""

        async def sample(loop: Loop) -> list[Tensor]:
            return [(await asyncio.to_thread(run, fast, [call]))[0] for call in loop]

        async def both() -> list[list[Tensor]]:
            asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
            return await asyncio.gather(*map(sample, self.LOOPS))

        for outputs, loop in zip(asyncio.run(both()), self.LOOPS, strict=True):
            assert_same(outputs, alone(toy, loop, "c" * STEPS))

    def test_two_models_of_one_class(self, toy: Toy, fast: Any) -> None:
        """Dynamo serves both from one compiled graph; each keeps its own state."""
        other = Toy(seed=1)
        loop = list(Loop(label(1)))
        faster = compiled(other)
        got: list[list[Tensor]] = [[], []]
        with ditc.session():
            for call in loop:
                got[0] += run(fast, [call])
                got[1] += run(faster, [call])
        assert_same(got[0], alone(toy, loop, ALTERNATE))
        assert_same(got[1], alone(other, loop, ALTERNATE))

    def test_experts_that_share_a_loop(self, toy: Toy, fast: Any) -> None:
        """The second model takes over halfway, at the same prompt and shape."""
        other = Toy(seed=1)
        loop = list(Loop(label(1)))
        with ditc.session():
            run(fast, loop[:3])
            got = run(compiled(other), loop[3:])
        assert_same(got, alone(other, loop[3:], "crcrc"))


class TestLifetime:
    def test_session_is_for_its_model_only(self, toy: Toy, fast: Any) -> None:
        other = compiled(Toy(seed=1))
        with ditc.session(toy) as session:
            run(other, Loop(label(1)))
            assert counters(session) == {"generations": 0, "lanes": 0, "computed": 0, "reused": 0}
            run(fast, Loop(label(1)))
        assert session.summary()["lanes"] == 1

    def test_state_and_conditions_are_freed_at_the_end(self, fast: Any) -> None:
        def alive() -> int:
            gc.collect()
            return sum(
                type(item) is Tensor and item.shape == (3, 6, 16) for item in gc.get_objects()
            )

        with ditc.session(fast) as session:
            y = label(1, batch=3)
            watched = weakref.ref(y)
            run(fast, list(Loop(y))[:3])
            assert alive() == 6  # two branches in each of three blocks
            with session:
                pass
            assert alive() == 6  # still open
            del y
            assert watched() is None, "a copy is compared"
        assert alive() == 0
        assert session.summary()["computed"] == 2

    def test_default_session_ends_with_its_thread(self, fast: Any) -> None:
        watched: list[weakref.ref[ditc.Session]] = []

        def sample() -> None:
            run(fast, Loop(label(1)))
            watched.append(weakref.ref(current(())))
            assert watched[0]() is not None

        thread = threading.Thread(target=sample)
        thread.start()
        thread.join()
        del thread
        gc.collect()
        assert watched[0]() is None

    @pytest.mark.parametrize("empty", [[], (), torch.empty(0)])
    def test_empty_timesteps(self, empty: Any) -> None:
        with pytest.raises(SessionError, match=r"^timesteps is empty; pass scheduler\.timesteps"):
            ditc.session(timesteps=empty)

    @pytest.mark.parametrize("sigmas", [[1.0], [1.0] * (len(TIMES) + 2), []])
    def test_sigmas_of_other_steps(self, sigmas: list[float]) -> None:
        message = rf"^{len(sigmas)} sigmas do not go with {len(TIMES)} timesteps; pass"
        with pytest.raises(SessionError, match=message):
            ditc.session(timesteps=TIMES, sigmas=sigmas)

    def test_sigmas_are_what_forecasts_go_by(self, toy: Toy) -> None:
        method = "method=taylor,interval=3,order=1,axis=sigma,basis=newton"
        torch._dynamo.reset()
        fast = compiled(toy, passes=f"exact,insert-block-cache{{{method}}}")
        calls = list(Loop(label(2)))

        def draw(**stated: Any) -> list[Tensor]:
            with ditc.session(fast, timesteps=TIMES, **stated):
                return run(fast, calls)

        even = torch.arange(len(TIMES) + 1, 0, -1)
        assert_same(draw(sigmas=even), draw())  # evenly spaced, as steps are
        uneven, plain = draw(sigmas=even**2), draw()
        differs = [not torch.allclose(a, b, atol=1e-4) for a, b in zip(uneven, plain, strict=True)]
        assert differs == [step in (3, 4, 6) for step in range(len(TIMES))]


def take_turns(fast: Any, *lanes: Any) -> list[list[Tensor]]:
    """All lanes at each step; the outputs of each lane."""
    steps = [run(fast, calls) for calls in zip(*lanes, strict=True)]
    return [list(outputs) for outputs in zip(*steps, strict=True)]


def staggered(first: Loop, second: Loop) -> Iterator[tuple[list[Any], list[Any]]]:
    """The calls of both loops in turn, the second three steps behind."""
    a, b = [[call] for call in first], [[call] for call in second]
    return zip([*a, [], [], []], [[], [], [], *b], strict=True)
