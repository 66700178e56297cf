"""Which pass, and which block, costs how much quality of what a whole generation gives."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from torch import nn

from dit_compile.calibration.runs import Outcome, Runs, Sample
from dit_compile.errors import OptionError
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.optional import require
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.quality.metrics import psnr, relative_l2
from dit_compile.report.terminal import terminal


@dataclass(frozen=True)
class Share:
    """What a part of a pipeline does to the final samples.

    Attributes:
        name: of the pass, or the path of the block.
        psnr: dB against the uncompiled model; ``inf`` if the samples are equal.
        rel_l2: relative L2 error against it.
        flop_ratio: operations of the pipeline without any pass over its own.
    """

    name: str
    psnr: float
    rel_l2: float
    flop_ratio: float


@dataclass(frozen=True)
class Attribution:
    """The quality of final samples, by pass and by block.

    Attributes:
        passes: with all passes up to each one, in their order.
        blocks: with the last approximation in one block alone; empty if it has no parts.
        approximation: text of that approximation; empty if the pipeline is exact.
    """

    passes: Sequence[Share]
    blocks: Sequence[Share]
    approximation: str

    def print(self, console: Console | None = None) -> None:
        """Write both tables to the terminal."""
        console = console or terminal()
        console.print(_table("final samples, with all passes up to", "pass", self.passes))
        if self.blocks:
            title = f"final samples, with {self.approximation} in one block alone"
            console.print(_table(title, "block", self.blocks))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the relative error by pass and by block as a PNG.

        Raises:
            MissingDependencyError: matplotlib is missing.
        """
        panels = [("up to this pass", self.passes)]
        if self.blocks:
            panels.append((f"{self.approximation} in this block alone", self.blocks))
        rows = max(len(shares) for _, shares in panels)
        figure = require("matplotlib.figure", "bench").Figure(
            figsize=(6 * len(panels), 1.2 + 0.28 * rows), layout="constrained"
        )
        for axes, (title, shares) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            axes.barh([share.name for share in shares], [share.rel_l2 for share in shares])
            axes.invert_yaxis()
            axes.set_title(title, fontsize="medium")
            axes.set_xlabel("relative L2 error of the final samples")
        figure.savefig(path, dpi=150)
        return Path(path)

    def data(self) -> dict[str, Any]:
        """The numbers as JSON has them; a PSNR without bound is ``None``."""
        return dataclasses.asdict(
            self,
            dict_factory=lambda items: {
                name: None if value == math.inf else value for name, value in items
            },
        )


def attribute(
    sample: Sample,
    model: nn.Module,
    *,
    passes: str,
    samples: int = 1,
    seed: int = 0,
    options: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> Attribution:
    """Run the user's own sampling with ever more of a pipeline, and measure what comes out.

    First with all passes up to each one that changes the model, then with the last approximation
    in each block alone. What a pass must be told is calibrated, as :func:`ditc.calibrate` does.

    Args:
        sample: runs one generation with noise from the seed that it gets, and returns the samples
            as a tensor, images in [-1, 1].
        model: the module that ``sample`` calls at each step; compiled in place meanwhile.
        passes: the pipeline.
        samples: generations that each measurement is taken on.
        seed: the first of their seeds.
        options: further options of the backend; by default the graphs run in its oracle, so that
            nothing but the passes changes results.
        progress: show a progress bar.

    Raises:
        OptionError: ``samples`` is less than 1.
        PipelineError: the pipeline is wrong.
        PlanError: ``sample`` does not call ``model``.
    """
    if samples < 1:
        raise OptionError(f"samples must be at least 1, not {samples}")
    how = {"target": "eager", **(options or {})}
    plain = getattr(model, "_orig_mod", model)
    with Progress(console=terminal(stderr=True), disable=not progress, transient=True) as shown:
        run = Runs(sample, plain, range(seed, seed + samples), how, shown)
        want = torch.cat(run.plain())
        fitted = run.fit(Pipeline.parse(passes)).passes
        base = run.outcome(Pipeline(()), timed=False)

        def share(name: str, *items: Pass) -> Share:
            outcome = run.outcome(Pipeline(items), timed=False)
            return _share(name, outcome, base, want)

        by_pass: list[Share] = []
        parts: dict[str, tuple[Pass, ...]] = {}
        program = base.program.copy()
        for end, item in enumerate(fitted):
            if item.kind is Kind.APPROX:
                parts = {path: (*fitted[:end], part) for path, part in item.parts(program).items()}
            before = fingerprint(program)
            Pipeline((item,)).run(program)
            if fingerprint(program) != before:
                by_pass.append(share(item.name, *fitted[: end + 1]))
        by_block = [share(path, *items) for path, items in parts.items()]
    approximations = [str(item) for item in fitted if item.kind is Kind.APPROX]
    return Attribution(by_pass, by_block, approximations[-1] if approximations else "")


def _share(name: str, outcome: Outcome, base: Outcome, want: torch.Tensor) -> Share:
    got = torch.cat(list(outcome.samples))
    return Share(name, psnr(got, want), relative_l2(got, want), base.flops / outcome.flops)


def _table(title: str, first: str, shares: Sequence[Share]) -> Table:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="dim")
    table.add_column(first)
    for name in ("FLOP ratio", "PSNR", "rel. L2"):
        table.add_column(name, justify="right")
    for share in shares:
        decibels = "-" if math.isinf(share.psnr) else f"{share.psnr:.1f} dB"
        table.add_row(share.name, f"{share.flop_ratio:.2f}x", decibels, f"{share.rel_l2:.2g}")
    return table
