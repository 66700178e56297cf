"""Blocks: the repeated structure of a transformer, found in its graph.

Residual additions come first (:mod:`dit_compile.analysis.branches`). Module paths then say which of
them belong to one block: a numbered component ``prefix.N`` groups siblings. Where paths are missing
the streams are cut after each MLP. Either way a block's nodes are read off the dataflow, and blocks
are compared by their graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from dit_compile.analysis.branches import (
    Branch,
    Residual,
    find_residuals,
    kind_of,
    split_gate,
    work_of,
)
from dit_compile.analysis.extent import Draft, draft_blocks
from dit_compile.analysis.flow import Flow
from dit_compile.analysis.isomorphism import Form, canonical_form
from dit_compile.analysis.units import Group, Kinds, group_by_flow, group_by_path, levels, mixes
from dit_compile.ir.fake import describe
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import Program


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
    groups, loose = group_by_path(flow, residuals, kinds)
    groups = _transformers(groups, kinds, misses)
    groups += group_by_flow(flow, loose, residuals, kinds, groups)
    grouped = {residual for group in groups for _, member in group.members for residual in member}
    misses += _loose_ends(flow, residuals, grouped, kinds)
    groups.sort(key=lambda group: min(flow.at[r.add] for _, rs in group.members for r in rs))
    stacks = []
    for group, drafts in zip(groups, draft_blocks(flow, groups), strict=True):
        if drafts:
            stacks.append(_stack(flow, group.path, drafts, kinds))
        else:
            misses.append(f"{group.path}: the blocks' graphs overlap")
    return Structure(tuple(stacks), tuple(misses))


def _transformers(groups: Sequence[Group], kinds: Kinds, misses: list[str]) -> list[Group]:
    """Keep the lists that hold an attention; in a graph without any, keep them all."""
    mixing = {residual for residual, kind in kinds.items() if mixes(kind)}
    kept = []
    for group in groups:
        if not mixing or any(not mixing.isdisjoint(member) for _, member in group.members):
            kept.append(group)
        else:
            misses.append(f"{group.path}: {len(group.members)} residual layers without attention")
    return kept


def _loose_ends(
    flow: Flow, residuals: Sequence[Residual], grouped: set[Residual], kinds: Kinds
) -> Iterator[str]:
    covered = 0
    for residual in residuals:
        covered |= residual.span
        if residual not in grouped and levels(origin_of(residual.add).path) == []:
            where = origin_of(residual.branch).path
            yield f"{kinds[residual]} branch at %{residual.add.name} ({where}) is in no block"
    for core in flow.cores:
        if not flow.has(covered, core):
            yield f"attention at %{core.name} ({origin_of(core).path}) is in no residual branch"


def _stack(flow: Flow, path: str, drafts: Sequence[Draft], kinds: Kinds) -> Stack:
    blocks = []
    numbers: dict[Form, int] = {}
    classes = []
    for index, draft in enumerate(drafts):
        nodes = tuple(sorted(draft.nodes, key=flow.at.__getitem__))
        out = tuple(n for n in nodes if any(user not in draft.nodes for user in flow.users(n)))
        names = _branch_paths(flow, draft, kinds)
        branches = [
            _branch(flow, residual, kinds[residual], name)
            for residual, name in zip(draft.residuals, names, strict=True)
        ]
        blocks.append(Block(draft.path, index, nodes, draft.streams_in, out, tuple(branches)))
        form, _ = canonical_form(flow, draft.nodes, out)
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
        nodes=work_of(flow, output),
    )


def _branch_paths(flow: Flow, draft: Draft, kinds: Kinds) -> list[str]:
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
    own = work_of(flow, residual.branch)
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
