"""``ditc bench``: what is typed becomes the options of a bench."""

from __future__ import annotations

import argparse


def bench_cache(args: argparse.Namespace) -> None:
    """``ditc bench cache``: caching by ditc and by what others offer, on the bundled models."""
    from dit_compile.bench.caching.bench import CacheBenchOptions, run_cache_bench

    run_cache_bench(
        CacheBenchOptions(
            models=tuple(args.models.split(",")),
            groups=tuple(args.groups.split(",")),
            ratios=tuple(args.ratios),
            images=args.images,
            batch=args.batch,
            tuned=args.tuned,
            steps=args.steps,
            guidance_scale=args.guidance_scale,
            timed=args.timed,
            out=args.out,
            command=args.command_line,
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
            command=args.command_line,
        )
    )


def bench_export(args: argparse.Namespace) -> None:
    """``ditc bench export``: bundles against ``torch.onnx.export``."""
    from dit_compile.bench.export import ExportBenchOptions, run_export_bench

    run_export_bench(
        ExportBenchOptions(
            model=args.model,
            passes=tuple(args.passes),
            batch=args.batch,
            steps=args.steps,
            blocks=args.blocks,
            out=args.out,
            command=args.command_line,
        )
    )


def bench_loop(args: argparse.Namespace) -> None:
    """``ditc bench loop``: what a cache saves on full-size models."""
    from dit_compile.bench.loop import LoopBenchOptions, run_loop_bench

    run_loop_bench(
        LoopBenchOptions(
            models=tuple(args.models.split(",")),
            passes=tuple(args.passes),
            dtype=args.dtype,
            device=args.device,
            batch=args.batch,
            steps=args.steps,
            generations=args.generations,
            blocks=args.blocks,
            out=args.out,
            command=args.command_line,
        )
    )
