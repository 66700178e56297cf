"""What a Session sees of a call's inputs. Tensors may be torch's or numpy's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dit_compile.ir.interface import Compared, Input, InputKind
from dit_compile.runtime.generation import Call
from dit_compile.runtime.lanes import current_lane


class Sight:
    """Reads from a call's inputs what a Tracker needs to place it.

    Args:
        inputs: all inputs of a Program.
    """

    def __init__(self, inputs: Iterable[Input]) -> None:
        inputs = list(inputs)
        given = (InputKind.USER, InputKind.SIZE)
        self._sized = [spec.name for spec in inputs if spec.kind in given]
        compared = Compared.of(inputs)
        self._timesteps = compared.timesteps
        #: ``None`` if which of several candidates is the timestep must be observed.
        self.clock = compared.clock
        users = {spec.name for spec in inputs if spec.kind is InputKind.USER}
        self._context = [name for name in compared.context if name in users]

    def look(self, values: Mapping[str, Any]) -> Call:
        """The facts of one call."""
        return Call(
            timesteps={name: _host_values(values[name]) for name in self._timesteps},
            shapes=tuple(_size(values[name]) for name in self._sized),
            context={name: values[name] for name in self._context},
            lane=current_lane(),
        )


def _size(value: Any) -> object:
    return tuple(value.shape) if hasattr(value, "shape") else value


def _host_values(value: Any) -> tuple[float, ...]:
    """A timestep on the host: one number, or one for each sample or token."""
    if hasattr(value, "shape"):
        return tuple(value.reshape(-1).tolist())
    return (float(value),)
