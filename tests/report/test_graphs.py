"""Stages for other tools."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import networkx as nx
import pytest

from dit_compile.errors import OptionError, ReportError
from dit_compile.report.graphs import to_dot, to_graphml, to_model_explorer, write_graph
from tests.report.entries import real


def test_graphml_is_read_back() -> None:
    report = real()
    stage = report.stages[-1]
    found = nx.read_graphml(io.BytesIO(to_graphml(report, stage).encode()), force_multigraph=True)
    assert found.number_of_nodes() == sum(len(graph.nodes) for graph in stage.graphs)
    (fused, *_) = [n for n, data in found.nodes(data=True) if data["op"] == "ditc.adaln_norm"]
    assert found.in_degree(fused) == 3
    assert found.nodes[fused]["path"] == "blocks.0"
    assert nx.is_directed_acyclic_graph(found)


def test_dot() -> None:
    report = real()
    text = to_dot(report, report.stages[0])
    assert text.startswith("digraph ditc {")
    assert text.count("{") == text.count("}")
    assert 'label="@full"' in text
    assert '[label="aten.layer_norm\\n%layer_norm\\nf32[2,4,8]", tooltip="blocks.0.norm"]' in text
    hostile = dataclasses.replace(report.nodes[-1], path='a"];\n\\ b', op='x"y')
    other = dataclasses.replace(report, nodes=[*report.nodes[:-1], hostile])
    last = [line for line in to_dot(other, other.stages[-1]).splitlines() if 'x\\"y' in line]
    assert last[0].endswith('tooltip="a\\"];\\n\\\\ b"];')


def test_model_explorer() -> None:
    report = real()
    (graph,) = json.loads(to_model_explorer(report, report.stages[0]))["graphs"]
    nodes = {node["id"]: node for node in graph["nodes"]}
    for node in nodes.values():
        assert all(edge["sourceNodeId"] in nodes for edge in node["incomingEdges"])
    (split, *_) = [node for node in nodes.values() if node["label"] == "aten.split"]
    outputs = {
        edge["sourceNodeOutputId"]
        for node in nodes.values()
        for edge in node["incomingEdges"]
        if edge["sourceNodeId"] == split["id"]
    }
    assert outputs == {"0", "1"}
    assert split["namespace"] == "blocks/0"


def test_files(tmp_path: Path) -> None:
    for name in ("a.dot", "a.graphml", "a.explorer.json"):
        write_graph(real(), str(tmp_path / name))
        assert (tmp_path / name).stat().st_size > 1000
    with pytest.raises(OptionError, match=r"must end in \.dot, \.graphml, \.explorer\.json"):
        write_graph(real(), "a.png")
    with pytest.raises(ReportError, match="cannot write"):
        write_graph(real(), str(tmp_path / "no" / "a.dot"))
