"""The line that shows how far a long compilation is."""

from __future__ import annotations

import io
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tqdm import tqdm

import dit_compile as ditc
from dit_compile import exporting, progress, status_line
from dit_compile.calibration import runs
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.stage import Stage
from dit_compile.report.terminal import PlainProgress
from tests.passes.irtest import capture
from tests.runtime.loops import Loop, Toy, compiled, label, run

_PIECE = re.compile(
    r"\x1b\[(?P<number>\d*)(?P<command>[AK])|\x1b(?P<short>[D78])|(?P<char>[^\x1b])"
)


class Terminal(io.StringIO):
    """Standard error as a terminal, or not, that keeps what is on its screen."""

    def __init__(self, *, rows: int = 24, is_terminal: bool = True) -> None:
        super().__init__()
        self.written: list[str] = []
        self._is_terminal = is_terminal
        self._screen = [""] * rows
        self._row, self._column = 0, 0
        self._saved = (0, 0)

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        self.written.append(text)
        position = 0
        while position < len(text):
            piece = _PIECE.match(text, position)
            assert piece, f"no command that this terminal knows: {text[position:]!r}"
            self._obey(piece)
            position = piece.end()
        return len(text)

    def _obey(self, piece: re.Match[str]) -> None:
        char, line = piece["char"], self._screen[self._row]
        if char == "\r":
            self._column = 0
        elif char == "\n":
            self._down()
            self._column = 0
        elif char:
            padded = line.ljust(self._column)
            self._screen[self._row] = padded[: self._column] + char + padded[self._column + 1 :]
            self._column += 1
        elif piece["short"] == "D":
            self._down()
        elif piece["short"] == "7":
            self._saved = (self._row, self._column)
        elif piece["short"] == "8":
            self._row, self._column = self._saved
        elif piece["command"] == "A":
            self._row = max(0, self._row - int(piece["number"] or 1))
        else:
            self._screen[self._row] = "" if piece["number"] == "2" else line[: self._column]

    def _down(self) -> None:
        self._row += 1
        if self._row == len(self._screen):
            self._screen = [*self._screen[1:], ""]
            self._row -= 1

    @property
    def screen(self) -> list[str]:
        """Its lines down to the last one with text."""
        return "\n".join(line.rstrip() for line in self._screen).rstrip("\n").split("\n")

    @property
    def lines(self) -> list[str]:
        """All that was on our line, one after the other."""
        found = (re.search(r"ditc \d+:\d+ .*?(?=\x1b|$)", text) for text in self.written)
        return [match[0] for match in found if match]

    def wait(self, what: str) -> None:
        """Wait until ``what`` is on our line."""
        deadline = time.monotonic() + 30
        while not any(what in line for line in self.lines):
            assert time.monotonic() < deadline, f"{what!r} was not shown: {self.lines}"
            time.sleep(0.002)

    def wait_for_next(self) -> None:
        """Wait until the line is drawn once more."""
        self.wait("")
        count, deadline = len(self.lines), time.monotonic() + 30
        while len(self.lines) == count:
            assert time.monotonic() < deadline
            time.sleep(0.002)


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The standard streams as the line finds them; pytest exchanges the real ones."""
    streams = SimpleNamespace(stderr=Terminal(), stdout=io.StringIO(), modules=sys.modules)
    monkeypatch.setattr(status_line, "sys", streams)
    return streams


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch, streams: SimpleNamespace) -> Iterator[Terminal]:
    """A terminal on which the line is shown at once, and which it leaves as it was."""
    for name in ("CI", "DITC_PROGRESS", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress, "_AFTER", 0.0)
    monkeypatch.setattr(progress, "_EVERY", 0.005)
    shown = streams.stderr
    yield shown
    assert not progress._running
    assert not progress._covers
    assert not [thread for thread in threading.enumerate() if thread.name == "ditc-progress"]
    assert "write" not in vars(shown)
    assert not any("ditc " in line for line in shown.screen)


# --- what is shown ----------------------------------------------------------------------------


def test_phases_come_one_after_the_other_and_the_line_is_taken_back(stderr: Terminal) -> None:
    with progress.shown():
        for phase in ("capture", "pass 1 of 2, fuse-qkv"):
            progress.report(phase, subject="DiT [0/0]" if phase == "capture" else "")
            stderr.wait(phase)
        for name in progress.each("graph", ["full", "reuse"]):
            stderr.wait(f"graph {name}, ")
    assert stderr.lines[0] == "ditc 0:00  DiT [0/0]: capture"
    assert "ditc 0:00  DiT [0/0]: graph reuse, 2 of 2" in stderr.lines
    assert stderr.screen == [""]


def test_minutes() -> None:
    compilation = progress._Compilation("DiT [0/0]", "capture")
    compilation.started -= 125.5
    assert compilation.text() == "ditc 2:05  DiT [0/0]: capture"


def test_a_name_commands_no_terminal() -> None:
    assert "\x1b" not in progress._Compilation("D\x1b[2JiT", "capture").text()


@pytest.mark.parametrize("name", ["capture", "\N{CJK UNIFIED IDEOGRAPH-6A21}" * 20])
def test_a_narrow_terminal(stderr: Terminal, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    with progress.shown():
        progress.report(name)
        stderr.wait("ditc")
    wide = max(sum(1 + (ord(char) > 0x2E80) for char in line) for line in stderr.lines)
    assert wide <= 19


def test_nothing_within_the_first_seconds(
    stderr: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_AFTER", 60.0)
    with progress.shown():
        progress.report("capture")
        time.sleep(0.05)
    assert stderr.written == []


# --- what else is on the terminal -------------------------------------------------------------


def test_a_line_that_was_begun_goes_on(stderr: Terminal) -> None:
    stderr.write("step 1: ")
    with progress.shown():
        progress.report("capture")
        stderr.wait_for_next()
    stderr.write("done\n")
    assert stderr.screen == ["step 1: done"]


def test_in_the_last_row(stderr: Terminal, streams: SimpleNamespace) -> None:
    small = Terminal(rows=3)
    streams.stderr = small
    small.write("first\nsecond\nthird: ")
    with progress.shown():
        progress.report("capture")
        small.wait_for_next()
        assert small.screen[:2] == ["second", "third:"]
    small.write("done")
    assert small.screen == ["second", "third: done"]


def test_a_bar_of_the_users_own_stays(stderr: Terminal) -> None:
    """One that ends in a carriage return: the cursor is in front of it."""
    stderr.write("step 3 of 50\r")
    with progress.shown():
        progress.report("capture")
        stderr.wait_for_next()
        assert stderr.screen[0] == "step 3 of 50"
    stderr.write("step 4 of 50\r")
    assert stderr.screen == ["step 4 of 50"]


def test_what_others_write_meanwhile(stderr: Terminal, streams: SimpleNamespace) -> None:
    streams.stdout = stderr
    with progress.shown():
        progress.report("capture")
        for text in ("short", "a warning\n  of several lines", "another"):
            stderr.wait_for_next()
            print(text, file=stderr)
    assert stderr.screen == ["short", "a warning", "  of several lines", "another"]


def test_a_warning_of_two_lines(stderr: Terminal) -> None:
    with progress.shown(), warnings.catch_warnings():
        progress.report("capture")
        stderr.wait_for_next()
        warnings.simplefilter("always")
        stderr.write(warnings.formatwarning("odd", UserWarning, "model.py", 3, "x = y"))
        stderr.wait_for_next()
    assert stderr.screen == ["model.py:3: UserWarning: odd", "  x = y"]


@pytest.mark.parametrize("compiles", [True, False])
def test_bars_of_tqdm_keep_their_places(stderr: Terminal, compiles: bool) -> None:
    form = {"bar_format": "{desc}{n}/{total}", "file": stderr}
    for _ in tqdm(range(2), desc="prompts ", **form):
        for _ in tqdm(range(2), desc="steps ", leave=False, **form):
            if compiles:
                with progress.shown():
                    progress.report("capture")
                    stderr.wait_for_next()
                    shown = stderr.screen
                    assert shown[0].startswith("prompts ")
                    assert shown[1].startswith("steps ")
                    assert shown[2].startswith("ditc ")
    assert stderr.screen == ["prompts 2/2"]


def test_a_bar_that_is_half_made(stderr: Terminal) -> None:
    """Another thread makes it: it is known to tqdm before it has attributes."""
    bar = tqdm.__new__(tqdm)
    with progress.shown():
        progress.report("capture")
        stderr.wait_for_next()
    tqdm._instances.discard(bar)


@pytest.mark.parametrize("disable", [True, False])
def test_our_own_bars_hide_it(stderr: Terminal, disable: bool) -> None:
    """In all threads, and what was there is taken back."""
    with progress.shown():
        progress.report("capture")
        stderr.wait_for_next()
        with PlainProgress(disable=disable, transient=True) as bar:
            bar.add_task("sampling")
            count = len(stderr.lines)
            time.sleep(0.05)
            assert len(stderr.lines) == count
            assert not any("ditc " in line for line in stderr.screen)
        stderr.wait_for_next()


def test_a_forked_process_writes_freely(stderr: Terminal) -> None:
    """The thread that draws is not there any more, and may have held the lock."""
    with progress.shown():
        progress.report("capture")
        stderr.wait_for_next()
        with progress._line._lock:
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                stderr.write("still here")
                os._exit(0 if "write" not in vars(stderr) else 1)
        assert os.waitpid(child, 0)[1] == 0


# --- where nothing is shown -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variable", "value", "wanted"),
    [
        ("DITC_PROGRESS", "0", False),
        ("DITC_PROGRESS", "1", True),
        ("CI", "true", False),
        ("CI", "0", True),
        ("TERM", "dumb", False),
        ("TERM", "", False),
        ("LOCAL_RANK", "0", True),
        ("LOCAL_RANK", "1", False),
        ("NO_COLOR", "1", True),
    ],
)
def test_environment(
    stderr: Terminal, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, wanted: bool
) -> None:
    monkeypatch.setenv(variable, value)
    with progress.shown():
        progress.report("capture")
        if wanted:
            stderr.wait("capture")
        else:
            time.sleep(0.05)
    assert bool(stderr.written) is wanted


def _closed() -> Terminal:
    stream = Terminal()
    stream.close()
    stream.isatty = io.StringIO.isatty.__get__(stream)  # type: ignore[method-assign]
    return stream


@pytest.mark.parametrize("make", [lambda: Terminal(is_terminal=False), _closed, lambda: None])
def test_nothing_where_there_is_no_terminal(
    stderr: Terminal, streams: SimpleNamespace, make: Callable[[], Any]
) -> None:
    other = make()
    streams.stderr = other
    threads = threading.active_count()
    with progress.shown():
        progress.report("capture")
        assert threading.active_count() == threads
        time.sleep(0.05)
    assert other is None or other.written == []


def test_a_terminal_that_goes_away_breaks_nothing(
    stderr: Terminal, streams: SimpleNamespace
) -> None:
    with progress.shown():
        progress.report("capture")
        stderr.wait("capture")
        streams.stderr = None
        time.sleep(0.05)


def test_the_line_is_taken_back_after_an_error(stderr: Terminal) -> None:
    def interrupted() -> None:
        with progress.shown():
            progress.report("capture")
            stderr.wait("capture")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert stderr.screen == [""]


def test_one_within_another_is_part_of_it(stderr: Terminal) -> None:
    with progress.shown():
        with progress.shown():
            progress.report("inner")
            stderr.wait("inner")
        stderr.wait_for_next()
        progress.report("outer")
        stderr.wait("outer")


def test_two_threads_share_the_line_in_turn(stderr: Terminal) -> None:
    """The second is shown once the first has ended, and neither names the other's phase."""
    first_ends, second_ends = threading.Event(), threading.Event()

    def compile_until(event: threading.Event, phase: str) -> None:
        with progress.shown():
            progress.report(phase)
            assert event.wait(30)

    threads = []
    for event, phase in ((first_ends, "first"), (second_ends, "second")):
        threads.append(threading.Thread(target=compile_until, args=(event, phase)))
        threads[-1].start()
        while len(progress._running) < len(threads):
            time.sleep(0.001)
    stderr.wait("first")
    assert not any("second" in line for line in stderr.lines)
    first_ends.set()
    stderr.wait("second")
    second_ends.set()
    for thread in threads:
        thread.join()
    shown = [line.rpartition(" ")[2] for line in stderr.lines]
    assert shown == sorted(shown), "all of the first, then all of the second"


