"""The Program: the body of a sampling loop as named functional FX graphs.

A graph's placeholders are the Program's inputs by name; its outputs are listed in ``outputs``.
Nothing is hidden: weights, loop-carried state and values computed by an earlier graph all enter
through placeholders, and all state leaves through outputs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx

from dit_compile.errors import PassError, VerificationError
from dit_compile.ir.interface import (
    AHEAD,
    MAIN,
    PROLOGUE,
    ROWS,
    TABLE,
    WEIGHTS,
    Binding,
    Input,
    InputKind,
    Output,
    OutputKind,
)
from dit_compile.ir.schedule import Schedule

__all__ = [
    "AHEAD",
    "MAIN",
    "PROLOGUE",
    "ROWS",
    "TABLE",
    "WEIGHTS",
    "Binding",
    "Input",
    "InputKind",
    "Output",
    "OutputKind",
    "Program",
    "add_outputs",
    "copy_graph",
    "output_args",
    "output_node",
    "placeholders",
]


@dataclass
class Program:
    """The loop body.

    Attributes:
        graphs: graphs by name; ``MAIN`` is always there.
        outputs: for each graph, what its flat outputs are.
        inputs: all inputs by name, in the order the caller passes them.
        constants: tensors of the model that the caller does not pass (lifted constants), by input
            name.
        schedule: which graph runs at which step.
        training: whether autograd records through the graphs.
        fake_mode: the mode that all nodes' fake values belong to.
        annotations: what ANNOTATE passes wrote, by site path.
    """

    graphs: dict[str, fx.GraphModule]
    outputs: dict[str, tuple[Output, ...]]
    inputs: dict[str, Input]
    fake_mode: torch._subclasses.FakeTensorMode
    constants: dict[str, torch.Tensor] = field(default_factory=dict)
    schedule: Schedule = field(default_factory=lambda: Schedule(MAIN))
    training: bool = False
    annotations: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def main(self) -> fx.Graph:
        """The graph of one full step."""
        return self.graphs[MAIN].graph

    def step_graphs(self) -> Iterator[tuple[str, fx.GraphModule]]:
        """The graphs that can serve a step: all but the ones computed ahead of the loop."""
        for name, module in self.graphs.items():
            if name not in AHEAD:
                yield name, module

    def ahead_graphs(self) -> Iterator[tuple[str, fx.GraphModule]]:
        """The graphs that run ahead of the steps, each after those that it reads from."""
        for name in AHEAD:
            if name in self.graphs:
                yield name, self.graphs[name]

    def producer(self, name: str) -> fx.Node:
        """The node whose value an earlier graph returns under ``name``.

        Raises:
            PassError: no graph does.
        """
        for graph_name, module in self.graphs.items():
            values = output_args(module.graph)
            for output, value in zip(self.outputs[graph_name], values, strict=True):
                if output.name == name and output.kind in (OutputKind.DERIVED, OutputKind.STATE):
                    assert isinstance(value, fx.Node)
                    return value
        raise PassError(f"no graph of the program returns {name!r}")

    def of_kind(self, kind: InputKind) -> list[Input]:
        """Inputs of one kind, in order."""
        return [spec for spec in self.inputs.values() if spec.kind is kind]

    def kind_of(self, node: fx.Node) -> InputKind | None:
        """The input kind of a placeholder, ``None`` for any other node."""
        if node.op != "placeholder":
            return None
        spec = self.inputs.get(str(node.target))
        return spec.kind if spec else None

    def is_weight(self, node: fx.Node) -> bool:
        """Whether ``node`` is a placeholder whose value depends on the weights alone."""
        if node.op != "placeholder":
            return False
        spec = self.inputs.get(str(node.target))
        return spec is not None and spec.binding is Binding.WEIGHT

    def is_made_ahead(self, node: fx.Node) -> bool:
        """Whether ``node`` is a placeholder that the caller does not know: dropped when unused."""
        return self.is_weight(node) or self.kind_of(node) is InputKind.DERIVED

    def weight_nodes(self, graph: fx.Graph) -> list[fx.Node]:
        """The placeholders of ``graph`` that are weights or derived from weights alone."""
        return [node for node in graph.nodes if self.is_weight(node)]

    def bind(self, name: str, binding: Binding, *, settled: bool = True) -> None:
        """Set the binding of one input."""
        self.inputs[name] = replace(self.inputs[name], binding=binding, settled=settled)

    def copy(self) -> Program:
        """A copy whose graphs can be rewritten without touching this one's; tensors are shared."""
        return replace(
            self,
            graphs={name: copy_graph(module) for name, module in self.graphs.items()},
            outputs=dict(self.outputs),
            inputs=dict(self.inputs),
            constants=dict(self.constants),
            annotations={path: dict(notes) for path, notes in self.annotations.items()},
        )

    def restore(self, saved: Program) -> None:
        """Take over everything from ``saved``, which must not be used afterwards."""
        self.__dict__.update(saved.__dict__)


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """A copy of ``module`` with the same node names, each node's metadata copied one level deep."""
    graph = fx.Graph()
    mapping: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        mapping[node] = graph.node_copy(node, lambda old: mapping[old])
    attributes = {
        str(node.target): getattr(module, str(node.target))
        for node in graph.nodes
        if node.op == "get_attr"
    }
    return fx.GraphModule(attributes, graph, class_name=module.__class__.__name__)


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The placeholders of ``graph`` in order."""
    return list(graph.find_nodes(op="placeholder"))


def output_node(graph: fx.Graph) -> fx.Node:
    """The one output node of ``graph``."""
    nodes: list[fx.Node] = list(graph.find_nodes(op="output"))
    if len(nodes) != 1:
        raise VerificationError(f"a graph has one output node, not {len(nodes)}")
    return nodes[0]


def add_outputs(program: Program, graph: str, added: Sequence[tuple[Output, fx.Node]]) -> None:
    """Let ``graph`` return more, behind what it returns already."""
    end = output_node(program.graphs[graph].graph)
    end.args = ((*output_args(end.graph), *(value for _, value in added)),)
    program.outputs[graph] += tuple(output for output, _ in added)


def output_args(graph: fx.Graph) -> tuple[Any, ...]:
    """The flat values that ``graph`` returns."""
    return tuple(output_node(graph).args[0])  # type: ignore[arg-type]
