"""Ratios of times: measured once on a machine, and never on a way that it cannot go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dit_compile.analysis import measured
from dit_compile.analysis.machine import cache_file
from dit_compile.analysis.measured import Ways, speedup_of
from dit_compile.errors import DitcWarning
from tests.others import give_away

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


@pytest.mark.parametrize(
    "content",
    [
        *("", "[1]", '{"a": "b"}', '{"a": null}', '{"a": NaN}', '{"a": 1e999}', '{"a": -1}'),
        *('{"a": 1, "a": 2}', '{"a": true}', '{"a": ' + "9" * 400 + "}", "[" * 100_000),
    ],
    ids=range(11),
)
def test_an_unreadable_file_is_replaced(content: str) -> None:
    path = cache_file("speedups", "cpu")
    path.parent.mkdir(parents=True)
    path.write_text(content)
    path.chmod(0o600)
    assert speedup_of("a", lambda: (lambda: None, lambda: None)) > 0
    assert '"a"' in path.read_text()


def test_a_folder_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "speedups").write_text("in the way")
    known = speedup_of("a", lambda: (lambda: None, lambda: None))
    assert speedup_of("a", unwanted) == known


def test_numbers_of_another_user_are_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    real = speedup_of("a", lambda: (lambda: None, lambda: None))
    path = cache_file("speedups", "cpu")
    path.write_text('{"a": 1000.0}')
    monkeypatch.setattr(measured, "_known", {})
    assert speedup_of("a", unwanted) == 1000.0
    give_away(monkeypatch, path)
    monkeypatch.setattr(measured, "_known", {})
    with pytest.warns(DitcWarning, match="what was measured there is not believed") as warned:
        found = speedup_of("a", lambda: (lambda: None, lambda: None))
    assert len(warned) == 1
    assert found != 1000.0
    assert real != 1000.0


def test_nothing_is_kept_in_a_folder_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    speedup_of("a", lambda: (lambda: None, lambda: None))
    path = cache_file("speedups", "cpu")
    before = path.read_text()
    give_away(monkeypatch, path.parent)
    monkeypatch.setattr(measured, "_known", {})
    with pytest.warns(DitcWarning, match="belongs to another user") as warned:
        speedup_of("b", lambda: (lambda: None, lambda: None))
    assert len(warned) == 1
    assert path.read_text() == before
