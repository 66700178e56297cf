"""How far a block reaches: from its residual additions to all nodes that are its work."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import fx

from dit_compile.analysis.branches import Found, Residual, stream_sources
from dit_compile.analysis.flow import Flow, carriers, is_heavy, is_move
from dit_compile.analysis.isomorphism import Form, alike, canonical_form
from dit_compile.analysis.units import Group
from dit_compile.ir.origin import origin_of

#: One node from each of several blocks, all in the same place.
Row = tuple[fx.Node, ...]


@dataclass
class Draft:
    """A block whose nodes are being collected.

    Attributes:
        path: the block's path.
        residuals: its residual additions.
        owned: the nodes whose origin is inside it, ``None`` where origins say nothing.
        streams_in: the values that enter.
        nodes: its nodes so far.
        claimed: what is computed for it alone from elsewhere than its streams.
    """

    path: str
    residuals: list[Residual]
    owned: set[fx.Node] | None
    streams_in: tuple[fx.Node, ...] = ()
    nodes: set[fx.Node] = field(default_factory=set)
    claimed: set[fx.Node] = field(default_factory=set)


def draft_blocks(flow: Flow, groups: Sequence[Group]) -> list[list[Draft]]:
    """The blocks of each group with their nodes; none for a group whose blocks would overlap."""
    owned: dict[str, set[fx.Node]] = {
        path: set() for group in groups if group.named for path, _ in group.members
    }
    for node in flow.nodes:
        parts = origin_of(node).path.split(".")
        for i, part in enumerate(parts):
            if part.isdecimal() and (path := ".".join(parts[: i + 1])) in owned:
                owned[path].add(node)
    drafts = [
        [Draft(path, member, owned.get(path)) for path, member in group.members] for group in groups
    ]
    found = {r.add: r for group in groups for _, member in group.members for r in member}
    for members in drafts:
        _delimit(flow, members, found)
        if _overlap(members, found):  # some origins mislead: go by the additions alone
            for draft in members:
                draft.owned = None
            _delimit(flow, members, found)
    drafts = [[] if _overlap(members, found) else members for members in drafts]
    _claim(flow, [draft for members in drafts for draft in members])
    for members in drafts:
        _even_out(flow, members)
    return drafts


def _delimit(flow: Flow, members: Sequence[Draft], found: Found) -> None:
    """Find the streams and the nodes of the blocks of one group."""
    entering = [_entering(flow, draft, found) for draft in members]
    times = Counter(node for nodes in entering for node in nodes)
    for draft, nodes in zip(members, entering, strict=True):
        # What enters several blocks and carries no stream is added to it: positions, say.
        streams = [n for n in nodes if times[n] == 1 or stream_sources(n, found)]
        _fill(flow, draft, streams or nodes)


def _overlap(members: Sequence[Draft], found: Found) -> bool:
    """Whether a block reaches over another's additions."""
    return any(
        found[node] not in draft.residuals
        for draft in members
        for node in draft.nodes
        if node in found
    )


def _entering(flow: Flow, draft: Draft, found: Found) -> list[fx.Node]:
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


def _fill(flow: Flow, draft: Draft, streams: Sequence[fx.Node]) -> None:
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
        if any(user in nodes or user in enclosed for user in flow.users(node)):
            enclosed.add(node)
    return enclosed


def _claim(flow: Flow, drafts: Sequence[Draft]) -> None:
    """Give each block the work that is done for it alone, such as its modulation."""
    taken = {node for draft in drafts for node in (*draft.nodes, *draft.streams_in)}
    for draft in drafts:
        todo = list(draft.nodes)
        while todo:
            for arg in todo.pop().all_input_nodes:
                if arg.op != "call_function" or arg in taken or arg in draft.claimed:
                    continue
                ours = draft.owned is None or arg in draft.owned
                if ours and all(u in draft.nodes or u in draft.claimed for u in flow.users(arg)):
                    draft.claimed.add(arg)
                    todo.append(arg)
        if draft.owned is None:
            draft.claimed -= _picked(draft.claimed)
        taken |= draft.claimed


def _even_out(flow: Flow, members: Sequence[Draft]) -> None:
    """Leave out what was claimed for some blocks and not for others that are equal without it.

    One block's embedding of the timestep, say, may serve the model's last layer too.
    """
    if not any(draft.claimed for draft in members):
        return
    equal: dict[Form, list[tuple[Draft, list[fx.Node]]]] = {}
    for draft in members:
        inside = sorted(draft.nodes)
        roots = [node for node in inside if not draft.nodes.issuperset(flow.users(node))]
        form, order = canonical_form(flow, draft.nodes, roots)
        outside = [node for node in order if node not in draft.nodes]
        equal.setdefault(form, []).append((draft, outside))
    for group in equal.values():
        claims = [draft.claimed for draft, _ in group]
        kept = _same_in_all(claims, zip(*(outside for _, outside in group), strict=True))
        for draft, _ in group:
            for node in sorted(draft.claimed, reverse=True):
                if node in kept and draft.nodes.issuperset(flow.users(node)):
                    draft.nodes.add(node)


def _same_in_all(claims: Sequence[set[fx.Node]], rows: Iterable[Row]) -> set[fx.Node]:
    """Follow nodes that take the same place in each block for as long as all blocks claim them."""
    todo, seen = list(rows), set[Row]()
    while todo:
        row = todo.pop()
        claimed = all(node in claim for node, claim in zip(row, claims, strict=True))
        if row not in seen and claimed and alike(row):
            seen.add(row)
            todo += zip(*(node.all_input_nodes for node in row), strict=True)
    return {node for row in seen for node in row}


def _picked(nodes: set[fx.Node]) -> set[fx.Node]:
    """The nodes of a set that only pick their part of a value made for several blocks."""
    picked: set[fx.Node] = set()
    for node in sorted(nodes):
        if is_move(node) and not any(arg in nodes - picked for arg in node.all_input_nodes):
            picked.add(node)
    return picked
