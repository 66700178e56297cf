"""What ``ditc bench cache`` found: rows, comparisons, tables and the trade-off plot."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from dit_compile.bench.caching.contenders import Contender
from dit_compile.bench.caching.plot import save_plot
from dit_compile.bench.caching.row import Row
from dit_compile.bench.caching.scores import ImageScores, Interval
from dit_compile.bench.caching.tuning import Tried
from dit_compile.bench.results import turn_ratio
from dit_compile.errors import OptionError
from dit_compile.files import write_atomically
from dit_compile.json_files import JsonError, read_as, read_json, wrong_type


@dataclass(frozen=True)
class Comparison:
    """A setting of another group and ditc's counterpart.

    Attributes:
        model: its name.
        ours, theirs: what they are.
        form: the faster of the forms of the other.
        flop_ratio: operations of the plain model over those of each, ditc first.
        psnr_gain: difference of their PSNR in dB with its 95 % interval; above 0 if ditc is better.
        frechet_gain: the same of the Fréchet distance; below 0 if ditc is better.
        time_ratio: wall time of that form over ditc's, taking turns, and its 95 % interval.
    """

    model: str
    ours: str
    theirs: str
    form: str
    flop_ratio: tuple[float, float]
    psnr_gain: tuple[float, Interval]
    frechet_gain: tuple[float, Interval]
    time_ratio: tuple[float, Interval]


def compare(ours: Row, theirs: Sequence[Row]) -> Comparison:
    """Set a row of ditc against another setting's forms, measured together with it."""
    turns = min(len(row.turns) for row in theirs)  # that all forms took
    other = min(theirs, key=lambda row: statistics.median(row.turns[:turns]))
    return Comparison(
        ours.model,
        ours.title,
        other.title,
        other.form,
        (ours.flop_ratio, other.flop_ratio),
        ours.scores.psnr_gain(other.scores),
        ours.scores.frechet_gain(other.scores),
        turn_ratio(*zip(*zip(other.turns, ours.turns, strict=False), strict=True)),
    )


@dataclass
class Results:
    """All rows, and what they hold for.

    Attributes:
        tried: by model: all settings on the tuning seed.
        refused: by model: what could not run, and why.
    """

    date: str
    command: str
    options: dict[str, Any]
    setup: dict[str, str]
    rows: list[Row] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    tried: dict[str, list[Tried]] = field(default_factory=dict)
    refused: dict[str, dict[str, str]] = field(default_factory=dict)


def save(results: Results, out: Path) -> None:
    """Write ``cache.json`` and a plot for each model."""
    out.mkdir(parents=True, exist_ok=True)
    write_atomically(out / "cache.json", json.dumps(_plain(results), indent=2) + "\n")
    for model in dict.fromkeys(row.model for row in results.rows):
        rows = [row for row in results.rows if row.model == model]
        save_plot(out / f"cache_{model}.png", rows, results.tried.get(model, ()))


def tried_before(
    out: Path, model: str, options: Mapping[str, Any], contenders: Iterable[Contender]
) -> list[Tried]:
    """What earlier results in ``out`` tell of ``contenders``; nothing if there are none.

    Raises:
        OptionError: they were tried otherwise than ``options`` say.
    """
    path = out / "cache.json"
    if not path.exists():
        return []
    try:
        data = read_json(path, finite=False)  # equal pictures have an infinite PSNR
        if not isinstance(data, dict):
            raise wrong_type("it", "an object", data)
        made_with = read_as(dict[str, Any], data.get("options"), "options")
        tried = read_as(dict[str, list[_Entry]], data.get("tried", {}), "tried")
    except JsonError as error:
        raise OptionError(
            f"cannot resume from {str(path)!r}: {error}; leave out --resume or choose another --out"
        ) from None
    for name in ("tuned", "steps", "guidance_scale"):
        if made_with.get(name) != options[name]:
            raise OptionError(
                f"{path} was made with {name}={made_with.get(name)}, not {options[name]}; "
                "leave out --resume or choose another --out"
            )
    named = {(each.group, each.method, each.setting): each for each in contenders}
    found = {entry.contender: entry for entry in tried.get(model, ())}
    return [
        Tried(each, entry.flop_ratio, entry.psnr, entry.frechet, entry.kept_bytes)
        for name, each in named.items()
        if (entry := found.get(_Named(*name)))
    ]


@dataclass(frozen=True)
class _Named:
    """A contender as results have it."""

    group: str
    method: str
    setting: str


