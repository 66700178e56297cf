"""Half precision widened: ONNX Runtime has few kernels for it on a CPU."""

from __future__ import annotations

import onnx_ir as ir

_HALVES = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def widen(model: ir.Model) -> None:
    """Turn every value, constant and cast in half precision into float32."""
    graph = model.graph
    for value in (*graph.inputs, *graph.initializers.values()):
        _widen_value(value)
    for node in graph.all_nodes():
        for value in node.outputs:
            _widen_value(value)
        for attribute in list(node.attributes.values()):
            _widen_attribute(node, attribute)


def _widen_value(value: ir.Value) -> None:
    if value.dtype in _HALVES:
        value.dtype = ir.DataType.FLOAT
    if value.const_value is not None and value.const_value.dtype in _HALVES:
        value.const_value = _widened(value.const_value)


def _widen_attribute(node: ir.Node, attribute: ir.Attr) -> None:
    if attribute.type is ir.AttributeType.TENSOR and attribute.value.dtype in _HALVES:
        node.attributes[attribute.name] = ir.AttrTensor(attribute.name, _widened(attribute.value))
    names_type = attribute.name in ("to", "dtype") and attribute.type is ir.AttributeType.INT
    if names_type and attribute.value in _HALVES:
        node.attributes[attribute.name] = ir.AttrInt64(attribute.name, ir.DataType.FLOAT)


def _widened(tensor: ir.TensorProtocol) -> ir.Tensor:
    return ir.Tensor(tensor.numpy().astype("float32"), name=tensor.name)
