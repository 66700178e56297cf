"""How deep a Program's lists of modules are: what tells a model from one with fewer blocks."""

from __future__ import annotations

from collections.abc import Mapping

from dit_compile.ir.program import InputKind, Program

#: The number of the last module that is used of each list, by the list's path, such as ``blocks``;
#: numbers in a path are ``*``, as in ``blocks.*.attn.to_out``.
Depths = Mapping[str, int]


def depths_of(program: Program) -> Depths:
    """The depths of a Program, from the paths of its weights."""
    found: dict[str, int] = {}
    for spec in program.inputs.values():
        if spec.kind is not InputKind.WEIGHT:
            continue
        parts = spec.path.split(".")
        for at, part in enumerate(parts):
            if part.isdecimal():
                listed = ".".join("*" if each.isdecimal() else each for each in parts[:at])
                found[listed] = max(found.get(listed, 0), int(part))
    return found
