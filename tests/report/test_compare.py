"""Differences between runs."""

from __future__ import annotations

from dit_compile.report.compare import compare_stages, run_diff
from tests.report.entries import real


def test_a_run_does_not_differ_from_itself() -> None:
    assert run_diff(real(), real()) == "(no change)"


def test_runs_of_different_pipelines() -> None:
    text = run_diff(real("eliminate-dead"), real("fuse-adaln"))
    assert text.splitlines() == [
        "-  eliminate-dead",
        "+  fuse-adaln",
        "@full @ blocks.0.norm (x3 identical, shown once)",
        "-  %layer_norm = aten.layer_norm(%x, [8], None, None, 1e-05, False) : f32[2,4,8]",
        "@full @ blocks.0 (x3 identical, shown once)",
        "-  %add = aten.add(%getitem, 1) : f32[2,1,8]",
        "-  %mul = aten.mul(%layer_norm, %add) : f32[2,4,8]",
        "-  %add_1 = aten.add(%mul, %getitem_1) : f32[2,4,8]",
        "+  %adaln_norm = ditc.adaln_norm(%x, %getitem, %getitem_1, 1e-05) : f32[2,4,8]",
    ]


def test_a_graph_that_only_one_run_has() -> None:
    first, second = real("exact"), real("exact,insert-block-cache{interval=2}")
    found = compare_stages(first, first.stages[-1], second, second.stages[-1])
    assert list(found) == ["reuse"]
    assert not found["reuse"].removed
    assert {node.role for node in found["reuse"].added} >= {"state", ""}
    assert "@reuse" in run_diff(first, second)
