"""What every format of a bundle holds of a Program: which graphs, weights and names."""

from __future__ import annotations

import torch

from dit_compile.backends.eager import Eager
from dit_compile.bundle.manifest import MEASURED, Result
from dit_compile.errors import BackendError
from dit_compile.ir.program import ROWS, WEIGHTS, OutputKind, Program, placeholders


def exported_graphs(program: Program) -> list[str]:
    """The graphs that run ahead of the steps, but for weights alone, and those of the steps."""
    ahead = [name for name, _ in program.ahead_graphs() if name != WEIGHTS]
    rows = [ROWS] if ROWS in program.graphs else []
    return [*ahead, *rows, *program.schedule.graphs()]


def known_weights(program: Program) -> dict[str, torch.Tensor]:
    """The values of all weights by input name, those derived from weights alone included."""
    values = dict(program.constants)
    if WEIGHTS in program.graphs:
        reads = [values[str(node.target)] for node in placeholders(program.graphs[WEIGHTS].graph)]
        with torch.no_grad():
            returned = Eager().compile(program, WEIGHTS)(*reads)
        names = (output.name for output in program.outputs[WEIGHTS])
        values |= dict(zip(names, returned, strict=True))
    return values


def refuse_writes(program: Program, name: str) -> None:
    """Make sure that a graph writes into none of its inputs.

    Raises:
        BackendError: it does.
    """
    for output in program.outputs[name]:
        if output.kind is OutputKind.MUTATION:
            path = program.inputs[output.name].path
            raise BackendError(f"the model writes into {path}; a bundle cannot, so leave that out")


def result_names(program: Program, name: str) -> list[str]:
    """The names of a graph's outputs: ``output_0`` for the caller, ``next_...`` for state."""
    names, results = [], 0
    for output in program.outputs[name]:
        if output.kind is OutputKind.USER:
            names.append(f"output_{results}")
            results += 1
        elif output.kind is OutputKind.MEASURE:
            names.append(MEASURED)
        elif output.kind is OutputKind.ROWS:
            names.append(f"{output.name}_rows")
        else:
            prefix = "next_" if output.kind is OutputKind.STATE else ""
            names.append(prefix + output.name)
    return names


def results(program: Program, name: str) -> tuple[Result, ...]:
    """What a manifest says of a graph's outputs."""
    names = result_names(program, name)
    return tuple(
        Result(text, output.kind.value, output.name or text)
        for text, output in zip(names, program.outputs[name], strict=True)
    )
