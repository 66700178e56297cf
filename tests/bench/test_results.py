"""What all benches share: rows kept as JSON, their table, and ratios of generations."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from dit_compile.bench.results import Results, generation_ratio, turn_ratio


@dataclass
class Row:
    model: str
    seconds: float


def test_rows_are_kept_with_what_they_hold_for(tmp_path: Path) -> None:
    results = Results[Row]("ditc bench x", {"steps": 5}, {"processor": "P", "torch": "T"})
    results.rows.append(Row("a", 0.5))
    results.save(tmp_path / "new" / "x.json")
    saved = json.loads((tmp_path / "new" / "x.json").read_text())
    assert saved["rows"] == [{"model": "a", "seconds": 0.5}]
    assert (saved["command"], saved["options"]) == ("ditc bench x", {"steps": 5})
    assert len(saved["date"]) == len("2026-01-31")


def test_a_model_is_named_once() -> None:
    results = Results[Row]("", {}, {"processor": "P", "torch": "T"}, "D")
    cells = [("a", "x", "1"), ("a", "y", "2"), ("b", "x", "3")]
    table = results.table("W", ("model", "way"), ("s",), cells)
    assert table.title == "W, P, torch T, D"
    console = Console(width=60, record=True, file=io.StringIO())
    console.print(table)
    lines = [line.split() for line in console.export_text().splitlines()]
    assert lines[-4:] == [["model", "way", "s"], ["a", "x", "1"], ["y", "2"], ["b", "x", "3"]]


def test_the_interval_of_a_median() -> None:
    ratios = [1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7]
    median, (low, high) = turn_ratio(ratios, [1.0] * 7)
    assert median == 1.4
    assert min(ratios) <= low < 1.4 < high <= max(ratios)
    assert turn_ratio(ratios, [1.0] * 7) == (median, (low, high))
    assert turn_ratio([4.0] * 5, [2.0] * 5) == (2.0, (2.0, 2.0))


def test_the_ratio_is_of_whole_generations() -> None:
    own, kinds = [3.0, 1.0, 1.0, 3.0, 1.0, 1.0], ["full", "reuse", "reuse"] * 2
    ratio, (low, high) = generation_ratio([2.0] * 6, own, ["step"] * 6)
    assert ratio == pytest.approx(1.2)
    assert low < 1.2 < high
    assert generation_ratio([2.0] * 6, own, kinds) == (ratio, (ratio, ratio))
    assert generation_ratio([2.0] * 6, [1.0] * 6, kinds) == (2.0, (2.0, 2.0))
