"""ditc bench cache: what is chosen, compared and counted, and one run of each kind."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn

from dit_compile.bench.caching import bench
from dit_compile.bench.caching.bench import CacheBenchOptions, run_cache_bench
from dit_compile.bench.caching.contenders import (
    Contender,
    Ditc,
    Subject,
    Uncached,
    ditc_contenders,
)
from dit_compile.bench.caching.generation import weigh
from dit_compile.bench.caching.hooks import CacheDit, cache_dit_contenders, hook_contenders
from dit_compile.bench.caching.lineup import line_up
from dit_compile.bench.caching.plot import _frontier
from dit_compile.bench.caching.processes import spawn, told_plainly
from dit_compile.bench.caching.report import (
    Results,
    compare,
    print_results,
    save,
    tried_before,
)
from dit_compile.bench.caching.row import Row
from dit_compile.bench.caching.scores import ImageScores
from dit_compile.bench.caching.tuning import Tried
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import OptionError
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.quality.metrics import relative_l2


def subject(model: str, images: int = 2, steps: int = 6) -> Subject:
    return Subject(BUNDLED[model], torch.arange(images), steps, 3.0)


def scores(shift: float, seed: int = 0) -> ImageScores:
    """Of noise that is ``shift`` away from its reference."""
    reference = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    away = shift * torch.rand(40, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    return ImageScores.of(reference + away, reference, torch.arange(40) % 10)


def row(
    group: str,
    ratio: float,
    shift: float,
    form: str = "compiled",
    turns: Sequence[float] = (1.0, 1.1),
) -> Row:
    return Row(
        model="digits",
        group=group,
        method="m",
        setting="x=1",
        form=form,
        turns=turns,
        seconds=statistics.median(turns) / 40,
        speed_up=2.0,
        speed_up_interval=(1.9, 2.1),
        flop_ratio=ratio,
        scores=scores(shift),
        drift=[0.0, shift],
        kept_bytes=8,
        first_call=1.0,
        graph_breaks=0,
        recompiles=0,
    )


class TestChoosing:
    OTHER = CacheDit("db", "t", 0.1, 1, 3)

    @staticmethod
    def tried(
        setting: str, ratio: float, psnr: float, frechet: float = 9.0, kept: int = 1
    ) -> Tried:
        return Tried(Ditc("a", setting), ratio, psnr, frechet, kept)

    def against(self, *own: Tried, kept: int = 1, limit: float = 1) -> Contender | None:
        """What is set against a setting with ratio 2, 45 dB and distance 8."""
        other = Tried(self.OTHER, 2.0, 45.0, 8.0, kept)
        together = next(iter(line_up([*own, other], (2.0,), limit)))
        assert together[-1] is self.OTHER
        return together[0] if len(together) == 2 else None

    def test_ditc_shows_its_best_at_each_ratio(self) -> None:
        tried = [
            self.tried("gentle", 1.5, 50.0),
            self.tried("middle", 2.0, 40.0),
            self.tried("better", 2.1, 41.0),
            self.tried("strong", 3.5, 30.0),
        ]
        shown = [(each.contender,) for each in tried if each.psnr != 40]
        assert list(line_up(tried, (1.5, 2.0, 3.0), 1)) == shown

    def test_others_meet_the_best_that_computes_no_more(self) -> None:
        own = [
            self.tried("slow", 1.9, 60.0, 1.0),
            self.tried("good", 2.1, 50.0, 7.0),
            self.tried("fair", 2.1, 46.0, 7.0),
        ]
        assert self.against(*own) == own[1].contender

    def test_nothing_of_a_better_psnr_is_shown_if_its_other_score_is_worse(self) -> None:
        own = [self.tried("far", 2.0, 50.0, 9.0), self.tried("near", 2.0, 46.0, 8.0)]
        assert self.against(*own) == own[1].contender

    def test_nothing_is_better_than_what_it_meets_in_both_scores(self) -> None:
        own = [self.tried("far", 2.0, 50.0, 9.0), self.tried("near", 2.0, 44.0, 7.0)]
        assert self.against(*own) == own[0].contender

    def test_memory_is_that_of_the_other_or_the_limit(self) -> None:
        large, small = self.tried("large", 2.0, 50.0, 7.0, 30), self.tried("small", 2.0, 46.0, 7.0)
        assert self.against(large, small, kept=20, limit=20) == small.contender
        assert self.against(large, small, kept=30, limit=20) == large.contender
        assert self.against(large, small, kept=20, limit=30) == large.contender

    def test_without_a_counterpart_others_are_alone(self) -> None:
        assert self.against(self.tried("slow", 1.5, 60.0)) is None

    def test_a_pair_is_shown_once_and_what_met_another_is_not_shown_again(self) -> None:
        own, other = self.tried("x", 3.0, 50.0, 1.0), Tried(self.OTHER, 3.0, 45.0, 8.0, 1)
        assert list(line_up([own, other], (1.5, 3.0), 1)) == [(own.contender, self.OTHER)]

    def test_a_group_that_reaches_no_ratio_shows_nothing(self) -> None:
        assert not list(line_up([self.tried("", 1.2, 60.0)], (1.5,), 1))

    def test_settings_are_ones_that_exist(self) -> None:
        for each in ditc_contenders():
            assert isinstance(each, Ditc)
            Pipeline.parse(each.passes)
        every = [*ditc_contenders(), *hook_contenders(), *cache_dit_contenders()]
        names = [(each.group, each.method, each.setting) for each in every]
        assert len(set(names)) == len(names)


class TestComparing:
    def test_against_the_faster_form(self) -> None:
        ours = row("ditc", 2.0, 0.1, turns=(1.0, 2.0, 1.5))
        eager = row("diffusers", 1.9, 0.3, "eager", turns=(2.2, 4.4))
        compiled = row("diffusers", 1.9, 0.3, turns=(3.0, 4.0, 3.5))
        found = compare(ours, [compiled, eager])
        assert (found.ours, found.theirs, found.form) == ("ditc m x=1", "diffusers m x=1", "eager")
        assert found.flop_ratio == (2.0, 1.9)
        gain, (low, high) = found.psnr_gain
        assert gain == pytest.approx(20 * torch.log10(torch.tensor(3.0)).item(), abs=0.3)
        assert low <= gain <= high
        ratio, (low, high) = found.time_ratio
        assert low == ratio == high == pytest.approx(2.2), "of the turns that both took"

    def test_a_set_against_itself(self) -> None:
        own = scores(0.1)
        assert own.psnr_gain(own) == (0, (0, 0))
        assert own.frechet_gain(own) == (0, (0, 0))


class Unreadable(Exception):
    """As torch's own errors are: it holds on to what cannot leave its process."""

    def __init__(self, frame: object, text: str) -> None:
        super().__init__(text)
        self.frame = frame


