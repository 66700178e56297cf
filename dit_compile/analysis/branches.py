"""Branches: the work that a residual addition joins to a stream of tokens.

Everything here is read off the dataflow. An addition ``p + q`` is residual when ``q`` is computed
from ``p`` by at least one matrix product; ``p`` is then the stream and ``q`` the branch. No name of
a model, class or attribute takes part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush

import torch
from torch import fx

from dit_compile.analysis.flow import (
    NONLINEAR,
    NORMS,
    SAME_ELEMENTS,
    Flow,
    carriers,
    is_copy,
    is_heavy,
    op_name,
    read_by,
    same_shape,
    sizes,
)

aten = torch.ops.aten

_ADDITIONS = {aten.add.Tensor, aten.addcmul.default}


@dataclass(frozen=True)
class Branch:
    """The work done beside a stream between reading it and adding to it.

    Attributes:
        kind: ``attn`` (keys and values come from the stream, perhaps among others), ``cross``
            (they come from elsewhere), ``mlp``, ``attn+mlp`` (both in one branch), or ``other``.
        path: readable, unique in the model, stable: ``transformer_blocks.7.attn1``.
        output: the branch's result before the gate, the value that a cache would keep.
        gate: what it is multiplied by, before any unsqueeze, expand, cast or tanh.
        residual: the addition that joins it to the stream.
        stream: the stream's value it is added to.
        nodes: what dies when ``output`` is replaced; what another branch needs too (the core of a
            joint attention, a modulation whose gate stays) is not among them.
    """

    kind: str
    path: str
    output: fx.Node
    gate: fx.Node | None
    residual: fx.Node
    stream: fx.Node
    nodes: frozenset[fx.Node]


@dataclass(frozen=True, eq=False)
class Residual:
    """A residual addition, before it is known which block it belongs to.

    Attributes:
        add: the addition.
        stream: its operand that is the stream.
        base: the stream's value that the branch is computed from.
        branch: the operand that is the branch, gate included.
        span: the nodes on the ways from ``base`` to ``branch``.
        own: ``base`` and what of ``span`` is computed from it without other streams' additions.
    """

    add: fx.Node
    stream: fx.Node
    base: fx.Node
    branch: fx.Node
    span: int
    own: int


#: Residual additions by the node that adds.
Found = dict[fx.Node, Residual]


def find_residuals(flow: Flow) -> list[Residual]:
    """All residual additions of the graph in order, none of them a detail of another's branch."""
    found: Found = {}
    added = 0
    for node in flow.nodes:
        if node.target not in _ADDITIONS or node.kwargs.get("alpha", 1) != 1:
            continue
        made = _residual(flow, node, found)
        if made is not None and not (made.span & added and _spans_blocks(flow, made, found)):
            found[node] = made
            added |= 1 << flow.at[node]
    kept = [residual for residual in found.values() if not _is_nested(flow, residual, found)]
    adds = flow.bits(residual.add for residual in kept)
    return [replace(residual, own=_own(flow, residual, adds)) for residual in kept]


def _own(flow: Flow, residual: Residual, adds: int) -> int:
    reached = 1 << flow.at[residual.base]
    if not residual.span & adds:
        return reached | residual.span
    for node in flow.members(residual.span & ~adds):
        if any(flow.has(reached, arg) for arg in read_by(node)):
            reached |= 1 << flow.at[node]
    return reached


def _is_nested(flow: Flow, inner: Residual, found: Found) -> bool:
    """Whether ``inner`` is a detail of another's branch: nothing else ever sees its sum."""
    users = flow.bits(flow.users(inner.add))
    return any(
        outer.span & users == users
        and outer is not inner
        and flow.has(outer.span, inner.add)
        and flow.depends(inner.base, outer.base)
        for outer in found.values()
    )


def _residual(flow: Flow, add: fx.Node, found: Found) -> Residual | None:
    if len(add.all_input_nodes) < 2:
        return None
    first, second = add.all_input_nodes[:2]
    if add.target is aten.addcmul.default:
        pairs = [(first, arg) for arg in add.all_input_nodes[1:]]
    else:
        pairs = [(first, second), (second, first)]
    for stream, branch in pairs:
        if len(sizes(stream)) < 2 or not same_shape(stream, add):
            continue
        for base in _bases(stream, found):
            span = flow.between(base, branch)
            if span & flow.heavy:
                return Residual(add, stream, base, branch, span, span)
    return None


def _bases(stream: fx.Node, found: Found) -> Iterator[fx.Node]:
    """The values that ``stream`` is a copy of, nearest first.

    Two branches side by side, ``x + f(x) + g(x)``, both start at ``x``: so what the last addition's
    branch was computed from counts too.
    """
    node = stream
    while True:
        yield node
        if node in found:
            yield found[node].base
        if not is_copy(node):
            return
        node = node.all_input_nodes[0]


def _spans_blocks(flow: Flow, outer: Residual, found: Found) -> bool:
    """Whether what looks like a branch is a stretch of the stream itself.

    A skip connection over several blocks, a prediction added to the input and a modulation shared
    by all blocks have this form. Residual additions on the way tell it from a branch: two in a row,
    one of them over an attention, or one over an attention whose sum is the operand.
    """
    reached = stream_sources(outer.branch, found)
    inner: set[Residual] = set()
    for node in _own_path(flow, outer):
        if node not in found:
            continue
        residual = found[node]
        mixes = bool(residual.span & flow.core_bits)
        if mixes and residual in reached:
            return True
        inner.add(residual)
        for later in inner:
            if residual in stream_sources(later.stream, found) and (
                mixes or later in reached or later.span & flow.core_bits
            ):
                return True
    return False


