"""The difference of any two graphs, of one run or of two, by what nodes are and never by name."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dit_compile.report.diff import diff_lines
from dit_compile.report.model import Argument, Graph, Node, Report, Rewrite, Stage
from dit_compile.report.text import Names
from dit_compile.shown import shown


@dataclass(frozen=True)
class GraphDiff:
    """How one graph differs from another.

    Attributes:
        removed: nodes of the first that the second does not have.
        added: nodes of the second that the first does not have.
        changed: pairs of nodes that correspond but read other values or yield another type.
    """

    removed: list[Node]
    added: list[Node]
    changed: list[tuple[Node, Node]]

    def __bool__(self) -> bool:
        return bool(self.removed or self.added or self.changed)


def compare_graphs(before: Sequence[Node], after: Sequence[Node]) -> GraphDiff:
    """Match the nodes of two graphs and say what is left over.

    Nodes that compute equal expressions of equal inputs are the same. Of the rest, those with the
    same operator, module and type correspond, in order; they changed only if what they read neither
    corresponds nor took the other's place.
    """
    pairs = _equal(before, after)
    equal = len(pairs)
    old, new = _left(before, pairs, 0), _left(after, pairs, 1)
    pairs += _corresponding(old, new, _correspondence(pairs))
    removed, added = _left(old, pairs, 0), _left(new, pairs, 1)
    became = _correspondence(pairs) | _replacements(pairs[equal:], removed, added)
    return GraphDiff(
        [node for node in removed if not node.hidden],
        [node for node in added if not node.hidden],
        [pair for pair in pairs[equal:] if not _alike(*pair, became)],
    )


def compare_stages(
    first: Report, before: Stage, second: Report, after: Stage
) -> dict[str, GraphDiff]:
    """The difference of each graph that either stage has, by name, in order."""
    graphs = [{graph.name: graph for graph in stage.graphs} for stage in (before, after)]
    found = {}
    for name in dict.fromkeys((*graphs[0], *graphs[1])):
        old, new = _nodes(first, graphs[0].get(name)), _nodes(second, graphs[1].get(name))
        diff = compare_graphs(old, new)
        if diff:
            found[name] = diff
    return found


def run_diff(first: Report, second: Report) -> str:
    """How the outcome of one run differs from that of another, as text."""
    before, after = first.stages[-1], second.stages[-1]
    lines = []
    if first.pipeline != second.pipeline:
        lines += [shown(f"-  {first.pipeline}"), shown(f"+  {second.pipeline}")]
    for name, diff in compare_stages(first, before, second, after).items():
        old, new = (
            Names(_nodes(report, next((g for g in stage.graphs if g.name == name), None)))
            for report, stage in ((first, before), (second, after))
        )
        lines += diff_lines(f"@{name}", _by_module(name, diff, old, new))
    return "\n".join(lines) or "(no change)"


def _by_module(graph: str, diff: GraphDiff, old: Names, new: Names) -> list[Rewrite]:
    """The lines of a difference, one group for each module."""
    removed: dict[str, list[str]] = defaultdict(list)
    added: dict[str, list[str]] = defaultdict(list)
    for node in (*diff.removed, *(pair[0] for pair in diff.changed)):
        removed[node.path].append(old.line(node))
    for node in (*diff.added, *(pair[1] for pair in diff.changed)):
        added[node.path].append(new.line(node))
    paths = dict.fromkeys((*removed, *added))
    return [Rewrite(graph, path, removed[path], added[path]) for path in paths]


def _nodes(report: Report, graph: Graph | None) -> list[Node]:
    return report.nodes_of(graph) if graph else []


def _equal(before: Sequence[Node], after: Sequence[Node]) -> list[tuple[Node, Node]]:
    """Nodes that compute equal expressions, the first with the first."""
    old, new = _expressions(before), _expressions(after)
    waiting: dict[bytes, list[Node]] = defaultdict(list)
    for node in reversed(after):
        waiting[new[id(node)]].append(node)
    return [(node, waiting[key].pop()) for node in before if waiting[key := old[id(node)]]]


def _corresponding(
    before: Sequence[Node], after: Sequence[Node], became: dict[str, str]
) -> list[tuple[Node, Node]]:
    """Nodes of the same operator, module and type.

    Where one graph has more of them, those correspond that read corresponding values.
    """
    waiting: dict[Hashable, list[Node]] = defaultdict(list)
    for node in before:
        waiting[_signature(node)].append(node)
    counts = Counter(map(_signature, after))
    uneven = {key for key, nodes in waiting.items() if len(nodes) != counts[key]}
    pairs = []
    for node in after:
        key = _signature(node)
        if not waiting[key]:
            continue
        reads = set(_flat(node))
        shared = [
            len(reads.intersection(became.get(arg, "") for arg in _flat(old)))
            for old in waiting[key]
        ]
        best = shared.index(max(shared)) if key in uneven else 0
        if key in uneven and not shared[best]:
            continue
        pairs.append((waiting[key].pop(best), node))
        became.update(_correspondence(pairs[-1:]))
    return pairs


def _replacements(
    pairs: Sequence[tuple[Node, Node]], removed: Sequence[Node], added: Sequence[Node]
) -> dict[str, str]:
    """What took the place of a removed value: the added one that a corresponding node reads."""
    old = {f"%{node.id}": node for node in removed}
    new = {f"%{node.id}": node for node in added}
    return {
        left: right
        for pair in pairs
        for left, right in zip(*map(_flat, pair), strict=False)
        if left in old and right in new and old[left].type == new[right].type
    }


def _left(nodes: Sequence[Node], pairs: Sequence[tuple[Node, Node]], side: int) -> list[Node]:
    """The nodes that are in no pair."""
    paired = {id(pair[side]) for pair in pairs}
    return [node for node in nodes if id(node) not in paired]


def _flat(item: Node) -> Iterator[str]:
    """The values that a node reads, and the constants among its arguments."""
    pending: list[Argument] = [*item.args, *item.kwargs.values()]
    while pending:
        argument = pending.pop()
        if isinstance(argument, list):
            pending.extend(argument)
        else:
            yield argument


def _expressions(nodes: Sequence[Node]) -> dict[int, bytes]:
    """For each node, by its address, a hash of the expression that it computes from the inputs."""
    values: dict[str, bytes] = {}
    found: dict[int, bytes] = {}

    def text(argument: Argument) -> str:
        if isinstance(argument, list):
            return "[" + ",".join(map(text, argument)) + "]"
        known = values.get(argument)
        return known.hex() if known else repr(argument)

    for node in nodes:
        inputs = [text(arg) for arg in node.args]
        inputs += [f"{key}={text(arg)}" for key, arg in sorted(node.kwargs.items())]
        parts = (node.op, node.overload, node.role, node.type, _named(node), *inputs)
        digest = hashlib.sha256("\0".join(parts).encode()).digest()
        found[id(node)] = values[f"%{node.id}"] = digest
        for position, result in enumerate(node.results or ()):
            if result is not None:
                values[f"%{result.id}"] = hashlib.sha256(digest + b"%d" % position).digest()
    return found


def _named(node: Node) -> str:
    """An input is known by its path; what operators are called does not count."""
    return node.path if node.op == "input" else ""


def _signature(node: Node) -> Hashable:
    return node.op, node.overload, node.role, node.path, node.type


def _correspondence(pairs: Iterable[tuple[Node, Node]]) -> dict[str, str]:
    became = {}
    for old, new in pairs:
        became[f"%{old.id}"] = f"%{new.id}"
        for left, right in zip(old.results or (), new.results or (), strict=False):
            if left and right:
                became[f"%{left.id}"] = f"%{right.id}"
    return became


def _alike(old: Node, new: Node, became: dict[str, str]) -> bool:
    """Whether two nodes read the same, with the values of one named as those of the other."""

    def renamed(argument: Argument) -> Argument:
        if isinstance(argument, list):
            return [renamed(item) for item in argument]
        return became.get(argument, argument)

    if old.type != new.type:
        return False
    kwargs = {key: renamed(arg) for key, arg in old.kwargs.items()}
    return renamed(old.args) == new.args and kwargs == new.kwargs
