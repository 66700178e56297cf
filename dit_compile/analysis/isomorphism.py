"""Which parts of a graph are equal but for their weights."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import fx

from dit_compile.analysis.flow import Flow
from dit_compile.ir.fake import describe

Form = tuple[Any, ...]

_UNBACKED = re.compile(r"\bu\d+\b")


def canonical_form(
    flow: Flow, nodes: Collection[fx.Node], roots: Sequence[fx.Node]
) -> tuple[Form, list[fx.Node]]:
    """A form that is equal exactly for isomorphic subgraphs, and the nodes in its order.

    Arguments are ordered, so walking from the ordered roots numbers the nodes in one way only, and
    comparing forms decides isomorphism without a search.

    Args:
        flow: the graph.
        nodes: the subgraph; what it reads from outside counts with its shape and dtype.
        roots: the nodes of the subgraph to start from.
    """
    number: dict[fx.Node, int] = {}
    form: list[Any] = []
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in number:
            continue
        args = node.all_input_nodes if node in nodes else []
        if not ready and args:
            stack.append((node, True))
            stack += [(arg, False) for arg in reversed(args)]
            continue
        number[node] = len(number)
        if node in nodes:
            refs = fx.map_arg((node.args, node.kwargs), lambda arg: f"%{number[arg]}")
            form.append((str(node.target), repr(refs), _shape(node)))
        else:
            form.append(("given" if flow.varies(node) else "weight", _shape(node)))
    return (*form, *(number[root] for root in roots)), list(number)


def alike(nodes: Sequence[fx.Node]) -> bool:
    """Whether nodes apply one operator with equal constants to arguments in equal places."""
    first, *others = map(_signature, nodes)
    return all(first == other for other in others)


def _signature(node: fx.Node) -> tuple[Any, ...]:
    args = fx.map_arg((node.args, node.kwargs), lambda _: "%")
    return node.op, str(node.target), repr(args), len(node.all_input_nodes), _shape(node)


def _shape(node: fx.Node) -> str:
    """Shape and dtype; sizes that depend on data have another name in each block."""
    value = node.meta.get("val")
    return "size" if isinstance(value, torch.SymInt) else _UNBACKED.sub("?", describe(value))
