"""Texts as they are shown: the one place that cleans what came from a file or a model.

A report, a plan or a bundle may be a stranger's. What it says is shown letter by letter: it must
not move the cursor, change the title of a terminal, open links, or let letters be read in another
order than they are written in.
"""

from __future__ import annotations

import html
import re
from typing import Any

#: What Markdown reads as more than letters, outside of HTML and of code.
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~&$])")
#: What GitHub makes a link of, or calls someone by: ``@name``, ``https://``, ``www.``.
_LINKED = re.compile(r"@(?=\w)|(?<=\w):(?=//)|(?<=\bwww)\.", re.ASCII)
_NOTHING = "<!-- -->"


def shown(text: object, *, lines: bool = False) -> str:
    """``text`` without what commands a terminal: such characters as Python writes them.

    These are all that are not printable: controls and escapes, line ends, marks of direction,
    letters without width, and halves of surrogate pairs. What was shown before stays as it is.

    Args:
        text: what to show.
        lines: keep line ends and tabs, for a text of several lines.
    """
    whole = str(text)
    if whole.isprintable():
        return whole
    kept = "\n\t" if lines else ""
    return "".join(
        char if char.isprintable() or char in kept else char.encode("unicode_escape").decode()
        for char in whole
    )


def shown_on_a_line(text: object) -> str:
    """``text`` as the cell of a table: line ends and other white space are single spaces."""
    return shown(" ".join(str(text).split()))


def shown_in_markdown(text: object) -> str:
    """``text`` on one line of Markdown: nothing in it is markup, HTML, a link or a mention."""
    return _LINKED.sub(_apart, _SPECIAL.sub(r"\\\1", shown_on_a_line(text)))


def shown_as_code(text: object) -> str:
    """``text`` as code within a line of Markdown."""
    flat = shown(text)
    fence = fence_for([flat], 1)
    edge = " " if flat[:1] == "`" or flat[-1:] == "`" else ""
    return f"{fence}{edge}{flat}{edge}{fence}"


def shown_in_html(text: object) -> str:
    """``text`` within an element or an attribute of HTML."""
    return _LINKED.sub(_apart, html.escape(shown(text)))


def shown_data(data: Any) -> Any:
    """JSON data with each of its texts as it is shown."""
    if isinstance(data, str):
        return shown(data, lines=True)
    if isinstance(data, list):
        return [shown_data(item) for item in data]
    if isinstance(data, dict):
        return {shown(key): shown_data(item) for key, item in data.items()}
    return data


def fence_for(lines: list[str], least: int = 3) -> str:
    """A run of backticks that none of these lines can close."""
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    return "`" * max(least, longest + 1)


def _apart(found: re.Match[str]) -> str:
    return _NOTHING + found.group() if found.group() != "@" else "@" + _NOTHING
