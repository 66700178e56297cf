"""The documents: links lead somewhere, examples run, and the README is read in a minute."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_compile.demo.models import BUNDLED
from dit_compile.pipeline import registry
from dit_compile.torch_backend import Options
from tests import standins

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path
    for path in sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/*.md")])
}
#: Pages whose examples run, one after the other. CONTRIBUTING.md has a pass to be, without imports.
RUN = [name for name in PAGES if name != "CONTRIBUTING.md"]

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int
    language: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page, without the indentation of lists."""
    text = page.read_text()
    for found in _FENCE.finditer(text):
        indent, language, body = found.groups()
        line = text.count("\n", 0, found.start()) + 2
        yield Block(line, language, re.sub(f"^{indent}", "", body, flags=re.MULTILINE))


def python(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "python"]


def prose(page: Path) -> str:
    """A page without its fenced blocks and code."""
    return re.sub(r"`[^`\n]*`", "code", _FENCE.sub("", page.read_text()))


def anchors(page: Path) -> set[str]:
    """What can follow ``#`` in a link to a page, as GitHub makes it of headings."""
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in kept}


def problem(page: Path, target: str) -> str:
    """What is wrong with a link, empty if nothing is."""
    if "://" in target:
        return ""
    path, _, anchor = target.partition("#")
    found = (page.parent / path).resolve() if path else page
    if not found.is_relative_to(ROOT):
        return "leads out of the repository"
    if not found.exists():
        return "leads nowhere"
    return f"has no heading #{anchor}" if anchor and anchor not in anchors(found) else ""


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) < 10_000


@pytest.mark.parametrize("name", PAGES)
def test_links(name: str) -> None:
    page = PAGES[name]
    links = _LINK.findall(prose(page))
    assert [f"{link} {why}" for link in links if (why := problem(page, link))] == []


def test_the_readme_leads_to_every_page() -> None:
    readme = ROOT / "README.md"
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in _LINK.findall(prose(readme))}
    assert {*PAGES.values()} - {readme} <= linked


def test_every_picture_is_shown() -> None:
    shown = {
        (page.parent / link).resolve()
        for page in PAGES.values()
        for link in _LINK.findall(prose(page))
    }
    assert {*ROOT.glob("docs/*.png")} <= shown


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("docs/bundle.md", ""),
        ("docs/bundle.md#the-manifest", ""),
        ("https://example.com", ""),
        ("docs/bundles.md", "leads nowhere"),
        ("docs/bundle.md#the-manifesto", "has no heading #the-manifesto"),
        ("../elsewhere", "leads out of the repository"),
    ],
)
def test_what_a_link_may_be(target: str, expected: str) -> None:
    assert problem(ROOT / "README.md", target) == expected


def listed(name: str) -> set[str]:
    """What the tables of a page list in code in their first column."""
    lines = re.findall(r"^\| (`.*?) \|", PAGES[name].read_text(), re.MULTILINE)
    return {word for line in lines for word in re.findall(r"`([^`]+)`", line)}


def test_every_pass_is_listed() -> None:
    assert registry.passes().keys() <= listed("docs/passes.md")


def test_every_caching_method_is_listed() -> None:
    """All but the one that calibration records with."""
    assert registry.policies().keys() - {"record"} <= listed("docs/caching.md")


def test_every_option_is_listed() -> None:
    options = {field.name for field in dataclasses.fields(Options)}
    assert options <= listed("docs/torch-compile.md")


@pytest.mark.parametrize("name", [name for name, page in PAGES.items() if python(page)])
def test_examples_are_python(name: str) -> None:
    for block in python(PAGES[name]):
        compile(block.text, f"{name}:{block.line}", "exec")


@pytest.fixture
def workplace(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """An empty folder with stand-ins for published pipelines; the names that examples may use.

    Graphs run node by node, which compiles no C++: the other tests compare the backends.
    """
    torch._dynamo.reset()
    monkeypatch.setitem(registry.backends(), "inductor", registry.backends()["eager"])
    standins.install(monkeypatch, tmp_path)
    yield {"__name__": "example"}
    torch._dynamo.reset()


def run(name: str, names: dict[str, Any]) -> None:
    """Run the examples of a page one after the other."""
    for block in python(PAGES[name]):
        lines = "\n" * (block.line - 1) + block.text  # so that a traceback shows the page's lines
        exec(compile(lines, str(PAGES[name]), "exec"), names)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in RUN if python(PAGES[name])])
@pytest.mark.filterwarnings("ignore:ditc. inside ditc.disabled")
@pytest.mark.filterwarnings("error::dit_compile.errors.DitcWarning")
def test_examples_run(name: str, workplace: dict[str, Any]) -> None:
    if name == "README.md":
        workplace |= {"model": BUNDLED["digits"].load(), "pipe": standins.pipeline()}
    run(name, workplace)
