"""Tests that share what is expensive run in a row."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.analysis.structures import each
from tests.conftest import pytest_collection_modifyitems


def item(nodeid: str, group: str | None = None) -> Any:
    mark = None if group is None else pytest.mark.together(group).mark
    return SimpleNamespace(
        nodeid=nodeid, get_closest_marker=lambda name: mark if name == "together" else None
    )


def test_they_move_up_to_the_first_and_others_keep_their_order() -> None:
    items = [item("a"), item("b[dit]", "dit"), item("c"), item("b[wan]", "wan")]
    items += [item("d[dit]", "dit"), item("dit"), item("d[wan]", "wan")]
    pytest_collection_modifyitems(items)
    order = [each.nodeid for each in items]
    assert order == ["a", "b[dit]", "d[dit]", "c", "b[wan]", "d[wan]", "dit"]


def test_slow_classes_are_together_and_quick_ones_are_not_marked() -> None:
    quick, slow = each(["dit", "wan"], quick=["dit"])
    assert not quick.marks
    assert [(mark.name, mark.args) for mark in slow.marks] == [("slow", ()), ("together", ("wan",))]
