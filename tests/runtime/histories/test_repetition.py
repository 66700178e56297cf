"""Same seed, same pictures: what is learned of a model's calls changes none of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.runtime.histories.conftest import compiled
from tests.runtime.histories.history import History, InTurn, Request
from tests.runtime.histories.studio import Studio, Tally, one_worker


@pytest.mark.parametrize(
    ("method", "given"),
    [
        ("interval", {"session": "unstated"}),
        ("interval", {"session": "unstated", "form": "1-t"}),
        ("interval", {"session": "unstated", "sampler": "heun"}),
        ("interval", {"session": "unstated", "scalar": True}),
        ("interval", {"session": "stated", "scalar": True, "form": "t"}),
        ("taylor", {"session": "stated", "guidance": "calls"}),
        ("first-block", {"sampler": "multistep", "guidance": "batch"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
@pytest.mark.filterwarnings("ignore::dit_compile.errors.DitcWarning")
@pytest.mark.usefixtures("_setting")
def test_first_generation_drawn_again(method: Any, given: dict[str, Any]) -> None:
    """Nothing has been compiled, and nothing seen, before the first one."""
    torch._dynamo.reset()
    given = {"scalar": False} | given
    painter = compiled(method, 7, scalar=given.pop("scalar"))
    request = Request("fresh", batch=2, **given)
    history = History((InTurn((request,)), InTurn((request,)), InTurn((request,))))
    studio = Studio({"fresh": painter}, history, Tally())
    with one_worker() as pool:
        pool.submit(studio.carry_out).result()
    first, *again = [torch.stack(drawing.answers) for drawing in studio.drawings]
    assert all(torch.equal(first, each) for each in again)
