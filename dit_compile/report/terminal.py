"""What reports are printed on, and how far a long job is."""

from __future__ import annotations

from rich.console import Console
from rich.progress import Progress, TaskID

_FILE_WIDTH = 160


def terminal(*, stderr: bool = False) -> Console:
    """A console; as wide as the terminal, or wide enough for the tables when piped to a file.

    What is printed is shown as it is: shapes such as ``f32[s0,4]`` are no markup.
    """
    console = Console(stderr=stderr)
    width = None if console.is_terminal else _FILE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)


class JobProgress(Progress):
    """A progress bar for each part of a job of hours; a line at each advance without a terminal."""

    def __init__(self) -> None:
        super().__init__(console=terminal(stderr=True))

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        """Move a bar on."""
        super().advance(task_id, advance)
        if not self.console.is_terminal:
            task = self._tasks[task_id]
            self.console.print(f"{task.description} {task.completed:g}/{task.total:g}")
