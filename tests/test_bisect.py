"""Bisection: the first wrong rewrite among right ones, in few runs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest
import torch

from dit_compile.bisect import Culprit, bisect, bisect_command
from dit_compile.errors import OptionError
from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import MAIN, Program
from dit_compile.passes.block_cache import insertion
from dit_compile.passes.block_cache.sites import Kept
from dit_compile.pipeline.instruments import NumericCheck
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.rewriter import Rewriter
from dit_compile.runtime.reference import run_reference
from tests.ir.models import Layer, Transformer, aten, calls, capture, noise, seeded
from tests.pipeline.passes import made_of


def layered(layers: int) -> Program:
    make = lambda: torch.nn.Sequential(*(Layer() for _ in range(layers)))  # noqa: E731
    return capture(seeded(make), noise(2, 4, 8))


def copying(wrong: int, crashing: bool = False) -> object:
    """A pass that replaces each gelu by itself, and the one at ``wrong`` by another."""

    def edit(program: Program, rw: Rewriter) -> None:
        for _ in rw.graphs():
            for position, old in enumerate(calls(program, aten.gelu.default)):
                rw.begin(old)
                if position == wrong and crashing:
                    raise ZeroDivisionError("planted")
                target = aten.tanh.default if position == wrong else aten.gelu.default
                rw.replace(old, rw.call(target, old.args[0], before=old, replaces=[old]))

    return made_of(edit, name="copy-gelu")


def right(name: str) -> object:
    return made_of(lambda program, rw: None, name=name)


def most(n: int) -> float:
    return 2 * math.log2(n) + 2


@pytest.mark.parametrize(("wrong", "crashing"), [(0, True), (11, False), (24, False)])
def test_one_wrong_rewrite_among_24_right_ones(wrong: int, crashing: bool) -> None:
    program = layered(25)
    names = [f"right-{i}" for i in range(8)]
    passes = [right(name) for name in names]
    passes.insert(5, copying(wrong, crashing))
    found = bisect(
        program,
        Pipeline(tuple(passes)),
        instruments=lambda: [NumericCheck({"input": noise(2, 4, 8)})],
    )
    assert (found.position, found.name, found.rewrite) == (5, "copy-gelu", wrong + 1)
    assert found.runs <= most(25)
    lines = found.text().splitlines()
    assert lines[0].startswith(f"first failing: pass copy-gelu (#5), rewrite {wrong + 1} of ")
    if not crashing:
        assert lines[1] == f"#5 copy-gelu @ {wrong}"
        assert lines[2].startswith("-  %gelu")
        assert "aten.tanh" in lines[3]
        assert lines[4].startswith("source: ")


def test_a_check_of_the_result() -> None:
    program = layered(6)
    pipeline = Pipeline((right("right"), copying(3)))
    found = bisect(program, pipeline, lambda done: not calls(done, aten.tanh.default))
    assert (found.position, found.rewrite, found.rewrites) == (1, 4, 6)
    assert len(calls(program, aten.gelu.default)) == 6


def test_one_wrong_site_among_24_right_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache is switched off site by site, though its graphs are made when all sites are known."""
    program = capture(seeded(lambda: Transformer(25)), noise(2, 4, 8), noise(2, 8))
    right_one, values = insertion._stored, {"x": noise(2, 4, 8), "c": noise(2, 8)}

    def stored(rw: Rewriter, kept: Kept, dtype: torch.dtype | None) -> torch.fx.Node:
        node = right_one(rw, kept, dtype)
        if origin_of(kept.value).path != "blocks.17":
            return node
        return rw.call(aten.neg.default, node, before=node.next, replaces=[kept.value])

    monkeypatch.setattr(insertion, "_stored", stored)

    def agrees(done: Program) -> bool:
        found = run_reference(done, values)
        reuse = found.get("reuse")
        return reuse is None or torch.equal(found[MAIN][0], reuse[0])

    pipeline = Pipeline.parse("remove-noops,eliminate-common,insert-block-cache{interval=3}")
    found = bisect(program, pipeline, agrees)
    assert (found.name, found.rewrite, found.rewrites) == ("insert-block-cache", 18, 25)
    assert found.runs <= most(25)
    lines = found.text().splitlines()
    assert lines[1] == "#2 insert-block-cache @ blocks.17"
    assert lines[2].startswith("-  %scaled_dot_product_attention")
    assert lines[3] == "+  %state_blocks_17_attn : f32[2,4,8] state"
    assert "aten.neg(" in lines[4]


def test_a_pass_without_counted_rewrites() -> None:
    def annotate(program: Program, rw: Rewriter) -> None:
        program.annotations["x"] = {"scheme": "int8"}

    from dit_compile.pipeline.base import Kind

    pipeline = Pipeline((right("right"), made_of(annotate, Kind.ANNOTATE, "annotate")))
    found = bisect(layered(2), pipeline, lambda done: not done.annotations)
    assert (found.position, found.name, found.rewrite) == (1, "annotate", 0)
    assert found.text() == f"first failing: pass annotate (#1); {found.runs} runs"


def test_nothing_to_find() -> None:
    pipeline = Pipeline((right("right"),))
    with pytest.raises(OptionError, match="the check passes with all passes on"):
        bisect(layered(1), pipeline)
    with pytest.raises(OptionError, match="the check fails even without any pass"):
        bisect(layered(1), pipeline, lambda done: False)


SCRIPT = """
import sys
import torch
from dit_compile.explanation import explain
from tests.ir.models import Transformer, noise, seeded

found = explain(seeded(lambda: Transformer(6)), (noise(2, 4, 8), noise(2, 8)), numerics=False)
fused = sum("adaln_norm" in str(node) for node in found.program.main.nodes)
print("fused", fused)
sys.exit(fused > 3)
"""


@pytest.mark.slow
def test_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "check.py"
    script.write_text(SCRIPT)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    found = bisect_command([sys.executable, str(script)])
    assert isinstance(found, Culprit)
    assert (found.name, found.rewrite, found.rewrites) == ("fuse-adaln", 4, 6)
    assert found.runs <= 2 + 4 + 3
    assert "#4 fuse-adaln @ blocks.3" in found.text()


def test_a_command_that_runs_no_pipeline() -> None:
    with pytest.raises(OptionError, match="it never ran a pipeline of ditc"):
        bisect_command([sys.executable, "-c", "raise SystemExit(1)"])
    with pytest.raises(OptionError, match="cannot run '/no/such/program'"):
        bisect_command(["/no/such/program"])
