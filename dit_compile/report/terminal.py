"""What reports are printed on."""

from __future__ import annotations

from rich.console import Console

_FILE_WIDTH = 160


def terminal(*, stderr: bool = False) -> Console:
    """A console; as wide as the terminal, or wide enough for the tables when piped to a file.

    What is printed is shown as it is: shapes such as ``f32[s0,4]`` are no markup.
    """
    console = Console(stderr=stderr)
    width = None if console.is_terminal else _FILE_WIDTH
    return Console(stderr=stderr, width=width, markup=False, emoji=False, highlight=False)
