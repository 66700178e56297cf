"""The last step of both ways in: a traced graph with named placeholders becomes a Program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses import FakeTensorMode

from dit_compile.capture.functional import tidy
from dit_compile.errors import CaptureError
from dit_compile.ir.origin import identifier, stamp_origins
from dit_compile.ir.program import (
    MAIN,
    Binding,
    Input,
    InputKind,
    Output,
    OutputKind,
    Program,
    output_args,
    output_node,
    placeholders,
)


def build_program(
    module: fx.GraphModule,
    described: Sequence[tuple[InputKind, str]],
    mutated: Sequence[str],
    mode: FakeTensorMode,
    *,
    constants: dict[str, torch.Tensor],
    training: bool,
) -> Program:
    """Turn a traced graph into a Program.

    Args:
        module: functional graph whose outputs are the mutations, then the user's.
        described: kind and path of each placeholder, in order.
        mutated: paths of the inputs that the leading outputs are copied into.
        mode: the fake mode of the graph's values.
        constants: values of inputs that the caller does not pass, by path.
        training: whether autograd records.
    """
    tidy(module, mode, training=training)
    inputs: dict[str, Input] = {}
    by_path: dict[str, str] = {}
    for node, (kind, path) in zip(placeholders(module.graph), described, strict=True):
        by_path[path] = _declare(node, kind, path, inputs)
    values = {by_path[path]: value for path, value in constants.items()}
    values |= _lift_attributes(module, inputs)
    _flatten_output(module.graph)
    stamp_origins(module.graph)
    module.recompile()
    results = len(output_args(module.graph)) - len(mutated)
    return Program(
        graphs={MAIN: module},
        outputs={
            MAIN: (
                *(Output(OutputKind.MUTATION, by_path[path]) for path in mutated),
                *[Output(OutputKind.USER)] * results,
            )
        },
        inputs=inputs,
        fake_mode=mode,
        constants=values,
        training=training,
    )


def _declare(node: fx.Node, kind: InputKind, path: str, inputs: dict[str, Input]) -> str:
    """Rename a placeholder after its path and enter it in ``inputs``; return the name it got."""
    node._rename(identifier(path))
    node.target = node.name
    weight = kind is InputKind.WEIGHT
    binding = Binding.WEIGHT if weight else Binding.LATENT
    inputs[node.name] = Input(node.name, kind, path, binding, settled=weight)
    return node.name


def _lift_attributes(module: fx.GraphModule, inputs: dict[str, Input]) -> dict[str, torch.Tensor]:
    """Turn tensors that the graph holds as attributes into weight inputs with known values."""
    graph = module.graph
    values: dict[str, torch.Tensor] = {}
    first = next(iter(graph.nodes))
    for node in list(graph.find_nodes(op="get_attr")):
        path = str(node.target)
        value: Any = module
        for part in path.split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            raise CaptureError(
                f"the graph holds {path!r}, a nested {type(value).__name__}; control flow inside "
                "a model is not supported yet"
            )
        known = next((name for name, old in values.items() if old is value), None)
        if known is None:
            with graph.inserting_before(first):
                lifted = graph.placeholder(identifier(path))
            lifted.meta.update(node.meta)
            known = _declare(lifted, InputKind.WEIGHT, path, inputs)
            values[known] = value
        node.replace_all_uses_with(next(n for n in placeholders(graph) if n.name == known))
        graph.erase_node(node)
    return values


def _flatten_output(graph: fx.Graph) -> None:
    """Make the output one flat tuple."""
    node = output_node(graph)
    returned = node.args[0]
    node.args = (tuple(returned) if isinstance(returned, (list, tuple)) else (returned,),)
