"""Puts the report together from what a run's instruments and records hold."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import dit_compile
from dit_compile.analysis.step_cost import planned_steps
from dit_compile.ir.program import InputKind, Program, placeholders
from dit_compile.pipeline.base import Pass
from dit_compile.pipeline.instruments import NumericCheck, StructuralCheck
from dit_compile.pipeline.pipeline import PassRecord, PipelineRun
from dit_compile.report import model
from dit_compile.report.model import CacheSchedule, PassEntry, Report, Seconds, Stage
from dit_compile.report.record import Recorder


def build_report(
    name: str,
    program: Program,
    run: PipelineRun,
    recorder: Recorder,
    *,
    verifier: StructuralCheck | None = None,
    numerics: NumericCheck | None = None,
    analysis: Mapping[str, Any] | None = None,
    capture_seconds: float = 0.0,
    command: str = "",
    plan: Mapping[str, Any] | None = None,
) -> Report:
    """The report of one run.

    Args:
        name: the model's class.
        program: the Program that the run left.
        run: the run.
        recorder: the instrument that kept its stages.
        verifier: the structural check, if it ran.
        numerics: the numeric check, if it ran.
        analysis: what was found in the captured model.
        capture_seconds: time to trace the model.
        command: the command that reproduces the run.
        plan: what the plan that the run was given says, if it was given one.
    """
    return Report(
        model=name,
        torch=torch.__version__.split("+")[0],
        ditc=dit_compile.__version__,
        pipeline=str(run.pipeline),
        seconds=Seconds(
            capture_seconds,
            run.seconds,
            verifier.seconds if verifier else 0.0,
            numerics.seconds if numerics else 0.0,
            recorder.seconds,
        ),
        nodes=recorder.nodes,
        stages=_stages(recorder, run, numerics),
        passes=[_entry(i, record, recorder) for i, record in enumerate(run.records)],
        schedule=cache_schedule(program),
        annotations={path: _plain(notes) for path, notes in program.annotations.items()},
        plan=None if plan is None else _plain(plan),
        analysis=dict(analysis or {}),
        command=command,
    )


def cache_schedule(program: Program) -> CacheSchedule | None:
    """Which graph serves which step of a generation; ``None`` where every step is computed.

    A graph takes a site from state just if it reads that state.
    """
    schedule = program.schedule
    if schedule.policy is None:
        return None
    rows = schedule.mask(planned_steps(schedule))
    chosen = [schedule.choose(row)[1] for row in rows or ()]
    sites = list(dict.fromkeys(spec.path for spec in program.of_kind(InputKind.STATE)))
    reused = {}
    for name in schedule.graphs():
        module = program.graphs[name]
        read = {
            program.inputs[str(node.target)].path
            for node in placeholders(module.graph)
            if program.kind_of(node) is InputKind.STATE
        }
        reused[name] = [position for position, path in enumerate(sites) if path in read]
    return CacheSchedule(schedule.policy.describe(), chosen, sites, reused)


def _stages(recorder: Recorder, run: PipelineRun, numerics: NumericCheck | None) -> list[Stage]:
    captured, *rest = recorder.stages
    stages = [dataclasses.replace(captured, fingerprint=run.captured), *rest]
    if numerics is None:
        return stages
    errors = {0: numerics.captured}
    for record, stage in zip(run.records, recorder.stage_of, strict=False):
        found = record.details.get("errors")
        if isinstance(found, dict):
            errors[stage] = found
    return [
        dataclasses.replace(stage, errors=_finite(errors[index]) if index in errors else None)
        for index, stage in enumerate(stages)
    ]


def _finite(errors: Mapping[str, Sequence[float]]) -> dict[str, list[float | None]]:
    """JSON knows no infinity."""
    return {
        graph: [value if math.isfinite(value) else None for value in values]
        for graph, values in errors.items()
    }


def _entry(position: int, record: PassRecord, recorder: Recorder) -> PassEntry:
    item, details = record.item, record.details
    growth = details.get("error_growth")
    reached = position < len(recorder.stage_of)
    return PassEntry(
        name=item.name,
        text=str(item),
        kind=item.kind.value,
        summary=(item.__doc__ or "").strip().splitlines()[0].replace("``", "`"),
        options=_options(item),
        changed=record.changed,
        stage=recorder.stage_of[position] if reached else len(recorder.stages) - 1,
        nodes_before=record.nodes_before,
        nodes_after=record.nodes_after,
        seconds=record.seconds,
        verify_seconds=_number(details.get("verify_seconds")),
        numerics_seconds=_number(details.get("numerics_seconds")),
        error_growth=growth if isinstance(growth, float) and math.isfinite(growth) else None,
        skipped=record.skipped,
        failure=record.failure,
        notes=list(record.notes),
        rewrites=[
            model.Rewrite(r.graph, r.path, list(r.removed), list(r.added), r.source)
            for r in record.rewrites
        ],
        misses=[model.Miss(**vars(miss)) for miss in record.misses],
        moves=recorder.moves[position] if reached else [],
    )


def _options(item: Pass) -> dict[str, Any]:
    """All options of a pass by name; those of a policy that it holds stand beside its own."""
    values: dict[str, Any] = dict(item.to_options())
    for key, value in vars(item).items():
        values.update(vars(value) if dataclasses.is_dataclass(value) else {key: value})
    return {key.replace("_", "-"): _plain(value) for key, value in values.items()}


def _number(value: object) -> float:
    return value if isinstance(value, float) else 0.0


def _plain(value: Any) -> Any:
    """A value of an option or annotation as JSON knows it; text where it does not."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if dataclasses.is_dataclass(value):
        return {key.replace("_", "-"): _plain(item) for key, item in vars(value).items()}
    return str(value)
