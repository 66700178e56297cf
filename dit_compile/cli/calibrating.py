"""``ditc calibrate``: find what an approximation must know, or the best one under a budget."""

from __future__ import annotations

import argparse
import contextlib
import sys

from dit_compile.calibration.calibrate import calibrate as run
from dit_compile.cli.target import load_sampler
from dit_compile.report.terminal import terminal


def calibrate(args: argparse.Namespace) -> None:
    """Calibrate a pipeline, print what was tried, and write the Plan."""
    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is not our data
        sample, model = load_sampler(args.target)
        plan = run(
            sample,
            model,
            passes=args.passes,
            samples=args.samples,
            seed=args.seed,
            min_psnr=args.min_psnr,
            max_rel_l2=args.max_rel_l2,
            min_speedup=args.min_speedup,
            value_range=tuple(args.value_range),
            options={"target": args.backend},
        )
    console = terminal()
    if plan.curve:
        plan.print(console)
    if args.plot:
        console.print(f"plot: {plan.plot(args.plot)}")
    console.print(f"passes: {plan.passes}", soft_wrap=True)
    console.print(f"plan: {plan.save(args.out)}", soft_wrap=True)
