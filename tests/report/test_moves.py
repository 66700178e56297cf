"""Identity across stages: the mapping is total and symmetric, and names do not count."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.build import build_report
from dit_compile.report.compare import compare_stages
from dit_compile.report.model import Node, Report
from dit_compile.report.moves import Mapping, ancestry
from dit_compile.report.record import Recorder
from tests.ir.models import Transformer, capture, noise, seeded, transformer
from tests.passes.irtest import capture as captured
from tests.passes.irtest import randn, weights
from tests.passes.test_properties import D, Model, programs

QUICK: dict[str, Any] = {
    "deadline": None,
    "derandomize": True,
    "max_examples": 12,
    "phases": [Phase.generate],
    "suppress_health_check": [HealthCheck.too_slow],
}


def recorded(program: Program, passes: str = "fast") -> Report:
    recorder = Recorder()
    run = Pipeline.parse(passes).run(program, instruments=[recorder])
    return build_report("M", program, run, recorder)


def renamed(report: Report) -> Report:
    """The same run with every operator called something else, names of others included."""
    names = [node.name for node in report.nodes if node.op != "input"]
    turned = iter(names[1:] + names[:1])
    nodes = [
        node if node.op == "input" else dataclasses.replace(node, name=next(turned))
        for node in report.nodes
    ]
    return dataclasses.replace(report, nodes=nodes)


def assert_mapping(report: Report) -> None:
    for position, _ in enumerate(report.passes):
        mapping = Mapping(report, position)
        for old in mapping.before:
            assert all(old in mapping.backward(new) for new in mapping.forward(old))
        for new in mapping.after:
            assert all(new in mapping.forward(old) for old in mapping.backward(new))
        for value in mapping.before & mapping.after:
            assert value in mapping.forward(value)
        moves = report.passes[position].moves
        for side, values in (("before", mapping.before), ("after", mapping.after)):
            kept = mapping.before & mapping.after
            moved = [value for move in moves for value in getattr(move, side)]
            moved = [value for value in moved if value not in kept]
            assert len(moved) == len(set(moved))
            assert set(moved) | kept == values


@given(steps=programs)
@settings(**QUICK)
def test_random_programs(steps: list[tuple[str, int, int]]) -> None:
    program = captured(weights(Model(steps)), randn(2, D), randn(2, D, seed=1))
    report = recorded(program, "exact")
    assert_mapping(report)
    other = renamed(report)
    for stage in report.stages:
        assert compare_stages(report, stage, report, stage) == {}
        assert compare_stages(report, stage, other, stage) == {}


def test_all_passes() -> None:
    assert_mapping(recorded(transformer()))


def node(report: Report, stage: int, name: str, graph: str = "full") -> Node:
    (found,) = [g for g in report.stages[stage].graphs if g.name == graph]
    return next(node for node in report.nodes_of(found) if node.name == name)


def test_a_kept_node_keeps_its_identity_under_another_name() -> None:
    program = transformer()

    class Renaming(Recorder):
        def after(self, record: Any, program: Program) -> None:
            for found in program.main.nodes:
                if found.name == "layer_norm_2":
                    found._rename("other")
            super().after(record, program)

    recorder = Renaming()
    run = Pipeline.parse("fuse-qkv").run(program, instruments=[recorder])
    report = build_report("M", program, run, recorder)
    assert node(report, 0, "layer_norm_2").id == node(report, 1, "other").id
    assert_mapping(report)


def test_a_fused_node_stands_for_what_it_replaced() -> None:
    report = recorded(transformer(), "fuse-adaln")
    mapping = Mapping(report, 0)
    fused = node(report, 1, "adaln_norm")
    names = {n.id: n.name for n in report.nodes}
    parts = [names[value] for value in mapping.backward(fused.id)]
    assert parts == ["layer_norm", "add", "mul", "add_1"]
    assert mapping.forward(node(report, 0, "mul").id) == [fused.id]


def test_a_copy_in_another_graph_stands_for_its_original() -> None:
    report = recorded(transformer(), "insert-block-cache{interval=2}")
    original = node(report, 0, "add_2")
    copy = node(report, 1, "add_2", "reuse")
    mapping = Mapping(report, 0)
    assert copy.copy_of == original.id != copy.id
    assert mapping.forward(original.id) == [original.id, copy.id]
    assert mapping.backward(copy.id) == [original.id]
    entered = next(n for n in report.nodes_of(report.stages[1].graphs[1]) if n.role == "state")
    assert mapping.backward(entered.id) == []


def test_ancestry_leads_back_to_the_capture() -> None:
    program = capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8))
    report = recorded(program, "fuse-qkv,fuse-adaln,insert-block-cache{interval=2}")
    last = len(report.stages) - 1
    fused = node(report, last, "adaln_norm")
    chain = ancestry(report, fused.id, last)
    assert [stage for stage, _ in chain] == [3, 2, 1, 0]
    assert chain[0][1] == chain[1][1] == [fused.id]
    assert len(chain[2][1]) == len(chain[3][1]) == 4


@pytest.mark.parametrize("passes", ["eliminate-common", "remove-noops"])
def test_what_is_merged_stands_for_both(passes: str) -> None:
    def forward(x: Any) -> Any:
        return (x * 1).exp() + (x + 0).exp()

    from tests.ir.models import program_of

    report = recorded(program_of(forward, noise(2)), "remove-noops,eliminate-common")
    assert_mapping(report)
    kept = node(report, -1, "exp")
    assert len(dict(ancestry(report, kept.id, len(report.stages) - 1))[0]) == 2
