"""Whether a report that was read holds everything that it refers to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dit_compile.json_files import JsonError
from dit_compile.report.model import Argument, Graph, Node, PassEntry, Report


def check_references(report: Report) -> None:
    """Make sure that whatever renders the report finds what it looks up.

    Raises:
        JsonError: something that the report names is not there.
    """
    if not report.stages:
        raise JsonError("the report has no stage")
    for stage in report.stages:
        for graph in stage.graphs:
            _within(f"graph {graph.name!r}: nodes", graph.nodes, report.nodes)
            _check_values(graph, report.nodes_of(graph))
    for entry in report.passes:
        _within(f"pass {entry.name!r}: stage", [entry.stage], report.stages)
        _check_moves(entry)
    if report.schedule is not None:
        for name, sites in report.schedule.reused.items():
            _within(f"schedule: sites of {name!r}", sites, report.schedule.sites)


def read_values(arguments: Sequence[Argument]) -> Iterator[str]:
    """The values among arguments, such as ``%12``, in order."""
    pending = list(arguments)
    while pending:
        argument = pending.pop(0)
        if isinstance(argument, list):
            pending = [*argument, *pending]
        elif argument.startswith("%"):
            yield argument


def _check_values(graph: Graph, nodes: Sequence[Node]) -> None:
    """Each value that a node reads, or that is returned, was made before."""
    made: set[str] = set()
    for node in nodes:
        _known(graph, [*node.args, *node.kwargs.values()], made)
        made.update(f"%{value}" for value in node.values())
    _known(graph, [item.value for item in graph.returns], made)


def _known(graph: Graph, arguments: Sequence[Argument], made: set[str]) -> None:
    for value in read_values(arguments):
        if value not in made:
            raise JsonError(f"graph {graph.name!r} reads {value!r}, which nothing made before")


def _check_moves(entry: PassEntry) -> None:
    for move in entry.moves:
        _within(f"pass {entry.name!r}: rewrites", move.rewrites, entry.rewrites)


def _within(what: str, positions: Sequence[int], items: Sequence[object]) -> None:
    for position in positions:
        if not 0 <= position < len(items):
            raise JsonError(f"{what} refers to number {position} of {len(items)}")
