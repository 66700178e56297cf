"""The way in through ``torch.compile(model, backend="ditc")``."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._dynamo.exc import TensorifyScalarRestartAnalysis
from torch._guards import CompileContext
from torch._inductor.compile_fx import compile_fx

from dit_compile import config, disabling
from dit_compile.analysis.binding import settle
from dit_compile.analysis.machine import cpu_class
from dit_compile.backends.base import Backend
from dit_compile.calibration.plan import Plan
from dit_compile.capture.dynamo import capture_dynamo
from dit_compile.capture.lazy import with_lazy_inputs
from dit_compile.errors import (
    BindingError,
    DitcWarning,
    OptionError,
    PlanError,
    ReportError,
    suggest,
)
from dit_compile.ir.fake import device_types
from dit_compile.ir.program import InputKind, OutputKind, Program
from dit_compile.pipeline.base import Kind
from dit_compile.pipeline.instruments import StructuralCheck
from dit_compile.pipeline.pipeline import Instrument, Pipeline, PipelineRun
from dit_compile.pipeline.presets import preset
from dit_compile.pipeline.registry import find_backend
from dit_compile.pipeline.watched import run_watched
from dit_compile.report.build import build_report
from dit_compile.report.record import Recorder
from dit_compile.report.write import check_target, write_numbered
from dit_compile.runtime.compiled import CompiledProgram
from dit_compile.runtime.fallback import Fallback
from dit_compile.runtime.lanes import follow_cache_context
from dit_compile.runtime.offload import has_own_memory
from dit_compile.versions import check_torch


@dataclass(frozen=True)
class Options:
    """What ``torch.compile(..., options={...})`` accepts.

    Attributes:
        preset: name of a preset pipeline: ``exact``, ``balanced`` or ``fast``.
        passes: the text of a pipeline, in place of a preset.
        plan: a Plan from :func:`ditc.calibrate`, or the path of one, in place of a pipeline.
        target: the backend that compiles the graphs.
        bindings: binding time by argument name, where structure cannot tell.
        strict: raise on any failure inside ditc, instead of falling back with a warning.
        verify: check the structure of the graph after every pass.
        report: a file to write the report to, ``.html`` or ``.json``. Where a model becomes several
            graphs, or is compiled again, each later one gets a number in its name.
        offload_hoisted: while a Session is open, keep weights that only hoisted work reads in host
            memory once that is done.
    """

    preset: str = "exact"
    passes: str | None = None
    plan: Plan | str | os.PathLike[str] | None = None
    target: str = "inductor"
    bindings: Mapping[str, str] = field(default_factory=dict)
    strict: bool = field(default_factory=config.strict_by_default)
    verify: bool = True
    report: str | None = None
    offload_hoisted: bool = False

    @classmethod
    def parse(cls, options: Mapping[str, Any] | None) -> Options:
        """Check option names and the values that can be checked without a graph.

        Raises:
            OptionError: unknown option, preset or target, both ``preset`` and ``passes``, or
                ``DITC_CPU`` asks for a class of processors that this one is not of.
            PipelineError: the text in ``passes`` is wrong.
        """
        known = [item.name for item in dataclasses.fields(cls)]
        for name, value in (options or {}).items():
            if name not in known:
                raise OptionError(
                    f"unknown option {name!r}{suggest(name, known)}; options are {', '.join(known)}"
                )
            if not isinstance(value, _TYPES[name]):
                raise OptionError(
                    f"option {name!r} takes {_TYPES[name][0].__name__}, not "
                    f"{type(value).__name__} {value!r}"
                )
        given = [name for name in ("preset", "passes", "plan") if (options or {}).get(name)]
        if len(given) > 1:
            raise OptionError(f"give either {given[0]!r} or {given[1]!r}, not both")
        parsed = cls(**dict(options or {}))
        if parsed.plan is not None:
            parsed = dataclasses.replace(parsed, plan=Plan.of(parsed.plan))
        parsed.pipeline()
        if parsed.report is not None:
            check_target(parsed.report)
        find_backend(parsed.target)
        cpu_class()
        return parsed

    def pipeline(self) -> Pipeline:
        """The pipeline that these options ask for."""
        if isinstance(self.plan, Plan):
            return self.plan.pipeline()
        text = self.passes if self.passes is not None else preset(self.preset)
        return Pipeline.parse(text).calibrated()


_TYPES: dict[str, tuple[type, ...]] = {
    "preset": (str,),
    "passes": (str, type(None)),
    "plan": (Plan, str, os.PathLike, type(None)),
    "target": (str,),
    "bindings": (dict, Mapping),
    "strict": (bool,),
    "verify": (bool,),
    "report": (str, type(None)),
    "offload_hoisted": (bool,),
}


def ditc(
    module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Callable[..., Any]:
    """The Dynamo backend. Users write ``torch.compile(model, backend="ditc", options={...})``.

    Any failure inside ditc falls back one step at a time, with one warning that names the cause:
    a failing pass is dropped, a failing capture or compilation leaves the graph to plain Inductor,
    and so does a compiled graph that fails while it runs.

    Args:
        module: the graph from Dynamo.
        example_inputs: its real or fake inputs.
        options: see :class:`Options`.
        mode: torch.compile's mode; ditc has presets in its place.

    Raises:
        OptionError, PipelineError, BindingError, PlanError, UnsupportedTorchError: the call itself
            is wrong.
        DitcError: with ``strict``, any failure.
    """
    if disabling.for_the_process():
        inductors: Any = compile_fx(module, list(example_inputs))
        return inductors  # type: ignore[no-any-return]
    check_torch()
    follow_cache_context()
    if mode not in (None, "default"):
        raise OptionError(
            f'mode={mode!r} is Inductor\'s; with ditc write options={{"preset": "exact"}}'
        )
    parsed = Options.parse(options)
    return with_lazy_inputs(module, example_inputs, partial(_compile, options=parsed))


def _compile(
    module: fx.GraphModule, example_inputs: Sequence[Any], options: Options
) -> Callable[..., Any]:
    """Compile one graph, or leave it to plain Inductor unless ``strict``."""
    pipeline = options.pipeline()
    try:
        captured = capture_dynamo(module)
        if isinstance(options.plan, Plan):
            _check(options.plan, captured, example_inputs)
        assemble = partial(_guarded, module, captured, pipeline, options, _origin())
        return disabling.switchable(module, example_inputs, assemble, strict=options.strict)
    except (TensorifyScalarRestartAnalysis, OptionError, BindingError, PlanError):
        raise
    except Exception as error:
        if options.strict:
            raise
        _warn(f"the graph is left to plain Inductor: {type(error).__name__}: {_first(error)}")
        plain: Any = compile_fx(module, list(example_inputs))
        return plain  # type: ignore[no-any-return]


def _guarded(
    module: fx.GraphModule,
    captured: Program,
    pipeline: Pipeline,
    options: Options,
    origin: object,
) -> disabling.Step:
    """Rewrite and compile a captured Program; what fails at run time is left to plain torch."""
    compiled = _assemble(captured, pipeline, options, origin)
    if options.strict:
        return compiled
    instead = _as_it_is if options.target == "eager" else compile_plainly
    return Fallback(compiled, module, instead, _written(captured), _warn)


def _as_it_is(plain: Callable[..., Any]) -> Callable[..., Any]:
    return plain


def compile_plainly(plain: Callable[..., Any]) -> Callable[..., Any]:
    """``plain`` by Inductor without ditc, once it is called."""
    return torch.compile(plain)


def _written(captured: Program) -> list[int]:
    """Positions among the caller's arguments of those that the graph writes to."""
    passed = [name for name in captured.inputs if name not in captured.constants]
    outputs = (output for outputs in captured.outputs.values() for output in outputs)
    return [passed.index(o.name) for o in outputs if o.kind is OutputKind.MUTATION]


