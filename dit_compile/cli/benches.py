"""``ditc bench``: what is typed becomes the options of a bench, which have the same names."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any, TypeVar

from dit_compile.disabling import require_enabled

OptionsT = TypeVar("OptionsT")


def bench_cache(args: argparse.Namespace) -> None:
    """``ditc bench cache``: caching by ditc and by what others offer, on the bundled models."""
    require_enabled("ditc bench cache")
    from dit_compile.bench.caching.bench import CacheBenchOptions, run_cache_bench

    run_cache_bench(_options(CacheBenchOptions, args))


def bench_exact(args: argparse.Namespace) -> None:
    """``ditc bench exact``: the default preset against eager and torch.compile."""
    require_enabled("ditc bench exact")
    from dit_compile.bench.exact import BenchOptions, run_bench

    run_bench(_options(BenchOptions, args))


def bench_export(args: argparse.Namespace) -> None:
    """``ditc bench export``: bundles against ``torch.onnx.export``."""
    from dit_compile.bench.export import ExportBenchOptions, run_export_bench

    run_export_bench(_options(ExportBenchOptions, args))


def bench_loop(args: argparse.Namespace) -> None:
    """``ditc bench loop``: what a cache saves on full-size models."""
    require_enabled("ditc bench loop")
    from dit_compile.bench.loop import LoopBenchOptions, run_loop_bench

    run_loop_bench(_options(LoopBenchOptions, args))


def _options(kind: type[OptionsT], args: argparse.Namespace) -> OptionsT:
    """A dataclass of options from the arguments of its fields' names, and the command line."""
    given: dict[str, Any] = {"command": args.command_line}
    for each in dataclasses.fields(kind):  # type: ignore[arg-type]
        if each.name != "command":
            value = getattr(args, each.name)
            given[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(**given)
