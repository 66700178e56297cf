"""What a bench found: rows, where and how they were measured, and their table."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from rich.table import Table

from dit_compile.files import write_atomically
from dit_compile.quality.bootstrap import bootstrap

RowT = TypeVar("RowT")


def _today() -> str:
    return datetime.date.today().isoformat()


@dataclass
class Results(Generic[RowT]):
    """All rows, and what they hold for.

    Attributes:
        command: what the user typed.
        options: the same with what was left out.
        setup: the machine and torch; see :func:`~dit_compile.analysis.roofline.describe_setup`.
        date: of the measurement.
        rows: dataclasses.
    """

    command: str
    options: Mapping[str, Any]
    setup: Mapping[str, str]
    date: str = field(default_factory=_today)
    rows: list[RowT] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write all of it as JSON."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(asdict(self), indent=2) + "\n")

    def table(
        self,
        what: str,
        names: Sequence[str],
        numbers: Sequence[str],
        cells: Iterable[Sequence[str]],
    ) -> Table:
        """The rows as a table.

        Args:
            what: was measured, for the title.
            names: columns of words.
            numbers: columns of numbers, behind them.
            cells: of each row; the first is left out where it repeats.
        """
        table = Table(
            title=f"{what}, {self.setup['processor']}, torch {self.setup['torch']}, {self.date}",
            box=None,
            pad_edge=False,
            header_style="dim",
        )
        for title in names:
            table.add_column(title)
        for title in numbers:
            table.add_column(title, justify="right")
        last = ""
        for first, *others in cells:
            table.add_row(first if first != last else "", *others)
            last = first
        return table


def turn_ratio(base: Sequence[float], own: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The median ratio of times that were taken in turns, and its 95 % interval."""
    ratios = [theirs / ours for theirs, ours in zip(base, own, strict=True)]
    interval = bootstrap(len(ratios), lambda at: statistics.median(ratios[i] for i in at.tolist()))
    return statistics.median(ratios), interval


def generation_ratio(
    base: Sequence[float], own: Sequence[float], kinds: Sequence[Hashable]
) -> tuple[float, tuple[float, float]]:
    """The ratio of the times of generations whose steps took turns, and its 95 % interval.

    Args:
        base: seconds of each step of what is compared to.
        own: the same of what is compared.
        kinds: what did each step there, such as a graph's name: which steps are computed and which
            are reused is no chance.
    """
    theirs, ours = torch.tensor(base), torch.tensor(own)
    interval = bootstrap(
        len(base), lambda at: float(theirs[at].sum() / ours[at].sum()), kinds=kinds
    )
    return float(theirs.sum() / ours.sum()), interval


def between(interval: tuple[float, float]) -> str:
    """An interval of ratios."""
    return f"{interval[0]:.2f} to {interval[1]:.2f}"


def gibibytes(count: int) -> str:
    """Bytes, as tables show them."""
    return f"{count / 2**30:.2f} GiB"
