"""Packages of machine code: compiled once here, since that takes a minute."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.backends.pt2 import aoti
from dit_compile.backends.pt2.runner import _check_processor
from dit_compile.backends.pt2.weights import WEIGHTS_FILE
from dit_compile.bundle.folder import open_bundle
from dit_compile.errors import BackendError, BundleError, UntrustedBundleError
from tests.bundle.conftest import exported
from tests.bundle.test_folder import rehash
from tests.runtime.loops import TIMES, Loop, Toy, alone, assert_same, every, label
from tests.test_exporting import noise

#: Runs a graph by hand, without ditc.
BY_HAND = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
from torch._inductor.package import load_package
folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
weights = load_file(folder / manifest["weights"])
graph = manifest["graphs"]["prologue"]
model = load_package(str(folder / graph["file"]), "prologue")
given = [torch.tensor([2]), *(weights[name] for name in graph["weights"])]
torch.save(model.loader.boxed_run(given)[0], sys.argv[2])
assert "dit_compile" not in sys.modules
"""


@pytest.fixture(scope="module")
def package(toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return exported(toy, tmp_path_factory.mktemp("aoti") / "toy", format="aoti")


@pytest.mark.slow
class TestPackage:
    def test_a_loop_is_cached(self, package: Path, toy: Toy) -> None:
        loaded = ditc.load(package, trust=True)
        loops = Loop(label(2)), Loop(label(4), seed=1)
        with ditc.session(loaded, timesteps=TIMES) as session:
            calls = [call for pair in zip(*loops, strict=True) for call in pair]
            got = [loaded(**call)[0] for call in calls]
            found = session.summary()
        assert (found["lanes"], found["computed"], found["reused"]) == (2, 10, 6)
        for lane, loop in enumerate(loops):
            assert_same(got[lane::2], alone(toy, loop, every(2, 8)))

    def test_what_is_in_it(self, package: Path, toy: Toy) -> None:
        manifest = open_bundle(package)
        assert {graph.file for graph in manifest.graphs.values()} == {aoti.PACKAGE}
        with zipfile.ZipFile(package / aoti.PACKAGE) as archive:
            names = archive.namelist()
        assert sum(name.endswith(".so") for name in names) == len(manifest.graphs)
        assert not any(name.endswith(".cpp") for name in names)
        size = sum(p.numel() * p.element_size() for p in toy.parameters())
        assert manifest.files[WEIGHTS_FILE].bytes < 1.2 * size
        assert manifest.notes[0].startswith("compiled for processors like this one")

    def test_it_runs_without_ditc(self, package: Path, toy: Toy, tmp_path: Path) -> None:
        words = [sys.executable, "-c", BY_HAND, str(package), str(tmp_path / "out.pt")]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert torch.equal(torch.load(tmp_path / "out.pt"), toy.label.weight[2:3])

    def test_trust_and_damage(self, package: Path, tmp_path: Path) -> None:
        with pytest.raises(UntrustedBundleError, match="aoti, whose package is machine code"):
            ditc.load(package)
        copied = Path(shutil.copytree(package, tmp_path / "toy"))
        data = bytearray((copied / aoti.PACKAGE).read_bytes())
        data[len(data) // 2] ^= 1
        (copied / aoti.PACKAGE).write_bytes(data)
        with pytest.raises(BundleError, match=r"graphs\.pt2 is not the file"):
            ditc.load(copied, trust=True)
        (copied / aoti.PACKAGE).write_bytes(b"\xff" * 100)
        rehash(copied)
        with pytest.raises(BackendError, match="cannot load the graphs"):
            ditc.load(copied, trust=True)

    def test_sizes_that_vary(self, tmp_path: Path) -> None:
        class Model(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x.softmax(-1) * x.shape[0]

        sizes = {0: torch.export.Dim("n", max=64)}
        path, x = tmp_path / "b", noise(3, 8)
        ditc.export(Model(), (x,), {}, path, dynamic_shapes=(sizes,), format="aoti")
        loaded = ditc.load(path, trust=True)
        for count in (3, 1, 40):
            x = noise(count, 8)
            torch.testing.assert_close(loaded(x)[0], Model()(x))


def test_an_interruption_leaves_nothing(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch._inductor, "aot_compile", interrupted)
    args = (torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))
    with pytest.raises(KeyboardInterrupt):
        ditc.export(toy, args, {}, tmp_path / "b", format="aoti")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.processor
def test_other_processors_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    has = {"avx2": True, "avx512_f": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    _check_processor({"AOTI_CPU_ISA": "AVX2"})
    _check_processor({"AOTI_CPU_ISA": "ASIMD"})
    _check_processor({})
    with pytest.raises(BackendError, match="compiled for processors with AVX512"):
        _check_processor({"AOTI_CPU_ISA": "AVX512 AVX512_VNNI"})
