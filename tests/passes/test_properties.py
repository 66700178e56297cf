"""The exact preset on random programs: exact, valid, never longer, and done at once."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dit_compile.ir.fingerprint import fingerprint
from dit_compile.pipeline.pipeline import Pipeline
from tests.passes import detector
from tests.passes.irtest import capture, randn, rewrite, weights

D = 4
#: What a step does with one or two earlier values.
STEPS = {
    "norm": lambda m, a, b: F.layer_norm(a, (D,)),
    "modulate": lambda m, a, b: F.layer_norm(a, (D,)) * (1 + b) + a,
    "one_plus": lambda m, a, b: 1 + b,
    "mul": lambda m, a, b: a * b,
    "add": lambda m, a, b: a + b,
    "silu": lambda m, a, b: F.silu(a),
    "q": lambda m, a, b: m.q(a),
    "k": lambda m, a, b: m.k(a),
    "v": lambda m, a, b: m.v(a),
    "drop": lambda m, a, b: F.dropout(a, 0.3, training=False),
    "neutral": lambda m, a, b: a * 1 + 0,
    "view": lambda m, a, b: a.view(2, D).clone(),
    "turn": lambda m, a, b: a.roll(1, -1),
}


class Model(nn.Module):
    """Runs a list of steps; the last two values are its results."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.steps = steps
        self.q, self.k = nn.Linear(D, D), nn.Linear(D, D)
        self.v = nn.Linear(D, D, bias=False)

    def forward(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        values = [x, c]
        for step, left, right in self.steps:
            operands = values[left % len(values)], values[right % len(values)]
            values.append(STEPS[step](self, *operands))
        return values[-1], values[-2]


programs = st.lists(
    st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 9), st.integers(0, 9)),
    min_size=2,
    max_size=12,
)


@given(steps=programs)
@settings(
    deadline=None,
    derandomize=True,
    max_examples=15,
    phases=[Phase.generate],  # shrinking would take minutes
    suppress_health_check=[HealthCheck.too_slow],
)
def test_random_programs(steps: list[tuple[str, int, int]]) -> None:
    inputs: tuple[Any, ...] = (randn(2, D), randn(2, D, seed=1))
    program = capture(weights(Model(steps)), *inputs)
    done = rewrite("exact", program, *inputs)
    again = done.after.copy()
    Pipeline.parse("exact").run(again)
    assert fingerprint(again) == fingerprint(done.after)
    missed = {miss.node for record in done.records for miss in record.misses}
    for detect in (detector.noops, detector.repeated, detector.modulated_norms, detector.unread):
        assert detect(done.after) <= missed
    assert not detector.sibling_linears(done.after, excused=missed)
