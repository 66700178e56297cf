"""Models compiled once for all histories, in every form that they call for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from tests.runtime.histories.drawn import MANY_FORMS, PAINTERS
from tests.runtime.histories.model import LATENT, TEXT, Painter
from tests.runtime.histories.oracle import Method
from tests.runtime.histories.studio import Compiled, Painters

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


def compiled(method: Method, seed: int, *, many: bool = False, **how: Any) -> Compiled:
    """A model of its own; nothing is compiled yet, and ``many`` forms may be."""
    model = Painter(seed)
    options = {"strict": True, "verify": False, "target": "eager", "passes": passes(method)}
    fast = torch.compile(
        model, backend="ditc", fullgraph=True, dynamic=None if many else True, options=options
    )
    return Compiled(method, model, fast, **how)


def call(
    painter: Compiled, batch: int = 2, tokens: int = 12, words: int = 5, fps: int = 24
) -> None:
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


class Workshop(Mapping[str, Compiled]):
    """Models by name, each compiled in all its forms when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Compiled] = {}

    def __getitem__(self, name: str) -> Compiled:
        if name not in self._made:
            self._made[name] = self._make(name)
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(PAINTERS)

    def __len__(self) -> int:
        return len(PAINTERS)

    @torch.no_grad()
    def _make(self, name: str) -> Compiled:
        if name == "bundle":
            return bundle(self._folder)
        method: Method = "interval" if name in (*MANY_FORMS, "guided") else name  # type: ignore[assignment]
        many = name in MANY_FORMS
        painter = compiled(method, PAINTERS.index(name), many=many, scalar=name == "guided")
        if not many:
            call(painter, tokens=16, words=7, fps=30)
            return painter
        call(painter, batch=1)
        call(painter, batch=1, tokens=16, words=7, fps=30)
        call(painter)
        for mode in (torch.inference_mode, torch.enable_grad):
            with mode():
                call(painter, batch=1)
        return painter


@pytest.fixture(scope="module")
def painters(_setting: None, tmp_path_factory: pytest.TempPathFactory) -> Painters:
    """By name; no history compiles anything more than a model that is new to it."""
    return Workshop(tmp_path_factory.mktemp("histories"))
