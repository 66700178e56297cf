"""The table of a Program for several steps at once: one product in place of one for each step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx

from dit_compile.ir.fake import leaves
from dit_compile.ir.program import (
    ROWS,
    TABLE,
    Binding,
    InputKind,
    Output,
    OutputKind,
    Program,
    output_args,
    placeholders,
)

#: Steps that are computed together. Vmap fixes the number; what is left over is filled up.
COUNT = 16


def with_rows(program: Program) -> Program:
    """``program`` with the graph ``ROWS``, if its table can be computed for several steps.

    The graph reads ``<input>_rows``, ``[COUNT, ...]``, in place of each input that is the timestep,
    and returns each of the table's values with such an axis in front.
    """
    if TABLE not in program.graphs:
        return program
    table = program.graphs[TABLE]
    nodes = placeholders(table.graph)
    moves = [_is_clock(program, str(node.target)) for node in nodes]
    if not any(moves) or not all(map(_is_fixed, (*nodes, *output_args(table.graph)))):
        return program
    dims = tuple(0 if moving else None for moving in moves)
    with program.fake_mode:
        values = [
            torch.empty((COUNT, *value.shape), dtype=value.dtype, device=value.device)
            if moving
            else value
            for value, moving in zip((n.meta["val"] for n in nodes), moves, strict=True)
        ]
    try:
        with torch.no_grad():
            batched = torch.func.vmap(fx.Interpreter(table).run, in_dims=dims)
            # some operators decompose into writes under vmap, rms_norm among them
            module = make_fx(torch.func.functionalize(batched))(*values)
    except RuntimeError:  # an operator that vmap does not know: each step computes its own row
        return program
    return _joined(program, module, [str(n.target) for n in nodes], moves)


def _joined(
    program: Program, module: fx.GraphModule, names: list[str], moves: list[bool]
) -> Program:
    program = program.copy()
    for node, name, moving in zip(placeholders(module.graph), names, moves, strict=True):
        node.target = f"{name}_rows" if moving else name
        node._rename(node.target)
        if moving:
            spec = replace(program.inputs[name], name=node.target, kind=InputKind.ROWS)
            program.inputs[node.target] = spec
    module.recompile()
    program.graphs[ROWS] = module
    program.outputs[ROWS] = tuple(
        Output(OutputKind.ROWS, output.name) for output in program.outputs[TABLE]
    )
    return program


def _is_clock(program: Program, name: str) -> bool:
    spec = program.inputs[name]
    return spec.kind is InputKind.USER and spec.binding is Binding.TIMESTEP


def _is_fixed(node: Any) -> bool:
    """Whether a value is a tensor whose sizes are numbers."""
    value = node.meta["val"] if isinstance(node, fx.Node) else None
    sizes: list[Any] = [s for v in leaves(value) if hasattr(v, "shape") for s in v.shape]
    return isinstance(value, torch.Tensor) and not any(isinstance(s, torch.SymInt) for s in sizes)
