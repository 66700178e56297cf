"""``ditc.explain``: run a pipeline on a model offline with every check on; keep what it did."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from torch import nn
from torch.utils import _pytree as pytree

from dit_compile import progress
from dit_compile.analysis.binding import node_bindings, settle
from dit_compile.analysis.blocks import describe_stacks, find_structure
from dit_compile.analysis.tokens import describe_tokens, find_tokens
from dit_compile.capture.export import capture_module
from dit_compile.errors import AnalysisError, OptionError
from dit_compile.ir.fake import is_operator
from dit_compile.ir.program import Binding, InputKind, Program
from dit_compile.ir.runnable import runnable
from dit_compile.pipeline.instruments import NumericCheck, StructuralCheck
from dit_compile.pipeline.pipeline import Instrument, Pipeline
from dit_compile.pipeline.watched import run_watched
from dit_compile.report.build import build_report
from dit_compile.report.codec import to_json
from dit_compile.report.diff import pass_diff
from dit_compile.report.markdown import markdown
from dit_compile.report.model import Report
from dit_compile.report.page import write_page
from dit_compile.report.record import Recorder
from dit_compile.report.table import print_report
from dit_compile.report.terminal import terminal
from dit_compile.report.trajectory import check_belongs
from dit_compile.versions import check_torch

if TYPE_CHECKING:
    from dit_compile.calibration.attribution import Attribution


@dataclass
class Explanation:
    """What a pipeline did to a model: the report, and the Program that came out.

    Attributes:
        report: everything that is shown, as plain data.
        program: the final Program.
        captured: the Program before any pass.
        pipeline: the passes.
    """

    report: Report
    program: Program
    captured: Program
    pipeline: Pipeline

    def print(self, console: Console | None = None, *, diffs: bool = False) -> None:
        """Write the tables, and with ``diffs`` each pass's diff, to the terminal."""
        print_report(self.report, console or terminal(), diffs=diffs)

    def sampled(self, found: Attribution) -> Explanation:
        """The same with what :func:`ditc.attribute` measured in its report, in all of its forms.

        Raises:
            OptionError: it was measured with other passes.
        """
        check_belongs(found.trajectory, self.report)
        return replace(self, report=replace(self.report, trajectory=found.trajectory))

    def diff(self, name: str | None = None) -> str:
        """The diff of the pass ``name``, or of all passes.

        Raises:
            OptionError: no such pass has run.
        """
        return pass_diff(self.report, name)

    def json(self) -> str:
        """The report as JSON; ``dit_compile.report.codec.load`` reads it."""
        return to_json(self.report)

    def html(self, path: str | Path) -> None:
        """Write the report as one page for a browser.

        Raises:
            ReportError: the file cannot be written.
        """
        write_page(self.report, path)

    def program_at(self, position: int | None = None) -> Program:
        """The Program after the pass at ``position``, the final one by default.

        Stages are made again when they are asked for; ``-1`` is the captured Program.

        Raises:
            OptionError: there is no such pass.
        """
        if position is None:
            return self.program
        if not -1 <= position < len(self.pipeline):
            raise OptionError(
                f"there is no pass #{position}; they are #0 to #{len(self.pipeline) - 1}, and -1 "
                "is the captured program"
            )
        program = self.captured.copy()
        Pipeline(self.pipeline.passes[: position + 1]).run(program)
        return program

    def python(self, position: int | None = None) -> str:
        """The Program after the pass at ``position`` as a Python module that runs.

        Raises:
            OptionError: there is no such pass.
        """
        where = "" if position is None else f" after #{position}"
        title = f"{self.report.model}{where}: {self.report.pipeline or 'as captured'}."
        return runnable(self.program_at(position), title=title)

    def markdown(self) -> str:
        """The report for a comment on a pull request."""
        return markdown(self.report)


@progress.shown()
def explain(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    passes: str = "exact",
    bindings: Mapping[str, str] | None = None,
    numerics: bool = True,
    dynamic_shapes: Any = None,
    command: str = "",
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
        command: what the report says how it was made.

    Raises:
        PipelineError: bad pipeline text.
        CaptureError: the model cannot be traced.
        PassError, VerificationError, NumericError: a pass broke its promise.
    """
    check_torch()
    pipeline = Pipeline.parse(passes).calibrated()
    progress.report("capture", subject=type(model).__name__)
    started = time.perf_counter()
    with torch.no_grad():
        program = capture_module(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    capture_seconds = time.perf_counter() - started
    settle(program, bindings)
    analysis = analyse(program)
    captured = program.copy()
    verifier, recorder = StructuralCheck(), Recorder()
    instruments: list[Instrument] = [verifier, recorder]
    numbers = NumericCheck(example_inputs(program, args, kwargs)) if numerics else None
    instruments += [numbers] if numbers else []
    run = run_watched(pipeline, program, instruments=instruments)
    report = build_report(
        type(model).__name__,
        program,
        run,
        recorder,
        verifier=verifier,
        numerics=numbers,
        analysis=analysis,
        capture_seconds=capture_seconds,
        command=command,
    )
    return Explanation(report, program, captured, pipeline)


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
