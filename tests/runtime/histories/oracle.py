"""The truth about a call: the full answer, and what its lane's own last step would give."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from tests.runtime.histories.model import Painter, twin

#: Relative to the largest element. What is to show lies at least :data:`APART` from it.
TOLERANCE = 1e-4
APART = 20 * TOLERANCE
#: Of the calls that were computed in full, it is checked of every so manieth that this would show.
_MOOT_EVERY = 8

Method = Literal["interval", "first-block", "taylor"]
Verdict = Literal["computed", "reused", "moot"]
Inputs = Mapping[str, Any]
Outputs = Sequence[Tensor]


class WrongAnswer(AssertionError):
    """An answer that neither the full model nor the lane's own state gives."""


@dataclass(frozen=True)
class Asked:
    """Whose call it is, and where it stands in that request.

    Attributes:
        request, lane: whose.
        key: which prompt, in which resolution.
        step: index of the noise level in the schedule.
        again: whether it was evaluated before at this noise level.
        stated: whether the loop's timesteps are known, so that a step left out shows.
    """

    request: int
    lane: str
    key: tuple[int, ...]
    step: int
    again: bool = False
    stated: bool = False


@dataclass(frozen=True)
class Made:
    """The values of one computed call.

    Attributes:
        asked: the call.
        count: how many of its stream came before.
        weights: number of the weights that made it.
        values: what may be kept of it.
    """

    asked: Asked
    count: int
    weights: int
    values: list[Tensor]


@dataclass
class Stream:
    """The evaluations of one lane of one request under the same conditions.

    Attributes:
        count: of the calls so far.
        made: those that were computed in full.
        reused: whether the latest call was not.
    """

    count: int = 0
    made: list[Made] = field(default_factory=list)
    reused: bool = False


