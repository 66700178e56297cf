"""The package as a user first meets it: imports, the backend's name, versions, settings."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Any

import pytest
import torch

import dit_compile
from dit_compile import config, errors
from dit_compile.cli import main
from dit_compile.errors import DitcError, UnsupportedTorchError, suggest
from dit_compile.versions import check_torch

FIRST_MEETING = """
import json, sys
facts = {}
old = set(sys.modules)
import dit_compile
facts["imported"] = sorted(set(sys.modules) - old)
facts["dir"] = dir(dit_compile)
facts["imported by dir"] = "torch" in sys.modules
facts["home"] = dit_compile.explain.__module__
facts["imported by explain"] = "torch" in sys.modules
import torch._dynamo
facts["backends"] = torch._dynamo.list_backends()
facts["loaded by listing"] = "dit_compile.torch_backend" in sys.modules
torchs_own = set(sys.modules)  # Dynamo imports Triton where it is installed
from dit_compile.pipeline import registry
import dit_compile.torch_backend
registry.passes(), registry.backends()
heavy = {"triton", "dit_compile.backends.triton.operators", "onnxruntime", "diffusers", "sklearn"}
facts["heavy"] = sorted(heavy & set(sys.modules) - torchs_own)
facts["cuda"] = torch.cuda.is_initialized()
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def facts() -> dict[str, Any]:
    """What a fresh interpreter finds."""
    done = subprocess.run(
        [sys.executable, "-c", FIRST_MEETING], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


class TestImport:
    def test_imports_nothing_else(self, facts: dict[str, Any]) -> None:
        roots = {name.partition(".")[0] for name in facts["imported"]}
        assert "dit_compile" in roots
        assert roots - {"dit_compile"} <= sys.stdlib_module_names

    def test_names_are_found_when_asked_for(self, facts: dict[str, Any]) -> None:
        assert set(dit_compile.__all__) <= set(facts["dir"])
        assert not facts["imported by dir"]
        assert facts["home"] == "dit_compile.explanation"
        assert facts["imported by explain"]

    def test_the_compiler_touches_no_device(self, facts: dict[str, Any]) -> None:
        assert facts["heavy"] == []
        assert not facts["cuda"]

    @pytest.mark.parametrize("name", dit_compile.__all__)
    def test_every_public_name(self, name: str) -> None:
        assert getattr(dit_compile, name).__name__ == name
        assert name in dir(dit_compile)

    def test_the_public_names_are_listed_once(self) -> None:
        assert sorted(dit_compile._HOMES) == sorted(dit_compile.__all__)

    def test_unknown_names(self) -> None:
        with pytest.raises(AttributeError, match="'dit_compile' has no attribute 'expalin'"):
            dit_compile.expalin  # noqa: B018

    def test_version(self) -> None:
        assert dit_compile.__version__ == version("dit-compile")


class TestEntryPoints:
    def test_torch_lists_the_backend_unasked(self, facts: dict[str, Any]) -> None:
        assert "ditc" in facts["backends"]
        assert not facts["loaded by listing"]

    def test_it_leads_to_the_backend(self) -> None:
        from dit_compile.torch_backend import ditc

        (point,) = entry_points(group="torch_dynamo_backends", name="ditc")
        assert point.load() is ditc
        assert torch._dynamo.lookup_backend("ditc") is ditc

    def test_the_command(self) -> None:
        (point,) = entry_points(group="console_scripts", name="ditc")
        assert point.load() is main
        assert main(["passes"]) == main(["passes"]) == 0
        assert point.load() is main  # and not a module of that name


class TestTorchVersions:
    @pytest.mark.parametrize("found", ["2.11.0", "2.12.1+cu128", "2.13.0a0+git1234", None])
    def test_tested_ones(self, found: str | None) -> None:
        check_torch(found)

    @pytest.mark.parametrize("found", ["2.10.1", "2.14.0.dev20260801+cpu", "1.13.1", "3.0.0"])
    def test_others(self, found: str) -> None:
        with pytest.raises(UnsupportedTorchError) as caught:
            check_torch(found)
        assert str(caught.value) == (
            f"ditc works with torch 2.11 to 2.13, not {found}; install 'torch>=2.11,<2.14'"
        )

    def test_the_range_is_the_packages(self) -> None:
        text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
        assert '"torch>=2.11,<2.14"' in text

    def test_compiling_says_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "__version__", "2.9.0")
        with pytest.raises(UnsupportedTorchError, match=r"not 2\.9\.0"):
            dit_compile.explain(torch.nn.Linear(2, 2), (torch.ones(2),))


class TestErrors:
    def test_all_derive_from_one(self) -> None:
        raised = [
            item
            for item in vars(errors).values()
            if isinstance(item, type) and issubclass(item, Exception)
        ]
        others = [item for item in raised if not issubclass(item, DitcError)]
        assert others == [errors.DitcWarning]
        assert issubclass(errors.DitcWarning, UserWarning)
        assert issubclass(errors.NumericError, errors.VerificationError)

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("fuse-qvk", "; did you mean 'fuse-qkv'?"),
            ("fuse_adaln", "; did you mean 'fuse-adaln'?"),
            ("zzz", ""),
            ("", ""),
        ],
    )
    def test_suggestions(self, name: str, text: str) -> None:
        assert suggest(name, ["fuse-qkv", "fuse-adaln"]) == text

    def test_suggestions_from_anything_iterable(self) -> None:
        assert suggest("exat", iter({"exact": 1})) == "; did you mean 'exact'?"


class TestConfig:
    @pytest.mark.parametrize(
        ("own", "xdg", "path"),
        [
            ("/a", "/b", "/a"),
            ("", "/b", "/b/ditc"),
            (None, "/b", "/b/ditc"),
            (None, None, "~/.cache/ditc"),
        ],
    )
    def test_where_measurements_are_kept(
        self, monkeypatch: pytest.MonkeyPatch, own: str | None, xdg: str | None, path: str
    ) -> None:
        for name, value in (("DITC_CACHE_DIR", own), ("XDG_CACHE_HOME", xdg)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)
        assert config.cache_dir() == Path(path).expanduser()

    @pytest.mark.parametrize(
        ("value", "strict"),
        [(None, False), ("", False), ("0", False), ("false", False), ("1", True), ("true", True)],
    )
    def test_strict(self, monkeypatch: pytest.MonkeyPatch, value: str | None, strict: bool) -> None:
        if value is None:
            monkeypatch.delenv("DITC_STRICT", raising=False)
        else:
            monkeypatch.setenv("DITC_STRICT", value)
        assert config.strict_by_default() is strict

    def test_it_is_the_only_place_that_reads_the_environment(self) -> None:
        root = Path(__file__).parents[1]
        folders = [root / name for name in ("dit_compile", "passes", "backends")]
        readers = [
            path.relative_to(root).as_posix()
            for folder in folders
            for path in folder.rglob("*.py")
            if "os.environ" in path.read_text() or "getenv" in path.read_text()
        ]
        assert readers == ["dit_compile/config.py"]
