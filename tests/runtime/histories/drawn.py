"""Random histories: always the same one for a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from tests.runtime.histories.history import AtOnce, History, InTurn, Request, Scene, Weights

T = TypeVar("T")

#: Models of which several kinds of calls are compiled, in autograd modes and for single pictures.
MANY_FORMS = ("interval", "other")
PAINTERS = ("interval", "other", "first-block", "taylor", "guided", "bundle")
WEIGHTS = (
    "blocks.0.attn.q.weight",
    "blocks.0.cross.k.weight",
    "blocks.1.modulation.weight",
    "time.weight",
    "place.weight",
    "note.weight",
    "head.bias",
)
SAMPLERS = ("euler", "euler", "ddim", "multistep", "heun", "midpoint", "ancestral")
#: Those whose loop goes on with an old output where the model is not called.
MAY_SKIP = ("euler", "ddim", "multistep")
TEXTS = ("kept", "kept", "rebuilt", "rebuilt", "numpy", "written", "data", "storage", "swapped")
TWISTS = ("", "", "", "stop", "stop", "reprompt", "switch", "resize", "weights", "skip")
AT_ONCE = ("turns", "generators", "handed", "nested", "threads", "tasks", "workers")
ORDERS = ((0, 1), (0, 0, 1), (0, 1, 1), (0, 1, 1, 0))


def history(seed: int, painters: Sequence[str] = PAINTERS) -> History:
    """One or two scenes, most of them with one model."""
    return _Draw(random.Random(seed), painters).history()


class _Draw:
    """Draws within what is compiled ahead of each model."""

    def __init__(self, rng: random.Random, painters: Sequence[str]) -> None:
        self._rng = rng
        self._painters = painters

    def history(self) -> History:
        main = self._pick(*self._painters)
        scenes = [self._scene(main)]
        if self._pick(True, False):
            if main != "bundle" and self._pick(True, False, False, False):
                scenes.append(self._weights(main))
            scenes.append(self._scene(main))
        return History(tuple(scenes))

    def _pick(self, *of: T) -> T:
        return self._rng.choice(of)

    def _scene(self, main: str) -> Scene:
        return self._in_turn(main) if self._pick(True, False) else self._at_once(main)

    def _in_turn(self, main: str) -> InTurn:
        requests = [self._request(main)]
        for _ in range(self._pick(0, 1, 2)):
            requests.append(self._after(requests[-1], self._request(main)))
        shared = self._pick(None, None, "unstated", "stated")
        if shared is None:
            return InTurn(tuple(requests))
        requests = [replace(request, session=None) for request in requests]
        if shared == "stated":
            first = requests[0]
            loop = {name: getattr(first, name) for name in ("sampler", "steps", "start", "form")}
            requests = [_within(replace(request, **loop)) for request in requests]
        return InTurn(tuple(requests), shared)

    def _after(self, before: Request, request: Request) -> Request:
        """A request that may well look like the rest of one that was cancelled."""
        if before.stop is None or self._pick(True, False):
            return request
        alike = ("batch", "tokens", "words", "negative", "prompt", "steps", "guidance", "form")
        same = {name: getattr(before, name) for name in (*alike, "fps", "sampler", "named")}
        start = min(before.start + before.stop + self._pick(0, 1), before.steps - 2)
        return _within(replace(request, **same, start=start))

    def _at_once(self, main: str) -> AtOnce:
        how, second = self._pick(*AT_ONCE), main
        others = [name for name in self._painters if name != main]
        if how == "nested" and others:
            second = self._pick(*others)
        how = "turns" if second == main and how == "nested" else how
        one, other = self._request(main), self._request(second)
        if self._pick(True, False) and second == main:  # the same but for the noise
            other = one
        # From the same noise, and mixed outside of Sessions, they are one loop for all one knows.
        other = replace(other, seed=other.seed + 10)
        if how == "handed":  # each thread has a Session of its own for what is in none
            one, other = (replace(r, session=r.session or "unstated") for r in (one, other))
        return AtOnce((one, other), how, self._pick(*ORDERS))

    def _request(self, painter: str) -> Request:
        pick, free = self._pick, painter != "bundle"
        request = Request(
            painter=painter,
            sampler=pick(*SAMPLERS),
            prompt=pick(0, 0, 1),
            words=pick(5, 5, 7),
            seed=pick(0, 1, 2),
            steps=pick(6, 4, 5),
            start=pick(0, 0, 1, 2),
            clean=pick(0, 1),
            batch=pick(1, 1, 2) if painter in MANY_FORMS else pick(2, 2, 3),
            tokens=pick(12, 12, 16),
            fps=pick(24, 24, 30),
            guidance=pick("", "", "calls", "batch", "middle") if free else pick("", "calls"),
            negative=pick(5, 5, 7),
            named=pick(False, True),
            form=pick("1000t", "t", "1-t"),
            session=pick(None, None, "stated", "whole", "unstated"),
            text=pick(*TEXTS),
            in_place=pick(False, True),
            scribble=pick(False, False, True),
        )
        if painter in MANY_FORMS and request.batch == 1:
            mode = pick("no_grad", "no_grad", "no_grad", "inference_mode")
            request = replace(request, mode=mode)
        return _within(self._twisted(request, pick(*TWISTS)))

    def _twisted(self, request: Request, twist: str) -> Request:
        """The request with one thing that happens on its way."""
        step = self._rng.randint(1, request.steps - 1 - request.start)
        if twist == "stop":
            return replace(request, stop=step, raises=self._pick(False, True))
        if twist == "reprompt":
            return replace(request, reprompt=step)
        if twist == "skip" and request.sampler in MAY_SKIP:
            return replace(request, skip=(step,))
        if twist == "weights" and request.painter != "bundle":
            return replace(request, weights=(step, self._weights(request.painter)))
        after = range(step, request.steps)
        toggled = self._pick((step,), tuple(after), tuple(after[::2]))
        if twist == "resize":
            return replace(request, resized=toggled)
        if twist == "switch" and request.painter in MANY_FORMS and request.batch == 1:
            modes = {"grad", "inference_mode", "no_grad"} - {request.mode}
            return replace(request, switched=toggled, other_mode=self._pick(*sorted(modes)))
        return request

    def _weights(self, painter: str) -> Weights:
        how = self._pick("no_grad", "no_grad", "data", "replaced")
        return Weights(painter, self._pick(*WEIGHTS), how)


def _within(request: Request) -> Request:
    """The request without what its schedule, its guidance or its model leaves no room for."""
    left = request.steps - request.start
    if request.stop is not None and request.stop >= left:
        request = replace(request, stop=None, raises=False)
    if request.sampler not in MAY_SKIP:
        request = replace(request, skip=())
    if request.guidance == "batch":
        request = replace(request, negative=request.words, mode="no_grad", switched=())
    if request.painter == "bundle":
        sizes = {"words": 5, "negative": 5, "tokens": 12, "fps": 24, "batch": 1}
        request = replace(request, resized=(), **sizes)
    return request
