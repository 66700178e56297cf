"""Repeated blocks compiled once: each becomes a call of one subgraph, weights as operands.

Compile time then grows with the variety of a model, not with its depth.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from typing import Any

import sympy
import torch
from torch import fx
from torch.fx.experimental.symbolic_shapes import free_symbols

from dit_compile.analysis.repeats import Repeat, arguments, find_repeats
from dit_compile.ir.program import placeholders

_invoke = torch.ops.higher_order.invoke_subgraph


def outline(module: fx.GraphModule, heavy: Collection[Any], name: str) -> int:
    """Replace the regions that repeat in ``module`` by calls of one subgraph for each repeat.

    Args:
        module: the graph, changed in place; nodes carry fake values.
        heavy: operators that are never fused with what surrounds them.
        name: tells subgraphs of several graphs that are compiled together apart.

    Returns:
        How many regions were replaced.
    """
    replaced = 0
    for number, repeat in enumerate(find_repeats(module.graph, heavy)):
        read = {operand[0] for operand in repeat.operands}
        shared = _sizes(module.graph, free_symbols([node.meta["val"] for node in read]))
        if shared is None:
            continue
        target = f"{name}_{number}"
        setattr(module, target, _region(repeat, shared))
        for turn in range(len(repeat.regions)):
            _call(module.graph, repeat, turn, target, shared)
        replaced += len(repeat.regions)
    module.recompile()
    return replaced


def _sizes(graph: fx.Graph, symbols: Collection[sympy.Symbol]) -> list[fx.Node] | None:
    """Inputs that hold these symbolic sizes: a subgraph is told what its operands' sizes are.

    Returns:
        ``None`` if a size is no input, because the data tells it.
    """
    known = {
        node.meta["val"].node.expr: node
        for node in placeholders(graph)
        if isinstance(node.meta["val"], torch.SymInt)
    }
    ordered = sorted(symbols, key=str)
    return [known[s] for s in ordered] if all(s in known for s in ordered) else None


def _region(repeat: Repeat, shared: Sequence[fx.Node]) -> fx.GraphModule:
    """The first region as a graph of its own: ``shared`` values and operands in, results out."""
    graph = fx.Graph()
    for node in shared:
        graph.placeholder(node.name).meta["val"] = node.meta["val"]
    slots: dict[tuple[int, int], fx.Node] = {}
    for number, (reads, places) in enumerate(repeat.operands.items()):
        operand = graph.placeholder(f"operand_{number}")
        operand.meta["val"] = reads[0].meta["val"]
        slots |= dict.fromkeys(places, operand)
    copies: dict[fx.Node, fx.Node] = {}
    for position, node in enumerate(repeat.regions[0]):
        inner = [
            slots[position, index] if (position, index) in slots else copies[arg]
            for index, arg in enumerate(arguments(node))
        ]
        args, kwargs = _with_arguments(node, inner)
        copies[node] = graph.create_node("call_function", node.target, args, kwargs, node.name)
        copies[node].meta = dict(node.meta)
    graph.output(tuple(copies[repeat.regions[0][position]] for position in repeat.results))
    return fx.GraphModule({}, graph)


def _with_arguments(node: fx.Node, reads: Sequence[fx.Node]) -> Any:
    """``node``'s arguments with ``reads`` in the places of nodes, in order."""
    given = iter(reads)
    return fx.map_arg((node.args, node.kwargs), lambda _: next(given))


def _call(
    graph: fx.Graph, repeat: Repeat, turn: int, target: str, shared: Sequence[fx.Node]
) -> None:
    """Let one region's results come from a call, and erase its nodes."""
    region = repeat.regions[turn]
    results = [region[position] for position in repeat.results]
    with graph.inserting_after(region[-1]):
        subgraph = graph.get_attr(target)
    with graph.inserting_after(subgraph):
        # looked up anew: the region before this one has been replaced already
        firsts = [places[0] for places in repeat.operands.values()]
        operands = [arguments(region[position])[index] for position, index in firsts]
        call = graph.call_function(_invoke, (subgraph, target, *shared, *operands))
    call.meta["val"] = tuple(node.meta["val"] for node in results)
    place = call
    for index, old in enumerate(results):
        with graph.inserting_after(place):
            place = graph.call_function(operator.getitem, (call, index))
        place.meta = dict(old.meta)
        old.replace_all_uses_with(place, propagate_meta=False)
    for node in reversed(region):
        graph.erase_node(node)
