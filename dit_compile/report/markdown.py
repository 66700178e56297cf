"""The report as Markdown, short enough for a comment on a pull request."""

from __future__ import annotations

from collections.abc import Iterator

from dit_compile.report.diff import diff_lines
from dit_compile.report.model import Report, Share
from dit_compile.report.table import COLUMNS, header, row
from dit_compile.report.trajectory import COLUMNS as SHARE_COLUMNS
from dit_compile.report.trajectory import panels, share_row
from dit_compile.shown import fence_for, shown_as_code, shown_in_html, shown_in_markdown

#: GitHub cuts a comment off at 65,536 characters.
LIMIT = 60_000


def markdown(report: Report, *, limit: int = LIMIT) -> str:
    """A table of passes, and below it folded what samples tell and the diff of each pass.

    Args:
        report: the run.
        limit: characters that the text may have; diffs that do not fit are left out, and it says
            so.
    """
    title = f"**{shown_in_markdown(header(report))}**"
    lines = [title, "", _cells(COLUMNS), _cells(["---"] * len(COLUMNS))]
    for position, entry in enumerate(report.passes):
        cells = [shown_in_markdown(cell) for cell in row(report, position)]
        cells[1] = f"**{cells[1]}**" if entry.changed else cells[1]
        lines.append(_cells(cells))
    text = "\n".join(lines) + "\n"
    for title, first, shares in panels(report.trajectory):
        text += _details(title, "\n".join(_share_table(first, shares)))
    left_out = []
    for position, entry in enumerate(report.passes):
        diff = diff_lines("@@", entry.rewrites)
        if not diff:
            continue
        folded = _folded(f"#{position} {entry.name}", diff)
        if len(text) + len(folded) > limit:
            left_out.append(entry.name)
        else:
            text += folded
    if left_out:
        names = shown_in_markdown(", ".join(left_out))
        text += f"\nToo long to show here: the diffs of {names}.\n"
    if report.command:
        text += f"\nMade by {shown_as_code(report.command)}\n"
    return text


def _cells(cells: tuple[str, ...] | list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _folded(title: str, diff: list[str]) -> str:
    """A diff in a fence that no line of it can close."""
    fence = fence_for(diff)
    body = "\n".join(diff)
    return _details(title, f"{fence}diff\n{body}\n{fence}")


def _share_table(first: str, shares: list[Share]) -> Iterator[str]:
    yield _cells((first, *SHARE_COLUMNS))
    yield _cells(["---", *["---:"] * len(SHARE_COLUMNS)])
    for share in shares:
        yield _cells([shown_in_markdown(cell) for cell in share_row(share)])


def _details(title: str, inside: str) -> str:
    return f"\n<details><summary>{shown_in_html(title)}</summary>\n\n{inside}\n\n</details>\n"
