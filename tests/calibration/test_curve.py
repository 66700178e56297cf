"""The table of what calibration tried."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

import dit_compile as ditc
from dit_compile.calibration.plan import Trial
from dit_compile.errors import PlanError


def plan() -> ditc.Plan:
    cache = (
        "insert-block-cache{method=magnitude,threshold=0.02,ratios=[1.0,0.98,0.97],times=[3,2,1]}"
    )
    gentle, strong = (f"exact,{cache.replace('0.02', threshold)}" for threshold in ("0.02", "0.3"))
    curve = [
        Trial("exact", float("inf"), 0.0, 1.0, 4.0, 1.0),
        Trial(gentle, float("inf"), 0.0, 1.0, 4.0, 0.98),
        Trial(strong, 31.44, 0.0123, 2.0, 2.1, 1.9),
    ]
    return ditc.Plan(strong, 3, {}, curve)


def test_a_row_names_what_was_set_and_not_what_was_measured() -> None:
    out = io.StringIO()
    plan().print(Console(file=out, width=120))
    title, uncached, gentle, strong = (line.split() for line in out.getvalue().splitlines())
    assert title[:2] == ["what", "varies"]
    assert uncached == ["uncached", "1.00x", "1.00x", "-", "0"]
    assert gentle == ["method=magnitude,threshold=0.02", "1.00x", "0.98x", "-", "0"]
    assert strong == [
        *("->", "method=magnitude,threshold=0.3", "2.00x", "1.90x", "31.4", "dB", "0.0123")
    ]


def test_nothing_was_tried() -> None:
    with pytest.raises(PlanError, match=r"there is no curve to plot; give ditc.calibrate a budget"):
        ditc.Plan("exact", 3, {}).plot("curve.png")
