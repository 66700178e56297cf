"""Settings for all tests."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator

import pytest
import torch

from tests.skips import is_allowed


@pytest.fixture(scope="session", autouse=True)
def _no_repros_in_the_users_folder() -> Iterator[None]:
    """Passes that fail on purpose leave nothing behind."""
    os.environ["DITC_REPRO_DIR"] = ""
    yield
    del os.environ["DITC_REPRO_DIR"]


@pytest.fixture(scope="session", autouse=True)
def _workers_share_the_cores() -> None:
    """Two workers with as many threads as cores each would wait for each other."""
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, torch.get_num_threads() // workers))


@pytest.fixture(autouse=True)
def _grad_mode_is_left_as_it_was() -> Iterator[None]:
    """A test that leaves autograd off fails itself, and not those that come after it."""
    yield
    left, _ = torch.is_grad_enabled(), torch.set_grad_enabled(True)
    assert left, "the test left autograd switched off"


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that share what is expensive to make run one after the other, at the first one's turn.

    pytest-xdist hands out neighbours to one worker. Its own groups do that too, but not with every
    version of pytest.
    """
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        mark = item.get_closest_marker("together")
        groups.setdefault(f"together: {mark.args[0]}" if mark else item.nodeid, []).append(item)
    items[:] = [item for group in groups.values() for item in group]


# --- in CI, a skip is a failure --------------------------------------------------------------
#
# Reports are made where a test runs, in a worker of pytest-xdist or in the only process, and pytest
# counts what they say. Only the last hook runs in the process that prints.


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that skips itself."""
    report = yield
    _refuse_skips(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A module that skips all its tests."""
    report = yield
    _refuse_skips(report)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name each test that was skipped; pytest itself counts them by reason."""
    skipped = terminalreporter.stats.get("skipped", [])
    if not _in_ci() or not skipped:
        return
    terminalreporter.section("skipped, as tests/skips.py allows here")
    for report in sorted(skipped, key=lambda each: each.nodeid):
        terminalreporter.line(f"{report.nodeid}: {_reason(report)}")


def _in_ci() -> bool:
    return os.environ.get("CI", "").lower() not in ("", "0", "false")


def _refuse_skips(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Make a failure of a skip in CI that tests/skips.py does not allow."""
    expected_to_fail = hasattr(report, "wasxfail")
    if not report.skipped or expected_to_fail or not _in_ci():
        return
    reason = _reason(report)
    if is_allowed(report.nodeid, reason):
        return
    report.outcome = "failed"
    report.longrepr = (
        f"skipped in CI: {reason}\n"
        f"Make {report.nodeid} run there, or enter it in tests/skips.py with its reason."
    )


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Why it was skipped."""
    _, _, said = report.longrepr  # type: ignore[misc]
    return str(said).removeprefix("Skipped: ")


@pytest.fixture(params=[0o000, 0o002, 0o022, 0o027, 0o077])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    """One user's umask after the other."""
    before = os.umask(request.param)
    yield request.param
    os.umask(before)
