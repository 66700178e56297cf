"""What a Session sees of a call's inputs. Tensors may be torch's or numpy's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from dit_compile.ir.interface import Binding, Input, InputKind
from dit_compile.runtime.generation import Call
from dit_compile.runtime.lanes import current_lane


class Sight:
    """Reads from a call's inputs what a Tracker needs to place it.

    Args:
        inputs: all inputs of a Program.
    """

    def __init__(self, inputs: Iterable[Input]) -> None:
        users = [spec for spec in inputs if spec.kind is InputKind.USER]
        self._users = [spec.name for spec in users]
        clocks = [spec for spec in users if spec.binding is Binding.TIMESTEP]
        settled = [spec.name for spec in clocks if spec.settled]
        self._timesteps = settled or [spec.name for spec in clocks]
        #: ``None`` if which of several candidates is the timestep must be observed.
        self.clock = tuple(settled) if settled or not self._timesteps else None
        latents = {spec.name for spec in users if spec.settled and spec.binding is Binding.LATENT}
        self._context = [n for n in self._users if n not in latents and n not in self._timesteps]

    def look(self, values: Mapping[str, Any]) -> Call:
        """The facts of one call."""
        return Call(
            timesteps={name: _host_values(values[name]) for name in self._timesteps},
            shapes=tuple(_size(values[name]) for name in self._users),
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
