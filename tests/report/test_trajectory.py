"""What passes cost of final samples: read back, printed, and only beside these passes."""

from __future__ import annotations

import dataclasses
import io
import json
import re

import pytest
from rich.console import Console

from dit_compile.errors import OptionError
from dit_compile.report.codec import from_json, to_json
from dit_compile.report.markdown import markdown
from dit_compile.report.model import Report, Share, Trajectory
from dit_compile.report.table import error_cell, print_report
from dit_compile.report.trajectory import check_belongs, share_row
from tests.report.entries import real, sampled


def printed(report: Report) -> list[str]:
    out = io.StringIO()
    print_report(report, Console(file=out, width=160, markup=False))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def test_it_is_read_back() -> None:
    assert from_json(to_json(sampled())) == sampled()
    assert from_json(to_json(real())).trajectory is None
    shares = json.loads(to_json(sampled()))["trajectory"]["passes"]
    assert shares[0]["psnr"] is None


def test_it_is_printed() -> None:
    lines = printed(sampled())
    at = lines.index("final samples after 2 x 50 steps, with all passes up to each")
    assert lines[at + 1].split() == ["pass", "FLOP", "ratio", "PSNR", "rel.", "L2"]
    assert lines[at + 2].split() == ["fuse-qkv", "1.00x", "-", "0"]
    assert lines[-5] == "final samples, with insert-block-cache{interval=3} in one block alone"
    assert lines[-3].split() == ["blocks.0", "1.20x", "40.0", "dB", "0.03"]
    assert not any("final samples" in line for line in printed(real()))


def test_the_error_of_an_approximation_is_what_samples_tell() -> None:
    last = len(sampled().passes) - 1
    assert error_cell(sampled(), last) == "PSNR 35.9 dB"
    assert error_cell(real(), last) == "by schedule"
    fused = next(share.position for share in sampled().trajectory.passes if share.position)
    assert error_cell(sampled(), fused) == error_cell(real(), fused)


def test_markdown_has_both_tables() -> None:
    text = markdown(sampled())
    assert "| pass | FLOP ratio | PSNR | rel. L2 |\n| --- | ---: | ---: | ---: |\n" in text
    assert "| insert-block-cache | 2.82x | 35.9 dB | 0.039 |" in text
    assert "| blocks.2 | 1.20x | 42.0 dB | 0.01 |" in text
    assert "rel. L2" not in markdown(real())


def test_names_cannot_break_the_table() -> None:
    known = sampled().trajectory
    assert known is not None
    bad = dataclasses.replace(known, blocks=[Share("a|b\n<x>", 1.0, 1.0, 1.0)], approximation="`y`")
    text = markdown(dataclasses.replace(sampled(), trajectory=bad))
    assert r"| a\|b \<x\> | 1.00x | 1.0 dB | 1 |" in text
    assert "<summary>final samples, with `y` in one block alone</summary>" in text


def test_what_is_not_finite() -> None:
    assert share_row(Share("x", None, None, 1.5)) == ("x", "1.50x", "-", "-")


@pytest.mark.parametrize(
    ("share", "has"),
    [
        (Share("fuse-qkv", 1.0, 1.0, 1.0, 4), "fuse-adaln"),
        (Share("x", 1.0, 1.0, 1.0, 99), "no pass"),
    ],
)
def test_it_was_measured_with_these_passes(share: Share, has: str) -> None:
    known = sampled().trajectory
    assert known is not None
    check_belongs(known, real())
    told = (
        f"the samples were made with {share.name} at #{share.position}, where this report has {has}"
    )
    with pytest.raises(OptionError, match=re.escape(told)):
        check_belongs(Trajectory([share], [], "", 1, 1, 0), real())
