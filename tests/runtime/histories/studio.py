"""Carries histories out: requests as they would be served, each call judged as it is made."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from dataclasses import dataclass, field, replace
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

import dit_compile as ditc
from tests.runtime.histories.history import AtOnce, History, InTurn, Request, Scene, Weights
from tests.runtime.histories.model import LATENT, TEXT, Painter
from tests.runtime.histories.oracle import WANTED, Asked, Method, Oracle, Verdict
from tests.runtime.histories.samplers import SAMPLERS, evaluated, schedule

_MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
    "grad": torch.enable_grad,
}
_DONE = object()


@dataclass(frozen=True)
class Compiled:
    """A model, and what ditc made of it.

    Attributes:
        fast: compiled, or a loaded bundle.
        scalar: whether it is given a guidance scale, which has a timestep's form.
        loaded: whether it is a bundle, of fixed sizes and weights.
    """

    method: Method
    model: Painter
    fast: Any
    scalar: bool = False
    loaded: bool = False


#: Models by name.
Painters = Mapping[str, Compiled]


@dataclass
class Tally:
    """Counts over histories.

    Attributes:
        verdicts: answers, by what they were.
        wanted, reused: of requests whose calls can be placed, the calls that a policy would serve
            by reuse if each request were alone, and those of them that were.
        short: the histories that lacked some, and of which calls.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    wanted: int = 0
    reused: int = 0
    short: list[tuple[History, Asked]] = field(default_factory=list)


class Cancelled(Exception):
    """The user closed the window."""


def replay(painters: Painters, history: History, tally: Tally | None = None) -> Tally:
    """Carry a history out, in a thread of its own so that no Session is left from another one.

    Raises:
        WrongAnswer: a call's answer is neither the full one nor its lane's own reuse.
    """
    tally = tally if tally is not None else Tally()
    with one_worker() as pool:
        try:
            pool.submit(Studio(painters, history, tally).carry_out).result()
        except AssertionError as error:
            error.args = (f"{error}\n{history}",)
            raise
    return tally


