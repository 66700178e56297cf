"""Diffs of what a pass did, rewrite by rewrite, with identical ones shown once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dit_compile.errors import OptionError, suggest
from dit_compile.report.model import Report, Rewrite
from dit_compile.shown import shown

_VALUE = re.compile(r"%[\w.]+")
_INDEX = re.compile(r"\b\d+\b")
_WEIGHT = re.compile(r"@[^\s,\])]+")


@dataclass(frozen=True)
class Hunk:
    """Rewrites that did the same in different places.

    Attributes:
        first: one of them, shown in full.
        paths: where all of them were.
    """

    first: Rewrite
    paths: tuple[str, ...]


def hunks(rewrites: Sequence[Rewrite]) -> list[Hunk]:
    """Group rewrites that differ only in value names and in the number of their block."""
    groups: dict[tuple[str, ...], list[Rewrite]] = {}
    for rewrite in rewrites:
        if rewrite.removed or rewrite.added:
            groups.setdefault(_shape(rewrite), []).append(rewrite)
    return [Hunk(group[0], tuple(r.path for r in group)) for group in groups.values()]


def _shape(rewrite: Rewrite) -> tuple[str, ...]:
    """A rewrite's lines with names replaced by their order of appearance."""
    names: dict[str, str] = {}

    def rename(found: re.Match[str]) -> str:
        return names.setdefault(found.group(), f"%{len(names)}")

    lines = [f"-{line}" for line in rewrite.removed] + [f"+{line}" for line in rewrite.added]
    shown = [_VALUE.sub(rename, _WEIGHT.sub(_unnumbered, line)) for line in lines]
    return (rewrite.graph, _INDEX.sub("#", rewrite.path), *shown)


def _unnumbered(found: re.Match[str]) -> str:
    return _INDEX.sub("#", found.group())


def pass_diff(report: Report, name: str | None = None) -> str:
    """The diff of the pass ``name``, or of all passes.

    Raises:
        OptionError: no such pass has run.
    """
    names = [entry.name for entry in report.passes]
    if name is not None and name not in names:
        raise OptionError(
            f"no pass {name!r} has run{suggest(name, names)}; these have: {', '.join(names)}"
        )
    lines: list[str] = []
    for position, entry in enumerate(report.passes):
        if name in (None, entry.name):
            lines += diff_lines(f"#{position} {entry.name}", entry.rewrites)
    return "\n".join(lines) or "(no change)"


def diff_lines(title: str, rewrites: Sequence[Rewrite]) -> list[str]:
    """Rewrites as lines that start with ``title``, ``-`` or ``+``."""
    lines = []
    for hunk in hunks(rewrites):
        times = len(hunk.paths)
        same = f" (x{times} identical, shown once)" if times > 1 else ""
        place = f" @ {hunk.first.path}" if hunk.first.path else ""
        lines.append(f"{title}{place}{same}")
        lines += [f"-  {line}" for line in hunk.first.removed]
        lines += [f"+  {line}" for line in hunk.first.added]
    return [shown(line) for line in lines]
