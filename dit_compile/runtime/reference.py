"""Runs all graphs of a Program once, node by node: what every backend is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from dit_compile.backends.eager import InDouble, widen
from dit_compile.ir.fake import tensor_of
from dit_compile.ir.program import MAIN, InputKind, Output, OutputKind, Program, placeholders


def run_reference(
    program: Program, inputs: Mapping[str, Any], *, double: bool = False
) -> dict[str, list[torch.Tensor]]:
    """The results for the caller of each graph that serves a step.

    The weights graph runs first, then the main graph, whose state the other graphs read. Earlier
    states are taken to be equal to it, so a forecast is that state, and all graphs give the same.

    Args:
        program: the Program.
        inputs: values by input name; constants are known to the Program.
        double: widen everything to float64.

    Returns:
        For each graph its user and mutation results, in order.
    """
    values = {**program.constants, **inputs, **_coefficients(program)}
    ahead = [name for name, _ in program.ahead_graphs()]
    steps = [name for name, _ in program.step_graphs() if name != MAIN]
    results: dict[str, list[torch.Tensor]] = {}
    for name in (*ahead, MAIN, *steps):
        module = program.graphs[name]
        run: type[fx.Interpreter] = InDouble if double else fx.Interpreter
        args = [values[str(node.target)] for node in placeholders(module.graph)]
        with torch.no_grad():
            returned = run(module, garbage_collect_values=True).run(*args)
        kept = []
        for output, value in zip(program.outputs[name], returned, strict=True):
            if output.kind in (OutputKind.USER, OutputKind.MUTATION):
                kept.append(widen(value) if double else value)
            elif output.kind is not OutputKind.MEASURE:
                values.update(dict.fromkeys(_names(program, output), value))
        if kept:
            results[name] = kept
    return results


def _names(program: Program, output: Output) -> list[str]:
    """The inputs that hold what is returned: of a state, those for earlier values too."""
    if output.kind is not OutputKind.STATE:
        return [output.name]
    path = program.inputs[output.name].path
    return [spec.name for spec in program.of_kind(InputKind.STATE) if spec.path == path]


def _coefficients(program: Program) -> dict[str, torch.Tensor]:
    """Coefficients by which each forecast is the latest state."""
    return {
        str(node.target): torch.eye(len(tensor_of(node)))[0]
        for _, module in program.step_graphs()
        for node in placeholders(module.graph)
        if program.kind_of(node) is InputKind.COEFFICIENTS
    }
