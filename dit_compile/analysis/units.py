"""Which residual additions make up one block: by module path, and by dataflow where paths fail."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from torch import fx

from dit_compile.analysis.branches import Found, Residual, stream_sources
from dit_compile.analysis.flow import Flow
from dit_compile.ir.origin import merge_origins, origin_of

Kinds = dict[Residual, str]


@dataclass
class Group:
    """The members of one stack to be.

    Attributes:
        path: the numbered list's path.
        members: path and residual additions of each member, in order.
        named: whether the paths are module paths of the graph's nodes.
    """

    path: str
    members: list[tuple[str, list[Residual]]]
    named: bool


def levels(path: str) -> list[tuple[str, int]]:
    """The numbered components of a path, outermost first: ``a.1.b.0`` gives (a, 1), (a.1.b, 0)."""
    parts = path.split(".")
    return [(".".join(parts[:i]), int(part)) for i, part in enumerate(parts) if part.isdecimal()]


def mixes(kind: str) -> bool:
    """Whether a branch of this kind holds an attention."""
    return kind not in {"mlp", "other"}


def group_by_path(
    flow: Flow, residuals: Sequence[Residual], kinds: Kinds
) -> tuple[list[Group], list[Residual]]:
    """Group additions by the numbered list that their module is in; return the rest beside."""
    listed = [residual for residual in residuals if levels(origin_of(residual.add).path)]
    loose = [residual for residual in residuals if not levels(origin_of(residual.add).path)]
    return [_by_calls(flow, group) for group in _lists(listed, kinds, 0)], loose


def _by_calls(flow: Flow, group: Group) -> Group:
    """Tell the calls of a module that runs several times apart, as ``layers.0@1``."""
    calls = {path: _calls(flow, residuals) for path, residuals in group.members}
    if all(len(member) == 1 for member in calls.values()):
        return group
    members = [
        (f"{path}@{number}" if number else path, residuals)
        for path, member in calls.items()
        for number, residuals in enumerate(member)
    ]
    members.sort(key=lambda member: flow.at[member[1][0].add])
    return Group(group.path, members, named=False)


def _calls(flow: Flow, residuals: Sequence[Residual]) -> list[list[Residual]]:
    """Cut a module's additions where one depends on another that used the same weights."""
    calls: list[list[Residual]] = [[]]
    weights: dict[Residual, set[fx.Node]] = {}
    for residual in residuals:
        weights[residual] = {
            arg
            for node in flow.members(residual.span & flow.heavy)
            for arg in node.all_input_nodes
            if arg.op == "placeholder" and not flow.varies(arg)
        }
        if any(
            weights[residual] & weights[before] and flow.depends(residual.base, before.add)
            for before in calls[-1]
        ):
            calls.append([])
        calls[-1].append(residual)
    return calls


def _lists(residuals: Sequence[Residual], kinds: Kinds, depth: int) -> list[Group]:
    lists: dict[str, dict[int, list[Residual]]] = {}
    for residual in residuals:
        prefix, index = levels(origin_of(residual.add).path)[depth]
        lists.setdefault(prefix, {}).setdefault(index, []).append(residual)
    groups: list[Group] = []
    for prefix, members in lists.items():
        own = [residual for member in members.values() for residual in member]
        inner = _lists(own, kinds, depth + 1) if all(_deeper(r, depth) for r in own) else []
        if _are_stacks(inner, kinds, single=len(members) == 1):
            groups += inner
            continue
        joined = [
            (f"{prefix}.{index}" if prefix else str(index), members[index])
            for index in sorted(members)
        ]
        groups.append(Group(prefix, joined, named=True))
    return groups


def _deeper(residual: Residual, depth: int) -> bool:
    return len(levels(origin_of(residual.add).path)) > depth + 1


def _are_stacks(inner: Sequence[Group], kinds: Kinds, *, single: bool) -> bool:
    """Whether lists inside a list hold the blocks themselves: each of their members mixes tokens.

    A block may keep its attention and its MLP in a list; the members of that list are no blocks.
    """
    if not inner or not (single or any(len(group.members) > 1 for group in inner)):
        return False
    return all(
        any(mixes(kinds[residual]) for residual in member)
        for group in inner
        for _, member in group.members
    )


def group_by_flow(
    flow: Flow,
    loose: Sequence[Residual],
    residuals: Sequence[Residual],
    kinds: Kinds,
    known: Sequence[Group],
) -> list[Group]:
    """Group additions that no path places: cut the streams after each MLP.

    Args:
        flow: the graph.
        loose: the additions to group.
        residuals: all residual additions of the graph.
        kinds: each addition's kind.
        known: the groups found by path; without any, a block may stand alone.
    """
    found = {residual.add: residual for residual in residuals}
    units = _units(loose, found, kinds)
    units = _coupled(flow, units)
    units = _halves(units, found, kinds)
    chains = _chains(units, found)
    stacks: dict[tuple[int, frozenset[str]], list[list[Residual]]] = {}
    mixing = any(mixes(kinds[residual]) for residual in residuals)
    for number, chain in enumerate(chains):
        for unit in chain:
            sort = frozenset(kinds[residual] for residual in unit)
            if any(map(mixes, sort)) or not mixing:
                stacks.setdefault((number, sort), []).append(unit)
    linked = {id(unit) for unit in _linked(units, found)}
    groups: list[Group] = []
    for members in stacks.values():
        if len(members) > 1 or not known or id(members[0]) in linked:
            group = _named_after_modules(flow, members)
            taken = {other.path for other in (*known, *groups)}
            groups.append(group if group and group.path not in taken else _numbered(members, taken))
    return groups