def _check(plan: Plan, captured: Program, example_inputs: Sequence[Any]) -> None:
    """Raise if the Plan is for another structure, warn if it is for other weights.

    Raises:
        PlanError: naming the first weight that differs.
    """
    plan.check(captured)
    passed = [spec for spec in captured.inputs.values() if spec.name not in captured.constants]
    values = {
        spec.path: value
        for spec, value in zip(passed, example_inputs, strict=False)
        if spec.kind is InputKind.WEIGHT and type(value) in (torch.Tensor, torch.nn.Parameter)
    }
    strange = plan.strange(values)
    if strange:
        _warn(
            f"the plan was made with other weights ({strange[0]} and {len(strange) - 1} more); "
            "calibrate again for the best quality"
        )


def _origin() -> object:
    """The place in the user's code that Dynamo compiles now, one for all forms of its graph."""
    compiling = CompileContext.current_compile_id()
    return None if compiling is None else ("frame", compiling.frame_id)


def _assemble(
    captured: Program, pipeline: Pipeline, options: Options, origin: object
) -> CompiledProgram:
    """Rewrite and compile a captured Program, which stays as it is to start from again."""
    program = captured.copy()
    settle(program, options.bindings)
    backend: Backend = find_backend(options.target)
    lowerings = Pipeline.parse(backend.lowerings(program))
    run = run_passes(program, Pipeline((*pipeline, *lowerings)), options)
    for record in run.dropped:
        _warn(f"pass {record.item.name} is left out: {_with_repro(record.failure)}")
    for record in run.records:
        for text in record.warnings:
            _warn(f"pass {record.item.name}: {text}")

    def rebind(names: Collection[str]) -> CompiledProgram | None:
        paths = sorted(captured.inputs[name].path for name in names)
        _warn(
            f"{', '.join(paths)} changes from step to step, which structure did not tell; "
            f'compiling once more. options={{"bindings": {dict.fromkeys(paths, "latent")}}} saves '
            "that"
        )
        bindings = {**options.bindings, **dict.fromkeys(paths, "latent")}
        try:
            renewed = dataclasses.replace(options, bindings=bindings)
            return _assemble(captured, pipeline, renewed, origin)
        except Exception as error:
            if options.strict:
                raise
            _warn(f"that failed, so it stays as it was: {type(error).__name__}: {_first(error)}")
            return None

    devices = device_types(program.main.nodes)
    if options.offload_hoisted and not any(map(has_own_memory, devices)):
        _warn(
            f"offload_hoisted releases nothing: weights on {', '.join(devices)} are in host memory"
        )
    return CompiledProgram(
        program,
        backend,
        rebind,
        offload=options.offload_hoisted,
        origin=origin,
        counts=any(item.kind is Kind.APPROX for item in pipeline),
    )


