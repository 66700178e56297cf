"""The pass table."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from dit_compile.report.model import Miss, Report
from dit_compile.report.table import (
    cost_cell,
    error_cell,
    flops,
    header,
    nodes_cell,
    notes_cell,
    pass_table,
)
from dit_compile.report.terminal import JobProgress, terminal
from tests.report import entries
from tests.report.entries import entry, real, stage


@pytest.fixture(scope="module")
def report() -> Report:
    return real("eliminate-dead,fuse-adaln,insert-block-cache{interval=2}", affine=(1, 2))


def shown(report: Report) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=200).print(pass_table(report))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_a_row_a_pass(report: Report) -> None:
    head, dead, fused, cached = shown(report)
    assert head.split() == ["#", "pass", "kind", "nodes", "hit/miss", "cost", "error", "notes"]
    assert dead.split() == [
        *("0", "eliminate-dead", "exact", "36", "=", "36", "0/0", "-", "-", "(no", "change)")
    ]
    assert fused.startswith("1  fuse-adaln")
    assert "36 -> 33" in fused
    assert "1/2" in fused
    assert "x noise" in fused
    assert "2 near misses: the layer norm has an affine weight (blocks.1.norm)" in fused
    assert "APPROX" in cached
    assert "by schedule" in cached
    assert "2 variants" in cached


def test_header(report: Report) -> None:
    parts = header(report).split("   ")
    assert parts[0] == "Transformer"
    assert parts[1].startswith("torch 2.")
    assert parts[2] == "36 -> 33 nodes"
    assert parts[3].count("KFLOP") == 2
    assert parts[4].endswith(" s)")


def test_shapes_are_no_markup() -> None:
    """Text in brackets is neither dropped nor taken for a style."""
    other = entries.report(entry(notes=["kept f32[s0,4] and [red]"]))
    assert "kept f32[s0,4] and [red]" in shown(other)[1]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0 FLOP"),
        (999, "999 FLOP"),
        (-12_300, "-12.3 KFLOP"),
        (2.5e6, "2.5 MFLOP"),
        (118.6e9, "118.6 GFLOP"),
        (3e12, "3.0 TFLOP"),
        (4e15, "4000.0 TFLOP"),
    ],
)
def test_flops(value: float, text: str) -> None:
    assert flops(value) == text


def test_signed_flops() -> None:
    assert flops(2e9, signed=True) == "+2.0 GFLOP"
    assert flops(-2e9, signed=True) == "-2.0 GFLOP"


def priced(before: tuple[float, float], after: tuple[float, float]) -> Report:
    return entries.report(entry(changed=True, stage=1), stages=[stage(*before), stage(*after)])


@pytest.mark.parametrize(
    ("before", "after", "text"),
    [
        ((1e9, 1e9), (5e8, 1e9), "-500.0 MFLOP"),
        ((1e9, 1e9), (1e9, 9e8), "-100.0 MB moved"),
        ((1e9, 1e9), (1e9, 1.1e9), "+100.0 MB moved"),
        ((1e9, 1e9), (1e9 - 1e6, 1e9), "-"),  # a thousandth of the operations is no news
        ((0, 1e6), (0, 1e6), "-"),
        ((0, 1e6), (2e6, 1e6), "+2.0 MFLOP"),
    ],
)
def test_cost(before: tuple[float, float], after: tuple[float, float], text: str) -> None:
    assert cost_cell(priced(before, after), 0) == text


def test_cells_of_a_pass_that_did_nothing() -> None:
    idle = entry(nodes_before=7, nodes_after=7)
    cells = [cell(entries.report(idle), 0) for cell in (error_cell, cost_cell)]
    assert [nodes_cell(idle), notes_cell(idle), *cells] == ["7 = 7", "(no change)", "-", "-"]


def test_error() -> None:
    def shown(**options: Any) -> str:
        return error_cell(entries.report(entry(**options)), 0)

    assert shown(error_growth=1.04) == "1.0x noise"
    assert shown(kind="APPROX", changed=True) == "by schedule"
    assert shown(kind="APPROX") == "-"


def test_notes() -> None:
    misses = [Miss("full", "", "n", "too small")] + [
        Miss("full", f"blocks.{i}", "n", reason) for reason in "abc" for i in range(2)
    ]
    assert notes_cell(entry(notes=["2 sites"], misses=misses)) == (
        "2 sites; 2 near misses: a (blocks.0); 2 near misses: b (blocks.0); "
        "2 near misses: c (blocks.0)"
    )
    assert notes_cell(entry(misses=misses[:1])) == "1 near miss: too small (top level)"
    assert notes_cell(entry(skipped="autograd records")) == "skipped: autograd records"
    failed = entry(failure="pass x (#0): boom\n  pipeline so far: x")
    assert notes_cell(failed) == "FAILED: pass x (#0): boom"


def test_a_console_that_is_no_terminal_is_wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "40")
    assert terminal().width == 160
    assert terminal(stderr=True).stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    assert terminal().width == 40


def test_a_long_job_says_how_far_it_is_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with JobProgress() as progress:
        bar = progress.add_task("tuning", total=3)
        progress.advance(bar)
        progress.advance(bar)
        assert capsys.readouterr().err.splitlines() == ["tuning 1/3", "tuning 2/3"]
