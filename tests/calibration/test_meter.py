"""Operations of a generation are those of the graphs that served it."""

from __future__ import annotations

import pytest
import torch

import dit_compile as ditc
from dit_compile.calibration.meter import Meter
from dit_compile.explanation import explain
from dit_compile.runtime.watch import watching
from tests.runtime.loops import TIMES, Loop, Toy, label, run

STATIC = "exact,insert-block-cache{method=interval,interval=3}"
DYNAMIC = "exact,insert-block-cache{method=first-block,residual-diff-threshold=1e9}"


@pytest.mark.parametrize("passes", [STATIC, DYNAMIC, "exact"])
def test_operations_are_those_of_the_graphs_that_ran(passes: str) -> None:
    torch._dynamo.reset()
    toy, meter = Toy(), Meter()
    options = {"target": "eager", "passes": passes, "strict": True}
    fast = torch.compile(toy, backend="ditc", fullgraph=True, options=options)
    with ditc.session(fast, timesteps=TIMES) as session, watching(meter):
        run(fast, Loop(label(1)))
    summary, count = session.summary(), len(TIMES)
    args = (torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))
    found = explain(toy, args, {"skip": ()}, passes=passes, numerics=False)
    graphs, schedule = found.report.stages[-1].cost.graphs, found.program.schedule
    computed = summary["computed"]
    want = computed * graphs[schedule.full].flops
    if passes != "exact":
        assert 0 < computed < count
        want += (count - computed) * graphs["reuse"].flops
    if passes == DYNAMIC:
        want += count * (graphs["probe"].flops + graphs["judge"].flops)
    assert meter.flops == pytest.approx(want)
    assert meter.steps == len(meter.graphs) == count
    assert meter.graphs.count(schedule.full) == computed
    assert meter.program is not None
    assert meter.program.schedule.variants == schedule.variants


def test_it_adds_up_several_programs() -> None:
    torch._dynamo.reset()
    whole, parts = Meter(), []
    for passes in ("exact", STATIC):
        options = {"target": "eager", "passes": passes, "strict": True}
        fast = torch.compile(Toy(), backend="ditc", options=options)
        parts.append(Meter())
        with ditc.session(fast, timesteps=TIMES), watching(whole), watching(parts[-1]):
            run(fast, Loop(label(1)))
    exact, cached = parts
    assert exact.flops > cached.flops > 0
    assert whole.flops == pytest.approx(exact.flops + cached.flops)
    assert whole.graphs == exact.graphs + cached.graphs
    assert whole.program is cached.program
