"""Results in memory of their own: the caller may write into what it gets, and into what it passed.

What a Session keeps, of one step or ahead of all, must not change with either.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from dit_compile.ir.interface import InputKind, OutputKind
from dit_compile.ir.memory import owner_of
from dit_compile.ir.program import Program, output_args

_KEPT = (OutputKind.STATE, OutputKind.DERIVED)
#: What is kept from call to call; a weight that is returned is the caller's own.
_OURS = (InputKind.STATE, InputKind.DERIVED, InputKind.COEFFICIENTS)


class Results:
    """Copies those outputs of a graph that show memory of somebody else.

    Most of them are known from the graph. An operator may return its argument without saying so in
    its schema, so the first run is looked at too.

    Args:
        program: the Program.
        name: one of its graphs.
        reads: the inputs of the graph, in order.
    """

    def __init__(self, program: Program, name: str, reads: Sequence[str]) -> None:
        self._kinds = [output.kind for output in program.outputs[name]]
        specs = [program.inputs[read] for read in reads]
        constants = program.constants
        self._ours = [i for i, s in enumerate(specs) if s.kind in _OURS or s.name in constants]
        self._callers = [i for i, spec in enumerate(specs) if spec.kind is InputKind.USER]
        self._shared = set(_known(program, name, self._kinds))
        self._looked_at = False

    def separate(self, given: Sequence[Any], returned: Sequence[Any]) -> list[Any]:
        """What the graph returned for what it was given, each in memory of its own."""
        if not self._looked_at:
            self._shared |= set(self._found(given, returned))
            self._looked_at = True
        made = list(returned)
        for i in self._shared:
            made[i] = made[i].clone()
        return made

    def _found(self, given: Sequence[Any], returned: Sequence[Any]) -> Iterable[int]:
        ours = _memories(given[i] for i in self._ours)
        callers = _memories(given[i] for i in self._callers)
        kept = [v for kind, v in zip(self._kinds, returned, strict=True) if kind in _KEPT]
        kept_memories = _memories(kept)
        for i, (kind, value) in enumerate(zip(self._kinds, returned, strict=True)):
            if kind is OutputKind.USER and _memories([value]) & (ours | kept_memories):
                yield i
            if kind in _KEPT and _memories([value]) & callers:
                yield i


def _known(program: Program, name: str, kinds: Sequence[OutputKind]) -> Iterable[int]:
    """Positions of outputs that share memory as the graph has it."""
    owners = [
        owner_of(value) if hasattr(value, "op") else None
        for value in output_args(program.graphs[name].graph)
    ]
    kept = {owner for owner, kind in zip(owners, kinds, strict=True) if kind in _KEPT}
    for i, (owner, kind) in enumerate(zip(owners, kinds, strict=True)):
        if owner is None:
            continue
        source = program.kind_of(owner)
        ours = source in _OURS or str(owner.target) in program.constants
        if kind is OutputKind.USER and (owner in kept or ours):
            yield i
        if kind in _KEPT and source is InputKind.USER:
            yield i


def apart(values: Iterable[Any], given: Iterable[Any]) -> list[Any]:
    """``values``, those copied that show the memory of something that was given."""
    memories = _memories(given)
    return [value.clone() if _memories([value]) & memories else value for value in values]


def _memories(values: Iterable[Any]) -> set[int]:
    return {
        value.untyped_storage()._cdata
        for value in values
        if isinstance(value, torch.Tensor) and value.layout is torch.strided
    }