@told_plainly
def fails(what: str) -> None:
    if what == "unreadable":
        raise Unreadable(sys._getframe(), "a graph")
    raise OptionError("plain")


def linger(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(600)


class TestProcesses:
    @pytest.mark.parametrize(
        ("what", "error", "text"),
        [("unreadable", RuntimeError, "^Unreadable: a graph$"), ("", OptionError, "^plain$")],
    )
    def test_any_error_is_told(self, what: str, error: type[Exception], text: str) -> None:
        with spawn(1) as pool, pytest.raises(error, match=text):
            pool.submit(fails, what).result()

    def test_they_end_with_the_one_that_started_them(self, tmp_path: Path) -> None:
        code = (
            "from dit_compile.bench.caching.processes import spawn\n"
            "from tests.bench.test_caching import linger\n"
            "if __name__ == '__main__':\n"
            f"    spawn(1).submit(linger, {str(tmp_path / 'pid')!r}).result()\n"
        )
        script = tmp_path / "start.py"
        script.write_text(code)
        root = Path(__file__).parents[2]
        parent = subprocess.Popen(
            [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(root)}
        )
        child = None
        try:
            child = int(_soon(lambda: (tmp_path / "pid").read_text() or None))
            parent.kill()
            parent.wait()
            _soon(lambda: None if _runs(child) else True)
        finally:
            parent.kill()
            if child is not None and _runs(child):
                os.kill(child, signal.SIGKILL)


def _soon(ask: Callable[[], Any]) -> Any:
    """What ``ask`` gives, once it gives something."""
    for _ in range(600):
        with suppress(OSError):
            if (found := ask()) is not None:
                return found
        time.sleep(0.1)
    raise AssertionError("it never came")


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


class TestReport:
    RESULTS = Results(
        "2026-01-01",
        "ditc bench cache",
        {"images": 40, "tuned": 50, "steps": 50, "guidance_scale": 3.0},
        {"processor": "a processor", "torch": "2"},
        [row("uncached", 1, 0.0), row("ditc", 2, 0.1), row("diffusers", 2, 0.2)],
        tried={"digits": [Tried(Ditc("interval", "interval=2"), 2.0, 40.0, 9.0, 8)]},
        refused={"digits": {"diffusers fastercache": "RuntimeError: [sizes] differ"}},
    )

    def test_files(self, tmp_path: Path) -> None:
        save(self.RESULTS, tmp_path / "new")
        data = json.loads((tmp_path / "new" / "cache.json").read_text())
        assert data["command"] == "ditc bench cache"
        assert data["rows"][1]["scores"].keys() == {
            "psnr",
            "psnr_interval",
            "ssim",
            "frechet",
            "accuracy",
        }
        assert data["rows"][1]["turns"] == [1.0, 1.1]
        (tried,) = data["tried"]["digits"]
        assert tried["psnr"] == 40
        assert tried["contender"] == {
            "group": "ditc",
            "method": "interval",
            "setting": "interval=2",
        }
        assert (tmp_path / "new" / "cache_digits.png").read_bytes().startswith(b"\x89PNG")

    def test_what_was_tried_is_read_again(self, tmp_path: Path) -> None:
        save(self.RESULTS, tmp_path)
        contenders = [Ditc("interval", "interval=2"), Ditc("interval", "interval=3")]
        options = {**self.RESULTS.options, "tuned": 50}
        found = tried_before(tmp_path, "digits", options, contenders)
        assert found == self.RESULTS.tried["digits"]
        assert tried_before(tmp_path, "digits-flow", options, contenders) == []
        assert tried_before(tmp_path / "none", "digits", options, contenders) == []
        with pytest.raises(OptionError, match="was made with tuned=50, not 20; leave out --resume"):
            tried_before(tmp_path, "digits", {**options, "tuned": 20}, contenders)

    def test_a_bench_that_is_cut_off_goes_on_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = list[list[Contender]]()

        def try_all(contenders: list[Contender], *_: Any) -> Iterator[tuple[Contender, Any]]:
            asked.append(contenders)
            for each in contenders[:-1]:
                trial = Future[Tried]()
                trial.set_result(Tried(each, 2.0, 40.0, 9.0, 8))
                yield each, trial
            raise KeyboardInterrupt

        monkeypatch.setattr(bench, "try_all", try_all)
        save(self.RESULTS, tmp_path)
        told = {"groups": ("ditc",), "methods": ("interval",), "out": str(tmp_path)}
        for models in (("digits-flow", "digits"), ("digits", "digits-flow")):
            with pytest.raises(KeyboardInterrupt):
                run_cache_bench(CacheBenchOptions(models=models, resume=True, **told))
        tried = json.loads((tmp_path / "cache.json").read_text())["tried"]
        settings = {m: [each["contender"]["setting"] for each in tried[m]] for m in tried}
        assert settings["digits-flow"] == ["interval=2", "interval=3"]
        assert settings["digits"] == ["interval=2", "interval=3"]
        assert [[each.setting for each in contenders] for contenders in asked] == [
            ["interval=2", "interval=3", "interval=4"],
            ["interval=3", "interval=4"],
        ]

    def test_tables(self) -> None:
        console = Console(width=260, file=io.StringIO())
        results = Results(**{**vars(self.RESULTS)})
        results.comparisons = [compare(results.rows[1], results.rows[2:])]
        with console.capture() as written:
            print_results(results, console)
        text = written.get()
        assert "ditc m x=1" in text
        assert "100 %" in text, "of a ratio of operations that became time"
        assert "diffusers fastercache did not run: RuntimeError: [sizes] differ" in text


def test_the_frontier_leaves_out_what_another_exceeds_in_both() -> None:
    points = [(2.0, 40.0), (1.5, 39.0), (1.0, 50.0), (3.0, 35.0), (2.0, 38.0), (2.5, 35.0)]
    assert _frontier(points) == ([1.0, 2.0, 3.0], [50.0, 40.0, 35.0])


class TestCounting:
    def test_weights_laid_out_by_an_earlier_contender_are_in_nobodys_way(self) -> None:
        packed = torch.ones(4, 4).to_mkldnn()
        plain, told = Uncached(), subject("digits", steps=2)
        assert weigh(plain, plain.build(told, compiled=False), told, 0).flops > 0
        assert packed.layout is not torch.strided

    @pytest.mark.slow
    def test_ditc_is_counted_by_the_same_measure(self) -> None:
        torch._dynamo.reset()
        given = subject("digits")
        plain = weigh(Uncached(), Uncached().build(given, compiled=False), given, 0)
        cached = Ditc("interval", "interval=2")
        half = weigh(cached, cached.build(given, compiled=False), given, 0)
        assert 1.4 < plain.flops / half.flops < 1.6, "steps 0, 2, 4 and the last of 6"
        assert half.kept_bytes > plain.kept_bytes


@pytest.mark.slow
@pytest.mark.parametrize("order", [0, 1, 2])
@pytest.mark.parametrize("model", sorted(BUNDLED))
def test_first_block_is_what_cache_dit_does(model: str, order: int) -> None:
    """The same threshold, the same decisions, the same pictures."""
    torch._dynamo.reset()
    told = subject(model, steps=20)
    limits = f"residual-diff-threshold=0.2,order={order},max-warmup-steps=4,known-from=2"
    theirs = CacheDit("dbcache", "", 0.2, order, -1)
    plain, want, have = (
        weigh(each, each.build(told, compiled=False), told, 0)
        for each in (Uncached(), theirs, Ditc("first-block", limits))
    )
    assert plain.flops > 1.3 * max(want.flops, have.flops)
    assert relative_l2(have.images, want.images) < 1e-5
    assert relative_l2(have.images, plain.images) > 1e-3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"models": ("digit",)}, "did you mean 'digits'"),
        ({"groups": ("theirs",)}, "groups are ditc, diffusers, cache-dit"),
        ({"groups": ("ditc",), "methods": ("pab",)}, "unknown method 'pab'"),
        ({"images": 75}, "multiple of batch"),
        ({"images": 100}, "5 batches at least"),
        ({"steps": 1}, "2 steps"),
        ({"ratios": ()}, "a ratio"),
    ],
)
def test_what_it_refuses(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        CacheBenchOptions(**wrong)


@dataclass(frozen=True)
class Broken(Contender):
    """One that cannot be applied."""

    group: ClassVar[str] = "diffusers"

    def build(self, subject: Subject, compiled: bool) -> nn.Module:
        raise RuntimeError("no such block\nat line 3")


@pytest.mark.slow
def test_the_whole_bench(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hooks = [each for each in hook_contenders() if each.setting == "interval=2,order=1,scope=lite"]
    monkeypatch.setattr(
        bench,
        "_GROUPS",
        {
            "ditc": lambda: [Ditc("interval", "interval=2")],
            "diffusers": lambda: [*hooks, Broken("broken", "")],
        },
    )
    results = run_cache_bench(
        CacheBenchOptions(
            models=("digits-flow",),
            groups=("ditc", "diffusers"),
            ratios=(1.2,),
            images=20,
            batch=10,
            tuned=10,
            steps=8,
            timed=1,
            out=str(tmp_path),
        )
    )
    assert results.refused["digits-flow"] == {"diffusers broken": "RuntimeError: no such block"}
    assert [row.group for row in results.rows][:3] == ["uncached", "uncached", "ditc"]
    assert {row.group for row in results.rows} >= {"uncached", "ditc", "diffusers"}
    ours = next(row for row in results.rows if row.group == "ditc")
    assert (ours.graph_breaks, ours.recompiles) == (0, 0)
    assert ours.flop_ratio > 1.1
    assert len(ours.drift) == 8
    assert 0 == ours.drift[0] < ours.drift[-1] < 0.2
    (found,) = results.comparisons
    assert found.ours.startswith("ditc")
    assert (tmp_path / "cache_digits-flow.png").exists()
    assert "did not run" in capsys.readouterr().out
