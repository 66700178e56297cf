"""One graph of a Program as torch's ``ExportedProgram``, which torch's own exporters take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ArgumentSpec,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    SymIntArgument,
    TensorArgument,
)
from torch.fx.experimental.symbolic_shapes import free_symbols
from torch.utils import _pytree as pytree

from dit_compile.errors import BackendError
from dit_compile.ir.fake import leaves
from dit_compile.ir.program import Program, copy_graph, output_args, placeholders


def exported_graph(program: Program, name: str) -> ExportedProgram:
    """The graph ``name`` with all its placeholders, weights among them, as the caller's inputs.

    The graph is taken as it is, with its fake values: nothing is traced again, and no weight is
    read. Shapes stay symbolic where they are.

    Raises:
        BackendError: the graph returns something that is no tensor.
    """
    module = copy_graph(program.graphs[name])
    inputs = placeholders(module.graph)
    outputs = output_args(module.graph)
    for position, value in enumerate(outputs):
        if not isinstance(value, fx.Node) or not isinstance(value.meta["val"], torch.Tensor):
            raise BackendError(
                f"output {position} of graph @{name} is no tensor but {value}; let the model "
                "return tensors alone"
            )
    fakes = tuple(node.meta["val"] for node in inputs)
    signature = ExportGraphSignature(
        [InputSpec(InputKind.USER_INPUT, _argument(node), None) for node in inputs],
        [OutputSpec(OutputKind.USER_OUTPUT, _argument(node), None) for node in outputs],
    )
    call = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=pytree.tree_structure((fakes, {})),
        out_spec=pytree.tree_structure(tuple(range(len(outputs)))),
    )
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=signature,
        state_dict={},
        range_constraints=_ranges(program, module.graph),
        module_call_graph=[ModuleCallEntry("", call)],
        example_inputs=(fakes, {}),
    )


def decomposed(exported: ExportedProgram, table: Mapping[Any, Any]) -> ExportedProgram:
    """``exported`` with the operators in ``table`` replaced by what their entries compute."""
    exported = _without_guards(exported)
    if not any(node.target in table for node in exported.graph.nodes):
        return exported
    return _without_guards(exported.run_decompositions(dict(table)))


def _without_guards(exported: ExportedProgram) -> ExportedProgram:
    """Guards on symbolic sizes name the arguments of the model, which are not this graph's."""
    exported._guards_code = []
    return exported


def _ranges(program: Program, graph: fx.Graph) -> dict[Any, Any]:
    """What each symbol in the graph's sizes may be."""
    env = program.fake_mode.shape_env
    if env is None:
        return {}
    values = [value for node in graph.nodes for value in leaves(node.meta.get("val"))]
    symbols = {symbol for value in values for symbol in free_symbols(value)}
    return {symbol: env.var_to_range[symbol] for symbol in symbols if symbol in env.var_to_range}


def _argument(node: Any) -> ArgumentSpec:
    if isinstance(node.meta["val"], torch.Tensor):
        return TensorArgument(node.name)
    return SymIntArgument(node.name)
