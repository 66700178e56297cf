"""What torch's own logs say about the passes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
import dit_compile
from tests.ir.models import Transformer, noise, seeded

model = torch.compile(seeded(Transformer), backend="ditc", options={"target": "eager"})
with torch.no_grad():
    model(noise(2, 4, 8), noise(2, 8))
"""


def ran(**settings: str) -> str:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        check=True,
        capture_output=True,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root), **settings},
    )
    return done.stderr


@pytest.mark.slow
def test_the_structured_trace_lists_the_passes(tmp_path: Path) -> None:
    ran(TORCH_TRACE=str(tmp_path))
    (file,) = tmp_path.glob("dedicated_log_torch_trace_*")
    entries = [line.split("] ", 1) for line in file.read_text().splitlines() if "] {" in line]
    names = [json.loads(data).get("artifact", {}).get("name", "") for _, data in entries]
    assert [name for name in names if name.startswith("ditc_")] == [
        *("ditc_captured", "ditc_3_fuse-qkv", "ditc_4_fuse-adaln", "ditc_6_hoist-invariant")
    ]
    assert "ditc.adaln_norm(" in file.read_text()


@pytest.mark.slow
def test_torch_logs() -> None:
    said = ran(TORCH_LOGS="+dit_compile")
    assert "#4 fuse-adaln (exact): 3 rewrites, 0 near misses" in said
    assert "#0 remove-noops (exact): 0 rewrites, 0 near misses, no change" in said
    assert "#4 fuse-adaln @ blocks.0 (x3 identical, shown once)" in said
    assert "dit_compile" not in ran()
