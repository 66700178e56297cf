"""What reports are printed on, and how far a long job is."""

from __future__ import annotations

import contextlib
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn
from rich.text import Text

from dit_compile.progress import hidden
from dit_compile.shown import shown

_FILE_WIDTH = 160


def plain(text: object, style: str = "") -> Text:
    """A text for any console, the user's own too: it is no markup, and commands nothing."""
    return Text(shown(text), style=style)


class _Terminal(Console):
    """A console on which all texts are shown as they are."""

    def render_str(self, text: str, **how: Any) -> Text:
        """A text, and each cell of a table that is one."""
        return super().render_str(shown(text, lines=True), **how)


def terminal(*, stderr: bool = False) -> Console:
    """A console; as wide as the terminal, or wide enough for the tables when piped to a file.

    What is printed is shown as it is: shapes such as ``f32[s0,4]`` are no markup.
    """
    console = Console(stderr=stderr)
    width = None if console.is_terminal else _FILE_WIDTH
    return _Terminal(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


class PlainProgress(Progress):
    """A progress bar whose descriptions, such as pipelines, are no markup.

    While it runs, disabled or not, it stands in place of the line that compilations show.
    """

    def __init__(self, *, disable: bool = False, transient: bool = False) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            *Progress.get_default_columns()[1:],
            console=terminal(stderr=True),
            disable=disable,
            transient=transient,
        )
        self._hiding = contextlib.ExitStack()

    def start(self) -> None:
        """Show the bar, and hide what compilations show."""
        self._hiding.enter_context(hidden())
        super().start()

    def stop(self) -> None:
        """Leave the bar as it is."""
        super().stop()
        self._hiding.close()


class JobProgress(PlainProgress):
    """A progress bar for each part of a job of hours; a line at each advance without a terminal."""

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Move a bar on."""
        super().advance(task_id, advance)
        if not self.console.is_terminal:
            task = self._tasks[task_id]
            self.console.print(f"{task.description} {task.completed:g}/{task.total:g}")
