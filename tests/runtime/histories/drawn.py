"""Random histories, drawn and shrunk by hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from tests.runtime.histories.history import AtOnce, History, InTurn, Request, Scene, Weights

Draw = Callable[[st.SearchStrategy[Any]], Any]

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
TEXTS = ("kept", "kept", "kept", "rebuilt", "rebuilt", "numpy", "written", "data", "storage", "swapped")
TWISTS = ("", "", "", "stop", "stop", "stop", "reprompt", "switch", "weights", "skip")


@st.composite
def histories(draw: Draw, painters: Sequence[str] = PAINTERS) -> History:
    """One or two scenes, most of them with one model."""
    main = draw(st.sampled_from(painters))
    scenes = [draw(_scenes(main, painters))]
    for _ in range(draw(st.integers(0, 1))):
        if main != "bundle" and draw(st.integers(0, 3)) == 0:
            scenes.append(draw(_weights(main)))
        scenes.append(draw(_scenes(main, painters)))
    return History(tuple(scenes))


@st.composite
def _scenes(draw: Draw, main: str, painters: Sequence[str]) -> Scene:
    how = draw(
        st.sampled_from(
            ("in turn",) * 5 + ("turns", "generators", "nested", "threads", "tasks", "workers")
        )
    )
    return draw(_in_turn(main) if how == "in turn" else _at_once(how, main, painters))


@st.composite
def _in_turn(draw: Draw, main: str) -> InTurn:
    shared = draw(st.sampled_from((None, None, "unstated", "stated")))
    requests = [draw(requests_to(main))]
    for _ in range(draw(st.integers(0, 2))):
        requests.append(_after(draw, requests[-1], draw(requests_to(main))))
    if shared is None:
        return InTurn(tuple(requests))
    requests = [replace(request, session=None) for request in requests]
    if shared == "stated":
        first = requests[0]
        loop = {"sampler": first.sampler, "steps": first.steps, "start": first.start, "skip": ()}
        requests = [replace(request, **loop) for request in requests]
        requests = [_within(request) for request in requests]
    return InTurn(tuple(requests), shared)


def _after(draw: Draw, before: Request, request: Request) -> Request:
    """A request that may well look like the rest of one that was cancelled."""
    if before.stop is None or not draw(st.booleans()):
        return request
    sizes = {name: getattr(before, name) for name in ("batch", "tokens", "words", "negative")}
    same = {name: getattr(before, name) for name in ("prompt", "steps", "guidance", "form", "fps")}
    start = min(before.stop + draw(st.integers(0, 1)), before.steps - 2)
    return _within(replace(request, **sizes, **same, start=start))


@st.composite
def _at_once(draw: Draw, how: str, main: str, painters: Sequence[str]) -> AtOnce:
    others = [name for name in painters if name != main]
    second = main
    if how == "nested" and others:
        second = draw(st.sampled_from(others))
    how = "turns" if second == main and how == "nested" else how
    requests = [draw(requests_to(name)) for name in (main, second)]
    # Loops from the same noise whose steps mix outside of Sessions are one loop, for all one knows.
    requests[1] = replace(requests[1], seed=requests[1].seed + 10)
    order = draw(st.sampled_from(((0, 1), (0, 0, 1), (0, 1, 1), (0, 1, 1, 0))))
    return AtOnce(tuple(requests), how, order)


@st.composite
def requests_to(draw: Draw, painter: str) -> Request:
    """A request within what is compiled ahead for its model."""
    pick = lambda *of: draw(st.sampled_from(of))  # noqa: E731
    batch = pick(1, 1, 2) if painter in MANY_FORMS else 1 if painter == "bundle" else pick(2, 2, 3)
    free = painter != "bundle"
    request = Request(
        painter=painter,
        sampler=pick("euler", "euler", "ddim", "multistep", "heun", "midpoint", "ancestral"),
        prompt=pick(0, 0, 1),
        words=pick(5, 5, 7) if free else 5,
        seed=pick(0, 1, 2),
        steps=pick(6, 4, 5),
        start=pick(0, 0, 1, 2),
        clean=pick(0, 1),
        batch=batch,
        tokens=pick(12, 12, 16) if free else 12,
        fps=pick(24, 24, 30) if free else 24,
        guidance=pick("", "", "calls", "batch", "middle") if free else pick("", "calls"),
        negative=pick(5, 5, 7) if free else 5,
        named=pick(False, True),
        form=pick("1000t", "t", "1-t"),
        session=pick(None, None, "stated", "whole", "unstated"),
        text=pick(*TEXTS),
        in_place=pick(False, True),
        scribble=pick(False, False, True),
    )
    if painter in MANY_FORMS and batch == 1 and request.guidance != "batch":
        request = replace(request, mode=pick("no_grad", "no_grad", "no_grad", "inference_mode"))
    return _within(_twisted(draw, request, pick(*TWISTS)))


def _twisted(draw: Draw, request: Request, twist: str) -> Request:
    """The request with one thing that happens on its way."""
    step = draw(st.integers(1, request.steps - 1 - request.start))
    if twist == "stop":
        return replace(request, stop=step, raises=draw(st.booleans()))
    if twist == "reprompt":
        return replace(request, reprompt=step)
    if twist == "skip" and request.sampler in ("euler", "ddim", "multistep"):
        return replace(request, skip=(step,))
    if twist == "weights" and request.painter != "bundle":
        return replace(request, weights=(step, draw(_weights(request.painter))))
    forms = request.painter in MANY_FORMS and request.batch == 1 and request.guidance != "batch"
    if twist == "switch" and forms:
        modes = ("grad", "inference_mode", "no_grad")
        other = draw(st.sampled_from([mode for mode in modes if mode != request.mode]))
        return replace(request, switch=step, other_mode=other)
    return request


def _within(request: Request) -> Request:
    """The request without what its schedule or its guidance leaves no room for."""
    left = request.steps - request.start
    if request.stop is not None and request.stop >= left:
        request = replace(request, stop=None, raises=False)
    if request.guidance == "batch":
        request = replace(request, negative=request.words, mode="no_grad", switch=None)
    if request.painter == "bundle":
        request = replace(request, words=5, negative=5, tokens=12, fps=24, batch=1)
    return request


@st.composite
def _weights(draw: Draw, painter: str) -> Weights:
    how = draw(st.sampled_from(("no_grad", "no_grad", "data", "replaced")))
    return Weights(painter, draw(st.sampled_from(WEIGHTS)), how)