@pytest.mark.parametrize("how", ["hidden", "hide"])
def test_hidden(stderr: Terminal, how: str) -> None:
    with progress.hidden() if how == "hidden" else progress.shown(), progress.shown():
        progress.hide()
        progress.report("capture")
        time.sleep(0.05)
    assert stderr.written == []


def test_the_instrument_names_each_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr(progress, "report", reported.append)
    pipeline = Pipeline.parse("remove-noops,fuse-qkv,eliminate-dead")
    program = capture(torch.nn.Linear(2, 2), torch.ones(1, 2))
    pipeline.run(program, instruments=[StructuralCheck(), Stage(pipeline)])
    assert reported == [
        "pass 1 of 3, remove-noops",
        "pass 2 of 3, fuse-qkv",
        "pass 3 of 3, eliminate-dead",
    ]


# --- compilations -----------------------------------------------------------------------------


@pytest.fixture
def reported(stderr: Terminal, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is reported while something is compiled, each once it was drawn if it is."""
    phases: list[str] = []
    report = progress.report

    def waiting(phase: str, **subject: str) -> None:
        report(phase, **subject)
        phases.append(phase)
        current = progress._current.get()
        if current is not None and current.wanted and not progress._covers:
            stderr.wait(phase)

    for module in (progress, exporting):
        monkeypatch.setattr(module, "report", waiting)
    torch._dynamo.reset()
    return phases


@pytest.mark.parametrize("wanted", [True, False])
def test_torch_compile(stderr: Terminal, reported: list[str], wanted: bool) -> None:
    """Each phase in its order; with the option ``progress`` off, nothing from the passes on."""
    run(compiled(Toy(), progress=wanted), Loop(label(1), times=(1.0,)))
    assert reported[0] == "capture"
    assert re.fullmatch(r"pass 1 of \d+, remove-noops", reported[1])
    assert reported[-2:] == ["graph full, 1 of 2", "graph reuse, 2 of 2"]
    if wanted:
        assert re.fullmatch(r"ditc \d:\d\d  Toy \[0/0\]: capture", stderr.lines[0])
        assert stderr.lines[-1].endswith("  Toy [0/0]: graph reuse, 2 of 2")
    else:
        assert not any("pass" in line or "graph" in line for line in stderr.lines)


def toy_call() -> dict[str, Any]:
    return next(iter(Loop(label(1))))


@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_export(stderr: Terminal, reported: list[str], tmp_path: Path, format: str) -> None:
    passes = "exact,insert-block-cache{method=interval}"
    ditc.export(Toy(), (), toy_call(), tmp_path / "out", format=format, passes=passes)
    assert reported[0] == "capture"
    assert re.fullmatch(r"pass 1 of \d+, remove-noops", reported[1])
    assert re.fullmatch(r"graph reuse, (\d+) of \1", reported[-2])
    assert reported[-1] == "checksums"
    assert all("  Toy: " in line for line in stderr.lines)


def test_export_in_silence(stderr: Terminal, tmp_path: Path) -> None:
    ditc.export(Toy(), (), toy_call(), tmp_path / "out", format="pt2", progress=False)
    assert stderr.lines == []


def test_explain(stderr: Terminal, reported: list[str]) -> None:
    ditc.explain(Toy(), (), toy_call(), passes="remove-noops,fuse-qkv")
    assert reported == ["capture", "pass 1 of 2, remove-noops", "pass 2 of 2, fuse-qkv"]


@pytest.mark.parametrize("bar", [True, False])
def test_calibration_has_its_own_bar(
    stderr: Terminal, monkeypatch: pytest.MonkeyPatch, bar: bool
) -> None:
    compiled_by: list[str] = []
    report = progress.report

    def noted(phase: str, **subject: str) -> None:
        report(phase, **subject)
        compiled_by.append(phase)
        time.sleep(0.02)

    monkeypatch.setattr(progress, "report", noted)
    model = Toy()

    def sample(seed: int) -> torch.Tensor:
        return torch.stack(run(model, Loop(label(1), seed=seed)))

    passes = "insert-block-cache{method=record}"
    with PlainProgress(disable=not bar, transient=True) as shown:
        runs.Runs(sample, model, [0], {"target": "eager"}, shown)._recorded(Pipeline.parse(passes))
    assert compiled_by
    assert stderr.lines == []


COMPILES = """
import sys, time
from dit_compile import progress
progress._AFTER, progress._EVERY = 0.0, 0.001
print("step 1: ", end="", file=sys.stderr, flush=True)
with progress.shown():
    progress.report("capture", subject="Toy [0/0]")
    time.sleep(0.3)
print("done", file=sys.stderr)
"""


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CI", "DITC_PROGRESS")}
    return kept | {"TERM": "xterm"}


def test_on_a_real_terminal() -> None:
    master, slave = pty.openpty()
    done = subprocess.Popen([sys.executable, "-c", COMPILES], stderr=slave, env=_environment())
    os.close(slave)
    seen = b""
    try:
        while piece := os.read(master, 4096):
            seen += piece
    except OSError:  # the other end is closed
        os.close(master)
    assert done.wait(120) == 0, seen.decode()
    assert b"Toy [0/0]: capture" in seen
    screen = Terminal()
    screen.write(seen.decode().replace("\r\n", "\n"))
    assert screen.screen == ["step 1: done"]


def test_in_a_real_pipe() -> None:
    command = [sys.executable, "-c", COMPILES]
    done = subprocess.run(command, capture_output=True, env=_environment(), check=True)
    assert done.stderr == b"step 1: done\n"
