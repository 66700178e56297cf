"""The page of DiT-XL/2 in a real browser: 28 blocks, and each feature by click and by key."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dit_compile.bench.cases import find_case
from dit_compile.explanation import explain
from dit_compile.report.model import Report, Seconds, Share, Trajectory
from dit_compile.report.page import write_page
from tests.report import browser as browsers
from tests.report.browser import Browser

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browsers.find() is None, reason="no Chromium on this machine"),
]

#: The least of the memory that a cache of all sites needs leaves some of them out: near misses.
PASSES = "exact,insert-block-cache{interval=3,max-state-bytes=60000000}"
COMMAND = "ditc explain xl.py:make"

#: Uses an element, by mouse or by keyboard.
Use = Callable[[str], None]


def explained() -> Report:
    """DiT-XL/2, explained afresh."""
    case = find_case("dit-xl-2-256")
    kwargs = case.inputs(2, torch.bfloat16, "cpu") | {
        "timestep": case.timesteps(50, torch.bfloat16)[:1].repeat(2),
        "return_dict": False,
    }
    model = case.build(torch.bfloat16, "cpu")
    return explain(model, (), kwargs, passes=PASSES, numerics=False, command=COMMAND).report


@pytest.fixture(scope="module")
def report() -> Report:
    found = explained()
    blocks = [Share(f"transformer_blocks.{i}", 40.0 + i, 0.01, 1.02) for i in range(28)]
    passes = [
        Share(entry.name, 120.0, 1e-6, 1.0, position)
        if entry.kind == "exact"
        else Share(entry.name, 33.3, 0.04, 2.6, position)
        for position, entry in enumerate(found.passes)
        if entry.changed
    ]
    trajectory = Trajectory(passes, blocks, found.passes[-1].text, 1, 50, 0)
    return dataclasses.replace(found, trajectory=trajectory)


@pytest.fixture(scope="module")
def page(report: Report, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("xl") / "report.html"
    write_page(report, path)
    return path


@pytest.fixture
def browser(shared: Browser, opened: float) -> Browser:
    assert opened < 2, "seconds until it can be used"
    return shared


@pytest.fixture(params=["click", "key"])
def by(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def use(browser: Browser, by: str) -> Use:
    return browser.click if by == "click" else browser.enter


@pytest.fixture
def visit(browser: Browser, report: Report, by: str) -> Callable[[str], None]:
    """Goes to a pass, or to a view by the name of its entry."""
    names = [entry.name for entry in report.passes]

    def go(name: str) -> None:
        at = f"#entry-{names.index(name) if name in names else name}"
        if by == "click":
            browser.click(at)
            return
        for _ in range(len(names) + 3):
            if browser.run(f"document.querySelector('{at}').ariaSelected === 'true'"):
                return
            browser.press("j")
        raise AssertionError(f"no key leads to {name}")

    return go


def copied(browser: Browser) -> Callable[[], list[str]]:
    """Stands in for the clipboard, which a file may not write to without being asked."""
    browser.run(
        "window.copied = []; document.execCommand = () => { "
        "copied.push(document.activeElement.value); return true; }; "
        "if (navigator.clipboard) navigator.clipboard.writeText = async t => { copied.push(t); };"
    )
    return lambda: browser.run("copied")


def test_it_is_small_and_quick_to_make(report: Report, page: Path) -> None:
    # Widening fires as well where this machine multiplies half precision slowly.
    assert sum(entry.changed for entry in report.passes) in (8, 9)
    assert page.stat().st_size < 5e6
    runs = itertools.chain([report], (explained() for _ in range(2)))
    assert any(cheap(run.seconds) for run in runs), "the machine may be busy once, not three times"


def cheap(seconds: Seconds) -> bool:
    """Whether the report took less than a fifth of what the pipeline took without it."""
    return seconds.report < 0.2 * (seconds.pipeline - seconds.report)


def test_1_unchanged_passes_are_hidden(browser: Browser, report: Report, by: str) -> None:
    turn = (lambda: browser.click("#unchanged")) if by == "click" else (lambda: browser.press("u"))
    fired = [entry.name for entry in report.passes if entry.changed or entry.misses]
    assert browser.texts("#passes .name") == fired
    turn()
    assert browser.texts("#passes .name") == [entry.name for entry in report.passes]
    turn()
    assert browser.texts("#passes .name") == fired


def test_2_what_is_kept_is_no_change(browser: Browser, visit: Use, report: Report) -> None:
    """Only the lines of rewrites show, of 1,500 that stay what they are."""
    visit("fuse-qkv")
    assert browser.text("#summary") == "29 changes, 2 of them different"
    first = ".hunk:nth-of-type(1) .line"
    assert [len(browser.texts(f"{first}.{kind}")) for kind in ("del", "add")] == [3, 4], (
        "two of them are weights"
    )
    assert browser.texts(".hunk header .muted") == ["computed ahead, in @weights"]


def test_3_identical_blocks_are_shown_once(browser: Browser, visit: Use, use: Use) -> None:
    visit("fuse-qkv")
    assert browser.text(".times") == "\u00d728 identical, shown once"
    assert browser.text(".hunk h3") == "transformer_blocks.{0\u201327}.attn1.to_q"
    use(".hunk summary")
    browser.until("document.querySelectorAll('.places button').length === 28")
    use(".places li:nth-child(28) button")
    assert "transformer_blocks.27.attn1" in browser.text(".inspector .facts")


def test_4_modules_are_navigation(browser: Browser, visit: Use, use: Use) -> None:
    visit("eliminate-common")
    use(".modules > ul > li:last-child button.link")
    name = browser.text(".modules button.link[aria-pressed=true]")
    assert name
    assert browser.hash().endswith(f"q={name}")
    assert all(name in path for path in browser.texts(".hunk h3"))


def test_5_ancestors_and_the_user_s_own_line(browser: Browser, visit: Use, by: str) -> None:
    visit("fuse-adaln")
    if by == "click":
        browser.click(".line.add .op")
    else:
        browser.press("n", "n", "n", "n", "n", "Enter")
    assert browser.text("#inspected") == "ditc.adaln_norm"
    assert ".py:" in browser.text(".inspector .facts")
    before = browser.texts(".ancestry li > div")
    assert before[0] == "before fuse-adaln"


def test_6_cost_and_time_of_each_pass(browser: Browser, report: Report, use: Use) -> None:
    heads = browser.texts("table.passes thead th")
    assert {"nodes", "work", "moved", "time", "verify", "error"} <= set(heads)
    assert len(browser.texts("table.passes tbody tr")) == len(report.passes)
    assert (
        browser.texts("table.passes tbody tr:first-child td")[heads.index("verify") - 1] != "\u00b7"
    )
    use("table.passes tbody tr:nth-child(4) button")
    assert browser.text("main h1").startswith("#3 fuse-qkv")


def test_7_kind_and_error(browser: Browser, visit: Use) -> None:
    visit("fuse-qkv")
    assert browser.text("main h1 .badge") == "exact"
    visit("insert-block-cache")
    assert browser.text("main h1 .badge") == "APPROX"
    assert "PSNR 33.3 dB" in browser.texts(".card .big")


def test_8_near_misses(browser: Browser, visit: Use, report: Report, by: str) -> None:
    visit("insert-block-cache")
    if by == "click":
        browser.click("#tab-misses")
    else:
        browser.press("2")
    misses = report.passes[-1].misses
    assert misses
    assert len(browser.texts("#panel tbody tr")) == len(misses)
    assert "bytes exceed max-state-bytes=60000000" in browser.text("#panel h3")


def test_9_a_fused_operator_unfolds(browser: Browser, visit: Use, use: Use) -> None:
    visit("fuse-adaln")
    use(".line.add [data-node]")
    former = browser.texts(".ancestry li:first-child .code")
    assert [line.split(" = ")[1].split("(")[0] for line in former] == [
        *("aten.layer_norm", "aten.add", "aten.mul", "aten.add")
    ]


def test_10_rewrite_by_rewrite(browser: Browser, visit: Use, by: str) -> None:
    visit("fuse-qkv")
    for _ in range(3):
        if by == "click":
            browser.click(".stepper button:last-child")
        else:
            browser.press("]")
    assert browser.text(".stepper span") == "rewrite 3 of 28"
    assert browser.texts(".hunk h3") == ["transformer_blocks.2.attn1.to_q"]
    if by == "click":
        browser.click(".stepper button")
    else:
        browser.press("[")
    assert browser.texts(".hunk h3") == ["transformer_blocks.1.attn1.to_q"]


def test_11_any_two_stages(browser: Browser, visit: Use, by: str) -> None:
    visit("fuse-adaln")
    alone = len(browser.texts(".hunk"))
    if by == "click":
        browser.run(
            "(() => { const s = document.getElementById('base'); s.value = '0';"
            " s.dispatchEvent(new Event('change')); })()"
        )
    else:
        browser.run("document.getElementById('base').focus()")
        browser.press("Home")
    assert "base=0" in browser.hash()
    assert len(browser.texts(".hunk")) > alone


def test_12_copies(browser: Browser, visit: Use, use: Use, by: str) -> None:
    found = copied(browser)
    visit("fuse-adaln")
    use(".line.add [data-node]")
    use(".inspector .buttons button:nth-child(1)")
    use(".inspector .buttons button:nth-child(2)")
    use("#tab-stage")
    use(".toolbar button:nth-of-type(1)")
    if by == "click":
        browser.click(".toolbar button:nth-of-type(2)")
    else:
        browser.press("c")
    line, python, stage, command = found()
    assert line.startswith("%adaln_norm = ditc.adaln_norm(")
    assert python.startswith("adaln_norm = torch.ops.ditc.adaln_norm.default(")
    assert stage.startswith("ditc.graph @full {\n")
    assert stage.count("ditc.adaln_norm(") == 57
    assert command == COMMAND


def test_13_filters_are_in_the_url(browser: Browser, visit: Use, page: Path, by: str) -> None:
    visit("fuse-adaln")
    if by == "click":
        browser.click("#filter")
    else:
        browser.press("/")
    browser.call("Input.insertText", text="blocks.7.")
    places = browser.texts(".hunk h3")
    assert places
    assert all("transformer_blocks.7." in place for place in places)
    link = browser.hash()
    browser.open(page, link)
    assert browser.texts(".hunk h3") == places


def test_14_only_what_is_near_is_drawn(browser: Browser, visit: Use, use: Use) -> None:
    visit("fuse-adaln")
    use(".line.add [data-node]")
    assert 2 < len(browser.texts(".neighbours .box")) <= 13
    use(".neighbours .user")
    assert browser.text("#inspected").startswith("aten.")
    if browser.run("document.activeElement.tagName") != "BODY":
        browser.run("document.activeElement.blur()")
    browser.press("Escape")
    assert browser.run("document.querySelector('.inspector').hidden")


def test_15_a_screen_reader_finds_its_way(browser: Browser, visit: Use, use: Use) -> None:
    visit("fuse-adaln")
    use(".line.add [data-node]")
    assert browser.text("#live") == "Inspecting %adaln_norm"
    tree = browser.call("Accessibility.getFullAXTree")["nodes"]
    shown = [node for node in tree if not node.get("ignored") and "role" in node]
    named = {(n["role"]["value"], n.get("name", {}).get("value", "")) for n in shown}
    assert {"main", "navigation", "listbox", "tablist", "complementary"} <= {r for r, _ in named}
    wanted = ("button", "tab", "option", "searchbox", "combobox")
    assert not [role for role, name in named if role in wanted and not name]


def test_the_schedule_and_the_final_samples(browser: Browser, visit: Use, use: Use) -> None:
    visit("schedule")
    sites = len(browser.texts(".schedule .site"))
    assert len(browser.texts(".schedule rect")) % 50 == 0
    assert sites
    visit("samples")
    assert len(browser.texts(".by-block .bar")) == 28
    use(".by-block tbody tr:nth-child(4) button")
    assert browser.text("main h1").endswith("insert-block-cache APPROX")
    assert "q=transformer_blocks.3" in browser.hash()


def test_dark_and_light_and_help(browser: Browser, by: str) -> None:
    theme, help_ = ("#theme", "#help-button") if by == "click" else ("t", "?")
    press = browser.click if by == "click" else browser.press
    colour = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    press(theme)
    assert browser.run(colour) != light
    press(theme)
    assert browser.run(colour) == light
    press(help_)
    assert browser.run("document.querySelector('dialog').open")
    browser.press("Escape")
    assert not browser.run("document.querySelector('dialog').open")
