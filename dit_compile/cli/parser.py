"""Parsing of the command line, and the one place where errors become exit codes."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence

from dit_compile.cli import commands
from dit_compile.errors import DitcError

_TARGET_HELP = (
    "what to compile: 'digits' (the bundled model), or 'file.py:function' or "
    "'package.module:function', a function that returns (model, args, kwargs); explain and diff "
    "also take a report, 'run.json'"
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run one command. Data goes to stdout, diagnostics to stderr.

    Returns:
        0, or 1 after an error of ditc or if nobody reads the output. Wrong usage exits with 2, as
        ``argparse`` does.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    behind = words.index("--") if words[:1] == ["bisect"] and "--" in words else len(words)
    args = _parser().parse_args(words[:behind])
    args.check = words[behind + 1 :]
    args.command_line = shlex.join(["ditc", *words])
    try:
        args.command(args)
        sys.stdout.flush()
    except DitcError as error:
        print(f"ditc: error: {error}", file=sys.stderr)  # noqa: T201 - this is the terminal
        return 1
    except BrokenPipeError:
        # The reader has seen enough. Python flushes once more at exit, so give it a place to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ditc", description="A compiler for diffusion transformers."
    )
    subs = parser.add_subparsers(required=True, metavar="command")

    explain = subs.add_parser("explain", help="show what each pass does to a model")
    _add_target(explain, default="exact")
    explain.add_argument("--analysis", action="store_true", help="also print what was found in it")
    explain.add_argument("--diff", action="store_true", help="also print every pass's diff")
    explain.add_argument("--json", action="store_true", help="print the report as JSON")
    explain.add_argument("--markdown", action="store_true", help="print it for a pull request")
    explain.add_argument("--html", metavar="PATH", help="also write it as one page for a browser")
    explain.set_defaults(command=commands.explain)

    diff = subs.add_parser("diff", help="show the graph diff of one pass, or of two runs")
    _add_target(diff, default="exact")
    diff.add_argument("other", nargs="?", help="a second report; both are JSON files")
    diff.add_argument("--pass", dest="only", metavar="NAME", help="the pass; all if left out")
    diff.set_defaults(command=commands.diff)

    opt = subs.add_parser("opt", help="run passes on a model and print the resulting IR")
    _add_target(opt, default=None)
    opt.add_argument("--diff", action="store_true", help="print the diffs in place of the IR")
    opt.add_argument("--json", action="store_true", help="print the run as JSON")
    opt.add_argument("--python", action="store_true", help="print a module that runs, not the IR")
    opt.add_argument("--stage", type=int, metavar="N", help="stop after pass #N; -1: as captured")
    opt.set_defaults(command=commands.opt)

    bisect = subs.add_parser(
        "bisect",
        help="find the pass and the rewrite that break something",
        epilog="ditc bisect -- python check.py: the command's exit status is the check. Without "
        "one, each exact pass is compared with float64.",
    )
    _add_target(bisect, default="exact", optional=True)
    bisect.set_defaults(command=commands.bisect)

    reduce = subs.add_parser("reduce", help="shrink a model on which a pass fails")
    _add_target(reduce, default="exact")
    reduce.add_argument("--out", default="repro", help="folder for the case (%(default)s)")
    reduce.add_argument("--weights", action="store_true", help="keep the weights in it too")
    reduce.set_defaults(command=commands.reduce)

    demo = subs.add_parser("demo", help="sample the bundled model in four ways and compare")
    demo.add_argument("--out", default="demo_out", help="folder for the pictures (%(default)s)")
    demo.add_argument("--steps", type=int, default=50, help="denoising steps (%(default)s)")
    demo.add_argument("--images", type=int, default=40, help="images per way (%(default)s)")
    demo.add_argument("--interval", type=int, default=3, help="cache interval (%(default)s)")
    demo.add_argument("--guidance-scale", type=float, default=3.0, help="(%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    demo.set_defaults(command=commands.demo)

    bench = subs.add_parser("bench", help="measure against eager and torch.compile")
    kinds = bench.add_subparsers(required=True, metavar="what")
    _add_bench_exact(kinds.add_parser("exact", help="the exact passes, on full-size models"))

    roofline = subs.add_parser("roofline", help="measure this machine's peak rates")
    roofline.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    roofline.add_argument("--refresh", action="store_true", help="measure again")
    roofline.add_argument("--json", action="store_true", help="print JSON")
    roofline.set_defaults(command=commands.roofline)

    listing = subs.add_parser("passes", help="list all passes, presets and targets")
    listing.set_defaults(command=commands.list_passes)
    return parser


def _add_bench_exact(exact: argparse.ArgumentParser) -> None:
    exact.add_argument("--models", default="dit-xl-2-256,pixart-sigma-512", help="(%(default)s)")
    exact.add_argument("--ways", default="eager,default,best,ditc", help="(%(default)s)")
    exact.add_argument("--dtype", default="bfloat16", help="(%(default)s)")
    exact.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    exact.add_argument("--batch", type=int, default=2, help="latents at a time (%(default)s)")
    exact.add_argument("--steps", type=int, default=50, help="denoising steps (%(default)s)")
    exact.add_argument("--repeats", type=int, default=7, help="timed steps (%(default)s)")
    exact.add_argument("--blocks", type=int, help="cut the models to this many blocks of each kind")
    exact.add_argument("--no-compile-times", action="store_true", help="steady state alone")
    exact.add_argument("--out", default="bench_out", help="folder for results (%(default)s)")
    exact.set_defaults(command=commands.bench_exact)


def _add_target(
    parser: argparse.ArgumentParser, *, default: str | None, optional: bool = False
) -> None:
    parser.add_argument("target", nargs="?" if optional else None, help=_TARGET_HELP)
    parser.add_argument(
        "--passes",
        default=default,
        required=default is None,
        metavar="TEXT",
        help="pipeline text or preset, such as 'exact' or 'fuse-qkv{min-siblings=3},fuse-adaln'",
    )
    parser.add_argument(
        "--bind",
        action="append",
        default=[],
        metavar="INPUT=WHEN",
        help="binding time of an input: invariant, timestep or latent",
    )
    parser.add_argument("--no-numerics", action="store_true", help="skip the check against float64")
