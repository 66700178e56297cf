"""A loaded bundle computes, reuses and places calls as the compiled model does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

import dit_compile as ditc
from dit_compile.bundle import sessions
from dit_compile.bundle.sessions import RuntimeOptions, open_session
from dit_compile.errors import BackendError, BundleError, OptionError
from tests.runtime.loops import TIMES, Loop, Toy, alone, assert_same, every, label

#: Runs a loop where torch, and all that only the compiler needs, cannot be imported.
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused}:
            raise ImportError(f"{{name}} is refused")
sys.meta_path.insert(0, Refuse())
import numpy as np
import dit_compile as ditc
loaded = ditc.load({path!r})
latents, times = np.load({inputs!r}).values()
results = []
with ditc.session(loaded, timesteps=times) as session:
    for x, t in zip(latents, times):
        results.append(loaded(x, np.array([t], np.float32), y=np.array([2]))[0])
assert "torch" not in sys.modules
np.save({outputs!r}, np.stack(results))
print(session.summary())
"""
REFUSED = (
    "torch",
    "onnx",
    "onnxscript",
    "onnx_ir",
    "sympy",
    "networkx",
    "safetensors",
    "rich",
    "typing_extensions",
)


@pytest.fixture(scope="module", params=["merged", "split", "pt2"])
def loaded(request: pytest.FixtureRequest) -> Any:
    path = request.getfixturevalue(request.param)
    if request.param == "pt2":
        return ditc.load(path, trust=True)
    return ditc.load(path, intra_op_num_threads=1)


def run(loaded: Any, loop: Loop) -> list[torch.Tensor]:
    return [loaded(**call)[0] for call in loop]


