"""Files of users that import their neighbours."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_compile.cli.target import load_sampler, load_target
from dit_compile.errors import ModelFileError

LAYERS = """
import torch
from dataclasses import dataclass

@dataclass
class Config:
    width: int = 4

class Layer(torch.nn.Linear):
    def __init__(self, config=Config()):
        super().__init__(config.width, config.width)

    def forward(self, x):
        return scaled(super().forward(x))

def scaled(x):
    return x * FACTOR

FACTOR = 2.0
"""
MAKE = """
import torch
def make():
    return {layer}(), (torch.ones(2, 4),), {{}}
def sampler():
    return lambda seed: torch.zeros(1), {layer}()
"""


def tree(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(autouse=True)
def nothing_leaks() -> Iterator[None]:
    """No module of a user's is left under a name that anyone else may import."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    mine = {name.partition(".")[0] for name in set(sys.modules) - modules}
    assert sys.path == path
    assert not mine & {"layers", "pkg", "model", "blocks", "parts", "wide"}


@pytest.mark.parametrize(
    ("imports", "layer"),
    [
        ("import layers", "layers.Layer"),
        ("import layers as l", "l.Layer"),
        ("import os, layers, sys", "layers.Layer"),
        ("from layers import Layer", "Layer"),
        ("from layers import *", "Layer"),
        ("from .layers import Layer as L", "L"),
        ("from . import layers", "layers.Layer"),
        ("import blocks.layer", "blocks.layer.Layer"),
        ("import blocks.layer as b", "b.Layer"),
        ("import blocks.layer, blocks.other", "blocks.layer.Layer"),
        ("from blocks import Layer", "Layer"),
        ("from blocks.layer import Layer", "Layer"),
        ("from .blocks.layer import Layer", "Layer"),
        ("import plain.layer", "plain.layer.Layer"),
        ("from __future__ import annotations\nfrom layers import Layer", "Layer"),
    ],
)
def test_neighbours(tmp_path: Path, imports: str, layer: str) -> None:
    tree(
        tmp_path,
        {
            "model.py": imports + MAKE.format(layer=layer),
            "layers.py": LAYERS,
            "blocks/__init__.py": "from .layer import Layer",
            "blocks/layer.py": "from layers import Layer",
            "blocks/other.py": "import blocks.layer\nassert blocks.Layer is blocks.layer.Layer",
            "plain/layer.py": "from layers import Layer",
        },
    )
    target = load_target(f"{tmp_path / 'model.py'}:make")
    assert type(target.model).__name__ == "Layer"
    assert isinstance(load_sampler(f"{tmp_path / 'model.py'}:sampler")[1], torch.nn.Linear)
    assert not list(tmp_path.rglob("__pycache__"))


@pytest.mark.parametrize(
    "imports",
    [
        "from .layers import Layer",
        "from ..parts.layers import Layer",
        "from pkg.parts.layers import Layer",
        "import pkg.parts.layers\nLayer = pkg.parts.layers.Layer",
        "from layers import Layer",
        "from ..wide import Layer",
    ],
)
def test_a_file_in_a_package(tmp_path: Path, imports: str) -> None:
    tree(
        tmp_path,
        {
            "pkg/__init__.py": "from .wide import Layer as exported",
            "pkg/wide.py": "from .parts.layers import Layer",
            "pkg/parts/__init__.py": "",
            "pkg/parts/layers.py": LAYERS,
            "pkg/parts/types.py": "raise ValueError('not meant')",
            "pkg/parts/model.py": f"import types\nassert types.FunctionType\n{imports}"
            "\nimport pkg\nassert pkg.exported.__name__ == 'Layer'" + MAKE.format(layer="Layer"),
        },
    )
    assert type(load_target(f"{tmp_path}/pkg/parts/model.py:make").model).__name__ == "Layer"


