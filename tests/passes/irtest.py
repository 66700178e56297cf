"""Tests of passes, written as a function with its pipeline and the text that it must give above it.

    # RUN: fuse-adaln
    # CHECK: ditc.adaln_norm(
    # CHECK-NOT: aten.layer_norm
    def forward(x, scale, shift):
        return F.layer_norm(x, (64,), eps=1e-6) * (1 + scale) + shift

``# CHECK`` lines are those of :class:`torch.testing.FileCheck`; ``# MISS:`` lines are the reasons
of all near misses, in order.
"""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.testing import FileCheck

from dit_compile.capture.export import capture_module
from dit_compile.explanation import example_inputs
from dit_compile.ir.fingerprint import fingerprint
from dit_compile.ir.printer import print_program, target_name
from dit_compile.ir.program import MAIN, Program, output_args, output_node
from dit_compile.pipeline.instruments import NumericCheck, StructuralCheck
from dit_compile.pipeline.pipeline import PassRecord, Pipeline

_LINE = re.compile(r"#\s*(?P<key>RUN|MISS|CHECK[A-Z0-9-]*):\s*(?P<text>.*)")


@dataclass(frozen=True)
class Rewritten:
    """A Program before and after a pipeline, and what each pass recorded."""

    before: Program
    after: Program
    records: list[PassRecord]

    @property
    def misses(self) -> list[str]:
        """The reasons of all near misses."""
        return [miss.reason for record in self.records for miss in record.misses]

    @property
    def text(self) -> str:
        """The rewritten Program."""
        return print_program(self.after)


def check(
    model: nn.Module | Callable[..., Any],
    *inputs: Any,
    dynamic_shapes: Any = None,
    edit: Callable[[Program], None] = lambda program: None,
) -> Rewritten:
    """Run the pipeline in the comments above ``forward`` and hold the result to them.

    Each pass is verified, compared with float64, and must change nothing when all run again.
    ``edit`` changes the captured program first.
    """
    forward = model.forward if isinstance(model, nn.Module) else model
    lines = [match.groupdict() for match in _LINE.finditer(inspect.getcomments(forward) or "")]
    (pipeline,) = [line["text"] for line in lines if line["key"] == "RUN"]
    checks = [f"# {line['key']}: {line['text']}" for line in lines if "CHECK" in line["key"]]
    assert checks, "a test of a pass says what the pass must give"
    program = capture(model, *inputs, dynamic_shapes=dynamic_shapes)
    edit(program)
    done = rewrite(pipeline, program, *inputs)
    FileCheck().run("\n".join(checks), done.text)
    assert done.misses == [line["text"] for line in lines if line["key"] == "MISS"]
    again = done.after.copy()
    Pipeline.parse(pipeline).run(again)
    assert fingerprint(again) == fingerprint(done.after)
    return done


def return_first(program: Program) -> None:
    """Return the first result alone, which leaves code that nobody needs.

    What the model itself computes for nobody, torch.export has dropped already.
    """
    output_node(program.main).args = (output_args(program.main)[:1],)
    program.outputs[MAIN] = program.outputs[MAIN][:1]


def capture(
    model: nn.Module | Callable[..., Any], *inputs: Any, dynamic_shapes: Any = None
) -> Program:
    """A model, or a function as a model, as a Program for inference."""
    if not isinstance(model, nn.Module):
        function, model = model, nn.Module()
        model.forward = function
    with torch.no_grad():
        return capture_module(model, inputs, dynamic_shapes=dynamic_shapes)


def rewrite(pipeline: str, program: Program, *inputs: Any) -> Rewritten:
    """Run ``pipeline`` on a copy of ``program``, verified and compared with float64."""
    return rewrite_on(pipeline, program, example_inputs(program, inputs, None))


def rewrite_on(pipeline: str, program: Program, values: Mapping[str, Any]) -> Rewritten:
    """Like :func:`rewrite`, with the inputs by name."""
    after = program.copy()
    run = Pipeline.parse(pipeline).run(after, instruments=[StructuralCheck(), NumericCheck(values)])
    return Rewritten(program, after, run.records)


def ops(program: Program, graph: str = MAIN) -> Counter[str]:
    """How often each operator stands in a graph."""
    return Counter(
        target_name(node.target)
        for node in program.graphs[graph].graph.nodes
        if node.op == "call_function"
    )


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Equal for equal arguments."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def weights(module: nn.Module) -> nn.Module:
    """``module`` in eval mode with weights drawn from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return module.eval()
