"""ditc bench cache: what is chosen, compared and counted, and one run of each kind."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from torch import nn

from dit_compile.bench.caching import bench
from dit_compile.bench.caching.bench import CacheBenchOptions, Tried, chosen_from, run_cache_bench
from dit_compile.bench.caching.contenders import (
    Contender,
    Ditc,
    Subject,
    Uncached,
    ditc_contenders,
)
from dit_compile.bench.caching.generation import weigh
from dit_compile.bench.caching.hooks import CacheDit, cache_dit_contenders, hook_contenders
from dit_compile.bench.caching.report import Results, Row, compare, print_results, save
from dit_compile.bench.caching.scores import ImageScores
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import OptionError
from dit_compile.pipeline.pipeline import Pipeline


def subject(model: str, images: int = 2, steps: int = 6) -> Subject:
    return Subject(BUNDLED[model], torch.arange(images), steps, 3.0)


def scores(shift: float, seed: int = 0) -> ImageScores:
    """Of noise that is ``shift`` away from its reference."""
    reference = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) - 0.5
    away = shift * torch.rand(40, 1, 1, 1, generator=torch.Generator().manual_seed(1))
    return ImageScores.of(reference + away, reference, torch.arange(40) % 10)


def row(group: str, ratio: float, shift: float, form: str = "compiled") -> Row:
    return Row(
        model="digits",
        group=group,
        method="m",
        setting="x=1",
        form=form,
        seconds=0.1 * (1 + shift),
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
    def test_each_group_shows_its_best_at_each_ratio(self) -> None:
        tried = [
            Tried(Ditc("a", "gentle"), 1.5, 50.0, 9.0),
            Tried(Ditc("a", "middle"), 2.0, 40.0, 9.0),
            Tried(Ditc("b", "middle"), 2.1, 41.0, 9.0),
            Tried(Ditc("b", "strong"), 3.5, 30.0, 9.0),
            Tried(CacheDit("db", "t", 0.1, 1, 3), 1.96, 45.0, 8.0),
        ]
        chosen = list(chosen_from(tried, (1.5, 2.0, 3.0)))
        assert chosen == [
            Ditc("a", "gentle"),
            Ditc("b", "middle"),
            Ditc("b", "strong"),
            CacheDit("db", "t", 0.1, 1, 3),
        ]

    def test_ditc_also_shows_what_comes_as_near_to_real_digits(self) -> None:
        near, far = Ditc("a", "near"), Ditc("a", "far")
        other = CacheDit("db", "t", 0.1, 1, 3)
        tried = [
            Tried(far, 2.0, 50.0, 9.0),
            Tried(near, 2.0, 46.0, 7.0),
            Tried(Ditc("a", "nearest"), 2.0, 30.0, 1.0),
            Tried(other, 2.0, 45.0, 8.0),
        ]
        assert list(chosen_from(tried, (2.0,))) == [far, other, near]

    def test_a_group_that_reaches_no_ratio_shows_nothing(self) -> None:
        assert not list(chosen_from([Tried(Ditc("a", ""), 1.2, 60.0, 9.0)], (1.5,)))

    def test_settings_are_ones_that_exist(self) -> None:
        for each in ditc_contenders():
            assert isinstance(each, Ditc)
            Pipeline.parse(each.passes)
        every = [*ditc_contenders(), *hook_contenders(), *cache_dit_contenders()]
        names = [(each.group, each.method, each.setting) for each in every]
        assert len(set(names)) == len(names)


class TestComparing:
    def test_the_best_of_both_sides(self) -> None:
        rows = [
            row("uncached", 9, 0.001),
            row("ditc", 2.0, 0.1),
            row("ditc", 2.2, 0.2),
            row("diffusers", 2.0, 0.3),
            row("cache-dit", 1.2, 0.01),
            row("diffusers", 2.0, 0.01, form="eager"),
        ]
        found, *nearer = compare("digits", rows, 2.0, 1.0)
        assert [each.frechet_gain[0] <= 0 for each in nearer] == [True] * len(nearer)
        assert (found.ours, found.theirs) == ("ditc m x=1", "diffusers m x=1")
        gain, (low, high) = found.psnr_gain
        assert gain == pytest.approx(20 * torch.log10(torch.tensor(3.0)).item(), abs=0.3)
        assert low <= gain <= high
        assert found.time_ratio == pytest.approx(1.3 / 1.1)

    def test_one_side_alone(self) -> None:
        assert list(compare("digits", [row("ditc", 2, 0.1)], 2, 1)) == []

    def test_the_best_that_comes_as_near_to_real_digits(self) -> None:
        """Pictures that are farther from the uncached ones may be nearer to real digits."""

        def at(group: str, setting: str, shift: float, frechet: float) -> Row:
            made = row(group, 2.0, shift)
            return replace(made, setting=setting, scores=replace(made.scores, frechet=frechet))

        theirs = at("cache-dit", "x=1", 0.2, 8.0)
        far, near = at("ditc", "x=1", 0.1, 9.0), at("ditc", "near", 0.15, 7.0)
        found = compare("digits", [far, near, theirs], 2.0, 1.0)
        assert [each.ours for each in found] == ["ditc m x=1", "ditc m near"]

    def test_a_set_against_itself(self) -> None:
        own = scores(0.1)
        assert own.psnr_gain(own) == (0, (0, 0))
        assert own.frechet_gain(own) == (0, (0, 0))


class TestReport:
    RESULTS = Results(
        "2026-01-01",
        "ditc bench cache",
        {"images": 40, "steps": 50, "guidance_scale": 3.0},
        {"processor": "a processor", "torch": "2"},
        [row("uncached", 1, 0.0), row("ditc", 2, 0.1), row("diffusers", 2, 0.2)],
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
        assert (tmp_path / "new" / "cache_digits.png").read_bytes().startswith(b"\x89PNG")

    def test_tables(self) -> None:
        console = Console(width=260, file=io.StringIO())
        results = Results(**{**vars(self.RESULTS)})
        results.comparisons = list(compare("digits", results.rows, 2, 1))
        assert results.comparisons
        with console.capture() as written:
            print_results(results, console)
        text = written.get()
        assert "ditc m x=1" in text
        assert "diffusers fastercache did not run: RuntimeError: [sizes] differ" in text


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
    hooks = [each for each in hook_contenders() if each.setting == "interval=2,order=1,lite"]
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
