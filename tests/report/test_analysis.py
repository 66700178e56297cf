"""What the analyses found, as text."""

from __future__ import annotations

import io
from typing import Any

from rich.console import Console
from torch.testing import FileCheck

from dit_compile.report.analysis import print_analysis

FOUND: dict[str, Any] = {
    "inputs": [
        {"name": "x", "binding": "latent", "settled": True},
        {"name": "labels", "binding": "latent", "settled": False},
    ],
    "nodes_by_binding": {"weight": 3, "timestep": 5},
    "stacks": [
        {
            "path": "blocks",
            "blocks": 12,
            "classes": ["A"] * 12,
            "branches": [
                {"path": "blocks.0.attn", "kind": "attn", "gated": True, "output": "f32[s0,4]"},
                {"path": "blocks.0.mlp", "kind": "mlp", "gated": False, "output": "f32[s0,4]"},
            ],
        },
        {"path": "single", "blocks": 2, "classes": ["A", "B"], "branches": []},
    ],
    "structure_misses": ["other branch at %add (tail)"],
    "tokens": {
        "latent": "x",
        "count": "H*W",
        "tokens": 64,
        "sizes": {"H": 8},
        "axes": {"x": {}, "y": {}},
        "misses": [{"node": "sum", "reason": "no rule"}],
    },
}


def printed(found: dict[str, Any]) -> str:
    out = io.StringIO()
    print_analysis(found, Console(file=out, width=120, markup=False))
    return out.getvalue()


def test_everything() -> None:
    (
        FileCheck()
        .check("x")
        .check_same("latent")
        .check_next("labels")
        .check_same("(taken for granted; every call compares it)")
        .check_next("nodes by binding time: 3 weight, 5 timestep")
        .check_next("stack blocks: 12 blocks, all alike")
        .check("blocks.0.attn")
        .check_same("yes")
        .check_same("f32[s0,4]")
        .check("blocks.0.mlp")
        .check_same("no")
        .check("stack single: 2 blocks, 2 classes")
        .check("not recognised: other branch at %add (tail)")
        .check_next("tokens: H*W = 64, from x; 2 values carry them, 1 sizes are unknown")
        .check_next("  %sum: no rule")
        .run(printed(FOUND))
    )


def test_no_tokens() -> None:
    text = printed(FOUND | {"tokens": {"error": "no input is a latent"}})
    assert text.splitlines()[-1] == "tokens: no input is a latent"
