"""The command line: data on stdout, diagnostics on stderr, errors in one line."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.testing import FileCheck

from dit_compile.analysis import roofline
from dit_compile.analysis.roofline import Roofline
from dit_compile.cli import main
from dit_compile.pipeline.presets import PRESETS
from dit_compile.pipeline.registry import passes
from dit_compile.report.codec import from_json

Run = Callable[..., Any]


class TestExplain:
    def test_the_table(self, ditc: Run, model_file: str) -> None:
        done = ditc("explain", f"{model_file}:make")
        assert done.code == 0
        head, titles, *rows = done.out.splitlines()
        assert head.startswith("Transformer   torch 2.")
        assert titles.split()[:4] == ["#", "pass", "kind", "nodes"]
        assert [row.split()[1] for row in rows] == PRESETS["exact"].split(",")
        assert "\x1b" not in done.out

    def test_what_the_users_code_prints_is_no_data(self, ditc: Run, model_file: str) -> None:
        done = ditc("explain", f"{model_file}:make", "--json")
        assert "loading the model" in done.err
        assert "loading the model" not in done.out

    def test_json(self, ditc: Run, model_file: str) -> None:
        text = "fuse-adaln,insert-block-cache{method=interval,interval=2}"
        done = ditc("explain", f"{model_file}:near_miss", "--passes", text, "--json")
        report = from_json(done.out)
        assert (report.model, report.pipeline) == ("Transformer", text)
        assert re.fullmatch("[0-9a-f]{64}", report.stages[-1].fingerprint)
        first, fused, cached = (stage.cost for stage in report.stages)
        assert first.flops > fused.flops > cached.flops
        assert set(cached.graphs) == {"full", "reuse"}
        fuse, cache = report.passes
        assert (fuse.name, fuse.kind, fuse.changed) == ("fuse-adaln", "exact", True)
        assert (fuse.nodes_before, fuse.nodes_after) == (36, 30)
        assert [rewrite.path for rewrite in fuse.rewrites] == ["blocks.0", "blocks.1"]
        assert len(fuse.rewrites[0].removed) == 4
        assert len(fuse.rewrites[0].added) == 1
        (miss,) = fuse.misses
        assert (miss.path, miss.culprit) == ("blocks.2.norm", "@blocks.2.norm.weight")
        assert 0 < fuse.error_growth < 2
        assert cache.kind == "APPROX"
        assert cache.notes == ["2 variants, 3 sites, interval{interval=2}"]
        assert [item["name"] for item in report.analysis["inputs"]] == ["x", "c"]
        assert report.analysis["stacks"][0]["blocks"] == 3

    def test_markdown(self, ditc: Run, model_file: str) -> None:
        done = ditc("explain", f"{model_file}:make", "--markdown")
        assert "| 4 | **fuse-adaln** | exact |" in done.out
        assert f"Made by `ditc explain {model_file}:make --markdown`" in done.out
        assert "<details><summary>#4 fuse-adaln</summary>" in done.out

    def test_a_report_is_shown_again(self, ditc: Run, model_file: str, tmp_path: Path) -> None:
        path = tmp_path / "run.json"
        path.write_text(ditc("explain", f"{model_file}:make", "--json").out)
        assert ditc("explain", str(path)).out == ditc("explain", str(path)).out
        assert "fuse-adaln" in ditc("explain", str(path)).out
        assert ditc("explain", str(path), "--json").out == path.read_text()

    def test_what_it_costs_in_the_end(self, ditc: Run, sampled_file: str, tmp_path: Path) -> None:
        text, page, plot = (
            "eliminate-common,insert-block-cache{interval=2}",
            *(tmp_path / name for name in ("x.html", "x.png")),
        )
        done = ditc(
            *("explain", f"{sampled_file}:make", "--passes", text, "--html", str(page), "--json"),
            *("--trajectory", f"{sampled_file}:sampler", "--plot", str(plot)),
        )
        found = from_json(done.out).trajectory
        assert found is not None
        assert [(s.name, s.position) for s in found.passes] == [
            *(("eliminate-common", 0), ("insert-block-cache", 1))
        ]
        assert [share.name for share in found.blocks] == ["blocks.0", "blocks.1", "blocks.2"]
        assert '"trajectory":{"passes":[' in page.read_text(encoding="utf-8")
        assert plot.read_bytes().startswith(b"\x89PNG")
        assert f"plot: {plot}" in done.err
        path = tmp_path / "run.json"
        path.write_text(done.out)
        assert "final samples after 1 x 8 steps" in ditc("explain", str(path)).out
        path.write_text(ditc("explain", f"{sampled_file}:make", "--passes", text, "--json").out)
        later = ditc("explain", str(path), "--json", "--trajectory", f"{sampled_file}:sampler")
        assert from_json(later.out).trajectory == found

    def test_json_is_the_same_twice(self, ditc: Run, model_file: str) -> None:
        def run() -> Any:
            data = json.loads(ditc("explain", f"{model_file}:make", "--json").out)
            return json.loads(
                json.dumps(data),
                object_hook=lambda d: {k: v for k, v in d.items() if not k.endswith("seconds")},
            )

        assert run() == run()

    def test_analysis_and_diffs(self, ditc: Run, model_file: str) -> None:
        done = ditc("explain", f"{model_file}:make", "--analysis", "--diff", "--bind", "c=timestep")
        (
            FileCheck()
            .check("c      timestep")
            .check("stack blocks: 3 blocks, all alike")
            .check("Transformer   torch")
            .check("#4 fuse-adaln @ blocks.0 (x3 identical, shown once)")
            .check_next("-  %layer_norm = aten.layer_norm(%x, [8], None, None, 1e-05, False)")
            .run(done.out)
        )

    def test_without_numerics(self, ditc: Run, model_file: str) -> None:
        done = ditc("explain", f"{model_file}:dropping", "--no-numerics")
        assert done.code == 0
        assert "noise" not in done.out


class TestDiff:
    def test_one_pass(self, ditc: Run, model_file: str) -> None:
        done = ditc("diff", f"{model_file}:make", "--pass", "fuse-qkv")
        head, *lines = done.out.splitlines()
        assert head == "#3 fuse-qkv @ blocks.0.q (x3 identical, shown once)"
        assert [line[0] for line in lines] == ["-"] * 3 + ["+"] * 2

    def test_all_passes(self, ditc: Run, model_file: str) -> None:
        out = ditc("diff", f"{model_file}:make").out
        heads = [line for line in out.splitlines() if line.startswith("#")]
        assert list(dict.fromkeys(head.split()[1] for head in heads)) == [
            "fuse-qkv",
            "fuse-adaln",
            "hoist-invariant",
        ]

    def test_reports(self, ditc: Run, model_file: str, tmp_path: Path) -> None:
        paths = [str(tmp_path / name) for name in ("a.json", "b.json")]
        for path, text in zip(paths, ("exact", "exact,insert-block-cache"), strict=True):
            done = ditc("explain", f"{model_file}:make", "--passes", text, "--json")
            Path(path).write_text(done.out)
        one = ditc("diff", paths[0], "--pass", "fuse-qkv")
        assert one.out == ditc("diff", f"{model_file}:make", "--pass", "fuse-qkv").out
        assert ditc("diff", paths[0], paths[0]).out == "(no change)\n"
        both = ditc("diff", *paths).out
        assert both.splitlines()[0].startswith("-  remove-noops")
        assert "@reuse" in both
        failed = ditc("diff", *paths, "--pass", "fuse-qkv")
        assert (failed.code, failed.out) == (1, "")
        assert "--pass is of one run" in failed.err
        missing = ditc("diff", paths[0], "nowhere.json")
        assert "cannot read 'nowhere.json'" in missing.err

    def test_no_change(self, ditc: Run, model_file: str) -> None:
        done = ditc("diff", f"{model_file}:make", "--passes", "eliminate-dead")
        assert done.out == "(no change)\n"


class TestOpt:
    def test_ir_on_stdout_table_on_stderr(self, ditc: Run, model_file: str) -> None:
        done = ditc("opt", f"{model_file}:make", "--passes", "fuse-adaln")
        assert done.code == 0
        assert done.out.startswith("ditc.graph @full (%x: f32[2,4,8] latent")
        assert done.out.endswith("}\n")
        assert "ditc.adaln_norm" in done.out
        assert "hit/miss" in done.err

    def test_nothing_but_capture(self, ditc: Run, model_file: str) -> None:
        done = ditc("opt", f"{model_file}:make", "--passes", "")
        assert done.code == 0
        assert done.out.count("aten.layer_norm") == 3

    def test_diff(self, ditc: Run, model_file: str) -> None:
        done = ditc("opt", f"{model_file}:make", "--passes", "fuse-adaln", "--diff")
        assert done.out.startswith("#0 fuse-adaln @ blocks.0 (x3 identical, shown once)\n")

    def test_json(self, ditc: Run, model_file: str) -> None:
        done = ditc("opt", f"{model_file}:make", "--passes", "fuse-adaln", "--json")
        assert json.loads(done.out)["pipeline"] == "fuse-adaln"
        assert "hit/miss" not in done.err

    def test_python_that_runs(self, ditc: Run, model_file: str) -> None:
        done = ditc("opt", f"{model_file}:make", "--passes", "fuse-qkv,fuse-adaln", "--python")
        space: dict[str, Any] = {"__name__": "stage"}
        exec(compile(done.out, "stage.py", "exec"), space)
        (result,) = space["run"](space["values"]())["full"]
        assert result.shape == (2, 4, 8)

    def test_an_earlier_stage(self, ditc: Run, model_file: str) -> None:
        args = ("opt", f"{model_file}:make", "--passes", "fuse-qkv,fuse-adaln", "--stage")
        assert ditc(*args, "-1").out.count("aten.linear(") == 12
        first = ditc(*args, "0").out
        assert first.count("aten.linear(") == 6
        assert "aten.layer_norm" in first
        failed = ditc(*args, "2")
        assert "there is no pass #2; they are #0 to #1" in failed.err


class TestFindingFaults:
    @pytest.fixture
    def wrong(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Layer norms fused with another epsilon, in the third block alone."""
        from dit_compile.passes.fusion import fuse_adaln

        plain, seen = fuse_adaln.FuseAdaLN.run, []

        def run(self: Any, program: Any, rw: Any) -> None:
            call = rw.call

            def spoiled(target: Any, *args: Any, **options: Any) -> Any:
                seen.append(target)
                if len(rw.rewrites) == 3:
                    args = (*args[:3], 0.5)
                return call(target, *args, **options)

            rw.call = spoiled
            plain(self, program, rw)

        monkeypatch.setattr(fuse_adaln.FuseAdaLN, "run", run)

    @pytest.mark.usefixtures("wrong")
    def test_bisect(self, ditc: Run, model_file: str) -> None:
        done = ditc("bisect", f"{model_file}:make", "--passes", "fuse-qkv,fuse-adaln")
        assert done.code == 0
        head, place, *lines = done.out.splitlines()
        assert head == "first failing: pass fuse-adaln (#1), rewrite 3 of 3; 5 runs"
        assert place == "#1 fuse-adaln @ blocks.2"
        assert [line[0] for line in lines[:5]] == ["-"] * 4 + ["+"]
        assert "0.5)" in lines[4]

    def test_bisect_wants_something_to_check(self, ditc: Run, model_file: str) -> None:
        assert "give a target, or a command behind --" in ditc("bisect").err
        nothing = ditc("bisect", f"{model_file}:make", "--passes", "fuse-qkv")
        assert (nothing.code, nothing.out) == (1, "")
        assert "there is nothing to find" in nothing.err

    def test_reduce(
        self, ditc: Run, model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dit_compile.passes.fusion import fuse_adaln

        def crash(norm: Any, rw: Any) -> None:
            raise IndexError("planted")

        monkeypatch.setattr(fuse_adaln, "_match", crash)
        done = ditc(
            *("reduce", f"{model_file}:make", "--passes", "fuse-qkv,fuse-adaln"),
            *("--out", str(tmp_path / "cases")),
        )
        assert done.code == 0
        assert "36 -> 1 nodes" not in done.out
        assert "-> 1 nodes in" in done.err
        assert "aten.layer_norm(" in done.out
        place = Path(done.out.rpartition("# repro: ")[2].strip())
        again = ditc("explain", f"{place / 'case.py'}:target", "--passes", "fuse-adaln")
        assert again.code == 1
        assert "IndexError: planted" in again.err


def test_passes(ditc: Run) -> None:
    done = ditc("passes")
    assert done.code == 0
    lines = done.out.splitlines()
    listed = [line.split()[0] for line in lines[1 : len(passes()) + 1]]
    assert listed == list(passes())
    for name, text in PRESETS.items():
        assert f"preset {name}: {text}" in lines
    assert lines[-1].startswith("targets: inductor, triton, eager")


class TestRoofline:
    @pytest.fixture(autouse=True)
    def measured(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, bool]]:
        calls: list[tuple[str, bool]] = []

        def load(device: str, refresh: bool) -> Roofline:
            calls.append((device, refresh))
            return Roofline("cpu", {"float32": 1.5e11}, 2e10, {"cores": "2"})

        monkeypatch.setattr(roofline, "load_or_measure", load)
        return calls

    def test_the_table(self, ditc: Run, measured: list[tuple[str, bool]]) -> None:
        done = ditc("roofline")
        assert measured == [("cpu", False)]
        (
            FileCheck()
            .check("cores 2")
            .check("matrix product, float32")
            .check_same("150 GFLOP/s")
            .check("memory bandwidth")
            .check_same("20.0 GB/s")
            .run(done.out)
        )

    def test_json(self, ditc: Run, measured: list[tuple[str, bool]]) -> None:
        done = ditc("roofline", "--device", "cuda", "--refresh", "--json")
        assert measured == [("cuda", True)]
        assert Roofline.from_json(done.out).bandwidth == 2e10


