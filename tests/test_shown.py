"""What came from a file is shown letter by letter, wherever it is shown."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import unicodedata
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dit_compile.bisect import Culprit
from dit_compile.bundle.manifest import Manifest
from dit_compile.calibration.plan import Plan, Trial
from dit_compile.cli import described
from dit_compile.errors import DitcError, DitcWarning, PipelineError
from dit_compile.pipeline.text import parse
from dit_compile.report.analysis import print_analysis
from dit_compile.report.codec import from_json, to_json
from dit_compile.report.compare import run_diff
from dit_compile.report.diff import pass_diff
from dit_compile.report.graphs import FORMS
from dit_compile.report.markdown import markdown
from dit_compile.report.model import Report, Rewrite
from dit_compile.report.table import print_report
from dit_compile.report.terminal import PlainProgress, terminal
from dit_compile.report.text import stage_text
from dit_compile.shown import shown, shown_as_code, shown_in_html, shown_in_markdown
from tests.report.entries import real, sampled

#: A colour, the title of a terminal, a link, a clipboard, a cursor, and letters in another order.
HOSTILE = (
    "\x1b[31m\x1b]0;t\x07\x1b]8;;http://x\x1b\\\x1b]52;c;eA==\x07\r\b\x9b2J\u202egnp\u2066\u200b"
)
MARKUP = "[red][link=http://x][/red] <img src=x onerror=y> | `c` ![a](b) @all $x$ &lt; https://x.y"


def is_clean(text: str) -> bool:
    return all(char in "\n\t" or unicodedata.category(char)[0] != "C" for char in text)


def spoiled(report: Report, text: str) -> Report:
    """A report with ``text`` in each of its own texts, as a file could have it."""

    def walk(data: Any, at: str = "") -> Any:
        if isinstance(data, str):
            return data if data.startswith("%") or at in ("kind", "role", "op") else data + text
        if isinstance(data, list):
            return [walk(item) for item in data]
        if isinstance(data, dict):
            return {
                (key + text if at in ("graphs", "errors", "kwargs", "options") else key): walk(
                    item, key
                )
                for key, item in data.items()
            }
        return data

    return from_json(json.dumps(walk(json.loads(to_json(report)))))


def printed(show: Callable[[Console], object], **options: Any) -> str:
    """What a user's own console shows, one that reads markup."""
    console = Console(file=io.StringIO(), width=500, no_color=True, **options)
    show(console)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def hostile() -> Report:
    return spoiled(sampled(), HOSTILE + MARKUP)


RENDERED: dict[str, Callable[[Report], str]] = {
    "table": lambda report: printed(lambda c: print_report(report, c, diffs=True)),
    "terminal": lambda report: printed(
        lambda c: print_report(report, c, diffs=True), force_terminal=True
    ),
    "analysis": lambda report: printed(lambda c: print_analysis(report.analysis, c)),
    "markdown": markdown,
    "diff": pass_diff,
    "runs": lambda report: run_diff(real(), report),
    "stage": lambda report: stage_text(report, report.stages[-1]),
    **{
        ending: lambda report, form=form: form(report, report.stages[-1])  # type: ignore[misc]
        for ending, form in FORMS.items()
    },
}


@pytest.mark.parametrize("name", RENDERED)
def test_a_report(hostile: Report, name: str) -> None:
    text = RENDERED[name](hostile)
    if name == "terminal":
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # styles of the table's own
        assert "\x1b]" not in text
    if name == ".explorer.json":
        text = json.dumps(json.loads(text), ensure_ascii=False)
    text = text.replace("\\n", "")
    assert is_clean(text)
    assert "x1b" in text


@pytest.mark.parametrize("name", ["table", "analysis"])
def test_markup_is_letters_on_any_console(hostile: Report, name: str) -> None:
    assert "[red][link=http://x][/red]" in RENDERED[name](hostile)


def test_graphml_can_be_read(hostile: Report) -> None:
    ET.fromstring(RENDERED[".graphml"](hostile))


