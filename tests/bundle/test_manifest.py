"""The manifest: round trip, schema, and references that must hold."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dit_compile.bundle.manifest import Manifest, Policy, schema_text
from dit_compile.bundle.policy import from_data, to_data
from dit_compile.errors import BundleError
from dit_compile.ir.interface import Binding
from dit_compile.ir.schedule import Schedule
from dit_compile.pipeline.registry import policies


@pytest.fixture
def data(split: Path) -> dict[str, Any]:
    return json.loads((split / "manifest.json").read_text())


def test_what_it_says_of_the_toy(split: Path) -> None:
    manifest = Manifest.from_json((split / "manifest.json").read_text())
    assert [(v.name, v.dtype, v.shape, v.binding) for v in manifest.inputs] == [
        ("x", "float32", (1, 6, 8), "latent"),
        ("t", "float32", (1,), "timestep"),
        ("y", "int64", (1,), "invariant"),
    ]
    assert [v.name for v in manifest.states][:2] == ["state_blocks_0_attn", "state_blocks_0_mlp"]
    assert manifest.states[0].shape == (1, 6, 16)
    assert {v.binding for v in manifest.derived} == {"invariant", "timestep"}
    assert set(manifest.graphs) == {"full", "reuse", "prologue", "table", "table_rows"}
    assert manifest.graphs["reuse"].outputs[0].kind == "user"
    assert manifest.schedule.policy is not None
    assert manifest.schedule.policy.options == {"interval": 2}
    assert [spec.binding for spec in manifest.interface()][:3] == [
        Binding.LATENT,
        Binding.TIMESTEP,
        Binding.INVARIANT,
    ]
    assert manifest.pipeline.startswith("remove-noops,")


def test_round_trip(split: Path) -> None:
    text = (split / "manifest.json").read_text()
    assert Manifest.from_json(text).to_json() == text


def test_no_path_of_this_machine_is_in_the_files(split: Path) -> None:
    for path in split.iterdir():
        if path.name != "weights.bin":
            assert str(Path(__file__).parents[2]).encode() not in path.read_bytes(), path.name


def test_the_schema_uses_only_keywords_that_are_checked() -> None:
    from dit_compile.bundle.schema import _CHECKS

    known = {*_CHECKS, "properties", "items", "additionalProperties", "$ref", "$defs"}

    def walk(schema: dict[str, Any]) -> None:
        assert schema.keys() <= known | {"$schema", "title"}
        for key in ("properties", "$defs"):
            for inner in schema.get(key, {}).values():
                walk(inner)
        for key in ("items", "additionalProperties"):
            if isinstance(schema.get(key), dict):
                walk(schema[key])

    walk(json.loads(schema_text()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(bundle="zip"), "not that of a ditc bundle"),
        (lambda d: d.update(version=2), "of version 2, this ditc reads 1"),
        (lambda d: d.update(more=1), r"\$ has an unknown key 'more'"),
        (lambda d: d.pop("graphs"), r"\$ lacks 'graphs'"),
        (lambda d: d.update(notes="x"), r"\$.notes is not array"),
        (lambda d: d.update(fingerprint="0"), r"\$.fingerprint is '0', which must match"),
        (lambda d: d["inputs"][0].update(dtype="object"), r"\$.inputs\[0\].dtype is 'object'"),
        (lambda d: d["inputs"][0].update(dtype=None), r"\$.inputs\[0\].dtype is None, not one"),
        (lambda d: d["inputs"][0].update(binding=None), r"\$.inputs\[0\].binding is None"),
        (lambda d: d.update(format=None), r"\$.format is None"),
        (lambda d: d["inputs"].append(None), r"\$.inputs\[\d\] is not object"),
        (lambda d: d["graphs"].update(q=None), r"\$.graphs.q is not object"),
        (lambda d: d.update(schedule=None), r"\$.schedule is not object"),
        (lambda d: d["inputs"][0].update(shape=[-1]), r"shape\[0\] is -1, less than 0"),
        (lambda d: d["inputs"][0].update(shape=[True]), r"shape\[0\] is not integer or string"),
        (lambda d: d["inputs"].append(d["inputs"][0]), "names 'x' twice"),
        (lambda d: d["graphs"]["full"].update(file="x.onnx"), "names 'x.onnx', which is not there"),
        (lambda d: d["graphs"]["full"]["inputs"].append("q"), "graph 'full': inputs names 'q'"),
        (lambda d: d["graphs"]["full"]["outputs"][0].update(value="q"), "outputs names 'q'"),
        (lambda d: d["graphs"].pop("table"), "derived names 'table_"),
        (lambda d: d["schedule"].update(full="fast"), "schedule names 'fast'"),
        (lambda d: d["schedule"]["variants"][1].update(graph="q"), "schedule names 'q'"),
        (lambda d: d["schedule"].update(policy={}), r"\$.schedule.policy lacks 'method'"),
        (lambda d: d.update(weights="w"), "weights names 'w'"),
    ],
)
def test_wrong_manifests(
    data: dict[str, Any], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    change(data)
    with pytest.raises(BundleError, match=message):
        Manifest.from_json(json.dumps(data))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000])
def test_no_manifests_at_all(text: str) -> None:
    with pytest.raises(BundleError):
        Manifest.from_json(text)


class TestSchedule:
    @pytest.mark.parametrize("method", sorted(policies().keys() - {"mask", "smooth", "magnitude"}))
    def test_every_policy_survives(self, method: str) -> None:
        needed = {"conditional": "first"} if method.endswith("-guidance") else {}
        self.check(policies()[method](**needed))

    def test_masks_survive(self) -> None:
        self.check(policies()["mask"](mask="attn:1101 mlp:1001", times=(900.0, 600.0, 300.0, 1.0)))

    def check(self, policy: Any) -> None:
        groups = ("attn", "mlp")
        rows = [(1, 1), (0, 0)]
        variants = tuple((row, f"graph_{i}") for i, row in enumerate(rows))
        schedule = Schedule("full", policy, groups, variants=variants, probe="probe", judge="judge")
        saved = to_data(schedule)
        text = json.dumps(dataclasses.asdict(saved.policy))
        again = dataclasses.replace(saved, policy=Policy(**json.loads(text)))
        assert from_data(again) == schedule

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (lambda d: d["policy"].update(method="intervall"), "did you mean 'interval'"),
            (lambda d: d["policy"].update(options={"interval": 0}), "options that do not fit"),
            (lambda d: d["policy"].update(options={"n": 1}), "options that do not fit"),
            (lambda d: d["variants"][0].update(mask=[1, 1]), "does not fit its groups"),
            (
                lambda d: d.update(policy={"method": "mask", "options": {"mask": "/etc/x.json"}}),
                "may name a file",
            ),
        ],
    )
    def test_wrong_ones(
        self, data: dict[str, Any], change: Callable[[dict[str, Any]], object], message: str
    ) -> None:
        change(data["schedule"])
        with pytest.raises(BundleError, match=message):
            from_data(Manifest.from_json(json.dumps(data)).schedule)
