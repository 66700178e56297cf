"""Bundles of exported programs: what is in them, and when they are refused."""

from __future__ import annotations

import io
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile.backends.pt2.weights import WEIGHTS_FILE
from dit_compile.bundle.folder import open_bundle
from dit_compile.errors import BackendError, BundleError, OptionError, UntrustedBundleError
from tests.bundle.test_folder import rehash
from tests.runtime.loops import Toy, label
from tests.test_exporting import Counting, Small, noise

#: Runs a graph by hand, without ditc.
BY_HAND = """
import json, sys, torch
from pathlib import Path
from safetensors.torch import load_file
folder = Path(sys.argv[1])
manifest = json.loads((folder / "manifest.json").read_text())
weights = load_file(folder / manifest["weights"])
graph = manifest["graphs"]["full"]
given = {"x": torch.ones(2, 4, 8, 8)}
program = torch.export.load(folder / graph["file"])
args = [*(given[n] for n in graph["inputs"]), *(weights[n] for n in graph["weights"])]
result = program.module()(*args)[0]
assert "dit_compile" not in sys.modules
torch.save(result, sys.argv[2])
"""


@pytest.fixture
def copied(pt2: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(pt2, tmp_path / "toy"))


def agree(path: Path, model: nn.Module, *args: Tensor, tolerance: float = 1e-5) -> None:
    with torch.no_grad():
        want = model(*args)
    got = ditc.load(path, trust=True)(*args)
    for have, expected in zip(got, want, strict=True):
        torch.testing.assert_close(have, expected, rtol=tolerance, atol=tolerance)


class TestWriting:
    def test_every_weight_is_stored_once(self, toy: Toy, pt2: Path) -> None:
        manifest = open_bundle(pt2)
        read = [key for graph in manifest.graphs.values() for key in graph.weights]
        assert len(read) > len({*read})  # several graphs read the same one
        with safe_open(pt2 / WEIGHTS_FILE, "pt") as file:
            assert {*file.keys()} == {*read}
            assert torch.equal(file.get_tensor("embed.weight"), toy.embed.weight)
        for graph in manifest.graphs.values():
            with zipfile.ZipFile(pt2 / graph.file) as archive:
                assert not [n for n in archive.namelist() if n.endswith(".bin")]
        size = sum(p.numel() * p.element_size() for p in toy.parameters())
        assert manifest.files[WEIGHTS_FILE].bytes < 1.2 * size

    def test_what_is_written_holds_no_pickle_and_no_path(self, pt2: Path) -> None:
        for path in pt2.glob("*.pt2"):
            with zipfile.ZipFile(path) as archive:
                members = {name: archive.read(name) for name in archive.namelist()}
            assert not any(data.startswith(b"\x80") for data in members.values())
            assert not any(b".py" in data for data in members.values())

    def test_it_runs_without_ditc(self, tmp_path: Path) -> None:
        model = Small()
        ditc.export(model, (noise(2, 4, 8, 8),), {}, tmp_path / "b", format="pt2")
        words = [sys.executable, "-c", BY_HAND, str(tmp_path / "b"), str(tmp_path / "out.pt")]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        with torch.no_grad():
            want = model(torch.ones(2, 4, 8, 8))[0]
        torch.testing.assert_close(torch.load(tmp_path / "out.pt"), want)

    def test_sizes_that_vary(self, tmp_path: Path) -> None:
        model, x = Small(), noise(2, 4, 8, 8)
        sizes = {0: torch.export.Dim("n", max=64), 2: torch.export.Dim.DYNAMIC}
        ditc.export(model, (x,), {}, tmp_path / "b", dynamic_shapes=(sizes,), format="pt2")
        for other in (x, noise(3, 4, 12, 8), noise(1, 4, 20, 8)):
            agree(tmp_path / "b", model, other)

    def test_sizes_that_must_be_equal(self, tmp_path: Path) -> None:
        class Sum(nn.Module):
            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                return x + y

        batch = {0: torch.export.Dim("n")}
        args = noise(3, 2), noise(3, 2)
        path = tmp_path / "b"
        ditc.export(Sum(), args, {}, path, dynamic_shapes=(batch, batch), format="pt2")
        loaded = ditc.load(path, trust=True)
        assert loaded(noise(4, 2), noise(4, 2))[0].shape == (4, 2)
        with pytest.raises(OptionError, match="y has 1 where x has 4"):
            loaded(noise(4, 2), noise(1, 2))

    def test_half_precision_stays(self, tmp_path: Path) -> None:
        model, x = Small(torch.bfloat16), noise(2, 4, 8, 8, dtype=torch.bfloat16)
        manifest = ditc.export(model, (x,), {}, tmp_path / "b", format="pt2")
        assert manifest.inputs[0].dtype == manifest.results[0].dtype == "bfloat16"
        agree(tmp_path / "b", model, x, tolerance=2e-2)
        loaded = ditc.load(tmp_path / "b", trust=True)
        array = loaded(x.float().numpy())[0]  # numpy has no bfloat16
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, loaded(x)[0].float().numpy())
        with pytest.raises(OptionError, match="x takes bfloat16, not float64"):
            loaded(x.double())

    def test_layouts_are_contiguous_between_graphs(self, tmp_path: Path) -> None:
        class Turned(nn.Module):
            """A prologue that returns a turned tensor, which the step views."""

            def forward(self, x: Tensor, y: Tensor) -> Tensor:
                turned = y.sin().transpose(1, 2)
                return x + turned.unflatten(2, (2, -1)).flatten(1).unsqueeze(1)

        args = noise(1, 5, 12), noise(1, 4, 3)
        model, bindings = Turned(), {"y": "invariant"}
        ditc.export(model, args, {}, tmp_path / "b", bindings=bindings, format="pt2")
        loaded = ditc.load(tmp_path / "b", trust=True)
        for name in loaded.manifest.graphs:
            values = {"x": args[0], "y": args[1]} | {
                v.name: torch.ones([int(s) for s in v.shape]) for v in loaded.manifest.derived
            }
            assert all(v.is_contiguous() for v in loaded._graphs.run(name, values)), name
        torch.testing.assert_close(loaded(*args)[0], model(*args))

    @pytest.mark.parametrize("options", [{"opset": 18}, {"contrib": False}, {"split": True}])
    def test_options_of_another_format(self, tmp_path: Path, options: dict[str, Any]) -> None:
        with pytest.raises(OptionError, match="are of the format onnx"):
            ditc.export(Small(), (noise(2, 4, 8, 8),), {}, tmp_path / "b", format="pt2", **options)
        assert list(tmp_path.iterdir()) == []

    def test_models_that_write_into_their_buffers(self, tmp_path: Path) -> None:
        with pytest.raises(BackendError, match="the model writes into calls"):
            ditc.export(Counting(), (noise(3, 3),), {}, tmp_path / "b", format="pt2")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
    def test_an_interruption_leaves_nothing(
        self, toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
    ) -> None:
        save, calls = torch.export.save, []

        def interrupted(*args: Any) -> None:
            calls.append(args)
            if len(calls) == 2:
                raise error
            save(*args)

        monkeypatch.setattr(torch.export, "save", interrupted)
        args = (torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))
        with pytest.raises(type(error)):
            ditc.export(toy, args, {}, tmp_path / "b", format="pt2")
        assert len(calls) == 2
        assert list(tmp_path.iterdir()) == []