def test_markdown_has_no_markup_of_the_reports(hostile: Report) -> None:
    text = re.sub(r"(?ms)^```.*?^```$", "", markdown(hostile))
    text = re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "", text)
    titles = re.findall("<summary>(.*?)</summary>", text)
    assert not re.search(r"[<>]", "".join(titles).replace("<!-- -->", ""))
    text = re.sub("<summary>(.*?)</summary>", "", text)
    own = {"<details>", "</details>", "<!-- -->"}
    assert set(re.findall(r"(?<!\\)<[^>]*>", text)) <= own
    assert not re.search(r"(?<!\\)[\[\]]|@\w|\w://|(?<!\\)\$", text)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("a|b <x> [y](z) `c` ~ # & $", r"a\|b \<x\> \[y\](z) \`c\` \~ \# \& \$"),
        ("a\nb\r\n\tc", "a b c"),
        ("@all a@b.c", "@<!-- -->all a@<!-- -->b.c"),
        ("https://x www.y a:b", "https<!-- -->://x www<!-- -->.y a:b"),
        ("\x1b\\", r"\\x1b\\"),
    ],
)
def test_markdown(text: str, want: str) -> None:
    assert shown_in_markdown(text) == want


def test_code_and_html() -> None:
    assert shown_as_code("ditc a") == "`ditc a`"
    assert shown_as_code("a`b") == "``a`b``"
    assert shown_as_code("`\n") == r"`` `\n ``"
    assert shown_in_html('<b a="c">&\x1b') == r"&lt;b a=&quot;c&quot;&gt;&amp;\x1b"


@given(st.text())
def test_any_text(text: str) -> None:
    once = shown(text)
    assert once.isprintable()
    assert shown(once) == once
    assert is_clean(shown(text, lines=True))
    assert shown(text, lines=True).count("\n") == text.count("\n")


@given(st.text(alphabet=st.characters(categories=["L", "N", "P", "S"])))
def test_letters_stay(text: str) -> None:
    assert shown(text) == text


def test_halves_of_a_pair_can_be_printed() -> None:
    assert shown("a\ud800").encode() == rb"a\ud800"


@pytest.mark.parametrize("kind", [DitcError, PipelineError, DitcWarning])
def test_errors_and_warnings(kind: type[Exception]) -> None:
    assert is_clean(str(kind(f"the model {HOSTILE}\n  line two")))
    assert str(kind("one\n  two\tthree é")) == "one\n  two\tthree é"


def test_a_pipelines_text_in_an_error() -> None:
    with pytest.raises(PipelineError) as caught:
        parse('exact{a="\x1b[31m",!}')
    _, text, caret = str(caught.value).splitlines()
    assert is_clean(text)
    assert text[caret.index("^")] == "!"


def test_a_plan() -> None:
    trial = Trial(f"exact,pass{{method=m,a=[b]{HOSTILE}{MARKUP}}}", 30.0, 0.1, 2.0, 1.0, 2.0)
    plan = Plan("exact", 8, {}, [trial, dataclasses.replace(trial, passes=f"x{{[red]{HOSTILE}}}")])
    text = printed(plan.print)
    assert is_clean(text)
    assert "[red]" in text


def test_a_plot_of_a_plan(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    trial = Trial(r"exact,pass{method=$\frac{" + HOSTILE + "}", 30.0, 0.1, 2.0, 1.0, 2.0)
    assert Plan("exact", 8, {}, [trial]).plot(tmp_path / "a.png").stat().st_size


def test_a_culprit() -> None:
    change = Rewrite("full", HOSTILE, [HOSTILE], [HOSTILE], HOSTILE)
    assert is_clean(Culprit(0, HOSTILE, 1, 1, 2, change).text())


def test_a_bundle(capsys: pytest.CaptureFixture[str]) -> None:
    plain: dict[str, Any] = dict.fromkeys(("states", "coefficients", "derived", "rows"), ())
    manifest = Manifest(
        format="onnx",
        model=HOSTILE + MARKUP,
        pipeline=HOSTILE,
        fingerprint="",
        versions={HOSTILE: HOSTILE},
        inputs=(),
        results=(),
        graphs={},
        schedule=None,  # type: ignore[arg-type]
        fixed={HOSTILE: HOSTILE},
        notes=(HOSTILE,),
        **plain,
    )
    console = terminal()
    for line in described._origin(manifest):
        console.print(line, soft_wrap=True)
    table = described._table("a")
    table.add_row(HOSTILE + MARKUP)
    console.print(table)
    text = capsys.readouterr().out
    assert is_clean(text)
    assert "[red][link=http://x][/red]" in text


def test_progress_shows_pipelines_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainProgress() as progress:
        progress.add_task("insert-block-cache{only=[red]}", total=1)
    assert "only=[red]" in capsys.readouterr().err
