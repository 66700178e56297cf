"""The page in a real browser: every feature by click and by key, no error, no request."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dit_compile.report.model import Graph, Miss, Node, Share, Trajectory
from dit_compile.report.page import write_page
from tests.report import browser as browsers
from tests.report.browser import Browser
from tests.report.entries import real, sampled
from tests.report.test_page import HOSTILE

pytestmark = pytest.mark.skipif(
    browsers.find() is None, reason="no Chromium on this machine (install chromium to run these)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_page(dataclasses.replace(sampled(affine=(2,)), command="ditc explain 'my model'"), path)
    return path


def passes(browser: Browser) -> list[str]:
    return browser.texts("#passes .name")


class TestPasses:
    def test_unchanged_ones_are_hidden_by_a_key_and_a_click(self, browser: Browser) -> None:
        changed = passes(browser)
        assert "fuse-adaln" in changed
        assert "remove-noops" not in changed
        browser.press("u")
        assert "remove-noops" in passes(browser)
        assert browser.hash() == "#all=1"
        browser.click("#unchanged")
        assert passes(browser) == changed

    def test_are_chosen_by_click_and_by_key(self, browser: Browser) -> None:
        browser.click("#entry-4")
        assert browser.text("main h1").startswith("#4 fuse-adaln")
        assert browser.text("#passes [aria-selected=true] .name") == "fuse-adaln"
        browser.press("k")
        assert browser.text("main h1").startswith("#3 fuse-qkv")
        browser.press("j", "j")
        assert browser.text("main h1").startswith("#7 hoist-timestep")

    def test_show_kind_cost_time_and_error(self, browser: Browser, page: Path) -> None:
        browser.open(page, "#view=4")
        assert browser.text("main h1 .badge") == "exact"
        cards = dict(zip(browser.texts(".card .muted"), browser.texts(".card .big"), strict=True))
        assert list(cards) == ["nodes", "work of a step", "moved in a step", "time", "error"]
        assert cards["nodes"] == "33 → 27"
        assert cards["error"].endswith("\u00d7 noise")
        browser.open(page, "#view=10")
        assert browser.text("main h1 .badge") == "APPROX"


class TestChanges:
    def test_identical_blocks_are_shown_once(self, browser: Browser) -> None:
        browser.click("#entry-4")
        assert browser.texts(".hunk h3") == ["blocks.{0\u20131}"]
        assert browser.text(".times") == "\u00d72 identical, shown once"
        assert [len(browser.texts(f".hunk .line.{kind}")) for kind in ("del", "add")] == [4, 1]
        browser.click(".hunk summary")
        browser.until("!!document.querySelector('.places')")
        assert browser.texts(".places button") == ["blocks.0", "blocks.1"]

    def test_rewrite_by_rewrite(self, browser: Browser) -> None:
        browser.click("#entry-4")
        browser.press("]", "]")
        assert browser.texts(".hunk h3") == ["blocks.1"]
        assert "rewrite 2 of 2" in browser.text(".stepper")
        browser.click(".stepper button")
        assert browser.texts(".hunk h3") == ["blocks.0"]
        browser.press("[")
        assert browser.texts(".hunk h3") == ["blocks.{0\u20131}"]

    def test_site_by_site_of_a_cache(self, browser: Browser) -> None:
        browser.click("#entry-10")
        browser.press("]", "]")
        assert browser.texts(".hunk h3") == ["blocks.1"]
        assert browser.text(".line.add .code").startswith("%state_blocks_1_attn : f32[2,4,8] state")
        assert "aten.scaled_dot_product_attention(" in browser.text(".line.del .code")
        browser.press("[", "[")
        assert "@reuse, compared with @full" in browser.texts(".hunk header .muted")

    def test_any_two_stages(self, browser: Browser) -> None:
        browser.click("#entry-4")
        browser.run(
            "(() => { const s = document.getElementById('base'); s.value = '0';"
            " s.dispatchEvent(new Event('change')); })()"
        )
        assert "base=0" in browser.hash()
        shown = " ".join(browser.texts(".line.del"))
        assert "aten.linear" in shown
        assert "aten.layer_norm" in shown

    def test_the_filter_is_in_the_url(self, browser: Browser, page: Path) -> None:
        browser.open(page, "#view=3")
        browser.press("/")
        browser.call("Input.insertText", text="blocks.1")
        assert browser.hash() == "#view=3&q=blocks.1"
        assert browser.texts(".hunk h3")[0] == "blocks.1.q"
        browser.open(page, browser.hash())
        assert browser.texts(".hunk h3")[0] == "blocks.1.q"
        browser.press("/", "Escape")
        assert browser.texts(".hunk h3")[0] == "blocks.{0\u20132}.q"

    def test_the_variant_is_compared_with_the_full_graph(self, browser: Browser) -> None:
        browser.click("#entry-10")
        titles = browser.texts(".hunk header .muted")
        assert "@reuse, compared with @full" in titles
        assert any("state" in line for line in browser.texts(".line.add"))

    def test_near_misses(self, browser: Browser) -> None:
        browser.click("#entry-4")
        browser.press("2")
        assert browser.texts(".hunk h3") == ["the layer norm has an affine weight"]
        assert "@blocks.2.norm.weight" in browser.texts("#panel td")

    def test_the_whole_stage(self, browser: Browser) -> None:
        browser.click("#entry-4")
        browser.click("#tab-stage")
        assert browser.texts("details.graph summary strong")[0] == "@full"
        assert any("ditc.adaln_norm(" in line for line in browser.texts("details.graph .line"))
        browser.run("document.getElementById('tab-stage').focus()")
        browser.press("ArrowRight")
        assert browser.run("document.activeElement.id") == "tab-diff"


class TestInspector:
    def test_ancestry_source_and_neighbours(self, browser: Browser) -> None:
        browser.click("#entry-4")
        browser.press("n")
        browser.run("document.querySelector('.line.add [data-node]').focus()")
        browser.press("Enter")
        assert browser.text("#inspected") == "ditc.adaln_norm"
        former = browser.texts(".ancestry li:first-child .code")
        assert [line.split(" = ")[1].split("(")[0] for line in former] == [
            *("aten.layer_norm", "aten.add", "aten.mul", "aten.add")
        ]
        assert "models.py:" in browser.text(".inspector .facts")
        assert browser.texts(".neighbours .self .name") == ["ditc.adaln_norm"]
        browser.click(".neighbours .user")
        assert browser.text("#inspected") == "aten.linear"
        browser.press("Escape")
        assert browser.run("document.querySelector('.inspector').hidden")

    def test_survives_in_the_url(self, browser: Browser, page: Path) -> None:
        browser.click("#entry-4")
        browser.click(".line.add .op")
        link = browser.hash()
        assert "node=" in link
        browser.open(page, link)
        assert browser.text("#inspected") == "ditc.adaln_norm"

    def test_copies_as_ir_and_python(self, browser: Browser) -> None:
        browser.click("#entry-4")
        browser.click(".line.add .op")
        copied = "window.copied = []; document.execCommand = () => true;"
        browser.run(
            f"{copied} navigator.clipboard ? (navigator.clipboard.writeText = "
            "async t => { copied.push(t); }) : 0"
        )
        browser.click(".inspector .buttons button:nth-child(1)")
        browser.click(".inspector .buttons button:nth-child(2)")
        ir, python = browser.run("copied")
        assert ir.startswith("%adaln_norm = ditc.adaln_norm(%x, ")
        assert python.startswith("adaln_norm = torch.ops.ditc.adaln_norm.default(x, ")


class TestFrame:
    def test_overview(self, browser: Browser) -> None:
        assert browser.text("main h1") == "Transformer"
        assert len(browser.texts("table.passes tbody tr")) == 11
        assert len(browser.texts(".chart")) == 3
        browser.click(".bar:nth-of-type(2)")
        assert browser.text("main h1").startswith("#3 fuse-qkv")
        browser.run("history.back()")
        browser.until("document.querySelector('main h1').textContent === 'Transformer'")

    def test_schedule(self, browser: Browser) -> None:
        browser.click("#entry-schedule")
        assert len(browser.texts(".schedule .computed")) == 18 * 3
        assert len(browser.texts(".schedule .reused")) == 32 * 3
        label = browser.run("document.querySelector('.schedule').getAttribute('aria-label')")
        assert label.startswith("54 of 150 site evaluations are computed, 96 reused")

    def test_final_samples_by_pass_and_by_block(self, browser: Browser) -> None:
        cards = dict(zip(browser.texts(".card .muted"), browser.texts(".card .big"), strict=True))
        assert cards["final samples"] == "35.9 dB"
        browser.click("#entry-samples")
        assert browser.text("main h1") == "Final samples"
        assert browser.text("main p").startswith("2 generations of 50 steps, seeds from 7")
        rows = browser.texts(".by-block tbody tr")
        assert rows == [
            *("blocks.01.20\u00d740.0 dB0.03", "blocks.11.20\u00d741.0 dB0.02"),
            "blocks.21.20\u00d742.0 dB0.01",
        ]
        width = "[...document.querySelectorAll('.by-%s .fill')].map(e => +e.getAttribute('width'))"
        wide = [browser.run(width % part) for part in ("pass", "block")]
        assert wide[0][0] == 1, "equal samples have no bar"
        assert wide[0][1] < wide[0][-1] / 4, "rounding is small where the axis is logarithmic"
        assert [width / wide[1][0] for width in wide[1]] == pytest.approx([1, 2 / 3, 1 / 3])
        browser.click(".by-pass .bar:nth-of-type(2) .hit")
        assert browser.text("main h1").startswith("#4 fuse-adaln")
        browser.press("j", "j", "j", "j", "j", "j")
        assert browser.hash() == "#view=samples"
        browser.run("document.querySelectorAll('.by-block .bar')[1].focus()")
        browser.press("Enter")
        assert browser.text("main h1").startswith("#10 insert-block-cache")
        assert "q=blocks.1" in browser.hash()
        assert set(browser.texts(".hunk h3")) == {"blocks.1", "blocks.1.attn"}

    def test_modules_lead_to_their_changes(self, browser: Browser) -> None:
        browser.press("j", "j")
        browser.click(".modules button")
        assert browser.hash().endswith("q=blocks")

    def test_dark_and_light(self, browser: Browser) -> None:
        colour = "getComputedStyle(document.body).backgroundColor"
        light = browser.run(colour)
        browser.press("t")
        dark = browser.run(colour)
        assert (
            sum(map(int, light[4:-1].split(","))) > 600 > 150 > sum(map(int, dark[4:-1].split(",")))
        )
        browser.click("#theme")
        assert browser.run(colour) == light
        with Browser(dark=True) as other:
            other.open(Path(browser.run("location.pathname")))
            assert other.run(colour) == dark

    def test_help(self, browser: Browser) -> None:
        browser.press("?")
        assert browser.run("document.querySelector('dialog').open")
        browser.press("Escape")
        assert not browser.run("document.querySelector('dialog').open")

    def test_a_screen_reader_finds_its_way(self, browser: Browser) -> None:
        browser.click("#entry-4")
        tree = browser.call("Accessibility.getFullAXTree")["nodes"]
        shown = [n for n in tree if not n.get("ignored")]
        roles = {n["role"]["value"] for n in shown if "role" in n}
        assert {"main", "navigation", "banner", "listbox", "option", "tablist", "tab"} <= roles
        unnamed = [
            n["role"]["value"]
            for n in shown
            if n["role"]["value"] in ("button", "searchbox", "tab", "option", "combobox")
            and not n.get("name", {}).get("value")
        ]
        assert unnamed == []
        assert any(n.get("name", {}).get("value") == "removed" for n in shown)

    def test_a_stale_link(self, browser: Browser, page: Path) -> None:
        browser.open(page, "#view=99&tab=x&node=1e9&stage=-1&base=77&step=q")
        assert browser.text("main h1") == "Transformer"

    def test_a_narrow_window(self, browser: Browser) -> None:
        browser.size(700, 800)
        browser.run("document.getElementById('entry-4').click()")
        wide = browser.run("document.documentElement.scrollWidth")
        browser.size(1440, 900)
        assert wide <= 700


def test_renamed_nodes_are_no_change(shared: Browser, tmp_path: Path) -> None:
    """A pass that calls every value something else has nothing to show."""
    report = real("fuse-adaln")
    (entry,), last, nodes = report.passes, report.stages[-1], list(report.nodes)

    def renamed(index: int) -> int:
        node = nodes[index]
        results = node.results and [
            each and dataclasses.replace(each, name=f"other_{each.id}") for each in node.results
        ]
        nodes.append(dataclasses.replace(node, name=f"other_{node.id}", results=results))
        return len(nodes) - 1

    graphs = [
        Graph(g.name, g.ahead, [renamed(index) for index in g.nodes], g.returns)
        for g in last.graphs
    ]
    again = dataclasses.replace(entry, name="rename", stage=2, rewrites=[], moves=[])
    path = tmp_path / "renamed.html"
    write_page(
        dataclasses.replace(
            report,
            nodes=nodes,
            stages=[*report.stages, dataclasses.replace(last, graphs=graphs)],
            passes=[entry, again],
        ),
        path,
    )
    shared.open(path, "#view=0")
    before = shared.texts(".hunk .line")
    assert before
    shared.open(path, "#view=1")
    assert shared.text("#summary") == "No change."
    shared.open(path, "#view=1&base=0")
    assert len(shared.texts(".hunk .line")) == len(before), "as if nothing had been renamed"
    shared.press("3")
    assert all("other_" in line for line in shared.texts("details.graph .line .value:first-child"))
    assert shared.problems() == []


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_names(shared: Browser, tmp_path: Path, text: str) -> None:
    report = real("fuse-adaln", affine=(2,))
    (entry,) = report.passes
    bad = dataclasses.replace(
        entry,
        name=text,
        summary=text,
        notes=[text],
        options={text: text},
        misses=[Miss("full", text, text, text, text, text)],
    )
    nodes = [
        dataclasses.replace(node, path=text, source=text, name=text, type=text)
        if isinstance(node, Node) and node.op != "input"
        else node
        for node in report.nodes
    ]
    path = tmp_path / "hostile.html"
    shares = [Share(text, 1.0, 1.0, 1.0, 0)]
    spoiled = dataclasses.replace(
        report,
        model=text,
        passes=[bad],
        nodes=nodes,
        command=text,
        trajectory=Trajectory(shares, shares, text, 1, 1, 0),
    )
    write_page(spoiled, path)
    shared.open(path, "#view=0")
    shared.run("window.alert = () => { throw Error('broken out'); }")
    for tab in ("1", "2", "3"):
        shared.press(tab)
    shared.press("1", "n", "Enter")
    shared.click("#entry-samples")
    shared.click("#entry-overview")
    shown = "".join(c if c.isprintable() else f"\\u{{{ord(c):x}}}" for c in text)
    assert shared.text("main h1") == shown
    assert len(shared.texts("script")) == 2
    assert shared.problems() == []
    assert shared.requests() == []


@pytest.mark.parametrize("view", ["", "#view=4"])
def test_what_cannot_be_seen_is_shown(shared: Browser, tmp_path: Path, view: str) -> None:
    """Marks of direction would let letters be read in another order than they are written in."""
    unseen = "\u202e\u2066\u200b\x1b\x9b"
    made = sampled(affine=(2,))
    passes = [dataclasses.replace(entry, notes=[f"note {unseen}"]) for entry in made.passes]
    report = dataclasses.replace(made, model=f"M{unseen}", passes=passes)
    write_page(report, tmp_path / "a.html")
    shared.open(tmp_path / "a.html", view)
    found = shared.run(
        "document.title + document.body.textContent.replace("
        "document.getElementById('report').textContent, '')"
    )
    assert not set(unseen) & set(found)
    assert r"M\u{202e}\u{2066}\u{200b}\u{1b}\u{9b}" in found
    assert shared.problems() == []