def _own_path(flow: Flow, outer: Residual) -> Iterator[fx.Node]:
    """From the branch's result back to its base, by way of the query where values are mixed."""
    heap, seen = [-flow.at[outer.branch]], {outer.branch}
    while heap:
        node = flow.nodes[-heappop(heap)]
        yield node
        args = node.all_input_nodes if is_heavy(node) else carriers(node)
        args = [arg for arg in args if flow.has(outer.span, arg)]
        for arg in args[:1] if is_heavy(node) else args:
            if arg not in seen:
                seen.add(arg)
                heappush(heap, -flow.at[arg])


def stream_sources(node: fx.Node, found: Found) -> list[Residual]:
    """The residual additions whose values flow into ``node`` with no matrix product in between."""
    sources: list[Residual] = []
    seen: set[fx.Node] = set()
    stack = [node]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in found:
            sources.append(found[node])
        else:
            stack.extend(carriers(node))
    return sources


def split_gate(flow: Flow, residual: Residual) -> tuple[fx.Node, fx.Node | None]:
    """The branch's output before the gate, and the gate if there is one."""
    if residual.add.target is aten.addcmul.default:
        others = [arg for arg in residual.add.all_input_nodes[1:] if arg is not residual.branch]
        return _bare(flow, residual.branch), _source_of_gate(others[0]) if others else None
    node = residual.branch
    while True:
        args = node.all_input_nodes
        if op_name(node) == "mul" and len(args) == 2:
            own = [arg for arg in args if flow.depends(arg, residual.base)]
            if len(own) == 1:
                gate = args[1] if own[0] is args[0] else args[0]
                if not flow.varies(gate) and _normalises(own[0]):
                    break  # the weight of a norm written out
                return _bare(flow, own[0]), _source_of_gate(gate)
            break
        if not is_copy(node):
            break
        node = args[0]
    return _bare(flow, residual.branch), None


def _bare(flow: Flow, node: fx.Node) -> fx.Node:
    """``node`` before casts and disabled dropout that it alone goes through."""
    while op_name(node) in {"_to_copy", "to", "type_as", "clone", "dropout"}:
        source = node.all_input_nodes[0]
        if len(flow.users(source)) > 1 or not same_shape(source, node):
            break
        node = source
    return node


def _source_of_gate(node: fx.Node) -> fx.Node:
    while op_name(node) in SAME_ELEMENTS | {"expand", "expand_as", "tanh"}:
        node = node.all_input_nodes[0]
    return node


def _normalises(node: fx.Node) -> bool:
    while is_copy(node):
        node = node.all_input_nodes[0]
    if op_name(node) in NORMS:
        return True
    return op_name(node) in {"mul", "div"} and any(
        op_name(arg) in {"rsqrt", "sqrt", "linalg_vector_norm"} for arg in node.all_input_nodes
    )


def kind_of(flow: Flow, residual: Residual) -> str:
    """Which kind of branch a residual addition joins; see :class:`Branch`."""
    span = residual.own & residual.span
    cores = list(flow.members(span & flow.core_bits))
    bends = [node for node in flow.members(span) if op_name(node) in NONLINEAR]
    if not cores:
        return "mlp" if any(_bends_linear(flow, span, node) for node in bends) else "other"
    if any(_is_beside(flow, span, node, cores) for node in bends):
        return "attn+mlp"
    last = [
        core for core in cores if not any(flow.depends(c, core) for c in cores if c is not core)
    ]
    for core in last:
        if any(_bends_linear(flow, flow.after[flow.at[core]] & span, node) for node in bends):
            return "attn+mlp"
    mixed = [flow.cores[core] for core in last]
    own = any(all(flow.has(residual.own, arg) for arg in args) for args in mixed)
    return "attn" if own else "cross"


def _bends_linear(flow: Flow, span: int, node: fx.Node) -> bool:
    """Whether ``node`` stands between two matrix products of ``span``; attentions aside."""
    products = span & flow.heavy & ~flow.core_bits
    at = flow.at[node]
    return bool(products & flow.before[at]) and bool(products & flow.after[at])


def _is_beside(flow: Flow, span: int, node: fx.Node, cores: list[fx.Node]) -> bool:
    """Whether a nonlinearity is an MLP's beside the attention, and not a gate on its result."""
    if not flow.before[flow.at[node]] & span & flow.heavy:
        return False
    joins = flow.after[flow.at[node]] & span
    for core in cores:
        if flow.depends(core, node) or flow.depends(node, core):
            return False
        joins &= flow.after[flow.at[core]]
    meets = next(flow.members(joins), None)
    return meets is not None and op_name(meets) != "mul"


def work_of(flow: Flow, *outputs: fx.Node) -> frozenset[fx.Node]:
    """``outputs`` and what nothing else needs: the nodes that die when they are replaced."""
    dead = set(outputs)
    stack = list(outputs)
    while stack:
        for arg in stack.pop().all_input_nodes:
            if arg.op == "call_function" and arg not in dead and dead.issuperset(flow.users(arg)):
                dead.add(arg)
                stack.append(arg)
    return frozenset(dead)
