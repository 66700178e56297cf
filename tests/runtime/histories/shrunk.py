"""The smallest history that fails like a given one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, replace
from typing import Any

from tests.runtime.histories.history import AtOnce, History, InTurn, Request, Scene


def shrink(history: History, fails: Callable[[History], bool]) -> History:
    """Leave out, and put to its default, whatever the failure does not need."""
    while True:
        found = next(filter(fails, _simpler(history)), None)
        if found is None:
            return history
        history = found


def _simpler(history: History) -> Iterator[History]:
    scenes = history.scenes
    for i, scene in enumerate(scenes):
        if len(scenes) > 1:
            yield History((*scenes[:i], *scenes[i + 1 :]))
        for other in _simpler_scenes(scene):
            yield History((*scenes[:i], other, *scenes[i + 1 :]))


def _simpler_scenes(scene: Scene) -> Iterator[Scene]:
    if not isinstance(scene, InTurn | AtOnce):
        return
    requests = scene.requests
    yield from _nearer_defaults(scene, ("requests", "how"))
    for i, request in enumerate(requests):
        if len(requests) > 1 and isinstance(scene, InTurn):
            yield replace(scene, requests=(*requests[:i], *requests[i + 1 :]))
        kept = (
            "painter",
            "mode",
            "batch",
            *(() if isinstance(scene, InTurn) else ("seed", "session")),
        )
        for other in _nearer_defaults(request, kept):
            if _makes_sense(other):
                yield replace(scene, requests=(*requests[:i], other, *requests[i + 1 :]))


def _nearer_defaults(of: Any, keep: tuple[str, ...]) -> Iterator[Any]:
    for field in fields(of):
        plain = field.default is not MISSING and getattr(of, field.name) != field.default
        if plain and field.name not in keep:
            yield replace(of, **{field.name: field.default})


def _makes_sense(request: Request) -> bool:
    return request.guidance != "batch" or request.negative == request.words
