"""A skip in CI is a failure, unless tests/skips.py allows it there; with xdist and without."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import _in_ci
from tests.skips import ALLOWED, Skip, is_allowed

ROOT = Path(__file__).parents[1]

INSIDE = """
import pytest

def test_passes():
    pass

@pytest.mark.skip(reason="not today")
@pytest.mark.parametrize("at", ["a"])
def test_marked(at):
    pass

def test_skips_itself():
    pytest.skip("no such tool")

@pytest.mark.xfail(reason="known")
def test_fails_as_expected():
    assert False

@pytest.fixture
def broken():
    pytest.skip("no fixture")

def test_fixture(broken):
    pass
"""
WHOLE = """
import pytest

pytest.importorskip("a_package_that_is_not_there")

def test_never_seen():
    pass
"""
#: Allows one reason of one test.
ALLOWING = """
import tests.skips
from tests.conftest import *
from tests.skips import Skip

tests.skips.ALLOWED += (Skip("*::test_marked[a]", "not today", lambda: True),)
tests.skips.is_allowed.__defaults__ = (tests.skips.ALLOWED,)
"""


def run(folder: Path, ci: str, *options: str) -> tuple[int, str]:
    """The exit status and output of pytest on a folder's tests, under the hooks of this suite."""
    (folder / "conftest.py").write_text(ALLOWING)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", *options]
    command += ["--rootdir", str(folder), "--import-mode=importlib", str(folder)]
    env = {**os.environ, "CI": ci, "PYTHONPATH": str(ROOT), "PYTEST_ADDOPTS": ""}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True)
    return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "test_inside.py").write_text(INSIDE)
    (tmp_path / "test_whole.py").write_text(WHOLE)
    return tmp_path


@pytest.mark.parametrize("options", [["-p", "no:xdist"], ["-n", "1"]], ids=["alone", "xdist"])
def test_skips_in_ci(folder: Path, options: list[str]) -> None:
    status, said = run(folder, "true", "--continue-on-collection-errors", *options)
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "skipped in CI: no such tool" in said
    assert "Make test_inside.py::test_fixture run there, or enter it in tests/skips.py" in said
    assert "test_inside.py::test_marked[a]: not today" in said  # allowed, and named
    assert "skipped in CI: could not import 'a_package_that_is_not_there'" in said
    assert re.search(r"1 failed, 1 passed, 1 skipped, 1 xfailed, 2 errors", said), said


def test_skips_elsewhere(folder: Path) -> None:
    status, said = run(folder, "")
    assert status == pytest.ExitCode.OK
    assert re.search(r"1 passed, 4 skipped, 1 xfailed", said), said
    assert "as tests/skips.py allows" not in said


@pytest.mark.parametrize(
    ("value", "is_ci"), [("true", True), ("1", True), ("", False), ("0", False), ("false", False)]
)
def test_where_it_is_ci(monkeypatch: pytest.MonkeyPatch, value: str, is_ci: bool) -> None:
    monkeypatch.setenv("CI", value)
    assert _in_ci() is is_ci


def test_an_entry_allows_its_tests_for_its_reason_where_it_applies() -> None:
    here = (Skip("tests/a.py::test_b[*]", "no GPU", lambda: True),)
    assert is_allowed("tests/a.py::test_b[1]", "no GPU", here)
    assert not is_allowed("tests/a.py::test_b", "no GPU", here)
    assert not is_allowed("tests/a.py::test_b[1]", "no time", here)
    elsewhere = (Skip("tests/a.py::test_b[*]", "no GPU", lambda: False),)
    assert not is_allowed("tests/a.py::test_b[1]", "no GPU", elsewhere)


def test_entries_name_tests_that_exist() -> None:
    for each in ALLOWED:
        file, _, name = each.tests.partition("::")
        text = (ROOT / file).read_text("utf-8")
        assert name == "*" or f"def {name}(" in text
        assert each.reason in text
