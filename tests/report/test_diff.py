"""Diffs: what is the same in every layer is shown once."""

from __future__ import annotations

import pytest

from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.diff import diff_lines, hunks
from dit_compile.report.model import Rewrite
from tests.ir.models import Transformer, capture, noise, seeded


def rewrite(path: str, *lines: str, graph: str = "full") -> Rewrite:
    """A rewrite whose lines start with ``-`` or ``+``."""
    removed = [line[1:] for line in lines if line[0] == "-"]
    return Rewrite(graph, path, removed, [line[1:] for line in lines if line[0] == "+"])


def test_identical_layers_are_shown_once() -> None:
    program = capture(seeded(lambda: Transformer(8)), noise(2, 4, 8), noise(2, 8))
    (found,) = Pipeline.parse("fuse-adaln").run(program).records
    head, *lines = diff_lines("#2 fuse-adaln", found.rewrites)
    assert head == "#2 fuse-adaln @ blocks.0 (x8 identical, shown once)"
    assert [line[:3] for line in lines] == ["-  "] * 4 + ["+  "]
    (hunk,) = hunks(found.rewrites)
    assert hunk.paths == tuple(f"blocks.{i}" for i in range(8))


BLOCK = ("-%mul = aten.mul(%x, @blocks.0.w) : f32[2]", "+%y = aten.add(%x, %x) : f32[2]")


def test_names_numbers_and_weights_of_another_block_are_the_same() -> None:
    other = (
        "-%mul_7 = aten.mul(%y_3, @blocks.7.w) : f32[2]",
        "+%z = aten.add(%y_3, %y_3) : f32[2]",
    )
    (hunk,) = hunks([rewrite("blocks.0.attn", *BLOCK), rewrite("blocks.7.attn", *other)])
    assert hunk.paths == ("blocks.0.attn", "blocks.7.attn")
    assert hunk.first.removed == [BLOCK[0][1:]]


@pytest.mark.parametrize(
    "other",
    [
        rewrite("blocks.1", BLOCK[0].replace("mul(", "div("), BLOCK[1]),
        rewrite("blocks.1", BLOCK[0], BLOCK[1].replace("%x, %x", "%x, %mul")),
        rewrite("blocks.1", BLOCK[0], BLOCK[1].replace("f32[2]", "f32[3]")),
        rewrite("blocks.1", BLOCK[0].replace(".w)", ".v)"), BLOCK[1]),
        rewrite("blocks.1", BLOCK[0]),
        rewrite("blocks.1", BLOCK[0].replace("-", "+", 1), BLOCK[1]),
        rewrite("layers.1", *BLOCK),
        rewrite("blocks.1", *BLOCK, graph="reuse"),
    ],
    ids=["operator", "wiring", "shape", "weight", "less", "side", "place", "graph"],
)
def test_what_differs_is_shown_apart(other: Rewrite) -> None:
    assert len(hunks([rewrite("blocks.0", *BLOCK), other])) == 2


def test_rewrites_without_lines_are_not_shown() -> None:
    assert diff_lines("#0", [rewrite("blocks.0")]) == []


def test_a_single_rewrite_at_the_top() -> None:
    assert diff_lines("#3 everything", [rewrite("", *BLOCK)]) == [
        "#3 everything",
        "-  %mul = aten.mul(%x, @blocks.0.w) : f32[2]",
        "+  %y = aten.add(%x, %x) : f32[2]",
    ]
