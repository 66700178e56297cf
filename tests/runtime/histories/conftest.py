"""Models compiled once for all histories, in every form that they call for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from tests.runtime.histories.model import LATENT, TEXT, Painter
from tests.runtime.histories.oracle import Method
from tests.runtime.histories.studio import Compiled

#: The preset ``exact``, with the rows of all steps computed ahead even where that pays little.
_EXACT = (
    "remove-noops,eliminate-common,fuse-attention,fuse-qkv,fuse-adaln,fold-weights,"
    "hoist-invariant,hoist-timestep{min-speedup=0},widen-products,eliminate-dead"
)
METHODS: dict[Method, str] = {
    "interval": "interval,interval=2",
    "first-block": "first-block,residual-diff-threshold=1.0,max-continuous-cached-steps=1",
    "taylor": "taylor,interval=2,order=1,warmup-steps=2",
}


def passes(method: Method) -> str:
    return f"{_EXACT},insert-block-cache{{method={METHODS[method]}}}"


def compiled(method: Method, seed: int, **how: Any) -> Compiled:
    """A model of its own; nothing is compiled yet."""
    model = Painter(seed)
    options = {"strict": True, "verify": False, "target": "eager", "passes": passes(method)}
    dynamic = how.pop("dynamic", True)
    fast = torch.compile(
        model, backend="ditc", fullgraph=True, dynamic=dynamic, options=options
    )
    return Compiled(method, model, fast, **how)


def call(painter: Compiled, batch: int = 2, tokens: int = 12, words: int = 5, fps: int = 24) -> None:
    """One call of these sizes, so that their form is compiled."""
    inputs = {
        "x": torch.zeros(batch, tokens, LATENT),
        "t": torch.full((batch,), 500.0),
        "text": torch.zeros(batch, words, TEXT),
        "fps": fps,
    }
    if painter.scalar:
        inputs["g"] = torch.full((batch,), 3.5)
    painter.fast(**inputs)


def bundle(folder: Path) -> Compiled:
    model = Painter(5)
    args = (torch.randn(1, 12, LATENT), torch.tensor([500.0]), torch.randn(1, 5, TEXT))
    path = folder / "bundle"
    ditc.export(model, args, {"fps": 24}, path, passes=passes("interval"), format="pt2")
    return Compiled("interval", model, ditc.load(path, trust=True), loaded=True)


@torch.no_grad()
def _ready() -> dict[str, Compiled]:
    painters = {
        "interval": compiled("interval", 0, dynamic=None),
        "other": compiled("interval", 1, dynamic=None),
        "first-block": compiled("first-block", 2),
        "taylor": compiled("taylor", 3),
        "guided": compiled("interval", 4, scalar=True),
    }
    for name in ("interval", "other"):
        call(painters[name], batch=1)
        call(painters[name], batch=1, tokens=16, words=7, fps=30)
        call(painters[name])
        for mode in (torch.inference_mode, torch.enable_grad):
            with mode():
                call(painters[name], batch=1)
    for name in ("first-block", "taylor", "guided"):
        call(painters[name], tokens=16, words=7, fps=30)
    return painters


@pytest.fixture(scope="module")
def painters(_setting: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """By name; no history compiles anything more."""
    with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
        return _ready() | {"bundle": bundle(tmp_path_factory.mktemp("histories"))}
