"""What the caller gets, and what it passed, is its own to write into."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from tests.runtime.loops import TIMES, WIDTH, Loop, Toy, assert_same, compiled, label, prompt, run


class Frames(Toy):
    """Its condition is scaled by a number that is no size of any tensor."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, frames: int = 1) -> Tensor:  # type: ignore[override]
        return super().forward(x, t, self.prompt(y) * frames)


class Returning(Toy):
    """Returns its projected prompt beside its prediction, as it is or as a view."""

    def __init__(self, view: bool) -> None:
        super().__init__()
        self.view = view

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        text = self.prompt(y)
        return super().forward(x, t, text), text.view(-1) if self.view else text


def exact(model: nn.Module) -> Any:
    torch._dynamo.reset()
    return torch.compile(
        model, backend="ditc", fullgraph=True, options={"strict": True, "target": "eager"}
    )


def test_a_number_that_changes_is_compared() -> None:
    model = Frames()
    fast, y = exact(model), prompt(1)
    for frames in (2, 3, 5, 3):  # the second value makes it a dynamic input
        calls = [call | {"frames": frames} for call in Loop(y)]
        assert_same(run(fast, calls), run(model, calls))


@pytest.mark.parametrize("view", [False, True])
def test_a_result_that_is_kept_is_the_callers_own(view: bool) -> None:
    model = Returning(view)
    fast = exact(model)
    with torch.no_grad():
        for call in Loop(prompt(1)):
            want, got = model(**call), fast(**call)
            torch.testing.assert_close(got[1], want[1])
            got[1].add_(3)


def test_a_prediction_that_is_kept_is_the_callers_own() -> None:
    """The residual of all blocks is state, and the prediction is made of it."""
    model = Toy()
    torch._dynamo.reset()
    fast = compiled(model, passes="exact,insert-block-cache{method=taylor,interval=2,scope=last}")
    loop = list(Loop(label(1)))
    with ditc.session(fast, timesteps=TIMES):
        want = run(fast, loop)
    with ditc.session(fast, timesteps=TIMES), torch.no_grad():
        for call, expected in zip(loop, want, strict=True):
            got = fast(**call)
            torch.testing.assert_close(got, expected)
            got.zero_()


def test_prompts_in_one_buffer_that_take_turns() -> None:
    model = Toy()
    fast, buffer = exact(model), torch.empty(1, WIDTH)
    with torch.no_grad():
        for call in Loop(prompt(0)):
            for seed in (1, 2):
                buffer.data.copy_(prompt(seed))
                given = call | {"y": buffer}
                torch.testing.assert_close(fast(**given), model(**given), rtol=1e-5, atol=1e-5)
