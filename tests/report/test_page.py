"""The page as text: nothing can break out of it, nothing is loaded into it."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dit_compile.errors import ReportError
from dit_compile.report.codec import from_json
from dit_compile.report.model import Report
from dit_compile.report.page import embedded, page, write_page
from tests.report import entries
from tests.report.entries import entry, real

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<!-- <script>",
    "]]> & &amp; ' \" ` \\ \u2028 \u2029 \x00 \x7f",
    "$REPORT ${STYLE} $$",
)


class Elements(html.parser.HTMLParser):
    """What a browser's parser finds: tags, attributes, and the text of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags:
            self.inside.setdefault(self.tags[-1][0], []).append(data)


def hostile(text: str) -> Report:
    return dataclasses.replace(
        entries.report(entry(name=text, notes=[text], options={text: text})), model=text
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names_stay_data(text: str) -> None:
    found = Elements(page(hostile(text)))
    tags = [tag for tag, _ in found.tags]
    assert tags == [tag for tag, _ in Elements(page(real())).tags]
    assert from_json(found.inside["script"][0]).model == text


@given(st.text(max_size=40) | st.sampled_from(HOSTILE))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_any_text_stays_data(text: str) -> None:
    data = embedded(hostile(text.encode("utf-8", "replace").decode()))
    assert not set("<>&\u2028\u2029") & set(data)
    assert json.loads(data)["model"] == text.encode("utf-8", "replace").decode()


def test_only_its_own_script_and_style_may_run() -> None:
    found = Elements(page(real()))
    (policy,) = [a["content"] for _, a in found.tags if "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    for kind in ("script", "style"):
        (inside,) = re.findall(f"<{kind}>(.*?)</{kind}>", page(real()), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_nothing_is_loaded_and_nothing_is_inline() -> None:
    text = page(real())
    for tag, attributes in Elements(text).tags:
        assert not {"src", "srcset", "style"} & set(attributes), tag
        assert not [name for name in attributes if name.startswith("on")]
        assert not attributes.get("href") or attributes["href"].startswith("#")
    assert not re.search(r"@import|\burl\((?!#arrow)|innerHTML|insertAdjacentHTML|eval\(", text)


def test_files_are_whole_or_not_there(tmp_path: Path) -> None:
    write_page(real(), tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(encoding="utf-8") == page(real())
    with pytest.raises(ReportError, match=r"cannot write '.*nowhere/a\.html'"):
        write_page(real(), tmp_path / "nowhere" / "a.html")
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]
