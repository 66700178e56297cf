"""References to models."""

from __future__ import annotations

import sys

import pytest
import torch

from dit_compile.cli.target import load_target
from dit_compile.demo.models import BUNDLED
from dit_compile.errors import ModelFileError
from tests.ir.models import Transformer


def test_a_function_of_a_file(model_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    target = load_target(f"{model_file}:make")
    assert isinstance(target.model, Transformer)
    assert [tuple(arg.shape) for arg in target.args] == [(2, 4, 8)]
    assert set(target.kwargs) == {"c"}


@pytest.mark.parametrize("name", BUNDLED)
def test_a_bundled_model(name: str) -> None:
    target = load_target(name)
    assert type(target.model).__name__ == BUNDLED[name].transformer
    with torch.no_grad():
        assert target.model(*target.args, **target.kwargs)[0].shape[0] == 2  # guidance's halves


def test_a_function_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    made = (torch.nn.Linear(2, 2), [torch.ones(2)], {})
    module = type(sys)("package_of_a_user")
    module.make = lambda: made
    monkeypatch.setitem(sys.modules, "package_of_a_user", module)
    target = load_target("package_of_a_user:make")
    assert target.model is made[0]
    assert target.args == tuple(made[1])


def test_a_file_does_not_shadow_a_module(
    tmp_path: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "json.py"
    path.write_text("import torch\ndef f(): return torch.nn.Linear(2, 2), (torch.ones(2),), {}")
    before = sys.modules.get("json")
    load_target(f"{path}:f")
    assert sys.modules.get("json") is before


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (
            "digit",
            "unknown model 'digit'; did you mean 'digits'?; give 'digits', 'digits-flow', "
            "'file.py:function' or 'package.module:function', where the function returns "
            "(model, args, kwargs)",
        ),
        ("nowhere.py:make", "model file 'nowhere.py' does not exist"),
        (
            "no_such_package:make",
            "module 'no_such_package' cannot be imported: ModuleNotFoundError",
        ),
        (":make", "module '' cannot be imported: ValueError: Empty module name"),
        (".relative:make", "module '.relative' cannot be imported: TypeError"),
        ("json:dump_", "json has no function 'dump_'; did you mean 'dump'?"),
        ("json:decoder", "json has no function 'decoder'"),
    ],
)
def test_bad_references(reference: str, message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_target(reference)
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mak", " has no function 'mak'; did you mean 'make'?"),
        ("number", " has no function 'number'"),
        ("", " has no function ''"),
        ("forgetful", ":forgetful must return (model, args, kwargs), not Transformer"),
        ("confused", ":confused must return (model, args tuple, kwargs dict)"),
        ("failing", ":failing failed: ValueError: no such checkpoint ("),
    ],
)
def test_bad_functions(model_file: str, name: str, message: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_target(f"{model_file}:{name}")
    assert str(caught.value).startswith(model_file + message)
    assert "\n" not in str(caught.value)


def test_where_a_function_failed(model_file: str) -> None:
    with pytest.raises(ModelFileError) as caught:
        load_target(f"{model_file}:failing")
    place = str(caught.value).rpartition("(")[2].rstrip(")")
    path, _, line = place.rpartition(":")
    assert path == model_file
    with open(path) as file:
        assert "raise ValueError" in file.read().splitlines()[int(line) - 1]
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_file_that_does_not_load(tmp_path: pytest.TempPathFactory) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import no_such_package_at_all")
    with pytest.raises(ModelFileError) as caught:
        load_target(f"{path}:make")
    assert str(caught.value) == (
        f"model file {str(path)!r} cannot be loaded: ModuleNotFoundError: No module named "
        f"'no_such_package_at_all' ({path}:1); install that, or put it beside the file"
    )
