"""What happens in a history: requests, how they come together, and what is done to the weights.

A history prints as the Python that makes it, defaults left out, so that a failure can be pasted.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

#: Solvers that add noise of their own: no one can tell their next latent from another's.
RANDOM = ("ancestral",)


class Short:
    """Prints the fields that are not at their defaults."""

    def __repr__(self) -> str:
        given = ((f, getattr(self, f.name)) for f in fields(self))  # type: ignore[arg-type]
        shown = ", ".join(f"{f.name}={value!r}" for f, value in given if value != f.default)
        return f"{type(self).__name__}({shown})"


@dataclass(frozen=True, repr=False)
class Request(Short):
    """One picture, or a batch of them.

    Attributes:
        painter: the compiled model.
        sampler: the solver.
        prompt, words: seed and length of the text.
        seed: of the noise.
        steps: of the whole schedule.
        start: steps left out at its beginning, as image-to-image does; of the image ``clean``.
        batch, tokens, fps: sizes of the latent, and the number that the positions depend on.
        guidance: ``calls``, ``batch`` (doubled), or ``middle``: by calls at some steps alone.
        negative: length of the negative prompt, for guidance.
        named: name the lanes of guidance.
        form: how the model gets its timestep: ``1000t``, ``t`` or ``1-t``.
        session: ``stated`` with the timesteps of the loop, ``whole`` with all of the schedule's,
            ``unstated``, or ``None`` for no Session.
        text: how the prompt is passed: ``kept``, ``rebuilt`` at each call, or in a buffer shared by
            all requests that is written when it holds another: ``written`` by ``copy_``, ``data``,
            ``storage`` or ``swapped`` behind torch's back, ``numpy`` from an array.
        in_place: the latent and the timestep are passed in buffers that are written at each call.
        mode: of autograd; at the steps ``switched`` it is ``other_mode``.
        resized: steps at which the model gets the latent in another resolution.
        reprompt: step from which on another prompt is given.
        weights: what happens to a weight before a step.
        skip: steps at which the model is not called, and its last output used again.
        scribble: the caller overwrites what the model returned.
        stop: step before which it ends early; ``raises`` if by an exception.
    """

    painter: str = "interval"
    sampler: str = "euler"
    prompt: int = 0
    words: int = 5
    seed: int = 0
    steps: int = 6
    start: int = 0
    clean: int = 0
    batch: int = 1
    tokens: int = 12
    fps: int = 24
    guidance: str = ""
    negative: int = 5
    named: bool = False
    form: str = "1000t"
    session: str | None = None
    text: str = "kept"
    in_place: bool = False
    mode: str = "no_grad"
    switched: tuple[int, ...] = ()
    other_mode: str = "inference_mode"
    resized: tuple[int, ...] = ()
    reprompt: int | None = None
    weights: tuple[int, Weights] | None = None
    skip: tuple[int, ...] = ()
    scribble: bool = False
    stop: int | None = None
    raises: bool = False

    @property
    def stated(self) -> bool:
        """Whether its own Session knows the timesteps."""
        return self.session in ("stated", "whole")

    @property
    def certain(self) -> bool:
        """Whether its calls can be placed by one who sees no other request's between them.

        Not where something else than the latent and the timestep changes on the way; not where
        noise is added, unless the loop is stated; and not while autograd records.
        """
        moved = (self.reprompt, self.weights, *self.switched, *self.resized, *self.skip)
        knowable = self.stated or self.sampler not in RANDOM
        return knowable and self.mode != "grad" and all(each is None for each in moved)


@dataclass(frozen=True, repr=False)
class Weights(Short):
    """A weight is multiplied by 1.5.

    Attributes:
        painter: whose.
        path: which.
        how: ``no_grad``, ``data`` or ``replaced`` by another parameter. After a write through
            ``.data`` in the middle of a request the model is reset, as the documents ask.
    """

    painter: str = "interval"
    path: str = "blocks.0.attn.q.weight"
    how: str = "no_grad"


@dataclass(frozen=True, repr=False)
class InTurn(Short):
    """Requests one after the other.

    Attributes:
        requests: in order.
        shared: ``stated`` or ``unstated`` if one open Session serves all, beside their own.
    """

    requests: tuple[Request, ...] = ()
    shared: str | None = None


@dataclass(frozen=True, repr=False)
class AtOnce(Short):
    """Requests whose steps take turns.

    Attributes:
        requests: in the order in which they begin.
        how: ``turns``: one loop enters the Session of each again for its step. ``generators`` that
            each hold their Session open; ``handed`` from thread to thread. ``nested``: one block
            holds all Sessions, of unlike models. ``threads``, ``tasks``, and ``workers``: each has
            its own, and the last ones send their steps to one worker.
        order: whose step comes next, over and over; not for ``tasks`` and ``workers``.
    """

    requests: tuple[Request, ...] = ()
    how: str = "turns"
    order: tuple[int, ...] = (0, 1)


Scene = InTurn | AtOnce | Weights


@dataclass(frozen=True)
class History:
    """Scenes, in order."""

    scenes: tuple[Scene, ...]

    def __str__(self) -> str:
        return "\n".join(["", "replay(", *(_lines(scene) for scene in self.scenes), ")"])

    def painters(self) -> set[str]:
        """The models that take part."""
        found: set[str] = set()
        for scene in self.scenes:
            requests: tuple[Any, ...] = getattr(scene, "requests", (scene,))
            found |= {each.painter for each in requests}
        return found


def _lines(scene: Scene) -> str:
    if isinstance(scene, Weights):
        return f"    {scene!r},"
    rest = repr(type(scene)(**{**vars(scene), "requests": ()}))
    head, tail = rest[: rest.index("(") + 1], rest[rest.index("(") + 1 :]
    requests = "".join(f"            {each!r},\n" for each in scene.requests)
    more = f"        {tail[:-1]},\n" if tail != ")" else ""
    return f"    {head}\n        requests=(\n{requests}        ),\n{more}    ),"
