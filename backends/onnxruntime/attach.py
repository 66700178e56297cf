"""Weights of a translated graph: from inputs to initializers in the shared file."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir
import torch
from onnx_ir.passes.common import NameFixPass

from dit_compile.backends.onnxruntime.weights import WeightsFile
from dit_compile.ir.program import Binding, Program


def attach_weights(
    model: ir.Model, program: Program, values: Mapping[str, torch.Tensor], file: WeightsFile
) -> None:
    """Turn the inputs that are weights into initializers, and drop inputs that nothing reads.

    Args:
        model: a translated graph, changed in place.
        program: what it was translated from.
        values: the weights by input name, derived ones included.
        file: where their bytes go.
    """
    graph = model.graph
    for value in list(graph.inputs):
        spec = program.inputs[str(value.name)]
        if spec.binding is not Binding.WEIGHT:
            continue
        graph.inputs.remove(value)
        tensor = values[spec.name]
        if value.dtype is ir.DataType.FLOAT:
            tensor = tensor.float()  # half precision may have been widened
        value.name = spec.path
        _attach_transposed(graph, value, tensor, file)
        if value.uses() or value.is_graph_output():
            value.const_value = file.add(spec.path, tensor, _dtype(value))
            graph.register_initializer(value)
    for value in list(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    NameFixPass()(model)


def _attach_transposed(
    graph: ir.Graph, value: ir.Value, tensor: torch.Tensor, file: WeightsFile
) -> None:
    """Store a matrix the way that products read it.

    A runtime would transpose it at load, and hold both copies in memory.
    """
    users = [node for node, _ in value.uses() if _transposes(node)]
    products = [node for node, index in value.uses() if index == 1 and _takes_transposed(node)]
    if not users and not products:
        return
    name = f"{value.name}.T"
    laid_out = ir.Value(name=name, type=value.type, shape=ir.Shape(tensor.t().shape))
    laid_out.const_value = file.add(name, tensor.t(), _dtype(value))
    graph.register_initializer(laid_out)
    for node in products:  # one copy serves them and ``MatMul``, which has no such option
        node.attributes["transB"] = ir.AttrInt64("transB", 0)
        node.replace_input_with(1, laid_out)
    for node in users:
        node.outputs[0].replace_all_uses_with(laid_out)
        graph.remove(node, safe=True)


def _transposes(node: ir.Node) -> bool:
    perm = node.attributes.get("perm")
    swaps = perm is not None and list(perm.as_ints()) == [1, 0]
    return node.op_type == "Transpose" and swaps and not node.outputs[0].is_graph_output()


def _dtype(value: ir.Value) -> ir.DataType:
    assert value.dtype is not None
    return value.dtype


def _takes_transposed(node: ir.Node) -> bool:
    option = node.attributes.get("transB")
    return node.op_type == "Gemm" and option is not None and option.as_int() == 1