class TestTrust:
    def test_it_is_refused_without(self, pt2: Path) -> None:
        with pytest.raises(UntrustedBundleError, match=r"pt2, whose files may hold pickles.*trust"):
            ditc.load(pt2)

    def test_nothing_runs_before_it_is_refused(
        self, copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Harm:
            def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
                return Path.touch, (tmp_path / "harm",)

        harmful = io.BytesIO()
        torch.save(Harm(), harmful)
        replace_member(copied / "full.pt2", "sample_inputs/model.pt", harmful.getvalue())
        rehash(copied)
        for verify in (True, False):
            with pytest.raises(UntrustedBundleError):
                ditc.load(copied, verify=verify)
        assert not (tmp_path / "harm").exists()
        # torch's warning of it does not format
        monkeypatch.setattr(logging.getLogger("torch._export.serde.serialize"), "disabled", True)
        with pytest.raises(BackendError, match="cannot load the graphs"):
            ditc.load(copied, trust=True)
        assert (tmp_path / "harm").exists()  # the reason for the rule

    def test_trust_does_not_spare_the_hashes(self, copied: Path) -> None:
        data = bytearray((copied / "full.pt2").read_bytes())
        data[len(data) // 2] ^= 1
        (copied / "full.pt2").write_bytes(data)
        with pytest.raises(BundleError, match=r"full\.pt2 is not the file that was exported"):
            ditc.load(copied, trust=True)


def replace_member(path: Path, ending: str, data: bytes) -> None:
    """Write one member of a zip file anew."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in members if name.endswith(ending))
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in (members | {name: data}).items():
            archive.writestr(member, content)


class TestDamage:
    @pytest.mark.parametrize("name", ["reuse.pt2", WEIGHTS_FILE])
    def test_files_that_hold_something_else(self, copied: Path, name: str) -> None:
        (copied / name).write_bytes(b"\xff" * 100)
        rehash(copied)
        with pytest.raises(BackendError, match="cannot load"):
            ditc.load(copied, trust=True)

    def test_weights_that_are_not_there(self, copied: Path) -> None:
        save_file({"other": torch.ones(1)}, copied / WEIGHTS_FILE)
        rehash(copied)
        with pytest.raises(BundleError, match=r"weights\.safetensors has no 'blocks"):
            ditc.load(copied, trust=True)

    def test_weights_of_other_shapes(self, copied: Path) -> None:
        with safe_open(copied / WEIGHTS_FILE, "pt") as file:
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
        tensors["embed.weight"] = torch.ones(3, 3)
        save_file(tensors, copied / WEIGHTS_FILE)
        rehash(copied)
        loaded = ditc.load(copied, trust=True)
        with pytest.raises(BackendError, match="torch failed in graph 'full'"):
            loaded(torch.randn(1, 6, 8), torch.tensor([500.0]), label(1))

    def test_options_of_onnx_runtime(self, pt2: Path) -> None:
        with pytest.raises(OptionError, match=r"ONNX Runtime's.*set_num_threads"):
            ditc.load(pt2, trust=True, intra_op_num_threads=2)
