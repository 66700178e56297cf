"""The report's stages read exactly as the Programs did."""

from __future__ import annotations

import re

import pytest
import torch

from dit_compile.ir.printer import print_program
from dit_compile.ir.program import Program
from dit_compile.pipeline.pipeline import PassRecord, Pipeline
from dit_compile.report.build import build_report
from dit_compile.report.record import Recorder
from dit_compile.report.text import stage_text
from tests.ir.models import Transformer, capture, noise, program_of, seeded

FUSIONS = "fuse-qkv,fuse-adaln"


class Texts:
    """An instrument that prints every stage."""

    def start(self, program: Program) -> None:
        self.texts = [print_program(program)]

    def after(self, record: PassRecord, program: Program) -> None:
        if record.changed:
            self.texts.append(print_program(program))


def plain(text: str) -> list[str]:
    """Lines without the parents in their comments, which the report shows as ancestry."""
    lines = (re.sub(r" from [\w., ]+$", "", line) for line in text.splitlines())
    return [re.sub(r" +#$| +$", "", re.sub(r" {2,}# ?", "  # ", line)) for line in lines]


def assert_reads_the_same(program: Program, passes: str) -> None:
    texts, recorder = Texts(), Recorder()
    run = Pipeline.parse(passes).run(program, instruments=[texts, recorder])
    report = build_report("M", program, run, recorder)
    assert len(report.stages) == len(texts.texts)
    for stage, text in zip(report.stages, texts.texts, strict=True):
        assert plain(stage_text(report, stage)) == plain(text)


@pytest.mark.parametrize(
    "passes", ["fast", f"remove-noops,eliminate-common,insert-block-cache,{FUSIONS}"]
)
def test_every_stage(passes: str) -> None:
    program = capture(seeded(lambda: Transformer(3, affine=(1,))), noise(2, 4, 8), noise(2, 8))
    assert_reads_the_same(program, passes)


def test_arguments_of_every_kind() -> None:
    def forward(x: torch.Tensor, flag: torch.Tensor) -> tuple[torch.Tensor, ...]:
        low, high = x.to(torch.float64).split([1, 3], dim=-1)
        turned = torch.roll(high[..., 1:], [1], [0]).clamp(min=float("-inf"))
        return (
            low,
            turned.masked_fill(flag, float("nan")),
            torch.nn.functional.gelu(x, approximate="tanh"),
        )

    program = program_of(forward, noise(2, 4), torch.tensor([True, False]))
    assert_reads_the_same(program, "exact")
