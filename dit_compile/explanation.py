"""``ditc.explain``: run a pipeline on a model offline with every check on; keep what it did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils import _pytree as pytree

from dit_compile.analysis.binding import node_bindings, settle
from dit_compile.analysis.blocks import describe_stacks, find_structure
from dit_compile.analysis.step_cost import StepCost
from dit_compile.analysis.tokens import describe_tokens, find_tokens
from dit_compile.capture.export import capture_module
from dit_compile.errors import AnalysisError, OptionError, suggest
from dit_compile.ir.fake import is_operator
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.program import Binding, InputKind, Program
from dit_compile.pipeline.instruments import (
    CostMeter,
    NumericCheck,
    Snapshots,
    StructuralCheck,
)
from dit_compile.pipeline.pipeline import Instrument, PassRecord, Pipeline, PipelineRun
from dit_compile.report.diff import diff_lines
from dit_compile.report.table import header, pass_table, terminal
from dit_compile.versions import check_torch


@dataclass
class Explanation:
    """What a pipeline did to a model.

    Attributes:
        name: the model's class.
        program: the final Program.
        run: a record for each pass.
        costs: cost of a step at each stage, the captured one first.
        texts: text of the Program at each stage, the captured one first.
        analysis: what was found in the captured model, as plain data.
        capture_seconds: time to trace the model.
        verify_seconds: time in the structural verifier.
    """

    name: str
    program: Program
    run: PipelineRun
    costs: list[StepCost]
    texts: list[str]
    analysis: dict[str, Any]
    capture_seconds: float
    verify_seconds: float
    torch_version: str = field(default_factory=lambda: torch.__version__.split("+")[0])

    def print(self, console: Console | None = None, *, diffs: bool = False) -> None:
        """Write the table, and with ``diffs`` each pass's diff, to the terminal."""
        console = console or terminal()
        console.print(header(self), highlight=False, markup=False)
        console.print(pass_table(self))
        if diffs:
            console.print(self.diff(), highlight=False, markup=False, soft_wrap=True)

    def diff(self, name: str | None = None) -> str:
        """The diff of the pass ``name``, or of all passes.

        Raises:
            OptionError: no such pass has run.
        """
        names = [record.item.name for record in self.run.records]
        if name is not None and name not in names:
            raise OptionError(
                f"no pass {name!r} has run{suggest(name, names)}; these have: {', '.join(names)}"
            )
        lines = []
        for position, record in enumerate(self.run.records):
            if name in (None, record.item.name):
                lines += diff_lines(position, record)
        return "\n".join(lines) or "(no change)"

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain data, ready for JSON."""
        return {
            "version": 1,
            "model": self.name,
            "torch": self.torch_version,
            "pipeline": str(self.run.pipeline),
            "fingerprint": fingerprint(self.program),
            "capture_seconds": self.capture_seconds,
            "pipeline_seconds": self.run.seconds,
            "verify_seconds": self.verify_seconds,
            "costs": [_cost_data(cost) for cost in self.costs],
            "passes": [_record_data(record) for record in self.run.records],
            "analysis": self.analysis,
        }


def explain(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    passes: str = "exact",
    bindings: Mapping[str, str] | None = None,
    numerics: bool = True,
    dynamic_shapes: Any = None,
) -> Explanation:
    """Run a pipeline on ``model`` and keep what each pass did.

    Args:
        model: the module, as it would be called in the sampling loop.
        args: positional example arguments.
        kwargs: keyword example arguments.
        passes: pipeline text or a preset's name.
        bindings: binding time by argument name, where structure cannot tell.
        numerics: check each exact pass against float64 on the example arguments.
        dynamic_shapes: as for ``torch.export.export``.

    Raises:
        PipelineError: bad pipeline text.
        CaptureError: the model cannot be traced.
        PassError, VerificationError, NumericError: a pass broke its promise.
    """
    check_torch()
    pipeline = Pipeline.parse(passes).calibrated()
    started = time.perf_counter()
    with torch.no_grad():
        program = capture_module(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    capture_seconds = time.perf_counter() - started
    settle(program, bindings)
    analysis = analyse(program)
    check, meter, snapshots = StructuralCheck(), CostMeter(), Snapshots()
    instruments: list[Instrument] = [check, meter, snapshots]
    if numerics:
        instruments.append(NumericCheck(example_inputs(program, args, kwargs)))
    run = pipeline.run(program, instruments=instruments)
    return Explanation(
        type(model).__name__,
        program,
        run,
        meter.costs,
        snapshots.texts,
        analysis,
        capture_seconds,
        check.seconds,
    )


def example_inputs(
    program: Program, args: Sequence[Any], kwargs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The example arguments by the Program's input names, in the order of export's flattening."""
    flat = [
        value
        for value in pytree.tree_leaves((tuple(args), dict(kwargs or {})))
        if isinstance(value, torch.Tensor)
    ]
    users = [spec.name for spec in program.of_kind(InputKind.USER)]
    return dict(zip(users, flat, strict=True))


def analyse(program: Program) -> dict[str, Any]:
    """What the analyses find in a captured Program, as plain data."""
    structure = find_structure(program)
    times = [time for node, time in node_bindings(program).items() if is_operator(node)]
    counts = {str(binding): times.count(binding) for binding in Binding}
    try:
        tokens: dict[str, Any] = describe_tokens(find_tokens(program))
    except AnalysisError as error:
        tokens = {"error": str(error)}
    return {
        "inputs": [
            {"name": spec.path, "binding": str(spec.binding), "settled": spec.settled}
            for spec in program.of_kind(InputKind.USER)
        ],
        "nodes_by_binding": counts,
        "stacks": describe_stacks(structure.stacks),
        "structure_misses": list(structure.misses),
        "tokens": tokens,
    }


def _cost_data(cost: StepCost) -> dict[str, Any]:
    return {
        "flops": cost.flops,
        "bytes_moved": cost.bytes_moved,
        "computed": cost.computed,
        "steps": cost.steps,
        "graphs": {
            name: {
                "flops": value.flops,
                "bytes_moved": value.bytes_moved,
                "parameter_bytes": value.parameter_bytes,
            }
            for name, value in cost.graphs.items()
        },
    }


def _record_data(record: PassRecord) -> dict[str, Any]:
    return {
        "pass": str(record.item),
        "kind": record.item.kind.value,
        "changed": record.changed,
        "nodes_before": record.nodes_before,
        "nodes_after": record.nodes_after,
        "seconds": record.seconds,
        "verify_seconds": record.details.get("verify_seconds", 0.0),
        "error_growth": record.details.get("error_growth"),
        "notes": record.notes,
        "skipped": record.skipped,
        "failure": record.failure,
        "rewrites": [
            {"graph": r.graph, "path": r.path, "removed": r.removed, "added": r.added}
            for r in record.rewrites
        ],
        "misses": [vars(miss) for miss in record.misses],
    }
