"""Every method on unlike families: with the state of the same step, all graphs give the same."""

from __future__ import annotations

import functools

import pytest
import torch

from dit_compile.ir.program import MAIN, InputKind, OutputKind, Program, placeholders
from dit_compile.ir.verifier import Verifier
from dit_compile.passes.block_cache.policies import POLICIES
from dit_compile.passes.block_cache.pyramid import Pyramid
from dit_compile.passes.block_cache.sites import Candidates
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.runtime.reference import run_reference
from tests import zoo
from tests.analysis.structures import FAMILIES, captured, each
from tests.capture.through_dynamo import from_dynamo
from tests.passes.irtest import ops

#: Options that let a method fire on any model.
OPTIONS = {
    "interval": "",
    "delta": "",
    "smooth": ",mask=1010",
    "taylor": "",
    "taylor ": ",scope=last,order=1",
    "pyramid": ",mlp=2",
    "first-block": ",residual-diff-threshold=0.5",
    "first-block ": ",measure=embedding,order=1",
    "first-block  ": ",decide=max",
    "first-block   ": ",measure=embedding,decide=max,rescale=[1.0,0.5,0.1]",
    "magnitude": ",ratios=[1,1,1,1],retention=0",
    "mask": ',mask="attn:1010 mlp:1100"',
}


@functools.cache
def exact(family: str) -> Program:
    """A family after the exact passes."""
    program = captured(family, 1)[0].copy()
    Pipeline.parse("exact").run(program)
    return program


#: Two unlike families at once, the others with the slow tests.
EACH = each(FAMILIES, quick=("dit", "flux"))


def test_all_methods_are_tried() -> None:
    #: tests/calibration, test_skip_guidance.py, test_linear_guidance.py
    elsewhere = {"record", "skip-guidance", "linear-guidance"}
    assert {method.strip() for method in OPTIONS} | elsewhere == POLICIES.keys()


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("family", EACH)
def test_every_variant_is_the_full_step(family: str, method: str) -> None:
    program, values = captured(family, 1)
    named = dict(zip([n.name for n in placeholders(program.main)], values, strict=True))
    after = exact(family).copy()
    text = f"insert-block-cache{{method={method.strip()}{OPTIONS[method]}}}"
    (record,) = Pipeline.parse(text).run(after).records
    assert after.schedule.stateful, record.notes
    Verifier().check(after)
    results = run_reference(after, named)
    assert results.keys() == {MAIN, *(name for _, name in after.schedule.variants)}
    for name, outputs in results.items():
        for first, second in zip(results[MAIN], outputs, strict=True):
            torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("method", OPTIONS)
def test_each_number_of_sites_is_a_sound_program(method: str) -> None:
    """What bisection asks for: no state without its write, no variant without what it reads."""
    program, values = captured("dit", 1)
    named = dict(zip([n.name for n in placeholders(program.main)], values, strict=True))
    pipeline = Pipeline.parse(f"insert-block-cache{{method={method.strip()}{OPTIONS[method]}}}")
    (whole,) = pipeline.run(exact("dit").copy()).records
    for limit in range(1, len(whole.rewrites) + 1):
        after = exact("dit").copy()
        (record,) = pipeline.run(after, limit=(0, limit)).records
        assert [r.added for r in record.rewrites] == [r.added for r in whole.rewrites[:limit]]
        assert all(r.removed and r.added for r in record.rewrites)
        Verifier().check(after)
        written = {o.name for o in after.outputs[MAIN] if o.kind is OutputKind.STATE}
        read = {
            str(node.target)
            for _, module in after.step_graphs()
            for node in placeholders(module.graph)
            if after.kind_of(node) is InputKind.STATE
        }
        latest = {spec.name for spec in after.of_kind(InputKind.STATE) if not spec.age}
        assert written == latest <= read
        assert len(after.schedule.variants) > 1
        results = run_reference(after, named)
        for outputs in results.values():
            torch.testing.assert_close(results[MAIN], outputs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", EACH)
def test_a_span_takes_all_work_of_its_blocks_away(family: str) -> None:
    after = exact(family).copy()
    Pipeline.parse("insert-block-cache{method=taylor,scope=last}").run(after)
    left = ops(after, "reuse")
    assert not left["aten.scaled_dot_product_attention"]
    assert left["aten.linear"] < 10
    states = {spec.path for spec in after.of_kind(InputKind.STATE)}
    assert len(states) == 1, "only the latent's stream is used after the last block"


def test_attention_over_frames_is_told_from_attention_inside_of_one() -> None:
    """Latte has a block of each in turns; only those inside of a frame attend to text."""
    program = captured("latte")[0].copy()
    Pipeline.parse("remove-noops,eliminate-common").run(program)
    groups = {site.path: site.group for site in Pyramid(mlp=2).sites(Candidates(program))}
    stacks = {"transformer_blocks": "spatial", "temporal_transformer_blocks": "temporal"}
    for path, group in groups.items():
        stack, _, branch = path.split(".", 2)
        kinds = {"attn1": stacks[stack], "attn2": "cross", "ff": "mlp"}
        assert group == kinds[branch], path
    assert {"spatial", "temporal", "cross", "mlp"} == set(groups.values())


@pytest.mark.parametrize(
    ("method", "graph"),
    [
        ("first-block", "judge"),
        ("skip-guidance,conditional=first-call", "critic"),
        ("linear-guidance,conditional=first-call,weights=[1.5,-0.5]", "critic"),
    ],
)
def test_a_graph_that_only_reads_states_knows_the_sizes_they_come_from(
    method: str, graph: str
) -> None:
    """A state of ``(h//2)*(w//2)`` tokens tells neither ``h`` nor ``w``."""
    case = zoo.case("pixart")
    inputs = case.inputs(1, torch.Generator().manual_seed(0))
    program, _ = from_dynamo(zoo.build(case), dynamic=True, **inputs)
    Pipeline.parse(f"exact,insert-block-cache{{method={method}}}").run(program)
    shown = placeholders(program.graphs[graph].graph)
    states = [node for node in shown if program.kind_of(node) is not InputKind.SIZE]
    sizes = {node.meta["val"].node.expr for node in shown if node not in states}
    used = {
        symbol
        for node in states
        for size in node.meta["val"].shape
        if isinstance(size, torch.SymInt)
        for symbol in size.node.expr.free_symbols
    }
    assert len(used) >= 2
    assert used <= sizes
