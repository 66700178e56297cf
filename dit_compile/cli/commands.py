"""What each command does."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from dit_compile.errors import OptionError, ReportError
from dit_compile.ir.printer import print_program
from dit_compile.report.table import print_report
from dit_compile.report.terminal import terminal

if TYPE_CHECKING:
    from dit_compile.explanation import Explanation
    from dit_compile.ir.program import Program
    from dit_compile.pipeline.pipeline import Pipeline
    from dit_compile.report.model import Report


def explain(args: argparse.Namespace) -> None:
    """``ditc explain``: the pass table, and on request analysis, diffs, JSON, Markdown or HTML."""
    if args.plot and args.trajectory is None:
        raise OptionError("--plot draws what --trajectory measures; give both")
    if args.trajectory == "" and is_report(args.target):
        raise OptionError("a report cannot be sampled; name its sampler behind --trajectory")
    report = _report(args.target) if is_report(args.target) else _explained(args).report
    if args.trajectory is not None:
        report = _sampled(report, args)
    if args.html:
        from dit_compile.report.page import write_page

        write_page(report, args.html)
    if args.graph:
        from dit_compile.report.graphs import write_graph

        write_graph(report, args.graph)
    if args.json:
        from dit_compile.report.codec import to_json

        sys.stdout.write(to_json(report) + "\n")
        return
    if args.markdown:
        from dit_compile.report.markdown import markdown

        sys.stdout.write(markdown(report))
        return
    if args.analysis:
        from dit_compile.report.analysis import print_analysis

        print_analysis(report.analysis, terminal())
    print_report(report, terminal(), diffs=args.diff)


def _sampled(report: Report, args: argparse.Namespace) -> Report:
    """The report with what its passes cost of final samples; draws that where it is asked to."""
    from dit_compile.calibration.attribution import attribute
    from dit_compile.cli.target import load_sampler
    from dit_compile.report.trajectory import check_belongs

    with contextlib.redirect_stdout(sys.stderr):  # what the user's code prints is not our data
        sample, model = load_sampler(args.trajectory or args.target)
        options = {"bindings": parse_bindings(args.bind)} if args.bind else None
        found = attribute(sample, model, passes=report.pipeline, options=options)
    check_belongs(found.trajectory, report)
    if args.plot:
        terminal(stderr=True).print(f"plot: {found.plot(args.plot)}", soft_wrap=True)
    return dataclasses.replace(report, trajectory=found.trajectory)


def diff(args: argparse.Namespace) -> None:
    """``ditc diff``: what one pass did, or how the outcomes of two runs differ."""
    from dit_compile.report.compare import run_diff
    from dit_compile.report.diff import pass_diff

    if args.other is not None:
        if args.only is not None:
            raise OptionError("--pass is of one run; give one report, or leave it out")
        text = run_diff(_report(args.target), _report(args.other))
    elif is_report(args.target):
        text = pass_diff(_report(args.target), args.only)
    else:
        text = _explained(args).diff(args.only)
    sys.stdout.write(text + "\n")


def opt(args: argparse.Namespace) -> None:
    """``ditc opt``: the IR after the passes on stdout, the table on stderr."""
    found = _explained(args)
    if args.json:
        sys.stdout.write(found.json() + "\n")
        return
    found.print(terminal(stderr=True))
    if args.diff:
        text = found.diff()
    elif args.python:
        text = found.python(args.stage)
    else:
        text = print_program(found.program_at(args.stage))
    sys.stdout.write(text + "\n")


def bisect(args: argparse.Namespace) -> None:
    """``ditc bisect``: the first pass and rewrite with which a check fails."""
    from dit_compile import bisect as bisection
    from dit_compile.pipeline.instruments import NumericCheck, StructuralCheck

    if args.check:
        culprit = bisection.bisect_command(args.check)
    elif args.target is None:
        raise OptionError("give a target, or a command behind --: ditc bisect -- python check.py")
    else:
        program, pipeline, values = _captured(args)
        culprit = bisection.bisect(
            program, pipeline, instruments=lambda: [StructuralCheck(), NumericCheck(values)]
        )
    sys.stdout.write(culprit.text() + "\n")


def reduce(args: argparse.Namespace) -> None:
    """``ditc reduce``: the least of a model on which a pass still fails."""
    from dit_compile.reduce import reduce as shrink
    from dit_compile.repro import write_repro

    program, pipeline, _ = _captured(args)
    small = shrink(program, pipeline)
    try:
        place = write_repro(
            small.program, small.pipeline, 0, small.error, Path(args.out), weights=args.weights
        )
    except OSError as error:
        raise ReportError(f"cannot write to {args.out!r}: {error}") from error
    sys.stderr.write(f"{small.before} -> {small.nodes} nodes in {small.tests} tests\n")
    sys.stdout.write(f"{print_program(small.program)}\n# {small.error}\n# repro: {place}\n")


def is_report(text: str) -> bool:
    """Whether a target on the command line is a report that was written before."""
    return text.endswith(".json")


def demo(args: argparse.Namespace) -> None:
    """``ditc demo``: sample a bundled model in four ways and compare."""
    from dit_compile.demo.run import DemoOptions, run_demo
    from dit_compile.disabling import require_enabled

    require_enabled("ditc demo")
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


def _captured(args: argparse.Namespace) -> tuple[Program, Pipeline, dict[str, Any]]:
    """The Program of a target, the passes, and values for its inputs."""
    import torch

    from dit_compile.analysis.binding import settle
    from dit_compile.capture.export import capture_module
    from dit_compile.cli.target import load_target
    from dit_compile.explanation import example_inputs
    from dit_compile.pipeline.pipeline import Pipeline

    pipeline = Pipeline.parse(args.passes)
    with contextlib.redirect_stdout(sys.stderr), torch.no_grad():
        target = load_target(args.target)
        program = capture_module(target.model, target.args, target.kwargs)
    settle(program, parse_bindings(args.bind))
    return program, pipeline, example_inputs(program, target.args, target.kwargs)


def _report(path: str) -> Report:
    from dit_compile.report.codec import load

    return load(path)


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
            command=args.command_line,
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
