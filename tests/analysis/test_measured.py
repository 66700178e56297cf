"""Ratios of times: measured once on a machine, and never on a way that it cannot go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dit_compile.analysis import measured
from dit_compile.analysis.machine import cache_file
from dit_compile.analysis.measured import Ways, speedup_of

pytestmark = pytest.mark.processor


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is known yet."""
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(measured, "_known", {})


def unwanted() -> Ways:
    raise AssertionError("measured again")


def test_the_ratio_of_medians(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([float(at) for at in range(1000)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))

    def slow() -> None:
        for _ in range(3):
            next(clock)

    assert speedup_of("a", lambda: (slow, lambda: None)) == 4.0


def test_another_process_reads_what_one_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    known = speedup_of("a", lambda: (lambda: None, lambda: None))
    assert speedup_of("a", unwanted) == known
    monkeypatch.setattr(measured, "_known", {})
    assert speedup_of("a", unwanted) == known
    speedup_of("b", lambda: (lambda: None, lambda: None))
    monkeypatch.setattr(measured, "_known", {})
    assert speedup_of("a", unwanted) == known


@pytest.mark.parametrize("error", [RuntimeError, AttributeError])
def test_a_way_that_does_not_exist_here_gains_nothing(error: type[Exception]) -> None:
    def refuse() -> None:
        raise error("not on this processor")

    assert speedup_of("a", lambda: (lambda: None, refuse)) == 0.0
    assert speedup_of("a", unwanted) == 0.0


@pytest.mark.parametrize("content", ["", "[1]", '{"a": "b"}', '{"a": null}'])
def test_an_unreadable_file_is_replaced(content: str) -> None:
    path = cache_file("speedups", "cpu")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    assert speedup_of("a", lambda: (lambda: None, lambda: None)) > 0
    assert '"a"' in path.read_text()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "speedups").write_text("in the way")
    known = speedup_of("a", lambda: (lambda: None, lambda: None))
    assert speedup_of("a", unwanted) == known
