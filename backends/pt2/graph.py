"""One graph of a Program in a form that anything with torch can run: no operator of ours is left.

All tensors that enter or leave are contiguous, so that whoever runs graphs by hand need not know
how one lays out in memory what another reads. Weights are inputs, behind all others.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import fx
from torch.export import ExportedProgram

from dit_compile.backends.contents import refuse_writes
from dit_compile.backends.exported import decomposed, exported_graph
from dit_compile.errors import BackendError
from dit_compile.ir.fake import evaluate
from dit_compile.ir.program import Program, copy_graph, output_args, output_node, placeholders
from dit_compile.ops import DECOMPOSITIONS

aten = torch.ops.aten


def portable_graph(program: Program, name: str) -> tuple[ExportedProgram, list[str], list[str]]:
    """The graph ``name``, exported.

    Returns:
        It, the inputs that it takes, and the weights that it takes behind these.

    Raises:
        BackendError: it writes into an input, or returns something that is no tensor.
    """
    refuse_writes(program, name)
    module = copy_graph(program.graphs[name])
    reads, weights = _order_inputs(program, module.graph)
    _make_contiguous(program, module.graph)
    module.recompile()
    exported = exported_graph(replace(program, graphs={name: module}), name)
    exported = decomposed(exported, DECOMPOSITIONS)
    for node in exported.graph.nodes:  # paths of the sources on this machine, among others
        node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}
    exported._example_inputs = None
    return exported, reads, weights


def _order_inputs(program: Program, graph: fx.Graph) -> tuple[list[str], list[str]]:
    """Drop inputs that nothing reads, and put the weights last."""
    nodes = placeholders(graph)
    for node in [node for node in nodes if not node.users]:
        nodes.remove(node)
        graph.erase_node(node)
    weights = [node for node in nodes if program.is_weight(node)]
    for node in weights:
        placeholders(graph)[-1].append(node)
    names = [str(node.target) for node in placeholders(graph)]
    return names[: len(names) - len(weights)], names[len(names) - len(weights) :]


def _make_contiguous(program: Program, graph: fx.Graph) -> None:
    """Let every input and result be contiguous, and what views them follow."""
    changed = False
    for node in placeholders(graph):
        value = node.meta["val"]
        if isinstance(value, torch.Tensor) and not value.is_contiguous():
            with program.fake_mode:
                node.meta["val"] = value.contiguous()
            changed = True
    if changed:
        for node in graph.find_nodes(op="call_function", target=aten.as_strided.default):
            raise BackendError(f"{node.name} reads memory by strides; write it with views instead")
        _update(program, graph)
    end, results = output_node(graph), []
    for value in output_args(graph):
        if isinstance(value, fx.Node) and not _is_contiguous(value):
            with graph.inserting_before(end):
                value = graph.call_function(
                    aten.clone.default, (value,), {"memory_format": torch.contiguous_format}
                )
            value.meta["val"] = evaluate(value, program.fake_mode)
        results.append(value)
    end.args = (tuple(results),)


def _is_contiguous(node: fx.Node) -> bool:
    value = node.meta["val"]
    return not isinstance(value, torch.Tensor) or value.is_contiguous()


def _update(program: Program, graph: fx.Graph) -> None:
    """Compute all fake values anew; views that the new strides do not allow become copies."""
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        try:
            node.meta["val"] = evaluate(node, program.fake_mode)
        except (RuntimeError, ValueError):
            if node.target is not aten.view.default:
                raise
            node.target = aten.reshape.default
            node.meta["val"] = evaluate(node, program.fake_mode)
