"""Reduction of a failing Program, and the folder that reproduces a failure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from dit_compile.errors import OptionError, PassError
from dit_compile.ir.program import Program
from dit_compile.ir.verifier import Verifier
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.pipeline.rewriter import Rewriter
from dit_compile.pipeline.watched import run_watched
from dit_compile.reduce import Reduced, minimal, reduce
from tests.ir.models import Transformer, aten, calls, capture, noise, program_of, seeded
from tests.others import give_away
from tests.pipeline.passes import made_of


def planted(program: Program, rw: Rewriter) -> None:
    """Crashes at a linear that reads a modulated layer norm of an attention's block."""
    for graph in rw.graphs():
        for linear in graph.find_nodes(op="call_function", target=aten.linear.default):
            source = linear.args[0]
            if source.target is not aten.add.Tensor:
                continue
            product = source.args[0]
            if product.target is aten.mul.Tensor and product.args[0].target is (
                aten.layer_norm.default
            ):
                raise KeyError("planted")


CRASH = Pipeline((*Pipeline.parse("remove-noops").passes, made_of(planted, name="crash")))


def operators(found: Reduced) -> list[str]:
    nodes = found.program.main.nodes
    return [str(node.target) for node in nodes if node.op == "call_function"]


@pytest.mark.slow
def test_a_crash_in_28_blocks_becomes_a_few_nodes() -> None:
    program = capture(seeded(lambda: Transformer(28)), noise(2, 4, 8), noise(2, 8))
    found = reduce(program, CRASH)
    assert found.before > 300
    assert found.nodes == 4
    assert operators(found) == [
        *("aten.layer_norm.default", "aten.mul.Tensor", "aten.add.Tensor", "aten.linear.default")
    ]
    assert isinstance(found.error.__cause__, KeyError)
    assert (found.position, str(found.pipeline)) == (1, "crash")
    Verifier().check(found.program)
    assert len(calls(program, aten.layer_norm.default)) == 28


def test_several_results_stay_with_their_producer() -> None:
    def boom(program: Program, rw: Rewriter) -> None:
        for split in calls(program, aten.split.Tensor):
            if any(user.args[1] == 1 for user in split.users):
                raise ValueError("planted")

    program = capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8))
    found = reduce(program, Pipeline((made_of(boom, name="boom"),)))
    assert operators(found) == ["aten.split.Tensor", *["<built-in function getitem>"] * 2]
    assert found.nodes == 1
    Verifier().check(found.program)


def test_nothing_to_reduce() -> None:
    with pytest.raises(OptionError, match="no pass fails on this model"):
        reduce(program_of(lambda x: x + 1, noise(2)), Pipeline.parse("exact"))


@given(st.sets(st.integers(0, 60), min_size=1, max_size=6))
@settings(deadline=None, derandomize=True)
def test_minimal(needed: set[int]) -> None:
    assert minimal(range(61), lambda kept: needed <= set(kept)) == sorted(needed)


class TestRepro:
    def failing(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[str, Path]:
        monkeypatch.setenv("DITC_REPRO_DIR", str(folder))
        program = capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8))
        with pytest.raises(PassError) as caught:
            run_watched(CRASH, program)
        (line,) = [each for each in str(caught.value).splitlines() if "repro: " in each]
        return str(caught.value), Path(line.partition("repro: ")[2])

    def test_a_crash_leaves_a_folder(self, monkeypatch: Any, tmp_path: Path) -> None:
        message, place = self.failing(monkeypatch, tmp_path / "deep" / "er")
        assert message.startswith("pass crash (#1): KeyError: 'planted'")
        assert {path.name for path in place.iterdir()} == {"program.txt", "case.py", "repro.json"}
        assert (place / "program.txt").read_text().startswith("ditc.graph @full")
        facts = json.loads((place / "repro.json").read_text())
        assert facts["pass"] == "crash"
        assert facts["pipeline"] == "remove-noops,crash"
        assert facts["error"].startswith("pass crash (#1)")
        assert facts["versions"]["torch"] == torch.__version__
        assert facts["shapes"]["x"] == "f32[2,4,8]"
        assert facts["seed"] == 0
        assert facts["command"].startswith(f"ditc explain {place / 'case.py'}:target")

    def test_the_same_crash_twice_is_one_folder(self, monkeypatch: Any, tmp_path: Path) -> None:
        assert self.failing(monkeypatch, tmp_path) == self.failing(monkeypatch, tmp_path)
        assert len(list(tmp_path.iterdir())) == 1

    @pytest.mark.parametrize("what", ["", "case.py"])
    def test_somebody_elses_repro_is_replaced(
        self, monkeypatch: Any, tmp_path: Path, what: str
    ) -> None:
        """Whoever reads the message runs its module."""
        _, place = self.failing(monkeypatch, tmp_path)
        (place / "case.py").write_text("raise SystemExit('hostile')")
        with monkeypatch.context() as patch:
            give_away(patch, place / what)
            assert self.failing(patch, tmp_path)[1] == place
        assert "hostile" not in (place / "case.py").read_text()
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_link_is_replaced(self, monkeypatch: Any, tmp_path: Path) -> None:
        _, place = self.failing(monkeypatch, tmp_path / "repros")
        place.rename(tmp_path / "elsewhere")
        (tmp_path / "elsewhere" / "case.py").write_text("hostile")
        place.symlink_to(tmp_path / "elsewhere")
        assert self.failing(monkeypatch, tmp_path / "repros")[1] == place
        assert not place.is_symlink()
        assert "hostile" not in (place / "case.py").read_text()
        assert (tmp_path / "elsewhere" / "case.py").read_text() == "hostile"

    def test_those_in_the_cache_folder_are_private(self, monkeypatch: Any, tmp_path: Path) -> None:
        monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path / "cache"))
        self.failing(monkeypatch, tmp_path / "cache" / "repro")
        assert (tmp_path / "cache" / "repro").stat().st_mode & 0o777 == 0o700
        give_away(monkeypatch, tmp_path / "cache" / "repro")
        with pytest.raises(PassError, match=r"no repro was kept: CacheError: .* another user"):
            run_watched(CRASH, capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8)))

    def test_the_case_fails_as_the_model_did(self, monkeypatch: Any, tmp_path: Path) -> None:
        from dit_compile.cli.target import load_target

        _, place = self.failing(monkeypatch, tmp_path)
        monkeypatch.setenv("DITC_REPRO_DIR", "")
        target = load_target(f"{place / 'case.py'}:target")
        program = capture(target.model, *target.args)
        with pytest.raises(PassError, match="KeyError: 'planted'"):
            Pipeline(CRASH.passes[1:]).run(program)

    def test_weights_only_on_request(self, tmp_path: Path) -> None:
        from dit_compile.repro import write_repro

        program = capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8))
        place = write_repro(program, CRASH, 1, "why", tmp_path, weights=True)
        kept = load_file(place / "weights.safetensors")
        model = seeded(Transformer)
        assert torch.equal(kept["blocks.1.q.weight"], model.state_dict()["blocks.1.q.weight"])
        assert len(kept) == len(model.state_dict())

    def test_what_cannot_be_kept_hides_nothing(self, monkeypatch: Any, tmp_path: Path) -> None:
        blocked = tmp_path / "file"
        blocked.write_text("")
        monkeypatch.setenv("DITC_REPRO_DIR", str(blocked / "inside"))
        with pytest.raises(PassError, match=r"KeyError: 'planted'[\s\S]*no repro was kept"):
            run_watched(CRASH, capture(seeded(Transformer), noise(2, 4, 8), noise(2, 8)))