def test_a_package_s_own_file(tmp_path: Path) -> None:
    tree(tmp_path, {"pkg/__init__.py": "from .layers import *" + MAKE.format(layer="Layer")})
    tree(tmp_path, {"pkg/layers.py": LAYERS})
    assert type(load_target(f"{tmp_path}/pkg/__init__.py:make").model).__name__ == "Layer"


def test_an_importable_package_is_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is installed, as an editable package is, may be known to others by its name."""
    tree(
        tmp_path,
        {
            "ditc_test_installed/__init__.py": "",
            "ditc_test_installed/layers.py": LAYERS,
            "ditc_test_installed/model.py": "from ditc_test_installed.layers import Layer"
            + MAKE.format(layer="Layer"),
            "beside.py": "from ditc_test_installed.layers import Layer"
            + MAKE.format(layer="Layer"),
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    inside = load_target(f"{tmp_path}/ditc_test_installed/model.py:make").model
    beside = load_target(f"{tmp_path}/beside.py:make").model
    assert type(inside) is type(beside) is sys.modules["ditc_test_installed.layers"].Layer


def test_a_neighbour_takes_no_place(tmp_path: Path) -> None:
    """It has the name of an installed module, of one of Python's own, of a loaded one."""
    tree(
        tmp_path,
        {
            "model.py": "import sklearn, colorsys, numpy, networkx, torch\n"
            "assert sklearn.mine and numpy.mine and colorsys.rgb_to_hsv and networkx.Graph"
            + MAKE.format(layer="torch.nn.Identity"),
            "sklearn.py": "mine = True",
            "numpy.py": "mine = True",
            "colorsys.py": "raise ValueError('not meant')",
            "networkx/data.txt": "a folder that is no package",
        },
    )
    load_target(f"{tmp_path}/model.py:make")
    import numpy as np

    assert hasattr(np, "ndarray")


def test_imports_within_functions_find_neighbours_later(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "layers.py": LAYERS,
            "model.py": "def make():\n    import layers, torch\n"
            "    return layers.Layer(), (torch.ones(2, 4),), {}",
        },
    )
    target = load_target(f"{tmp_path}/model.py:make")
    with torch.no_grad():
        exported = torch.compile(target.model, backend="eager", fullgraph=True)(*target.args)
    assert torch.equal(exported, target.model(*target.args))


def test_a_neighbour_may_import_the_file(tmp_path: Path) -> None:
    tree(
        tmp_path,
        {
            "model.py": "WIDTH = 4\nimport layers" + MAKE.format(layer="layers.Layer"),
            "layers.py": "import torch, model\nclass Layer(torch.nn.Linear):\n"
            "    def __init__(self): super().__init__(model.WIDTH, model.WIDTH)",
        },
    )
    assert load_target(f"{tmp_path}/model.py:make").model.in_features == 4


def test_two_files_of_one_name(tmp_path: Path) -> None:
    for width in (4, 4.0):
        tree(
            tmp_path / str(width),
            {"model.py": "import layers" + MAKE.format(layer="layers.Layer")},
        )
        tree(tmp_path / str(width), {"layers.py": LAYERS + f"\nOWN = {width!r}"})
    models = [load_target(f"{tmp_path / str(w)}/model.py:make").model for w in (4, 4.0)]
    owners = [sys.modules[type(model).__module__].OWN for model in models]
    assert [type(own) for own in owners] == [int, float]