class Studio:
    """One history on its way."""

    def __init__(self, painters: Painters, history: History, tally: Tally) -> None:
        self.painters = painters
        self.history = history
        self.tally = tally
        self.oracles = {
            name: Oracle(painters[name].method, painters[name].model)
            for name in sorted(history.painters())
        }
        self.buffers: dict[object, Any] = {}
        self.drawings: list[Drawing] = []
        self._undo: list[Callable[[], None]] = []

    def carry_out(self) -> None:
        """All scenes; the weights are put back behind them."""
        try:
            for scene in self.history.scenes:
                self._carry_out(scene)
        finally:
            for undo in reversed(self._undo):
                undo()

    def write(self, change: Weights, *, within: bool = False) -> None:
        """Change a weight, and remember how to put it back."""
        painter, oracle = self.painters[change.painter], self.oracles[change.painter]
        *path, name = change.path.split(".")
        owners = [model.get_submodule(".".join(path)) for model in (painter.model, oracle.plain)]
        weight = getattr(owners[0], name)
        oracle.weights_change(repr(change), seen_by_state=path[:1] not in (["note"], ["head"]))
        content, new = weight.detach().clone(), weight.detach() * 1.5
        if change.how == "replaced":
            replaced = torch.nn.Parameter(new)
            _put(owners, name, replaced)
            self._undo.append(lambda: _put(owners, name, weight))
            return
        self._undo.append(lambda: _write(weight, content))
        if change.how == "no_grad":
            _write(weight, new)
            return
        weight.data.copy_(new)
        if within:
            ditc.reset(painter.model)

    def _carry_out(self, scene: Scene) -> None:
        if isinstance(scene, Weights):
            self.write(scene)
        elif isinstance(scene, InTurn):
            self._in_turn(scene)
        else:
            getattr(self, f"_{scene.how}")(scene, [self._drawing(scene, r) for r in scene.requests])

    def _in_turn(self, scene: InTurn) -> None:
        first = scene.requests[0]
        with self._session(first, scene.shared, {r.painter for r in scene.requests}):
            for request in scene.requests:
                drawing = self._drawing(scene, request)
                with suppress(Cancelled), self._session(request):
                    for _ in drawing.steps:
                        pass

    def _turns(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        with ExitStack() as stack:
            sessions = [self._session(drawing.request) for drawing in drawings]
            for session in sessions:
                stack.enter_context(session)

            def step(index: int) -> bool:
                with sessions[index]:
                    return _step(drawings[index].steps)

            _take_turns(scene, step)

    def _nested(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        with ExitStack() as stack:
            for drawing in drawings:
                stack.enter_context(self._session(drawing.request))
            _take_turns(scene, lambda index: _step(drawings[index].steps))

    def _generators(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        held = [self._held(drawing) for drawing in drawings]
        _take_turns(scene, lambda index: _step(held[index]))

    def _handed(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        held = [self._held(drawing) for drawing in drawings]
        with one_worker() as one, one_worker() as other:
            pools = cycle((one, one, other))
            _take_turns(scene, lambda i: next(pools).submit(_step, held[i]).result())

    def _threads(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        held = [self._held(drawing) for drawing in drawings]
        with ExitStack() as stack:
            pools = [stack.enter_context(one_worker()) for _ in held]
            _take_turns(scene, lambda i: pools[i].submit(_step, held[i]).result())

    def _tasks(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        async def serve(drawing: Drawing) -> None:
            with self._session(drawing.request):
                while _step(drawing.steps):
                    await asyncio.sleep(0)

        self._gather([serve(drawing) for drawing in drawings])

    def _workers(self, scene: AtOnce, drawings: Sequence[Drawing]) -> None:
        async def serve(drawing: Drawing) -> None:
            with self._session(drawing.request):
                while await asyncio.to_thread(_step, drawing.steps):
                    pass

        self._gather([serve(drawing) for drawing in drawings])

    @staticmethod
    def _gather(served: Sequence[Any]) -> None:
        async def all_of_them() -> None:
            with one_worker() as pool:
                asyncio.get_running_loop().set_default_executor(pool)
                await asyncio.gather(*served)

        asyncio.run(all_of_them())

    def _held(self, drawing: Drawing) -> Iterator[None]:
        with self._session(drawing.request):
            yield from drawing.steps

    def _session(
        self, request: Request, kind: str | None = "", painters: set[str] | None = None
    ) -> AbstractContextManager[Any]:
        kind = request.session if kind == "" else kind
        if kind is None:
            return nullcontext()
        model = self.painters[request.painter].fast if not painters or len(painters) == 1 else None
        sigmas = schedule(request.steps)
        sigmas = sigmas if kind == "whole" else sigmas[request.start :]
        times = [float(_time(sigma)) for sigma in evaluated(request.sampler, sigmas)]
        return ditc.session(model, timesteps=times if kind != "unstated" else None)

    def _drawing(self, scene: InTurn | AtOnce, request: Request) -> Drawing:
        shared = getattr(scene, "shared", None)
        stated = request.stated or shared == "stated"
        if isinstance(scene, InTurn):
            alone = True
        elif scene.how == "turns":  # those without a Session go to the innermost open one
            alone = all(each.session is not None for each in scene.requests)
        else:
            alone = request.session is not None or scene.how in ("threads", "tasks", "nested")
        certain = alone and (request.certain or (stated and _if_stated(request).certain))
        number = len(self.drawings)
        self.drawings.append(Drawing(self, request, number, certain, stated=stated))
        return self.drawings[-1]


class Drawing:
    """One request on its way.

    Args:
        certain: whether its calls can be placed, so that reuse may be asked for.
        stated: whether a Session knows its timesteps.

    Attributes:
        answers: the latents that the model gave so far.
    """

    def __init__(
        self, studio: Studio, request: Request, number: int, certain: bool, *, stated: bool
    ) -> None:
        self.studio, self.request, self.number = studio, request, number
        self.certain, self.stated = certain, stated
        self.painter = studio.painters[request.painter]
        self.oracle = studio.oracles[request.painter]
        self.levels = evaluated(request.sampler, schedule(request.steps)[request.start :])
        self.steps = self._steps()
        self.answers: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(100 + request.seed)
        self._texts: dict[object, Tensor] = {}
        self._last: Tensor | None = None
        self._step = 0
        self._evaluated: dict[object, int] = {}

    def _steps(self) -> Iterator[None]:
        r = self.request
        sigmas = schedule(r.steps)[r.start :]
        loop = SAMPLERS[r.sampler](self._begin(sigmas[0]), sigmas, self._predict, self._noise)
        for self._step in range(r.steps + 1):
            if self._step == r.stop:
                if r.raises:
                    raise Cancelled
                return
            if r.weights is not None and r.weights[0] == self._step:
                self.studio.write(r.weights[1], within=True)
            with _MODES[self._mode()]():
                if next(loop, _DONE) is _DONE:
                    break
            yield

    def _mode(self) -> str:
        r = self.request
        return r.other_mode if self._step in r.switched else r.mode

    def _begin(self, sigma: float) -> Tensor:
        r = self.request
        sizes = (r.batch, r.tokens, LATENT)
        noise = torch.randn(sizes, generator=self._generator)
        clean = torch.randn(sizes, generator=torch.Generator().manual_seed(200 + r.clean))
        return sigma * noise + (1 - sigma) * clean

    def _noise(self, like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=self._generator)

    def _predict(self, x: Tensor, sigma: float, *, step: int) -> Tensor:
        """The guided prediction: one call, two, or one of a doubled batch."""
        r = self.request
        if self._last is not None and step in r.skip:
            return self._last
        moved = r.reprompt is not None and self._step >= r.reprompt
        want, other = (r.prompt + 10 * moved, r.words), (90, r.negative)
        tokens = x.shape[1]
        if self._step in r.resized:
            x = _resized(x, 28 - tokens)
        if r.guidance == "batch":
            both = torch.cat([_text(other, r.batch), _text(want, r.batch)])
            doubled = torch.cat([x, x])
            found = self._call("both", doubled, sigma, both, want, step)
            away, toward = found.chunk(2)
        elif r.guidance == "calls" or (r.guidance == "middle" and 2 <= step < 4):
            unlike = _text(other, r.batch)
            away = self._call("uncond", x, sigma, unlike, other, step)
            toward = self._call("cond", x, sigma, _text(want, r.batch), want, step)
        else:
            toward = self._call("cond", x, sigma, _text(want, r.batch), want, step)
            away = toward
        self._last = _resized(away + 2.0 * (toward - away), tokens)
        return self._last

    def _call(
        self,
        lane: str,
        x: Tensor,
        sigma: float,
        text: Tensor,
        key: tuple[int, int],
        step: int,
    ) -> Tensor:
        """One call of the model, judged."""
        r = self.request
        time = {"1000t": _time(sigma), "t": _time(sigma) / 1000, "1-t": 1 - _time(sigma) / 1000}
        inputs: dict[str, Any] = {
            "x": self._passed("x", x),
            "t": self._passed("t", torch.full((x.shape[0],), float(time[r.form]))),
            "text": self._written(text, (*key, lane)),
        }
        if not self.painter.loaded:
            inputs["fps"] = r.fps
        if self.painter.scalar:
            inputs["g"] = torch.full((x.shape[0],), 3.5)
        stream = self.number, lane, (*key, x.shape[1])
        again = self._evaluated.get(stream) == step
        self._evaluated[stream] = step
        asked = Asked(*stream, step, again, self.stated)
        wanted = self.certain and self._wants(asked)
        with ditc.lane(lane) if r.named else nullcontext():
            answer = [value.detach() for value in self.painter.fast(**inputs)]
        verdict = self.oracle.judge(asked, inputs, answer)
        self._count(asked, verdict, wanted=wanted)
        found = answer[0].clone()
        self.answers.append(found)
        if r.scribble:
            for value in answer:
                value.fill_(7.0)
        return found

    def _wants(self, asked: Asked) -> bool:
        """Whether the policy would reuse here, were the request alone."""
        stream, step = self.oracle.stream(asked), asked.step
        if not stream.made or step == len(set(self.levels)) - 1:
            return False
        if self.request.session == "whole":
            step += self.request.start * (2 if self.request.sampler == "midpoint" else 1)
        return WANTED[self.painter.method](step, stream.reused)

    def _count(self, asked: Asked, verdict: Verdict, *, wanted: bool) -> None:
        tally = self.studio.tally
        tally.verdicts[verdict] += 1
        if not wanted or verdict == "moot":
            return
        tally.wanted += 1
        tally.reused += verdict == "reused"
        if verdict != "reused":
            tally.short.append((self.studio.history, asked))

    def _passed(self, name: str, value: Tensor) -> Tensor:
        """A latent or a timestep as the caller passes it, of the kind that the mode makes."""
        if torch.is_inference_mode_enabled() or value.is_inference():
            value = value.clone()
        if not self.request.in_place:
            return value
        key = (self.number, name, value.shape, value.is_inference())
        return self.studio.buffers.setdefault(key, value.clone()).copy_(value)

    def _written(self, text: Tensor, key: object) -> Tensor:
        """A prompt as the caller passes it."""
        how, inference = self.request.text, torch.is_inference_mode_enabled()
        if inference:
            text = text.clone()
        if how == "rebuilt":
            return text
        if how == "kept":
            return self._texts.setdefault((key, inference), text)
        buffers, place = self.studio.buffers, (how, text.shape, inference)
        if how == "numpy":
            array = buffers.setdefault(place, text.numpy().copy())
            array[:] = text.numpy()
            return torch.from_numpy(array)
        held: Tensor = buffers.setdefault(place, text.clone())
        if not torch.equal(held, text):
            _WRITES[how](held, text.clone())
        return held


def one_worker() -> ThreadPoolExecutor:
    """A thread with the settings of the main one, which torch keeps for each by itself."""
    return ThreadPoolExecutor(1, initializer=_as_main)


def _as_main() -> None:
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    torch._dynamo.config.fail_on_recompile_limit_hit = True


def _copy(held: Tensor, text: Tensor) -> None:
    held.copy_(text)


def _data(held: Tensor, text: Tensor) -> None:
    held.data.copy_(text)


def _swapped(held: Tensor, text: Tensor) -> None:
    held.data = text


def _storage(held: Tensor, text: Tensor) -> None:
    held.untyped_storage().copy_(text.untyped_storage())


_WRITES = {"written": _copy, "data": _data, "swapped": _swapped, "storage": _storage}


def _time(sigma: float) -> Tensor:
    """A scheduler's timestep."""
    return 1000 * torch.tensor(sigma)


def _if_stated(request: Request) -> Request:
    return replace(request, session="stated")


def _resized(x: Tensor, tokens: int) -> Tensor:
    """The first tokens alone, or some of them twice."""
    return torch.cat([x, x[:, : max(0, tokens - x.shape[1])]], 1)[:, :tokens]


def _text(key: tuple[int, int], batch: int) -> Tensor:
    seed, words = key
    generator = torch.Generator().manual_seed(300 + seed)
    return torch.randn(batch, words, TEXT, generator=generator)


def _step(steps: Iterator[None]) -> bool:
    """One step; whether it was one, rather than the end."""
    try:
        return next(steps, _DONE) is not _DONE
    except Cancelled:
        return False


def _take_turns(scene: AtOnce, step: Callable[[int], bool]) -> None:
    running = set(range(len(scene.requests)))
    for index in cycle(scene.order):
        if index in running and not step(index):
            running.discard(index)
        if not running & set(scene.order):
            break


def _write(weight: Tensor, content: Tensor) -> None:
    with torch.no_grad():
        weight.copy_(content)


def _put(owners: Sequence[torch.nn.Module], name: str, weight: Any) -> None:
    for owner in owners:
        setattr(owner, name, weight)
