"""ditc.attribute: what each pass, and each block, costs of the final samples."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile as ditc
from dit_compile.errors import OptionError, PipelineError
from dit_compile.report.codec import from_json
from tests.calibration.test_calibrate import sampler
from tests.runtime.loops import TIMES, Toy, label

CACHE = "insert-block-cache{method=interval,interval=2}"


@pytest.fixture
def toy() -> Toy:
    torch._dynamo.reset()
    return Toy()


def explained(toy: Toy, passes: str) -> ditc.Explanation:
    return ditc.explain(toy, (torch.ones(1, 6, 8), torch.ones(1), label(1)), passes=passes)


def attributed(toy: Toy, passes: str, **how: Any) -> ditc.Attribution:
    return ditc.attribute(sampler(toy), toy, passes=passes, progress=False, **how)


def test_exact_passes_cost_rounding_and_the_cache_costs_quality(toy: Toy, tmp_path: Path) -> None:
    found = attributed(toy, f"eliminate-common,fuse-adaln,fuse-attention,eliminate-dead,{CACHE}")
    names = [share.name for share in found.passes]
    assert names[-1] == "insert-block-cache"
    assert "fuse-adaln" in names
    assert "fuse-attention" not in names, "it changed nothing"
    *exact, cached = found.passes
    assert all(share.rel_l2 < 1e-6 for share in exact)
    assert cached.rel_l2 > 1e-4
    assert cached.flop_ratio > 1.3
    assert cached.psnr < min((share.psnr for share in exact if share.psnr), default=math.inf)
    assert [share.position for share in found.passes] == [0, 1, 4]
    assert [share.name for share in found.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
    assert all(1e-5 < share.rel_l2 < 1 for share in found.blocks)
    saved = [1 / exact[-1].flop_ratio - 1 / share.flop_ratio for share in (cached, *found.blocks)]
    assert saved[0] == pytest.approx(sum(saved[1:])), "blocks add up"
    assert found.plot(tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")


def test_its_tables_and_data(toy: Toy, capsys: pytest.CaptureFixture[str]) -> None:
    found = attributed(toy, "eliminate-common")
    assert not found.blocks
    assert found.approximation == ""
    found.print()
    assert "eliminate-common" in capsys.readouterr().out
    data = found.data()
    (share,) = data["passes"]
    assert share["psnr"] is None or math.isfinite(share["psnr"])
    assert (data["generations"], data["steps"], data["seed"]) == (1, len(TIMES), 0)


def test_nothing_to_plot(toy: Toy, tmp_path: Path) -> None:
    found = attributed(toy, "fuse-attention")
    assert not found.passes
    with pytest.raises(OptionError, match="no pass changed the model"):
        found.plot(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_it_goes_into_a_report(toy: Toy) -> None:
    passes = f"eliminate-common,{CACHE}"
    plain = explained(toy, passes)
    found = attributed(toy, passes)
    whole = plain.sampled(found)
    assert from_json(whole.json()).trajectory == found.trajectory
    assert plain.report.trajectory is None
    with pytest.raises(OptionError, match=r"measure with its own passes: eliminate-common$"):
        explained(toy, "eliminate-common").sampled(found)


def test_a_span_has_no_parts(toy: Toy) -> None:
    found = attributed(toy, "insert-block-cache{method=first-block,residual-diff-threshold=0.5}")
    assert not found.blocks
    assert found.approximation.startswith("insert-block-cache{method=first-block")


def test_the_model_is_put_back(toy: Toy) -> None:
    attributed(toy, "eliminate-common")
    assert toy._compiled_call_impl is None


def test_what_it_refuses(toy: Toy) -> None:
    with pytest.raises(OptionError, match="samples must be at least 1"):
        attributed(toy, "exact", samples=0)
    with pytest.raises(PipelineError, match="unknown pass"):
        attributed(toy, "exactly")