class Oracle:
    """Follows all requests to one model.

    Args:
        method: how the model's state is reused.
        model: the model.
    """

    def __init__(self, method: Method, model: Painter) -> None:
        self.method = method
        self.plain = twin(model)
        self.weights = 0
        self.streams: dict[object, Stream] = defaultdict(Stream)
        self._judged = 0
        self._kept: list[Tensor] = []
        self._given: Iterator[Tensor] | None = None
        self._earlier: list[tuple[str, dict[str, Tensor]]] = []
        self._asked: list[tuple[Asked, dict[str, Any]]] = []
        for module in self._sites():
            module.register_forward_hook(self._at_site)

    def weights_change(self, what: str, *, seen_by_state: bool) -> None:
        """Nothing made so far counts from here on, if the weight has a part in it."""
        before = {name: weight.detach().clone() for name, weight in self.plain.named_parameters()}
        self._earlier.append((what, before))
        self.weights += seen_by_state

    def stream(self, asked: Asked, *, along: bool = False) -> Stream:
        """The stream of a call: of its order alone, or ``along`` all evaluations."""
        order = None if along else asked.again
        return self.streams[asked.request, asked.lane, asked.key, order]

    @torch.no_grad()
    def judge(self, asked: Asked, inputs: Inputs, answer: Outputs) -> Verdict:
        """What the answer is; the stream moves on accordingly.

        Raises:
            WrongAnswer: it is nothing that it may be.
        """
        full, values = self._run(inputs)
        is_full = _distance(answer, full) < TOLERANCE
        self._judged += 1
        checks = not is_full or self._judged % _MOOT_EVERY == 0
        reuses = [self._run(inputs, mix)[0] for mix in self.mixes(asked)] if checks else []
        if not is_full and not any(_distance(answer, reuse) < TOLERANCE for reuse in reuses):
            raise WrongAnswer(self._explain(asked, inputs, answer, full))
        self._asked.append((asked, {name: _copy(value) for name, value in inputs.items()}))
        for stream in (self.stream(asked), self.stream(asked, along=True)):
            if is_full:
                stream.made.append(Made(asked, stream.count, self.weights, values))
            stream.count += 1
            stream.reused = not is_full
        if any(_distance(full, reuse) < APART for reuse in reuses):
            return "moot"
        return "computed" if is_full else "reused"

    def mixes(self, asked: Asked) -> Iterator[list[Tensor]]:
        """What may stand in for the values of this call.

        It is made of the values of the step right before, as all these policies compute every
        second step at least. Where the loop is not stated, no one can see that a step was left
        out, and evaluations in pairs may be one lane as well as two.
        """
        if asked.stated:
            yield from self._mixes(self.stream(asked).made, lambda m: m.asked.step, asked.step)
            return
        for stream in (self.stream(asked), self.stream(asked, along=True)):
            yield from self._mixes(stream.made, lambda made: made.count, stream.count)

    def _mixes(
        self, made: Sequence[Made], when: Callable[[Made], int], at: int
    ) -> Iterator[list[Tensor]]:
        known = [each for each in made[-2:] if each.weights == self.weights]
        if not known or known[-1] is not made[-1] or when(made[-1]) != at - 1:
            return
        yield known[-1].values
        if self.method == "taylor" and len(known) == 2:
            far, near = known
            reach = 1 / (when(near) - when(far))
            pairs = zip(near.values, far.values, strict=True)
            yield [new + reach * (new - old) for new, old in pairs]

    def _sites(self) -> list[nn.Module]:
        first, second = self.plain.blocks
        if self.method == "first-block":
            return [second]
        return [first.attn, first.cross, second.attn, second.cross]

    def _at_site(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        base = args[0] if self.method == "first-block" else torch.zeros(())
        if self._given is not None:
            return base + next(self._given)
        self._kept.append(output - base)
        return output

    def _run(self, inputs: Inputs, mix: Sequence[Tensor] | None = None) -> tuple[Outputs, Any]:
        """The plain model's answer, with ``mix`` for its values; and the values."""
        self._kept, self._given = [], iter(mix) if mix is not None else None
        return self.plain(**inputs), self._kept

    def _explain(self, asked: Asked, inputs: Inputs, answer: Outputs, full: Outputs) -> str:
        guesses = [name for name, guess in self._guesses(inputs) if _same(answer, guess)]
        found = "; or ".join(guesses) or f"nothing known ({_distance(answer, full):.2g} from full)"
        return f"the answer to {asked} is {found}"

    def _guesses(self, inputs: Inputs) -> Iterator[tuple[str, Outputs]]:
        """Answers that a fault may give: with another state, an earlier input, earlier weights."""
        made = [made for stream in self.streams.values() for made in stream.made]
        for name, given in [("", inputs), *self._stale(inputs)]:
            if name:
                yield name, self._try(given)
            for each in made:
                yield (
                    f"{name or 'that'} with the state of {each.asked}",
                    self._try(given, each.values),
                )
        for what, weights in self._earlier:
            with _swapped(self.plain, weights):
                yield f"that with the weights before {what}", self._try(inputs)

    def _stale(self, inputs: Inputs) -> list[tuple[str, Inputs]]:
        """The inputs with one of them as it was at an earlier call."""
        found: list[tuple[str, Inputs]] = []
        for asked, earlier in self._asked:
            for name in ("text", "fps", "t", "g"):
                if name in inputs and _differ(earlier.get(name), inputs[name]):
                    given = {**inputs, name: earlier[name]}
                    found.append((f"that with the {name} of {asked}", given))
        return found

    def _try(self, inputs: Inputs, mix: Sequence[Tensor] | None = None) -> Outputs:
        """An answer, empty if the sizes do not go together."""
        try:
            return self._run(inputs, mix)[0]
        except (RuntimeError, StopIteration):
            return ()


@contextmanager
def _swapped(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    now = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    model.load_state_dict(weights)
    yield
    model.load_state_dict(now)


def _copy(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _differ(old: Any, new: Any) -> bool:
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        return not torch.equal(old, new)
    return old is not None and old != new


def _same(a: Outputs, b: Outputs) -> bool:
    return all(x.shape == y.shape for x, y in zip(a, b, strict=False)) and (
        len(a) == len(b) and _distance(a, b) < TOLERANCE
    )


def _distance(a: Outputs, b: Outputs) -> float:
    """The largest difference between two answers, relative to the largest element."""
    pairs = zip(a, b, strict=True)
    far = [float((x - y).abs().max() / (y.abs().max() + 1e-6)) for x, y in pairs]
    return max(each if each == each else float("inf") for each in far)


#: Whether a policy would reuse at this index, from what a lane's evaluations were so far.
Wanted = Callable[[int, bool], bool]

WANTED: dict[Method, Wanted] = {
    "interval": lambda index, reused: index % 2 == 1,
    "taylor": lambda index, reused: index >= 2 and index % 2 == 0,
    "first-block": lambda index, reused: not reused,
}
