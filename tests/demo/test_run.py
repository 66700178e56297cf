"""``ditc demo``, on fewer pictures and steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dit_compile.demo.models import BUNDLED
from dit_compile.demo.run import DemoOptions, run_demo
from dit_compile.errors import OptionError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (DemoOptions(model="digit-flow"), "unknown model 'digit-flow'; did you mean 'digits-flow'"),
        (DemoOptions(images=9), "at least 10 images"),
        (DemoOptions(num_inference_steps=1), "2 steps"),
    ],
)
def test_bad_options(options: DemoOptions, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        run_demo(options)


@pytest.mark.slow
@pytest.mark.parametrize("name", BUNDLED)
def test_four_ways(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch._dynamo.reset()
    options = DemoOptions(
        model=name, out=str(tmp_path), images=10, num_inference_steps=4, repeats=1
    )
    eager, stock, exact, cached = run_demo(options)
    for way in (stock, exact):
        torch.testing.assert_close(way.images[0], eager.images[0], rtol=0, atol=1e-3)
    assert not torch.equal(cached.images[0], eager.images[0])
    assert (cached.counts["computed"], cached.counts["reused"]) == (2, 2)
    printed = capsys.readouterr().out
    assert all(way.name in printed for way in (eager, stock, exact, cached))
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}.png"]
