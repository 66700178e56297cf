"""Markdown for a pull request."""

from __future__ import annotations

import dataclasses

from dit_compile.report.markdown import markdown
from dit_compile.report.model import Rewrite
from tests.report import entries
from tests.report.entries import entry, real


def test_a_run() -> None:
    text = markdown(dataclasses.replace(real(), command="ditc explain m --markdown"))
    lines = text.splitlines()
    assert lines[0].startswith("**Transformer torch 2.")
    assert lines[2] == "| # | pass | kind | nodes | hit/miss | cost | error | notes |"
    (fused,) = [line for line in lines if "**fuse-adaln**" in line and line.startswith("|")]
    assert fused.count("|") == lines[2].count("|")
    assert "<details><summary>#4 fuse-adaln</summary>" in text
    assert "```diff\n@@ @ blocks.0 (x3 identical, shown once)\n-  %layer_norm" in text
    assert text.count("<details>") == text.count("</details>")
    assert text.endswith("Made by `ditc explain m --markdown`\n")


def test_cells_cannot_break_the_table() -> None:
    text = markdown(entries.report(entry(notes=["a|b\n<script> [x](y) `c`"])))
    row = text.splitlines()[4]
    assert row.endswith(r"a\|b \<script\> \[x\](y) \`c\` |")


def test_a_fence_cannot_be_closed_by_a_diff() -> None:
    rewrite = Rewrite("full", "", ["%x = a(````)"], [])
    text = markdown(entries.report(entry(changed=True, rewrites=[rewrite])))
    assert "\n`````diff\n" in text


def test_what_does_not_fit_is_named() -> None:
    text = markdown(real(), limit=1500)
    assert len(text) < 1700
    assert "Too long to show here: the diffs of" in text
    assert "fuse-qkv" in text.rpartition("Too long")[2]