def run_passes(program: Program, pipeline: Pipeline, options: Options) -> PipelineRun:
    """Run the pipeline as torch.compile does: verified, failing passes undone unless strict."""
    verifier = StructuralCheck() if options.verify else None
    recorder = Recorder() if options.report else None
    instruments: list[Instrument] = [item for item in (verifier, recorder) if item is not None]
    undo = not options.strict
    run = run_watched(pipeline, program, instruments=instruments, undo_failures=undo)
    if recorder is not None and options.report:
        plan = options.plan if isinstance(options.plan, Plan) else None
        decided = None if plan is None else {k: v for k, v in vars(plan).items() if k != "weights"}
        report = build_report(
            "torch.compile", program, run, recorder, verifier=verifier, plan=decided
        )
        try:
            write_numbered(report, options.report)
        except ReportError as error:  # a full disk is no reason to compile another way
            _warn(str(error))
    return run


def _warn(message: str) -> None:
    warnings.warn(f"ditc: {message}", DitcWarning, stacklevel=3)


def _with_repro(failure: str) -> str:
    """The first line of a failure, and where its repro is."""
    head, *rest = failure.splitlines()
    return head + "".join(f" ({line.strip()})" for line in rest if line.startswith("  repro: "))


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else repr(error)


# torch.compile imports this module before the first call, whose lane may have a name already.
follow_cache_context()
# Dynamo then traces for seconds before it calls the backend.
find_backend(Options().target).prepare()