def _named_after_modules(flow: Flow, members: list[list[Residual]]) -> Group | None:
    """A group under its modules' paths, if each member's branches come from one numbered module."""
    homes: dict[str, tuple[int, list[Residual]]] = {}
    prefixes = set()
    for member in members:
        heavy = [list(flow.members(r.span & flow.heavy))[-1] for r in member]
        common = merge_origins(heavy).path
        if not levels(common):
            return None
        prefix, index = levels(common)[-1]
        prefixes.add(prefix)
        homes[f"{prefix}.{index}" if prefix else str(index)] = index, member
    if len(prefixes) > 1 or len(homes) < len(members):
        return None
    ordered = sorted(homes.items(), key=lambda item: item[1][0])
    return Group(prefixes.pop(), [(path, member) for path, (_, member) in ordered], named=True)


def _numbered(members: list[list[Residual]], taken: Collection[str]) -> Group:
    """A group under paths of its own: ``blocks``, ``blocks2``, and so on."""
    path, number = "blocks", 1
    while path in taken:
        number += 1
        path = f"blocks{number}"
    return Group(path, [(f"{path}.{i}", member) for i, member in enumerate(members)], named=False)


def _ends(loose: Sequence[Residual], kinds: Kinds) -> set[Residual]:
    """The additions that end a block: MLPs; without any, the last of each period of kinds."""
    ends = {residual for residual in loose if "mlp" in kinds[residual]}
    if ends or not loose:
        return ends
    order = [kinds[residual] for residual in loose]
    period = next(p for p in range(1, len(order) + 1) if order[p:] == order[:-p])
    return set(loose[period - 1 :: period])


def _units(loose: Sequence[Residual], found: Found, kinds: Kinds) -> list[list[Residual]]:
    """Runs of additions along one stream, each up to one that ends a block."""
    ends = _ends(loose, kinds)
    unit_of: dict[Residual, list[Residual]] = {}
    for residual in loose:
        before = [r for r in stream_sources(residual.stream, found) if r in unit_of]
        going_on = [
            unit_of[r]
            for r in before
            if not any(end in ends for end in unit_of[r]) or r.base is residual.base
        ]
        unit = going_on[0] if going_on else []
        for other in going_on[1:]:
            if other is not unit:
                unit += other
                unit_of.update(dict.fromkeys(other, unit))
        unit.append(residual)
        unit_of[residual] = unit
    return _unique(unit_of.values())


def _unique(units: Iterable[list[Residual]]) -> list[list[Residual]]:
    return list({id(unit): unit for unit in units}.values())


def _coupled(flow: Flow, units: list[list[Residual]]) -> list[list[Residual]]:
    """Join the streams' parts of one block: they share an attention, or each needs the other."""
    adds = [flow.bits(residual.add for residual in unit) for unit in units]
    needs, cores = [], []
    every = flow.bits(flow.cores)
    for unit in units:
        need = core = 0
        for residual in unit:
            need |= flow.before[flow.at[residual.add]]
            core |= residual.own & every
        needs.append(need)
        cores.append(core)
    owner = list(range(len(units)))
    for i in range(len(units)):
        for j in range(i):
            if cores[i] & cores[j] or (needs[i] & adds[j] and needs[j] & adds[i]):
                old, new = owner[i], owner[j]
                owner = [new if number == old else number for number in owner]
    joined: dict[int, list[Residual]] = {}
    for number, unit in zip(owner, units, strict=True):
        joined.setdefault(number, []).extend(unit)
    return [sorted(unit, key=lambda r: flow.at[r.add]) for unit in joined.values()]


def _before(unit: list[Residual], found: Found) -> set[Residual]:
    """The additions outside ``unit`` whose values its streams carry."""
    sources = [source for r in unit for source in stream_sources(r.stream, found)]
    return set(sources) - set(unit)


def _links(units: list[list[Residual]], found: Found) -> list[list[int]]:
    """For each unit the units that its streams come from."""
    owner = {residual: i for i, unit in enumerate(units) for residual in unit}
    return [sorted({owner[r] for r in _before(unit, found) if r in owner}) for unit in units]


def _halves(units: list[list[Residual]], found: Found, kinds: Kinds) -> list[list[Residual]]:
    """Give each block that has an MLP before its attention that MLP back."""
    plain = [not any(mixes(kinds[residual]) for residual in unit) for unit in units]
    links = _links(units, found)
    ahead = [i for i, before in enumerate(links) if any(plain[k] for k in before)]
    if not any(plain) or any(plain[i] for i in ahead) or len(ahead) != plain.count(False):
        return units
    joined = []
    for i, unit in enumerate(units):
        if not plain[i]:
            joined.append([r for k in links[i] if plain[k] for r in units[k]] + unit)
    return joined


def _chains(units: list[list[Residual]], found: Found) -> list[list[list[Residual]]]:
    """Units that follow each other one by one; skips over some of them change nothing."""
    chain_of: list[list[int]] = []
    chains: list[list[int]] = []
    for i, before in enumerate(_links(units, found)):
        chain = chain_of[before[-1]] if before else []
        if not before or chain[-1] not in before or not set(before) <= set(chain):
            chains.append(chain := [])
        chain.append(i)
        chain_of.append(chain)
    return [[units[i] for i in chain] for chain in chains]


def _linked(units: list[list[Residual]], found: Found) -> list[list[Residual]]:
    """The units whose streams come from another or go to one."""
    links = _links(units, found)
    sources = {i for before in links for i in before}
    return [unit for i, unit in enumerate(units) if links[i] or i in sources]
