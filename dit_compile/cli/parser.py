"""Parsing of the command line, and the one place where errors become exit codes."""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dit_compile.bundle.folder import MANIFEST
from dit_compile.errors import DitcError
from dit_compile.pipeline.registry import formats

_TARGET_HELP = (
    "what to compile: 'digits' or 'digits-flow' (bundled models), or 'file.py:function' or "
    "'package.module:function', a function that returns (model, args, kwargs); explain and diff "
    "also take a report, 'run.json', and explain the folder of a bundle"
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
    explain.add_argument(
        "--graph", metavar="PATH", help="also write the result as .dot, .graphml or .explorer.json"
    )
    explain.add_argument(
        "--trajectory",
        nargs="?",
        const="",
        metavar="SAMPLER",
        help="also sample, and show what each pass and block costs of the final samples; a target "
        "as `ditc calibrate` takes it, if it is not the same",
    )
    explain.add_argument("--plot", metavar="PNG", help="also draw that")
    explain.set_defaults(command=_explain)

    diff = subs.add_parser("diff", help="show the graph diff of one pass, or of two runs")
    _add_target(diff, default="exact")
    diff.add_argument("other", nargs="?", help="a second report; both are JSON files")
    diff.add_argument("--pass", dest="only", metavar="NAME", help="the pass; all if left out")
    diff.set_defaults(command=_lazily("commands", "diff"))

    opt = subs.add_parser("opt", help="run passes on a model and print the resulting IR")
    _add_target(opt, default=None, required=True)
    opt.add_argument("--diff", action="store_true", help="print the diffs in place of the IR")
    opt.add_argument("--json", action="store_true", help="print the run as JSON")
    opt.add_argument("--python", action="store_true", help="print a module that runs, not the IR")
    opt.add_argument("--stage", type=int, metavar="N", help="stop after pass #N; -1: as captured")
    opt.set_defaults(command=_lazily("commands", "opt"))

    _add_export(subs.add_parser("export", help="write a model as a bundle of files"))
    _add_run(subs.add_parser("run", help="run a bundle over a loop of steps"))

    bisect = subs.add_parser(
        "bisect",
        help="find the pass and the rewrite that break something",
        epilog="ditc bisect -- python check.py: the command's exit status is the check. Without "
        "one, each exact pass is compared with float64.",
    )
    _add_target(bisect, default="exact", optional=True)
    bisect.set_defaults(command=_lazily("commands", "bisect"))

    reduce = subs.add_parser("reduce", help="shrink a model on which a pass fails")
    _add_target(reduce, default="exact")
    reduce.add_argument("--out", default="repro", help="folder for the case (%(default)s)")
    reduce.add_argument("--weights", action="store_true", help="keep the weights in it too")
    reduce.set_defaults(command=_lazily("commands", "reduce"))

    _add_calibrate(subs.add_parser("calibrate", help="fit a cache to a model, or choose one"))

    demo = subs.add_parser("demo", help="sample a bundled model in four ways and compare")
    demo.add_argument("--model", default="digits", help="digits or digits-flow (%(default)s)")
    demo.add_argument("--out", default="demo_out", help="folder for the pictures (%(default)s)")
    demo.add_argument("--steps", type=int, default=50, help="denoising steps (%(default)s)")
    demo.add_argument("--images", type=int, default=40, help="images per way (%(default)s)")
    demo.add_argument("--interval", type=int, default=3, help="cache interval (%(default)s)")
    demo.add_argument("--guidance-scale", type=float, default=3.0, help="(%(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    demo.set_defaults(command=_lazily("commands", "demo"))

    bench = subs.add_parser("bench", help="measure against eager and torch.compile")
    kinds = bench.add_subparsers(required=True, metavar="what")
    _add_bench_exact(kinds.add_parser("exact", help="the exact passes, on full-size models"))
    _add_bench_cache(kinds.add_parser("cache", help="caching, on the bundled models"))
    _add_bench_loop(kinds.add_parser("loop", help="what a cache saves on full-size models"))
    _add_bench_export(kinds.add_parser("export", help="bundles, against torch.onnx.export"))

    roofline = subs.add_parser("roofline", help="measure this machine's peak rates")
    roofline.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    roofline.add_argument("--refresh", action="store_true", help="measure again")
    roofline.add_argument("--json", action="store_true", help="print JSON")
    roofline.set_defaults(command=_lazily("commands", "roofline"))

    listing = subs.add_parser("passes", help="list all passes, presets and targets")
    listing.set_defaults(command=_lazily("commands", "list_passes"))
    return parser


def _add_export(export: argparse.ArgumentParser) -> None:
    _add_target(export, default=None, numerics=False)
    export.add_argument("--plan", metavar="PATH", help="a plan from calibrate, not --passes")
    export.add_argument("path", help="the folder to write")
    export.add_argument("--format", default="onnx", help=f"{', '.join(formats())} (%(default)s)")
    export.add_argument("--opset", type=int, default=20, help="of ONNX, 18 to 23 (%(default)s)")
    export.add_argument(
        "--no-contrib", action="store_true", help="only operators of the ONNX standard"
    )
    export.add_argument(
        "--split", action="store_true", help="one file a graph: least memory, slower to load"
    )
    export.add_argument("--overwrite", action="store_true", help="replace a bundle at this path")
    export.set_defaults(command=_lazily("bundles", "export"))


def _add_run(run: argparse.ArgumentParser) -> None:
    run.add_argument("path", help="the folder of the bundle")
    run.add_argument(
        "--inputs", metavar="NPZ", help="arrays by name; noise where they are left out"
    )
    run.add_argument("--save", metavar="NPZ", help="where to write the last step's results")
    run.add_argument("--steps", type=int, default=50, help="denoising steps (%(default)s)")
    run.add_argument("--threads", type=int, default=0, help="threads within an operator")
    run.add_argument(
        "--provider", action="append", help="ONNX Runtime's execution provider, the CPU by default"
    )
    run.add_argument("--allow-fallback", action="store_true", help="let another provider take over")
    run.add_argument(
        "--trust", action="store_true", help="you know who made it: pt2 and aoti can run any code"
    )
    prepack = run.add_mutually_exclusive_group()
    prepack.add_argument(
        "--no-prepack",
        dest="prepack",
        action="store_false",
        default=True,
        help="least memory, slower steps",
    )
    prepack.add_argument(
        "--prepack-once",
        dest="prepack",
        action="store_const",
        const="once",
        help="lay weights out for this machine once, and keep that",
    )
    run.set_defaults(command=_lazily("bundles", "run"))


def _add_calibrate(calibrate: argparse.ArgumentParser) -> None:
    calibrate.add_argument(
        "target",
        help="'digits' or 'digits-flow' (bundled models), or 'file.py:function' or "
        "'package.module:function', a function that returns (sample, model), where sample(seed) "
        "runs a generation and returns it as a tensor",
    )
    calibrate.add_argument(
        "--passes",
        metavar="TEXT",
        help="pipeline text; with a budget all caching methods if left out",
    )
    calibrate.add_argument("--samples", type=int, default=4, help="generations each (%(default)s)")
    calibrate.add_argument("--seed", type=int, default=0, help="of the first (%(default)s)")
    calibrate.add_argument("--min-psnr", type=float, help="budget: dB against uncached")
    calibrate.add_argument("--max-rel-l2", type=float, help="budget: relative L2 error")
    calibrate.add_argument("--min-speedup", type=float, help="budget: ratio of operations")
    calibrate.add_argument(
        "--value-range",
        type=float,
        nargs=2,
        default=(-1.0, 1.0),
        metavar=("LOW", "HIGH"),
        help="what samples go from and to, for PSNR (-1 1)",
    )
    calibrate.add_argument("--backend", default="inductor", help="target (%(default)s)")
    calibrate.add_argument("--plot", metavar="PNG", help="also draw what was tried")
    calibrate.add_argument("--out", default="ditc.plan.json", help="the plan (%(default)s)")
    calibrate.set_defaults(command=_lazily("calibrating", "calibrate"))


def _explain(args: argparse.Namespace) -> None:
    """``ditc explain``: a bundle by its manifest, without torch; a model by its passes."""
    is_bundle = (Path(args.target) / MANIFEST).is_file()
    _lazily("described" if is_bundle else "commands", "explain")(args)


def _lazily(module: str, name: str) -> Callable[[argparse.Namespace], None]:
    """A command of a module of this package, imported when it runs."""

    def command(args: argparse.Namespace) -> None:
        getattr(importlib.import_module(f"dit_compile.cli.{module}"), name)(args)

    return command


def _add_bench_cache(cache: argparse.ArgumentParser) -> None:
    _add_names(cache, "--models", "digits,digits-flow")
    _add_names(cache, "--groups", "ditc,diffusers,cache-dit")
    cache.add_argument("--methods", nargs="+", default=[], help="of these groups (all)")
    cache.add_argument(
        "--ratios",
        type=float,
        nargs="+",
        default=[1.5, 2.0, 3.0],
        metavar="R",
        help="each group shows its best at R times fewer operations (1.5 2 3)",
    )
    cache.add_argument("--images", type=int, default=500, help="to report on (%(default)s)")
    cache.add_argument("--batch", type=int, default=50, help="images at a time (%(default)s)")
    cache.add_argument("--tuned", type=int, default=50, help="to choose settings on (%(default)s)")
    cache.add_argument("--steps", type=int, default=50, help="denoising steps (%(default)s)")
    cache.add_argument("--guidance-scale", type=float, default=3.0, help="(%(default)s)")
    cache.add_argument("--timed", type=int, default=5, help="timed generations (%(default)s)")
    cache.add_argument(
        "--kept-mb",
        type=float,
        default=16.0,
        metavar="MB",
        help="what ditc may keep between steps, or as much as the other (%(default)g)",
    )
    cache.add_argument("--out", default="bench_out", help="folder for results (%(default)s)")
    cache.add_argument(
        "--resume", action="store_true", help="do not try again what the results in --out tell of"
    )
    cache.set_defaults(command=_lazily("benches", "bench_cache"))


def _add_bench_exact(exact: argparse.ArgumentParser) -> None:
    _add_names(exact, "--models", "dit-xl-2-256,pixart-sigma-512")
    _add_names(exact, "--ways", "eager,default,best,ditc")
    _add_device(exact)
    _add_sizes(exact, steps=50)
    exact.add_argument("--repeats", type=int, default=7, help="timed steps (%(default)s)")
    exact.add_argument(
        "--no-compile-times",
        dest="compile_times",
        action="store_false",
        help="steady state alone",
    )
    exact.set_defaults(command=_lazily("benches", "bench_exact"))


def _add_bench_loop(loop: argparse.ArgumentParser) -> None:
    _add_names(loop, "--models", "dit-xl-2-256,pixart-sigma-512,flux-1-512")
    _add_pipelines(loop, ["fast"])
    _add_device(loop)
    _add_sizes(loop, steps=20)
    loop.add_argument("--generations", type=int, default=1, help="timed ones (%(default)s)")
    loop.set_defaults(command=_lazily("benches", "bench_loop"))


def _add_bench_export(export: argparse.ArgumentParser) -> None:
    export.add_argument("--model", default="dit-xl-2-256", help="(%(default)s)")
    _add_pipelines(export, ["exact", "fast"])
    _add_sizes(export, steps=50)
    export.set_defaults(command=_lazily("benches", "bench_export"))


def _add_names(bench: argparse.ArgumentParser, option: str, default: str) -> None:
    bench.add_argument(
        option, type=lambda text: text.split(","), default=default, help="(%(default)s)"
    )


def _add_pipelines(bench: argparse.ArgumentParser, default: list[str]) -> None:
    text = f"pipelines or presets ({' '.join(default)})"
    bench.add_argument("--passes", nargs="+", default=default, metavar="TEXT", help=text)


def _add_device(bench: argparse.ArgumentParser) -> None:
    bench.add_argument("--dtype", default="bfloat16", help="(%(default)s)")
    bench.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")


def _add_sizes(bench: argparse.ArgumentParser, steps: int) -> None:
    bench.add_argument("--batch", type=int, default=2, help="latents at a time (%(default)s)")
    bench.add_argument("--steps", type=int, default=steps, help="denoising steps (%(default)s)")
    bench.add_argument("--blocks", type=int, help="cut the models to this many blocks of each kind")
    bench.add_argument("--out", default="bench_out", help="folder for results (%(default)s)")


def _add_target(
    parser: argparse.ArgumentParser,
    *,
    default: str | None,
    required: bool = False,
    numerics: bool = True,
    optional: bool = False,
) -> None:
    parser.add_argument("target", nargs="?" if optional else None, help=_TARGET_HELP)
    parser.add_argument(
        "--passes",
        default=default,
        required=required,
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
    if not numerics:
        return
    parser.add_argument("--no-numerics", action="store_true", help="skip the check against float64")
