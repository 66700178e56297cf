"""A report's stages as textual IR, the same that :mod:`dit_compile.ir.printer` prints."""

from __future__ import annotations

from collections.abc import Iterable

from dit_compile.report.model import Argument, Graph, Node, Report, Stage
from dit_compile.shown import shown


class Names:
    """What the values of a stage are called: ``%linear_3``, or ``@path`` for weights."""

    def __init__(self, nodes: Iterable[Node]) -> None:
        self._names: dict[str, str] = {}
        for node in nodes:
            self._names[f"%{node.id}"] = f"@{node.path}" if node.hidden else f"%{node.name}"
            for result in node.results or ():
                if result is not None:
                    self._names[f"%{result.id}"] = f"%{result.name}"

    def of(self, argument: Argument) -> str:
        """The text of an argument."""
        if isinstance(argument, list):
            return "[" + ", ".join(map(self.of, argument)) + "]"
        return self._names.get(argument, argument)

    def line(self, node: Node) -> str:
        """One node as ``%y = aten.linear(%x, @w, @b) : bf16[2,256,1152]``."""
        shown = [self.of(arg) for arg in node.args]
        shown += [f"{key}={self.of(arg)}" for key, arg in node.kwargs.items()]
        left = f"%{node.name}"
        if node.results is not None:
            left = ", ".join(f"%{result.name}" if result else "_" for result in node.results)
        return f"{left} = {node.op}({', '.join(shown)}) : {node.type}"


def stage_text(report: Report, stage: Stage) -> str:
    """All graphs of a stage."""
    return "\n\n".join(graph_text(report, graph) for graph in stage.graphs)


def graph_text(report: Report, graph: Graph) -> str:
    """One graph: a line a node, with the module that it comes from."""
    nodes = report.nodes_of(graph)
    names = Names(nodes)
    types = {f"%{node.id}": node.type for node in nodes}
    types |= {f"%{r.id}": r.type for node in nodes for r in node.results or () if r}
    inputs = ", ".join(
        f"%{node.name}: {node.type} {node.role}"
        for node in nodes
        if node.op == "input" and not node.hidden
    )
    results = ", ".join(
        types.get(item.value, item.value) if isinstance(item.value, str) else names.of(item.value)
        for item in graph.returns
    )
    body = [(names.line(node), node.path) for node in nodes if node.op != "input"]
    width = min(max((len(line) for line, _ in body), default=0), 96)
    lines = [f"ditc.graph @{graph.name} ({inputs}) -> ({results}) {{"]
    lines += [f"  {line:<{width}}  {f'# {path}' if path else ''}".rstrip() for line, path in body]
    lines.append("  return " + ", ".join(names.of(item.value) for item in graph.returns))
    return "\n".join(map(shown, [*lines, "}"]))
