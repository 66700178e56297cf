"""Every kind of caching policy gives the same in a bundle as in the compiled model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from tests.runtime.loops import TIMES, Loop, Toy, assert_same, label

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
    written, read = FORMS[form]
    passes = f"exact,insert-block-cache{{{method}}}"
    loop = Loop(label(2))
    torch._dynamo.reset()
    fast = torch.compile(
        toy, backend="ditc", options={"target": "eager", "strict": True, "passes": passes}
    )
    args = (torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))
    ditc.export(toy, args, {}, tmp_path / "toy", passes=passes, **written)
    loaded = ditc.load(tmp_path / "toy", **read)
    with torch.no_grad(), ditc.session(fast, timesteps=TIMES) as session:
        want = [fast(**call) for call in loop]
        decided = session.summary()
    with ditc.session(loaded, timesteps=TIMES) as session:
        got = [loaded(**call)[0] for call in loop]
        assert session.summary() == decided
    assert decided["computed"] < len(TIMES)
    assert_same(got, want)