class TestResults:
    def test_a_stated_loop_is_cached(self, loaded: Any, toy: Toy) -> None:
        loop = Loop(label(2))
        with ditc.session(loaded, timesteps=TIMES) as session:
            got = run(loaded, loop)
            found = session.summary()
        assert (found["generations"], found["lanes"]) == (1, 1)
        assert (found["computed"], found["reused"]) == (5, 3)
        assert_same(got, alone(toy, loop, every(2, 8)))

    def test_a_loop_is_recognised(self, loaded: Any, toy: Toy) -> None:
        with ditc.session() as session:
            for seed in (0, 1):
                loop = Loop(label(seed), seed=seed)
                assert_same(run(loaded, loop), alone(toy, loop, every(2, 8)))
            assert session.summary()["generations"] == 2

    @pytest.fixture
    def names(self, loaded: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """The graphs that run, in order."""
        names: list[str] = []
        real = loaded._graphs.run
        monkeypatch.setattr(
            loaded._graphs, "run", lambda name, values: names.append(name) or real(name, values)
        )
        return names

    def test_rows_of_all_steps_are_computed_together(
        self, loaded: Any, toy: Toy, names: list[str]
    ) -> None:
        loop, times = Loop(label(2)), [999.0, *TIMES, 0.5]
        with ditc.session(loaded, timesteps=times):
            longer = Loop(label(2), times=times)
            assert_same(run(loaded, longer), alone(toy, longer, every(2, 10)))
        assert names.count("table_rows") == 1
        assert names.count("prologue") == 1
        assert "table" not in names
        names.clear()
        with ditc.session(loaded):
            run(loaded, loop)
            assert (names.count("table"), names.count("table_rows")) == (8, 0)
            run(loaded, loop)
            assert (names.count("table"), names.count("table_rows")) == (8, 0)  # kept
            run(loaded, Loop(label(3)))
            assert (names.count("table"), names.count("table_rows")) == (8, 1)  # foreseen

    def test_stated_timesteps_on_another_scale(
        self, loaded: Any, toy: Toy, names: list[str]
    ) -> None:
        stated = torch.tensor([*TIMES, 0.5])
        with ditc.session(loaded, timesteps=stated):
            loop = Loop(label(2), times=(stated / 1000).tolist())
            assert_same(run(loaded, loop), alone(toy, loop, every(2, 9)))
        assert (names.count("table"), names.count("table_rows")) == (0, 1)

    def test_guidance_branches_are_lanes(self, loaded: Any, toy: Toy) -> None:
        loops = Loop(label(2)), Loop(label(4), seed=1)
        with ditc.session(loaded) as session:
            calls = [call for pair in zip(*loops, strict=True) for call in pair]
            got = [loaded(**call)[0] for call in calls]
            assert session.summary()["lanes"] == 2
        for lane, loop in enumerate(loops):
            assert_same(got[lane::2], alone(toy, loop, every(2, 8)))

    def test_nothing_is_reused_across_a_failure(
        self, loaded: Any, toy: Toy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = Loop(label(2))
        with ditc.session(loaded):
            loaded(**next(iter(loop)))
            with monkeypatch.context() as patch:
                patch.setattr(loaded._graphs, "run", lambda name, values: values["nothing"])
                with pytest.raises(KeyError):
                    loaded(**next(iter(loop)))
            assert_same(run(loaded, loop), alone(toy, loop, every(2, 8)))

    def test_two_bundles_do_not_share_state(self, split: Path, toy: Toy) -> None:
        one, two = (ditc.load(split, intra_op_num_threads=1) for _ in range(2))
        loop, other = Loop(label(2)), Loop(label(2), seed=3)
        pairs = list(zip(loop, other, strict=True))
        got = [(one(**a)[0], two(**b)[0]) for a, b in pairs]
        assert_same([a for a, _ in got], alone(toy, loop, every(2, 8)))
        assert_same([b for _, b in got], alone(toy, other, every(2, 8)))

    def test_least_memory(self, split: Path, toy: Toy) -> None:
        loaded = ditc.load(split, prepack=False, intra_op_num_threads=1)
        loop = Loop(label(2))
        assert_same(run(loaded, loop), alone(toy, loop, every(2, 8)))

    def test_what_runs_once_is_not_laid_out(
        self, merged: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened: dict[str, bool] = {}

        def spy(path: Path, options: RuntimeOptions) -> Any:
            opened[path.name] = options.prepack
            return open_session(path, options)

        monkeypatch.setattr(sessions, "open_session", spy)
        ditc.load(merged)
        assert opened == {"prologue.onnx": False, "table.onnx": False, "step.onnx": True}
        ditc.load(merged, session_options=onnxruntime.SessionOptions())
        assert all(opened.values())  # the caller's settings, shared by all, are not changed

    def test_without_torch(self, merged: Path, toy: Toy, tmp_path: Path) -> None:
        loop = Loop(label(2))
        latents = np.stack([call["x"].numpy() for call in loop])
        np.savez(tmp_path / "in.npz", latents=latents, times=np.array(TIMES))
        text = WITHOUT_TORCH.format(
            refused=REFUSED,
            path=str(merged),
            inputs=str(tmp_path / "in.npz"),
            outputs=str(tmp_path / "out.npy"),
        )
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "'computed': 5, 'reused': 3" in done.stdout
        got = torch.from_numpy(np.load(tmp_path / "out.npy"))
        assert_same(list(got), alone(toy, loop, every(2, 8)))


class TestArguments:
    def test_arrays_in_arrays_out(self, loaded: Any) -> None:
        call = next(iter(Loop(label(2))))
        arrays = {name: value.numpy() for name, value in call.items()}
        with ditc.session(loaded):
            (got,) = loaded(arrays["x"], arrays["t"], y=arrays["y"])
        with ditc.session(loaded):
            (want,) = loaded(**call)
        assert isinstance(got, np.ndarray)
        np.testing.assert_array_equal(got, want.numpy())

    def test_any_layout(self, loaded: Any) -> None:
        call = next(iter(Loop(label(2))))
        turned = call["x"].transpose(0, 2).contiguous().transpose(0, 2)
        with ditc.session(loaded):
            assert torch.equal(loaded(**call)[0], loaded(**{**call, "x": turned})[0])

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"x": np.zeros((1, 6, 8))}, "x takes float32, not float64"),
            (
                {"x": np.zeros((1, 7, 8), np.float32)},
                r"\[1, 6, 8\], not \[1, 7, 8\].*dynamic_shapes",
            ),
            ({"x": np.zeros((6, 8), np.float32)}, r"not \[6, 8\]"),
            ({"tt": 1}, "unknown argument 'tt'; did you mean 't'"),
        ],
    )
    def test_wrong_ones(self, loaded: Any, change: dict[str, Any], message: str) -> None:
        call = next(iter(Loop(label(2)))) | change
        with pytest.raises(OptionError, match=message):
            loaded(**call)

    def test_missing_and_doubled_ones(self, loaded: Any) -> None:
        call = next(iter(Loop(label(2))))
        with pytest.raises(OptionError, match=r"y is missing: int64 \[1\]"):
            loaded(x=call["x"], t=call["t"])
        with pytest.raises(OptionError, match="x is given twice"):
            loaded(call["x"], **call)
        with pytest.raises(OptionError, match="takes 3 tensors, not 4"):
            loaded(1, 2, 3, 4)


class TestOptions:
    def test_providers(self, split: Path) -> None:
        with pytest.raises(OptionError, match=r"no provider 'CUDAExecutionProvider'.*here it has"):
            ditc.load(split, providers=["CUDAExecutionProvider"])
        with pytest.raises(OptionError, match="providers is empty"):
            ditc.load(split, providers=[])
        with pytest.raises(OptionError, match="takes a list"):
            ditc.load(split, providers="CPUExecutionProvider")

    def test_another_provider_is_no_answer(
        self, split: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        available = [*onnxruntime.get_available_providers(), "XnnpackExecutionProvider"]
        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
        wanted = ["XnnpackExecutionProvider", "CPUExecutionProvider"]
        with pytest.raises(BackendError, match="Xnnpack"):
            ditc.load(split, providers=wanted)

    def test_session_options_are_taken(self, split: Path, tmp_path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.enable_profiling = True
        options.profile_file_prefix = str(tmp_path / "profile")
        loaded = ditc.load(split, session_options=options, intra_op_num_threads=1)
        loaded(**next(iter(Loop(label(2)))))
        assert list(tmp_path.glob("profile*.json"))

    def test_paths_that_are_no_bundle(self, tmp_path: Path) -> None:
        with pytest.raises(BundleError, match="no folder"):
            ditc.load(tmp_path / "nothing")
        with pytest.raises(BundleError, match=r"no manifest\.json"):
            ditc.load(tmp_path)
