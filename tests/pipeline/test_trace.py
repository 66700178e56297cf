"""What torch's own logs say about the passes."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Traced:
    """What a run with both logs on left behind."""

    said: str
    file: Path


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Traced:
    folder = tmp_path_factory.mktemp("trace")
    said = ran(TORCH_TRACE=str(folder), TORCH_LOGS="+dit_compile")
    (file,) = folder.glob("dedicated_log_torch_trace_*")
    return Traced(said, file)


def artifacts(file: Path) -> dict[str, str]:
    """Names and payloads: lines that start with a tab belong to the JSON of the line above."""
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?!\t)", file.read_text(encoding="utf-8").rstrip("\n")):
        head, *lines = entry.split("\n")
        prefix, _, data = head.partition("] ")
        assert re.match(r"[VDIWEC]\d{4} [\d:.]+ \d+ \S+:\d+$", prefix), head
        record = json.loads(data)
        payload = "\n".join(line.removeprefix("\t") for line in lines)
        if "has_payload" in record:
            assert hashlib.md5(payload.encode()).hexdigest() == record["has_payload"]
        if "artifact" in record:
            assert record["artifact"]["encoding"] in ("string", "json")
            found[record["artifact"]["name"]] = payload
    return found


NAMES = ["ditc_captured", "ditc_3_fuse-qkv", "ditc_4_fuse-adaln", "ditc_6_hoist-invariant"]


@pytest.mark.slow
def test_the_structured_trace_lists_the_passes(traced: Traced) -> None:
    found = {n: text for n, text in artifacts(traced.file).items() if n.startswith("ditc_")}
    assert list(found) == NAMES
    first, *_, last = found["ditc_4_fuse-adaln"].splitlines()
    assert first == "#4 fuse-adaln @ blocks.0 (x3 identical, shown once)"
    assert last == "}"
    assert "+  %adaln_norm = ditc.adaln_norm(" in found["ditc_4_fuse-adaln"]
    assert "\nditc.graph @full (" in found["ditc_4_fuse-adaln"]
    assert found["ditc_captured"].startswith("ditc.graph @full (")
    assert "ditc.adaln_norm(" not in found["ditc_captured"]


@pytest.mark.slow
def test_tlparse_lists_the_passes(traced: Traced, tmp_path: Path) -> None:
    beside = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    tlparse = shutil.which("tlparse", path=beside)
    assert tlparse is not None, "tlparse is not installed"
    command = [tlparse, str(traced.file), "-o", str(tmp_path / "out"), "--no-browser"]
    subprocess.run(command, check=True, capture_output=True)
    listed = re.findall(r'href="([^"]*ditc_[^"]*)"', (tmp_path / "out/index.html").read_text())
    assert [re.sub(r"_\d+\.txt$", "", Path(link).name) for link in listed] == NAMES
    assert "ditc.adaln_norm(" in (tmp_path / "out" / listed[2]).read_text()


@pytest.mark.slow
def test_torch_logs(traced: Traced) -> None:
    assert "#4 fuse-adaln (exact): 3 rewrites, 0 near misses" in traced.said
    assert "#0 remove-noops (exact): 0 rewrites, 0 near misses, no change" in traced.said
    assert "#4 fuse-adaln @ blocks.0 (x3 identical, shown once)" in traced.said
    assert "+  %adaln_norm = ditc.adaln_norm(" in traced.said


@pytest.mark.slow
def test_torch_logs_without_diffs() -> None:
    said = ran(TORCH_LOGS="dit_compile")
    assert "#4 fuse-adaln (exact): 3 rewrites, 0 near misses" in said
    assert re.search(r"#6 hoist-invariant \(exact\): .* near misses; \d+ values?, .* kept", said)
    assert "%adaln_norm" not in said


@pytest.mark.slow
def test_silent_by_default() -> None:
    said = ran()
    assert "dit_compile" not in said
    assert "fuse-adaln" not in said
