"""A stage as a graph for other tools: Graphviz, GraphML, and Google's Model Explorer."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import networkx as nx

from dit_compile.errors import OptionError, ReportError
from dit_compile.files import write_atomically
from dit_compile.report.model import Graph, Node, Report, Stage
from dit_compile.report.references import read_values
from dit_compile.report.text import Names
from dit_compile.shown import shown, shown_data


def write_graph(report: Report, path: str, *, stage: int = -1) -> None:
    """Write a stage; the ending of the file says in which form.

    Raises:
        OptionError: the ending is not known.
        ReportError: the file cannot be written.
    """
    ending = next((end for end in FORMS if path.endswith(end)), None)
    if ending is None:
        raise OptionError(f"{path!r} must end in {', '.join(FORMS)}")
    try:
        write_atomically(Path(path), FORMS[ending](report, report.stages[stage]))
    except OSError as error:
        raise ReportError(f"cannot write {path!r}: {error}") from error


def to_networkx(report: Report, stage: Stage) -> nx.MultiDiGraph:
    """All graphs of a stage in one; nodes are identities, edges go from a value to its readers."""
    found = nx.MultiDiGraph(model=shown(report.model))
    for graph in stage.graphs:
        nodes = report.nodes_of(graph)
        names = Names(nodes)
        maker = {value: node.id for node in nodes for value in node.values()}
        for node in nodes:
            found.add_node(
                node.id,
                name=shown(names.of(f"%{node.id}")),
                op=shown(node.op),
                type=shown(node.type),
                path=shown(node.path),
                source=shown(node.source),
                graph=shown(graph.name),
                flops=node.flops,
                bytes=node.bytes,
            )
            for position, value in enumerate(_reads(node)):
                found.add_edge(maker[value], node.id, input=position)
    return found


def to_graphml(report: Report, stage: Stage) -> str:
    """GraphML, for yEd, Gephi and networkx."""
    out = io.BytesIO()
    nx.write_graphml(to_networkx(report, stage), out)
    return out.getvalue().decode()


def to_dot(report: Report, stage: Stage) -> str:
    """Graphviz, with a cluster for each graph."""
    lines = ["digraph ditc {", '  node [shape=box, fontname="monospace"];']
    for number, graph in enumerate(stage.graphs):
        lines.append(f"  subgraph cluster_{number} {{ label={_quoted('@' + graph.name)};")
        nodes = report.nodes_of(graph)
        names = Names(nodes)
        maker = {value: node.id for node in nodes for value in node.values()}
        for node in nodes:
            shown = node.op if node.op != "input" else node.role
            label = f"{shown}\n{names.of(f'%{node.id}')}\n{node.type}"
            lines.append(f"    n{node.id} [label={_quoted(label)}, tooltip={_quoted(node.path)}];")
            lines += [f"    n{maker[value]} -> n{node.id};" for value in _reads(node)]
        lines.append("  }")
    return "\n".join([*lines, "}"]) + "\n"


def to_model_explorer(report: Report, stage: Stage) -> str:
    """Model Explorer's JSON: modules are its layers."""
    graphs = [
        {"id": graph.name, "nodes": list(_explorer_nodes(report, graph))} for graph in stage.graphs
    ]
    data = shown_data({"label": report.model, "graphs": graphs})
    return json.dumps(data, separators=(",", ":"))


#: What each ending of a file stands for.
FORMS: dict[str, Callable[[Report, Stage], str]] = {
    ".dot": to_dot,
    ".graphml": to_graphml,
    ".explorer.json": to_model_explorer,
}


def _explorer_nodes(report: Report, graph: Graph) -> Iterator[dict[str, object]]:
    nodes = report.nodes_of(graph)
    names = Names(nodes)
    maker = {value: (node.id, at) for node in nodes for at, value in _outputs(node)}
    for node in nodes:
        edges = [
            {
                "sourceNodeId": str(maker[value][0]),
                "sourceNodeOutputId": str(maker[value][1]),
                "targetNodeInputId": str(position),
            }
            for position, value in enumerate(_reads(node))
        ]
        facts = {"name": names.of(f"%{node.id}"), "type": node.type, "source": node.source}
        yield {
            "id": str(node.id),
            "label": node.op if node.op != "input" else f"{node.role} input",
            "namespace": node.path.replace(".", "/") if node.op != "input" else "inputs",
            "incomingEdges": edges,
            "attrs": [{"key": key, "value": value} for key, value in facts.items() if value],
        }


def _outputs(node: Node) -> Iterator[tuple[int, int]]:
    yield 0, node.id
    for position, result in enumerate(node.results or ()):
        if result is not None:
            yield position, result.id


def _reads(node: Node) -> Iterator[int]:
    """The values among a node's arguments, in order."""
    for value in read_values([*node.args, *node.kwargs.values()]):
        yield int(value[1:])


def _quoted(text: str) -> str:
    escaped = shown(text, lines=True).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