def test_a_file_that_was_edited_is_loaded_anew(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    for factor in (2.0, 3.0):
        layers = LAYERS.replace("2.0", str(factor))
        tree(
            tmp_path,
            {"layers.py": layers, path.name: "import layers" + MAKE.format(layer="layers.Layer")},
        )
        model = load_target(f"{path}:make").model
        assert factor == sys.modules[type(model).__module__].FACTOR


@pytest.mark.parametrize("name", ["my-model.py", "2nd.py", "model.v2.py"])
def test_names_that_are_no_identifiers(tmp_path: Path, name: str) -> None:
    tree(tmp_path, {name: "from .layers import Layer" + MAKE.format(layer="Layer")})
    tree(tmp_path, {"layers.py": LAYERS})
    load_target(f"{tmp_path / name}:make")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"model.py": "from layer import Layer"},
            "ModuleNotFoundError: No module named 'layer' ({0}/model.py:1); install that, or put "
            "it beside the file",
        ),
        (
            {"model.py": "from .layer import Layer"},
            "ModuleNotFoundError: No module named 'layer' ({0}/model.py:1); install that, or put "
            "it beside the file",
        ),
        (
            {"model.py": "import layers", "layers.py": "1 / 0"},
            "ZeroDivisionError: division by zero ({0}/layers.py:1)",
        ),
        (
            {"model.py": "import layers", "layers.py": "a = 1\nif a"},
            "SyntaxError: expected ':' ({0}/layers.py:2)",
        ),
        (
            {"model.py": "from layers import Laier", "layers.py": LAYERS},
            "ImportError: cannot import name 'Laier' from 'layers' ({0}/layers.py) "
            "({0}/model.py:1)",
        ),
        (
            {"model.py": "from ..layers import Layer"},
            "ImportError: attempted relative import beyond top-level package ({0}/model.py:1); "
            "give each folder of the package an __init__.py",
        ),
        (
            {"model.py": "import sys\nsys.exit('usage: model.py WEIGHTS')"},
            "SystemExit: usage: model.py WEIGHTS ({0}/model.py:2); put what is to run as a script "
            "behind if __name__ == '__main__'",
        ),
    ],
)
def test_what_does_not_load(tmp_path: Path, files: dict[str, str], message: str) -> None:
    tree(tmp_path, files)
    before = set(sys.modules)
    with pytest.raises(ModelFileError) as caught:
        load_target(f"{tmp_path}/model.py:make")
    prefix = f"model file '{tmp_path}/model.py' cannot be loaded: "
    assert str(caught.value) == prefix + message.format(tmp_path)
    assert not [name for name in set(sys.modules) - before if name.startswith("ditc_model_")]


def test_a_function_that_imports_what_is_missing(tmp_path: Path) -> None:
    tree(tmp_path, {"model.py": "def make():\n    from layer import Layer"})
    with pytest.raises(ModelFileError) as caught:
        load_target(f"{tmp_path}/model.py:make")
    assert str(caught.value).endswith("; install that, or put it beside the file")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["explain", "--no-numerics"], ""),
        (["diff"], ""),
        (["opt", "--passes", "exact"], ""),
        (["export", "{0}/out", "--format", "pt2"], ""),
        (["bisect"], "the check passes with all passes on; there is nothing to find"),
        (["reduce"], "no pass fails on this model; there is nothing to reduce"),
        (["calibrate", "--passes", "exact", "--out", "{0}/plan.json"], ""),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_every_command_that_takes_a_model(
    tmp_path: Path, ditc: Callable[..., Any], command: list[str], error: str
) -> None:
    """Each gets as far as the model itself lets it."""
    tree(tmp_path, {"layers.py": LAYERS})
    tree(tmp_path, {"model.py": "import layers" + MAKE.format(layer="layers.Layer")})
    name, *options = command
    function = "sampler" if name == "calibrate" else "make"
    done = ditc(name, f"{tmp_path}/model.py:{function}", *(o.format(tmp_path) for o in options))
    assert (done.code, error in done.err) == (1 if error else 0, True), done.err


def test_in_a_process_of_its_own(tmp_path: Path) -> None:
    """From another folder, as users call it."""
    tree(tmp_path, {"layers.py": LAYERS})
    tree(tmp_path, {"model.py": "import layers" + MAKE.format(layer="layers.Layer")})
    done = subprocess.run(
        [sys.executable, "-m", "dit_compile", "explain", f"{tmp_path}/model.py:make"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Layer" in done.stdout