class TestErrors:
    @pytest.mark.parametrize(
        ("args", "message"),
        [
            (("explain", "{}:mak"), "{} has no function 'mak'; did you mean 'make'?"),
            (("explain", "nowhere.py:make"), "model file 'nowhere.py' does not exist"),
            (("explain", "digit"), "unknown model 'digit'; did you mean 'digits'?"),
            (("demo", "--model", "digit"), "unknown model 'digit'; did you mean 'digits'?"),
            (("explain", "{}:failing"), "{}:failing failed: ValueError: no such checkpoint"),
            (("explain", "{}:untraceable"), "torch.export cannot trace Branch: "),
            (("explain", "{}:make", "--passes", "fuse-qvk"), "unknown pass 'fuse-qvk'; did you"),
            (
                ("explain", "{}:make", "--passes", "exct"),
                "unknown pass 'exct'; did you mean 'exact'",
            ),
            (("explain", "{}:make", "--bind", "c"), "--bind takes INPUT=WHEN, such as img_ids="),
            (("explain", "{}:make", "--bind", "d=latent"), "bindings: the model has no input 'd'"),
            (
                ("explain", "{}:make", "--bind", "c=never"),
                "bindings: 'c' cannot be 'never'; choose",
            ),
            (("explain", "{}:make", "--plot", "x.png"), "--plot draws what --trajectory measures"),
            (("explain", "x.json", "--trajectory"), "a report cannot be sampled; name its sampler"),
            (("explain", "{}:dropping"), "the model draws random numbers (%"),
            (
                ("diff", "{}:make", "--pass", "fuse-qvk"),
                "no pass 'fuse-qvk' has run; did you mean 'fuse-qkv'?; these have: remove-noops",
            ),
        ],
    )
    def test_one_line_and_an_exit_code(
        self, ditc: Run, model_file: str, args: tuple[str, ...], message: str
    ) -> None:
        done = ditc(*(arg.replace("{}", model_file) for arg in args))
        assert done.code == 1
        assert done.out == ""
        *_, last = done.err.splitlines()
        assert last.startswith(f"ditc: error: {message}".replace("{}", model_file))

    def test_bad_syntax_has_a_caret(self, ditc: Run, model_file: str) -> None:
        done = ditc("opt", f"{model_file}:make", "--passes", "fuse-qkv{")
        *_, head, text, caret = done.err.splitlines()
        assert done.code == 1
        assert head == "ditc: error: pipeline text: expected an option name"
        assert (text, caret) == ("  fuse-qkv{", "           ^")

    @pytest.mark.parametrize("args", [(), ("explain",), ("opt", "digits"), ("explode",)], ids=str)
    def test_wrong_usage(
        self, ditc: Run, capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
    ) -> None:
        with pytest.raises(SystemExit) as caught:
            ditc(*args)
        assert caught.value.code == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("usage: ditc")


class TestColor:
    def test_only_on_terminals(self, ditc: Run) -> None:
        assert "\x1b[" not in ditc("passes").out

    @pytest.mark.parametrize("no_color", [False, True])
    def test_no_color(
        self, ditc: Run, model_file: str, monkeypatch: pytest.MonkeyPatch, no_color: bool
    ) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        monkeypatch.setenv("TERM", "xterm-256color")
        if no_color:
            monkeypatch.setenv("NO_COLOR", "1")
        colors = re.findall("\x1b\\[[0-9;]*3[0-9]m", ditc("explain", f"{model_file}:make").out)
        assert bool(colors) is not no_color


def test_a_reader_that_has_seen_enough(
    model_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["opt", f"{model_file}:make", "--passes", ""]) == 1
        closed.write("what Python itself still has to say\n")
        closed.flush()
    assert "ditc: error" not in capsys.readouterr().err
