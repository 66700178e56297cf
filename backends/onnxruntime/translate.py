"""One graph of a Program as an ONNX model, by torch's own exporter."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
from onnx_ir.passes.common import NameFixPass, OutputFixPass

from dit_compile.backends.contents import refuse_writes, result_names
from dit_compile.backends.exported import decomposed, exported_graph
from dit_compile.backends.onnxruntime.exporter import quiet, to_onnx
from dit_compile.backends.onnxruntime.operators import decompositions
from dit_compile.errors import BackendError
from dit_compile.ir.program import Program
from dit_compile.ir.size_names import named_sizes, rename_sizes

#: Opsets that torch's exporter writes; the least has no ``Gelu``, the last has ``Attention``.
OPSETS = range(18, 24)


def translate(program: Program, name: str, *, opset: int, contrib: bool) -> ir.Model:
    """The graph ``name`` as a model whose inputs are the graph's placeholders, weights included.

    Inputs keep the names that they have in the Program. Weights are never read here.

    Args:
        program: the Program.
        name: which of its graphs.
        opset: version of the standard operators.
        contrib: use ONNX Runtime's own operators where they are faster.

    Raises:
        BackendError: torch's exporter has no translation for an operator, or the graph writes into
            one of its inputs.
    """
    refuse_writes(program, name)
    try:
        with quiet():
            exported = exported_graph(program, name)
            table = decompositions(contrib=contrib)
            model = to_onnx(decomposed(exported, table), opset)
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(f"graph @{name} has no ONNX form: {_reason(error)}") from error
    reads = [str(read) for read in exported.graph_signature.user_inputs]
    _name_values(program, name, model, reads)
    _name_sizes(model, named_sizes(program))
    return model


def _reason(error: BaseException) -> str:
    """What the innermost cause of an exporter's error says, in one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"


def _name_values(program: Program, name: str, model: ir.Model, reads: list[str]) -> None:
    """Name inputs and outputs as the Program does; values in between never clash with them."""
    OutputFixPass()(model)  # an input that is returned, or one value twice, goes through Identity
    graph = model.graph
    fixed = {*reads, *result_names(program, name)}
    for node in graph.all_nodes():
        for value in node.outputs:
            if value.name in fixed:
                value.name = f"{value.name}_value"
    for value in list(graph.initializers.values()):
        if value.name in fixed:
            value.name = f"{value.name}_constant"
    for value, read in zip(graph.inputs, reads, strict=True):
        value.name = read
    for value, result in zip(graph.outputs, result_names(program, name), strict=True):
        value.name = result
    NameFixPass()(model)
    graph.name = name


def _name_sizes(model: ir.Model, names: Mapping[str, str]) -> None:
    """Name the sizes in all shapes after the inputs that have them."""
    if not names:
        return
    graph = model.graph
    values = [value for node in graph.all_nodes() for value in node.outputs]
    for value in (*graph.inputs, *values):
        if value.shape is None:
            continue
        value.shape = ir.Shape(
            [
                rename_sizes(size.value, names)
                if isinstance(size, ir.SymbolicDim) and size.value is not None
                else size
                for size in value.shape
            ]
        )
