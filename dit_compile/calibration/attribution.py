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
from torch import nn

from dit_compile.calibration.runs import Outcome, Runs, Sample
from dit_compile.disabling import require_enabled
from dit_compile.errors import OptionError
from dit_compile.files import replaced
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.optional import require
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.quality.metrics import psnr, relative_l2
from dit_compile.report.model import Share, Trajectory
from dit_compile.report.terminal import PlainProgress, terminal
from dit_compile.report.trajectory import panels, print_trajectory


@dataclass(frozen=True)
class Attribution:
    """The quality of final samples, by pass and by block.

    Attributes:
        trajectory: the numbers; :meth:`ditc.Explanation.sampled` puts them into a report.
    """

    trajectory: Trajectory

    @property
    def passes(self) -> Sequence[Share]:
        """With all passes up to each one that changes the model, in their order."""
        return self.trajectory.passes

    @property
    def blocks(self) -> Sequence[Share]:
        """With the last approximation in one block alone; empty if it has no parts."""
        return self.trajectory.blocks

    @property
    def approximation(self) -> str:
        """Text of that approximation; empty if the pipeline is exact."""
        return self.trajectory.approximation

    def print(self, console: Console | None = None) -> None:
        """Write both tables to the terminal."""
        print_trajectory(self.trajectory, console or terminal())

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw the relative error by pass and by block as a PNG.

        Raises:
            MissingDependencyError: matplotlib is missing.
            OptionError: no pass changed the model, so there is nothing to draw.
        """
        shown = list(panels(self.trajectory))
        if not shown:
            raise OptionError("no pass changed the model, so there is nothing to plot")
        rows = max(len(shares) for _, _, shares in shown)
        figure = require("matplotlib.figure", "bench").Figure(
            figsize=(6 * len(shown), 1.2 + 0.28 * rows), layout="constrained"
        )
        for axes, (_, first, shares) in zip(
            figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
        ):
            errors = [math.nan if share.rel_l2 is None else share.rel_l2 for share in shares]
            axes.barh([share.name for share in shares], errors)
            axes.invert_yaxis()
            alone = f"{self.approximation} in this block alone"
            axes.set_title("up to this pass" if first == "pass" else alone, fontsize="medium")
            axes.set_xlabel("relative L2 error of the final samples")
        with replaced(Path(path)) as draft:
            figure.savefig(draft, dpi=150)
        return Path(path)

    def data(self) -> dict[str, Any]:
        """The numbers as ``report.json`` has them."""
        return dataclasses.asdict(self.trajectory)


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
        OptionError: ``samples`` is less than 1, or ditc is disabled.
        PipelineError: the pipeline is wrong.
        PlanError: ``sample`` does not call ``model``.
    """
    require_enabled("attribution")
    if samples < 1:
        raise OptionError(f"samples must be at least 1, not {samples}")
    how = {"target": "eager", **(options or {})}
    plain = getattr(model, "_orig_mod", model)
    with PlainProgress(disable=not progress, transient=True) as shown:
        run = Runs(sample, plain, range(seed, seed + samples), how, shown)
        want = torch.cat(run.plain())
        fitted = run.fit(Pipeline.parse(passes)).passes
        base = run.outcome(Pipeline(()), timed=False)

        def share(name: str, *items: Pass, position: int | None = None) -> Share:
            outcome = run.outcome(Pipeline(items), timed=False)
            return _share(name, outcome, base, want, position)

        by_pass: list[Share] = []
        parts: dict[str, tuple[Pass, ...]] = {}
        program = base.program.copy()
        for end, item in enumerate(fitted):
            if item.kind is Kind.APPROX:
                parts = {path: (*fitted[:end], part) for path, part in item.parts(program).items()}
            before = fingerprint(program)
            Pipeline((item,)).run(program)
            if fingerprint(program) != before:
                by_pass.append(share(item.name, *fitted[: end + 1], position=end))
        by_block = [share(path, *items) for path, items in parts.items()]
    approximations = [str(item) for item in fitted if item.kind is Kind.APPROX]
    last = approximations[-1] if approximations else ""
    return Attribution(Trajectory(by_pass, by_block, last, samples, run.steps, seed))


def _share(
    name: str, outcome: Outcome, base: Outcome, want: torch.Tensor, position: int | None
) -> Share:
    got = torch.cat(list(outcome.samples))
    decibels, error = _finite(psnr(got, want)), _finite(relative_l2(got, want))
    return Share(name, decibels, error, base.flops / outcome.flops, position)


def _finite(value: float) -> float | None:
    """JSON knows no infinity."""
    return value if math.isfinite(value) else None
