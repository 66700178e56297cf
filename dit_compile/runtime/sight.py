"""What a Session sees of a call's inputs. Tensors may be torch's or numpy's."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dit_compile.ir.interface import Compared, Input, InputKind
from dit_compile.runtime.elements import Elements
from dit_compile.runtime.generation import Call, Place, Tracker
from dit_compile.runtime.lanes import current_lane


class Sight:
    """Reads from a call's inputs what a Tracker needs to place it.

    Args:
        inputs: all inputs of a Program.
        elements: reads latents, and the results that are made of them.
    """

    def __init__(self, inputs: Iterable[Input], elements: Elements) -> None:
        inputs = list(inputs)
        users = [spec.name for spec in inputs if spec.kind is InputKind.USER]
        self._compared = Compared.of(inputs)
        self._context = [name for name in self._compared.context if name in users]
        numbers = [name for name in self._compared.context if name not in users]
        self._sized = [*users, *numbers]
        self._elements = elements

    @property
    def clock(self) -> tuple[str, ...] | None:
        """The inputs that are the timestep, ``None`` if which of several must be observed."""
        return self._compared.clock

    def look(self, values: Mapping[str, Any], *, latents: bool) -> Call:
        """The facts of one call.

        Args:
            values: the inputs by name.
            latents: look at the latents too.
        """
        return Call(
            times={name: _host_values(values[name]) for name in self._compared.timesteps},
            sizes=tuple(_size(values[name]) for name in self._sized),
            context={name: values[name] for name in self._context},
            lane=current_lane(),
            rows=self._elements.latents(values) if latents and self._elements else None,
            caller=_caller(),
        )

    def record(
        self, tracker: Tracker, place: Place, values: Mapping[str, Any], results: Sequence[Any]
    ) -> None:
        """Record what the model returned for the latents of a call that was placed."""
        if place.lane.points is not None:
            tracker.observe(place, self._elements.results(values, results))


def _size(value: Any) -> object:
    return tuple(value.shape) if hasattr(value, "shape") else value


def _host_values(value: Any) -> tuple[float, ...]:
    """A timestep on the host: one number, or one for each sample or token."""
    if hasattr(value, "shape"):
        return tuple(value.reshape(-1).tolist())
    return (float(value),)


def _caller() -> object:
    """The thread and the task that is running."""
    running = asyncio._get_running_loop() is not None
    return threading.get_ident(), asyncio.current_task() if running else None
