"""Diffs of what a pass did, rewrite by rewrite, with identical ones shown once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from dit_compile.pipeline.pipeline import PassRecord
from dit_compile.pipeline.rewriter import Rewrite

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


def diff_lines(position: int, record: PassRecord) -> list[str]:
    """The diff of one pass as lines that start with ``#``, ``-`` or ``+``."""
    lines = []
    for hunk in hunks(record.rewrites):
        times = len(hunk.paths)
        same = f" (x{times} identical, shown once)" if times > 1 else ""
        place = f" @ {hunk.first.path}" if hunk.first.path else ""
        lines.append(f"#{position} {record.item.name}{place}{same}")
        lines += [f"-  {line}" for line in hunk.first.removed]
        lines += [f"+  {line}" for line in hunk.first.added]
    return lines
