"""Blocks: the repeated structure of a transformer, found in its graph.

Residual additions come first (:mod:`dit_compile.analysis.branches`). Module paths then say which of
them belong to one block: a numbered component ``prefix.N`` groups siblings. Where paths are missing
the streams are cut after each MLP. Either way a block's nodes are read off the dataflow, and blocks
are compared by their graphs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dit_compile.analysis.branches import (
    Branch,
    Found,
    Residual,
    find_residuals,
    kind_of,
    split_gate,
    stream_sources,
    work_of,
)
from dit_compile.analysis.flow import Flow, carriers, is_heavy, is_move
from dit_compile.analysis.units import Group, group_by_flow, group_by_path
from dit_compile.ir.fake import describe
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import Program

_UNBACKED = re.compile(r"\bu\d+\b")


@dataclass(frozen=True)
class Block:
    """One block of a stack.

    Attributes:
        path: its module's path, or ``blocks.N`` where the graph carries no paths.
        index: its place in the stack, from 0.
        nodes: its work in order: all between ``streams_in`` and ``streams_out``, and what is
            computed for it alone. No way leads out of these nodes and back into them.
        streams_in: the streams' values that enter.
        streams_out: the values computed from them that are used after the block.
        branches: its branches in order.
    """

    path: str
    index: int
    nodes: tuple[fx.Node, ...]
    streams_in: tuple[fx.Node, ...]
    streams_out: tuple[fx.Node, ...]
    branches: tuple[Branch, ...]


@dataclass(frozen=True)
class Stack:
    """Blocks that follow each other.

    Attributes:
        path: the path of the numbered list that holds them.
        blocks: the blocks in order.
        classes: for each block the number of its class; blocks of one class have equal graphs: the
            same operators, constants, shapes and dtypes, with weights compared by shape alone.
    """

    path: str
    blocks: tuple[Block, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Structure:
    """What was found in a graph, and what looked like structure but was not recognised."""

    stacks: tuple[Stack, ...]
    misses: tuple[str, ...]


def find_stacks(program: Program, graph: fx.Graph | None = None) -> tuple[Stack, ...]:
    """The stacks of blocks of ``graph`` (the Program's main graph) in the order they first run."""
    return find_structure(program, graph).stacks


def find_structure(program: Program, graph: fx.Graph | None = None) -> Structure:
    """The stacks of ``graph``, and what was not recognised as one."""
    flow = Flow(program, graph if graph is not None else program.main)
    residuals = find_residuals(flow)
    kinds = {residual: kind_of(flow, residual) for residual in residuals}
    misses: list[str] = []
    groups, loose = group_by_path(residuals, kinds)
    groups, loose = _transformers(groups, loose, kinds, misses)
    groups += group_by_flow(flow, loose, residuals, kinds, alone=not groups)
    grouped = {residual for group in groups for _, member in group.members for residual in member}
    misses += _loose_ends(flow, residuals, grouped, kinds)
    groups.sort(key=lambda group: min(flow.at[r.add] for _, rs in group.members for r in rs))
    stacks = [
        _stack(flow, group.path, drafts, kinds)
        for group, drafts in zip(groups, _drafts(flow, groups), strict=True)
    ]
    return Structure(tuple(stacks), tuple(misses))


def _transformers(
    groups: list[Group], loose: list[Residual], kinds: dict[Residual, str], misses: list[str]
) -> tuple[list[Group], list[Residual]]:
    """Keep the lists that mix tokens; in a graph without any attention, keep them all."""
    if not any("attn" in kind or kind == "cross" for kind in kinds.values()):
        return groups, loose
    kept = []
    for group in groups:
        members = [kinds[residual] for _, member in group.members for residual in member]
        if any("attn" in kind or kind == "cross" for kind in members):
            kept.append(group)
        else:
            misses.append(f"{group.path}: {len(group.members)} residual layers without attention")
    return kept, loose


def _loose_ends(
    flow: Flow, residuals: list[Residual], grouped: set[Residual], kinds: dict[Residual, str]
) -> Iterator[str]:
    covered = 0
    for residual in residuals:
        covered |= residual.span
        if residual not in grouped and kinds[residual] not in {"mlp", "other"}:
            where = origin_of(residual.branch).path
            yield f"{kinds[residual]} branch at %{residual.add.name} ({where}) is in no block"
    for core in flow.cores:
        if not covered >> flow.at[core] & 1:
            yield f"attention at %{core.name} ({origin_of(core).path}) is in no residual branch"


@dataclass
class _Draft:
    """A block whose nodes are being collected.

    Attributes:
        path: the block's path.
        residuals: its residual additions.
        owned: the nodes whose origin is inside it, ``None`` where origins say nothing.
        streams_in: the values that enter.
        nodes: its nodes so far.
    """

    path: str
    residuals: list[Residual]
    owned: set[fx.Node] | None
    streams_in: tuple[fx.Node, ...] = ()
    nodes: set[fx.Node] = field(default_factory=set)


def _drafts(flow: Flow, groups: Sequence[Group]) -> list[list[_Draft]]:
    """The blocks of each group with their nodes."""
    owned: dict[str, set[fx.Node]] = {
        path: set() for group in groups if group.named for path, _ in group.members
    }
    for node in flow.nodes:
        parts = origin_of(node).path.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal() and (path := ".".join(parts[: i + 1])) in owned:
                owned[path].add(node)
    drafts = [
        [_Draft(path, member, owned.get(path)) for path, member in group.members]
        for group in groups
    ]
    found = {r.add: r for group in groups for _, member in group.members for r in member}
    for members in drafts:
        entering = [_entering(flow, draft, found) for draft in members]
        times = Counter(node for nodes in entering for node in nodes)
        for draft, nodes in zip(members, entering, strict=True):
            # What enters several blocks and carries no stream is added to it: positions, say.
            streams = [n for n in nodes if times[n] == 1 or stream_sources(n, found)]
            _fill(flow, draft, streams or nodes)
    _claim([draft for members in drafts for draft in members])
    return drafts


def _entering(flow: Flow, draft: _Draft, found: Found) -> list[fx.Node]:
    """The values that the streams of a block come from, outside it."""
    entering: dict[fx.Node, None] = {}
    stack = [
        residual.base
        for residual in reversed(draft.residuals)
        if not any(source in draft.residuals for source in stream_sources(residual.base, found))
    ]
    while stack:
        node = stack.pop()
        if draft.owned is not None and node in draft.owned and node.op == "call_function":
            stack += reversed(node.all_input_nodes[:1] if is_heavy(node) else carriers(node))
        elif flow.varies(node):
            entering[node] = None
    return list(entering)


def _fill(flow: Flow, draft: _Draft, streams: Sequence[fx.Node]) -> None:
    """Give a block all nodes between the streams that enter and the last nodes of its own."""
    downstream = upstream = ends = 0
    for node in streams:
        downstream |= flow.after[flow.at[node]]
        upstream |= flow.before[flow.at[node]]
    last = [residual.add for residual in draft.residuals]
    last += [node for node in draft.owned or () if flow.has(downstream, node)]
    for node in last:
        ends |= flow.before[flow.at[node]]
    nodes = set(flow.members(downstream & ends & ~upstream))
    draft.streams_in = tuple(streams)
    draft.nodes = nodes | _enclosed(flow, nodes)


def _enclosed(flow: Flow, nodes: set[fx.Node]) -> set[fx.Node]:
    """Nodes outside a set on a way from it back into it, over sizes and dtypes too."""
    if not nodes:
        return set()
    places = [flow.at[node] for node in nodes]
    reached: list[fx.Node] = []
    below = set(nodes)
    for node in flow.nodes[min(places) : max(places)]:
        if node not in nodes and any(arg in below for arg in node.all_input_nodes):
            below.add(node)
            reached.append(node)
    enclosed: set[fx.Node] = set()
    for node in reversed(reached):
        if any(user in nodes or user in enclosed for user in node.users):
            enclosed.add(node)
    return enclosed


def _claim(drafts: Sequence[_Draft]) -> None:
    """Give each block the work that is done for it alone, such as its modulation."""
    taken = {node for draft in drafts for node in (*draft.nodes, *draft.streams_in)}
    for draft in drafts:
        todo, found = list(draft.nodes), set[fx.Node]()
        while todo:
            for arg in todo.pop().all_input_nodes:
                if arg.op != "call_function" or arg in taken:
                    continue
                ours = draft.owned is None or arg in draft.owned
                if ours and all(user in draft.nodes for user in arg.users):
                    draft.nodes.add(arg)
                    found.add(arg)
                    todo.append(arg)
        if draft.owned is None:
            draft.nodes -= _picked(found)
        taken |= draft.nodes


def _picked(nodes: set[fx.Node]) -> set[fx.Node]:
    """The nodes of a set that only pick their part of a value made for several blocks."""
    picked: set[fx.Node] = set()
    for node in sorted(nodes):
        if is_move(node) and not any(arg in nodes - picked for arg in node.all_input_nodes):
            picked.add(node)
    return picked


def _stack(flow: Flow, path: str, drafts: Sequence[_Draft], kinds: dict[Residual, str]) -> Stack:
    blocks = []
    numbers: dict[tuple[Any, ...], int] = {}
    classes = []
    for index, draft in enumerate(drafts):
        nodes = tuple(sorted(draft.nodes, key=flow.at.__getitem__))
        out = tuple(n for n in nodes if any(user not in draft.nodes for user in n.users))
        names = _branch_paths(flow, draft, kinds)
        branches = [
            _branch(flow, residual, kinds[residual], name)
            for residual, name in zip(draft.residuals, names, strict=True)
        ]
        blocks.append(Block(draft.path, index, nodes, draft.streams_in, out, tuple(branches)))
        form = canonical_form(flow, nodes, out)
        classes.append(numbers.setdefault(form, len(numbers)))
    return Stack(path, tuple(blocks), tuple(classes))


def _branch(flow: Flow, residual: Residual, kind: str, path: str) -> Branch:
    output, gate = split_gate(flow, residual)
    return Branch(
        kind=kind,
        path=path,
        output=output,
        gate=gate,
        residual=residual.add,
        stream=residual.stream,
        nodes=work_of(output),
    )


def canonical_form(
    flow: Flow, nodes: Sequence[fx.Node], roots: Sequence[fx.Node]
) -> tuple[Any, ...]:
    """A form that is equal exactly for isomorphic subgraphs.

    Arguments are ordered, so walking from the ordered roots numbers the nodes in one way only, and
    comparing forms decides isomorphism without a search.
    """
    inside = set(nodes)
    number: dict[fx.Node, int] = {}
    symbols: dict[str, str] = {}  # sizes that depend on data are named anew in each block
    form: list[Any] = []
    stack = [(root, False) for root in reversed(roots)]
    while stack:
        node, ready = stack.pop()
        if node in number:
            continue
        args = node.all_input_nodes if node in inside else []
        if not ready and args:
            stack.append((node, True))
            stack += [(arg, False) for arg in reversed(args)]
            continue
        number[node] = len(number)
        value = node.meta.get("val")
        shape = describe(value) if not isinstance(value, torch.SymInt) else "size"
        shape = _UNBACKED.sub(lambda m: symbols.setdefault(m[0], f"?{len(symbols)}"), shape)
        if node in inside:
            refs = fx.map_arg((node.args, node.kwargs), lambda arg: f"%{number[arg]}")
            form.append((str(node.target), repr(refs), shape))
        else:
            form.append(("given" if flow.varies(node) else "weight", shape))
    return (*form, *(number[root] for root in roots))


def _branch_paths(flow: Flow, draft: _Draft, kinds: dict[Residual, str]) -> list[str]:
    """A path for each branch of a block, all different."""
    path, residuals = draft.path, draft.residuals
    named = draft.owned is not None
    modules = [_module_of(flow, path, residual) if named else () for residual in residuals]
    names = [".".join(module[:1]) for module in modules]
    for name in {name for name in names if names.count(name) > 1}:
        same = [i for i, other in enumerate(names) if other == name]
        for depth in range(2, max(len(modules[i]) for i in same) + 1):
            deeper = {i: ".".join(modules[i][:depth]) for i in same}
            if len(set(deeper.values())) == len(same):
                names = [deeper.get(i, other) for i, other in enumerate(names)]
                break
    result: list[str] = []
    for name, residual in zip(names, residuals, strict=True):
        plain = unique = f"{path}.{name or kinds[residual].replace('+', '_')}"
        number = 1
        while unique in result:
            number += 1
            unique = f"{plain}_{number}"
        result.append(unique)
    return result


def _module_of(flow: Flow, path: str, residual: Residual) -> tuple[str, ...]:
    """The module inside the block that holds a branch's own products, as components."""
    own = work_of(residual.branch)
    heavy = [n for n in flow.members(residual.span & flow.heavy) if n in own]
    if not heavy:  # shared with another stream's branch
        heavy = list(flow.members(residual.span & flow.heavy))
    common: list[str] | None = None
    for node in heavy:
        parts = origin_of(node).path.removeprefix(path).strip(".").split(".")
        if common is None:
            common = parts
        same = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: same.index(False) if False in same else len(same)]
    return tuple(part for part in common or () if part)


def describe_stacks(stacks: Sequence[Stack]) -> list[dict[str, Any]]:
    """Plain data for a report: a row a stack, with the branches of its first block."""
    return [
        {
            "path": stack.path,
            "blocks": len(stack.blocks),
            "classes": list(stack.classes),
            "branches": [
                {
                    "path": branch.path,
                    "kind": branch.kind,
                    "gated": branch.gate is not None,
                    "output": describe(branch.output.meta.get("val")),
                }
                for branch in stack.blocks[0].branches
            ],
        }
        for stack in stacks
    ]
