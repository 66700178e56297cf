"""What each command does."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import sys
from typing import TYPE_CHECKING

from rich.table import Table

from dit_compile.errors import OptionError
from dit_compile.report.table import terminal

if TYPE_CHECKING:
    from dit_compile.explanation import Explanation


def explain(args: argparse.Namespace) -> None:
    """``ditc explain``: the pass table, and on request analysis, diffs or JSON."""
    found = _explained(args)
    if args.json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=2) + "\n")
        return
    if args.analysis:
        from dit_compile.report.analysis import print_analysis

        print_analysis(found.analysis, terminal())
    found.print(terminal(), diffs=args.diff)


def diff(args: argparse.Namespace) -> None:
    """``ditc diff``: one pass's graph diff."""
    sys.stdout.write(_explained(args).diff(args.only) + "\n")


def opt(args: argparse.Namespace) -> None:
    """``ditc opt``: the IR after the passes on stdout, the table on stderr."""
    found = _explained(args)
    if args.json:
        sys.stdout.write(json.dumps(found.to_dict(), indent=2) + "\n")
        return
    found.print(terminal(stderr=True))
    sys.stdout.write((found.diff() if args.diff else found.texts[-1]) + "\n")


def demo(args: argparse.Namespace) -> None:
    """``ditc demo``: sample a bundled model in four ways and compare."""
    from dit_compile.demo.run import DemoOptions, run_demo

    run_demo(
        DemoOptions(
            model=args.model,
            out=args.out,
            num_inference_steps=args.steps,
            images=args.images,
            interval=args.interval,
            guidance_scale=args.guidance_scale,
            seed=args.seed,
        )
    )


def bench_exact(args: argparse.Namespace) -> None:
    """``ditc bench exact``: the default preset against eager and torch.compile."""
    from dit_compile.bench.exact import BenchOptions, run_bench

    run_bench(
        BenchOptions(
            models=tuple(args.models.split(",")),
            ways=tuple(args.ways.split(",")),
            dtype=args.dtype,
            device=args.device,
            batch=args.batch,
            steps=args.steps,
            repeats=args.repeats,
            blocks=args.blocks,
            compile_times=not args.no_compile_times,
            out=args.out,
            command=shlex.join(["ditc", *sys.argv[1:]]),
        )
    )


def roofline(args: argparse.Namespace) -> None:
    """``ditc roofline``: peak rates of this machine, measured once and kept."""
    from dit_compile.analysis.roofline import load_or_measure

    found = load_or_measure(args.device, refresh=args.refresh)
    if args.json:
        sys.stdout.write(found.to_json() + "\n")
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("rate")
    table.add_column("peak", justify="right")
    for dtype, rate in found.matmul_flops.items():
        table.add_row(f"matrix product, {dtype}", f"{rate / 1e9:,.0f} GFLOP/s")
    table.add_row("memory bandwidth", f"{found.bandwidth / 1e9:,.1f} GB/s")
    console = terminal()
    console.print(", ".join(f"{key} {value}" for key, value in found.setup.items()))
    console.print(table)


def list_passes(args: argparse.Namespace) -> None:
    """``ditc passes``: what a pipeline's text may name."""
    from dit_compile.pipeline.presets import PRESETS
    from dit_compile.pipeline.registry import backends, passes

    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("pass", "kind", "what it does"):
        table.add_column(title)
    for name, item in passes().items():
        table.add_row(name, item.kind.value, (item.__doc__ or "").strip().splitlines()[0])
    console = terminal()
    console.print(table)
    for name, text in PRESETS.items():
        console.print(f"preset {name}: {text}", soft_wrap=True)
    console.print(f"targets: {', '.join(backends())}")


def _explained(args: argparse.Namespace) -> Explanation:
    from dit_compile.cli.target import load_target
    from dit_compile.explanation import explain as run

    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is not our data
        target = load_target(args.target)
        return run(
            target.model,
            target.args,
            target.kwargs,
            passes=args.passes,
            bindings=parse_bindings(args.bind),
            numerics=not args.no_numerics,
        )


def parse_bindings(texts: list[str]) -> dict[str, str]:
    """The option ``--bind``, given any number of times.

    Raises:
        OptionError: one is not of the form INPUT=WHEN.
    """
    pairs = {}
    for text in texts:
        name, equals, when = text.partition("=")
        if not equals:
            raise OptionError(f"--bind takes INPUT=WHEN, such as img_ids=invariant, not {text!r}")
        pairs[name] = when
    return pairs
