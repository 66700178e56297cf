"""What is typed behind ``ditc bench`` reaches the bench."""

from __future__ import annotations

from typing import Any

import pytest

from dit_compile.cli.parser import run


@pytest.mark.parametrize(
    ("module", "function", "words", "wanted"),
    [
        (
            "caching.bench",
            "run_cache_bench",
            ["cache", "--models", "digits", "--ratios", "2", "3", "--timed", "1"],
            {"models": ("digits",), "ratios": (2.0, 3.0), "timed": 1, "images": 500},
        ),
        (
            "exact",
            "run_bench",
            ["exact", "--ways", "eager,ditc", "--no-compile-times", "--blocks", "2"],
            {"ways": ("eager", "ditc"), "compile_times": False, "blocks": 2, "steps": 50},
        ),
        (
            "loop",
            "run_loop_bench",
            ["loop", "--models", "flux-1-512", "--passes", "fast", "balanced"],
            {"models": ("flux-1-512",), "passes": ("fast", "balanced"), "steps": 20},
        ),
        (
            "export",
            "run_export_bench",
            ["export", "--out", "here"],
            {"model": "dit-xl-2-256", "passes": ("exact", "fast"), "out": "here"},
        ),
    ],
)
def test_options(
    monkeypatch: pytest.MonkeyPatch,
    module: str,
    function: str,
    words: list[str],
    wanted: dict[str, Any],
) -> None:
    given: list[Any] = []
    monkeypatch.setattr(f"dit_compile.bench.{module}.{function}", given.append)
    assert run(["bench", *words]) == 0
    (options,) = given
    assert vars(options).items() >= wanted.items()
    assert options.command == "ditc bench " + " ".join(words)
