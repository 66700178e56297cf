"""Every kind of caching policy gives the same in a bundle as in the compiled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from tests.runtime.loops import (
    TIMES,
    Inputs,
    Loop,
    Toy,
    assert_same,
    closing_halves,
    label,
    prompt,
)

pytestmark = pytest.mark.slow

METHODS = (
    "method=delta,interval=2",
    "method=taylor,interval=3,order=1",
    "method=pyramid",
    'method=mask,mask="attn:11010101 mlp:10010011"',
    "method=first-block,residual-diff-threshold=2",
)


FORMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "merged": ({}, {"intra_op_num_threads": 1}),
    "split": ({"split": True}, {"intra_op_num_threads": 1}),
    "pt2": ({"format": "pt2"}, {"trust": True}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", METHODS)
def test_results_and_decisions(toy: Toy, tmp_path: Path, method: str, form: str) -> None:
    check(toy, tmp_path, method, form, list(Loop(label(2))))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("measure", ["residual", "embedding,rescale=[0.5,0.1]"])
def test_samples_that_decide_together(toy: Toy, tmp_path: Path, form: str, measure: str) -> None:
    method = f"method=first-block,decide=max,residual-diff-threshold=2,measure={measure}"
    check(toy, tmp_path, method, form, list(Loop(label(2, batch=2))))


#: A direction goes on as it changed.
LINEAR = f"method=linear-guidance,weights={[1.5, -0.5] * len(TIMES)}".replace(" ", "")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["method=skip-guidance,gamma=0.9", LINEAR])
def test_half_a_batch(toy: Toy, tmp_path: Path, form: str, method: str) -> None:
    method += ",conditional=second"
    check(toy, tmp_path, method, form, closing_halves())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("method", ["method=skip-guidance,gamma=0.9", LINEAR])
def test_the_second_call(toy: Toy, tmp_path: Path, form: str, method: str) -> None:
    method += ",conditional=first-call"
    pairs = [
        {**call, "x": (1 + step) ** 2 * call["x"], "y": prompt(number)}
        for step, call in enumerate(Loop(prompt(0)))
        for number in (0, 1)
    ]
    check(toy, tmp_path, method, form, pairs)


def check(toy: Toy, folder: Path, method: str, form: str, calls: list[Inputs]) -> None:
    """Run the same calls in the compiled model and in its bundle."""
    written, read = FORMS[form]
    passes = f"exact,insert-block-cache{{{method}}}"
    torch._dynamo.reset()
    fast = torch.compile(
        toy, backend="ditc", options={"target": "eager", "strict": True, "passes": passes}
    )
    ditc.export(toy, tuple(calls[0].values()), {}, folder / "toy", passes=passes, **written)
    loaded = ditc.load(folder / "toy", **read)
    with torch.no_grad(), ditc.session(fast, timesteps=TIMES) as session:
        want = [fast(**call) for call in calls]
        decided = session.summary()
    with ditc.session(loaded, timesteps=TIMES) as session:
        got = [loaded(**call)[0] for call in calls]
        assert session.summary() == decided
    assert 0 < decided["computed"] < len(calls)
    assert_same(got, want)