@dataclass(frozen=True)
class _Entry:
    """What was tried, as results have it."""

    contender: _Named
    flop_ratio: float
    psnr: float
    frechet: float
    kept_bytes: int


def _plain(value: Any) -> Any:
    """Data classes as what JSON has."""
    if isinstance(value, ImageScores):
        return value.summary()
    if isinstance(value, Contender):
        return {"group": value.group, "method": value.method, "setting": value.setting}
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if hasattr(value, "__dataclass_fields__"):
        return {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    return value


def print_results(results: Results, console: Console) -> None:
    """The rows, the comparisons, the settings that both mention, and what could not run."""
    options = results.options
    title = (
        f"{options['images']} images of {options['steps']} steps, guidance "
        f"{options['guidance_scale']:g}, {results.setup['processor']}, "
        f"torch {results.setup['torch']}, {results.date}"
    )
    named = {row.title: row.name for row in results.rows}
    short = {each: f"{name} ({i})" for i, (each, name) in enumerate(named.items())}
    console.print(_table(title, ("model", "way", "form"), _COLUMNS, _row_cells(results, short)))
    if results.comparisons:
        title = "ditc's counterpart of each, in turns; above 1x it is faster"
        cells = (_comparison_cells(each, short) for each in results.comparisons)
        console.print(_table(title, ("model", "ditc", "other", "form"), _GAINS, cells))
    for number, each in enumerate(named):
        console.print(f"({number}) {each}", highlight=False, markup=False)
    for model, refused in results.refused.items():
        for name, reason in refused.items():
            console.print(f"{model}: {name} did not run: {reason}", highlight=False, markup=False)


_COLUMNS = (
    *("s/image", "speed-up (95 %)", "FLOP ratio", "share", "PSNR (95 %)", "SSIM", "Fréchet"),
    *("class acc.", "kept", "first call", "breaks", "recompiles"),
)
_GAINS = ("FLOP ratios", "PSNR gain (95 %)", "Fréchet gain (95 %)", "time (95 %)")


def _table(
    title: str, names: Sequence[str], numbers: Sequence[str], rows: Iterable[Iterable[str]]
) -> Table:
    table = Table(title=title, box=None, pad_edge=False, header_style="dim")
    for name in names:
        table.add_column(name)
    for name in numbers:
        table.add_column(name, justify="right")
    for cells in rows:
        table.add_row(*cells)
    return table


def _row_cells(results: Results, short: Mapping[str, str]) -> Iterator[Iterator[str]]:
    plain = {(row.model, row.form): row for row in results.rows if row.group == "uncached"}
    return (_cells(row, plain[row.model, row.form], short[row.title]) for row in results.rows)


def _cells(row: Row, plain: Row, name: str) -> Iterator[str]:
    scores, compiled = row.scores, row.form == "compiled"
    yield from (row.model, name, row.form)
    yield f"{row.seconds:.4f}"
    yield _with_interval(row.speed_up, row.speed_up_interval, ".2f", "x")
    yield f"{row.flop_ratio:.2f}x"
    yield f"{100 * row.speed_up / plain.speed_up / row.flop_ratio:.0f} %"
    exact = math.isinf(scores.psnr)
    yield "-" if exact else _with_interval(scores.psnr, scores.psnr_interval, ".1f", " dB")
    yield f"{scores.ssim:.4f}"
    yield f"{scores.frechet:.1f}"
    yield f"{100 * scores.accuracy:.1f} %"
    yield f"{row.kept_bytes / 1e6:.1f} MB"
    yield f"{row.first_call:.1f} s" if compiled else "-"
    yield str(row.graph_breaks) if compiled else "-"
    yield str(row.recompiles) if compiled else "-"


def _comparison_cells(found: Comparison, short: Mapping[str, str]) -> Iterator[str]:
    ours, theirs = found.flop_ratio
    yield from (found.model, short[found.ours], short[found.theirs], found.form)
    yield f"{ours:.2f}x, {theirs:.2f}x"
    yield _with_interval(*found.psnr_gain, "+.1f", " dB")
    yield _with_interval(*found.frechet_gain, "+.1f", "")
    yield _with_interval(*found.time_ratio, ".2f", "x")


def _with_interval(value: float, interval: Interval, form: str, unit: str) -> str:
    low, high = interval
    return f"{value:{form}}{unit} ({low:{form}} to {high:{form}})"
