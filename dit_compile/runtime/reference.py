"""Runs all graphs of a Program once, node by node: what every backend is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from dit_compile.backends.eager import InDouble, widen
from dit_compile.ir.program import MAIN, OutputKind, Program, placeholders


def run_reference(
    program: Program, inputs: Mapping[str, Any], *, double: bool = False
) -> dict[str, list[torch.Tensor]]:
    """The results for the caller of each graph that serves a step.

    The weights graph runs first, then the main graph, whose state the other graphs read.

    Args:
        program: the Program.
        inputs: values by input name; constants are known to the Program.
        double: widen everything to float64.

    Returns:
        For each graph its user and mutation results, in order.
    """
    values = {**program.constants, **inputs}
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
            else:
                values[output.name] = value
        if name not in ahead:
            results[name] = kept
    return results
