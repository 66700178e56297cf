"""Several graphs in one model, each a branch of ``If``: their weights are laid out once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from dit_compile.bundle.sessions import SELECTOR


def merge(models: Mapping[str, ir.Model], optional: Sequence[str]) -> ir.Model:
    """One model that runs the graph whose number is passed as the input ``variant``.

    Its inputs and outputs are those of all graphs. A branch returns nothing, in the form of an
    empty tensor, for what it does not compute. Copying the input there would cost as much as a
    step that reuses everything.

    Args:
        models: the graphs by name, in the order of their numbers. They are taken apart.
        optional: inputs for which an empty tensor may be passed.

    Returns:
        The model. Runtimes pack an outer weight once, however many branches read it.
    """
    first = next(iter(models.values()))
    outer = _Outer(optional)
    specimens: dict[str, ir.Value] = {}
    for model in models.values():
        for value in model.graph.outputs:
            specimens.setdefault(str(value.name), value)
    branches = [_branch(name, model.graph, specimens, outer) for name, model in models.items()]
    partial = {
        name
        for name in specimens
        if any(name not in [v.name for v in m.graph.outputs] for m in models.values())
    }
    outputs = [_like(value, name, empty=name in partial) for name, value in specimens.items()]
    nodes = _choice(branches, 0, outer.selector, outputs)
    graph = ir.Graph(
        inputs=[outer.selector, *outer.inputs.values()],
        outputs=outputs,
        nodes=nodes,
        initializers=list(outer.weights.values()),
        opset_imports=_opsets(models),
        name="step",
    )
    merged = ir.Model(graph, ir_version=first.ir_version)
    merged.producer_name, merged.producer_version = first.producer_name, first.producer_version
    return merged


class _Outer:
    """What all branches read from outside."""

    def __init__(self, optional: Sequence[str]) -> None:
        self.optional = optional
        self.selector = ir.val(SELECTOR, ir.DataType.INT64, [])
        self.inputs: dict[str, ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}

    def take(self, value: ir.Value, weight: bool) -> ir.Value:
        """The one value that stands for an input or a weight of a branch."""
        known, name = self.weights if weight else self.inputs, str(value.name)
        if name not in known:
            known[name] = _like(value, name, empty=name in self.optional)
            known[name].const_value = value.const_value
        return known[name]


def _branch(
    name: str, graph: ir.Graph, specimens: Mapping[str, ir.Value], outer: _Outer
) -> ir.Graph:
    """The nodes of ``graph`` as a branch, all its names marked with the graph's own."""
    for value in list(graph.inputs):
        value.replace_all_uses_with(outer.take(value, weight=False))
    own = []
    returned = [str(value.name) for value in graph.outputs]
    for value in list(graph.initializers.values()):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.replace_all_uses_with(outer.take(value, weight=True))
            continue
        constant = _like(value, f"{name}/{value.name}", empty=False)
        constant.const_value = value.const_value
        value.replace_all_uses_with(constant, replace_graph_outputs=True)
        own.append(constant)
    computed = dict(zip(returned, graph.outputs, strict=True))
    nodes = list(graph)
    graph.outputs.clear()
    graph.remove(nodes)
    for node in nodes:
        node.name = f"{name}/{node.name}"
        for value in node.outputs:
            value.name = f"{name}/{value.name}"
    for missing in specimens.keys() - computed.keys():
        nodes.append(_nothing(f"{name}/{missing}", specimens[missing]))
        computed[missing] = nodes[-1].outputs[0]
    outputs = [computed[item] for item in specimens]
    return ir.Graph([], outputs, nodes=nodes, initializers=own, name=name)


def _nothing(name: str, like: ir.Value) -> ir.Node:
    """A node that yields an empty tensor of the type and rank of ``like``."""
    assert like.shape is not None
    assert like.dtype is not None
    sizes = [size if isinstance(size, int) else 0 for size in like.shape]
    empty = ir.tensor([], dtype=like.dtype).numpy().reshape([0, *sizes[1:]])
    node = ir.node("Constant", [], {"value": ir.tensor(empty, dtype=like.dtype)})
    node.outputs[0].name = name
    node.outputs[0].dtype, node.outputs[0].shape = like.dtype, ir.Shape([0, *sizes[1:]])
    return node


def _choice(
    branches: Sequence[ir.Graph], number: int, selector: ir.Value, outputs: Sequence[ir.Value]
) -> list[ir.Node]:
    """Nodes that yield ``outputs`` from the branch whose number is selected."""
    wanted = ir.node("Constant", [], {"value": ir.tensor(number, dtype=ir.DataType.INT64)})
    equal = ir.node("Equal", [selector, wanted.outputs[0]])
    wanted.outputs[0].name, equal.outputs[0].name = f"number_{number}", f"is_{number}"
    otherwise = branches[number + 1]
    if number + 2 < len(branches):
        inner = [_like(value, f"{value.name}/{number}", empty=False) for value in outputs]
        nodes = _choice(branches, number + 1, selector, inner)
        otherwise = ir.Graph([], inner, nodes=nodes, name=f"not_{number}")
    chosen = ir.Node(
        "",
        "If",
        [equal.outputs[0]],
        [ir.AttrGraph("then_branch", branches[number]), ir.AttrGraph("else_branch", otherwise)],
        outputs=outputs,
        name=f"if_{number}",
    )
    return [wanted, equal, chosen]


def _like(value: ir.Value, name: str, *, empty: bool) -> ir.Value:
    """A new value of the same type, its first size open if it may be empty."""
    shape = value.shape
    if empty and shape is not None:
        shape = ir.Shape([f"{name}_size", *list(shape)[1:]])
    return ir.Value(name=name, type=value.type, shape=shape)


def _opsets(models: Mapping[str, ir.Model]) -> dict[str, int]:
    return {domain: v for model in models.values() for domain, v in model.opset_imports.items()}
