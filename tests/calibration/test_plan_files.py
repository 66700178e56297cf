"""A Plan's two files: whenever its writer is killed, one Plan is there with its measurements."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

import dit_compile as ditc
from dit_compile.calibration import plan as plans
from dit_compile.calibration.measured import Measured
from dit_compile.calibration.measurements import digest
from dit_compile.errors import PlanError
from tests.killed import deaths


def plan(number: float, *, recorded: bool = True) -> ditc.Plan:
    """A Plan that recorded ``number``."""
    measured = Measured([2.0, number], {"a": [[number], []]}, {}, {})
    recordings = {"record": measured} if recorded else {}
    return ditc.Plan("exact", 2, {}, curve=[], measured=recordings, depths=[])


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_files(tmp_path: Path) -> None:
    path = plan(1.0).save(tmp_path / "my.plan.json")
    beside, whole = names(tmp_path)
    assert whole == "my.plan.json"
    assert re.fullmatch(r"my\.plan\.[0-9a-f]{16}\.safetensors", beside)
    assert ditc.Plan.load(path) == plan(1.0)
    plan(2.0).save(path)
    assert ditc.Plan.load(path) == plan(2.0)
    assert len(names(tmp_path)) == 2  # the one of the first is gone
    plan(2.0).save(path)
    assert ditc.Plan.load(path) == plan(2.0)
    plan(0.0, recorded=False).save(path)
    assert names(tmp_path) == ["my.plan.json"]


@pytest.mark.parametrize("error", [None, OSError, KeyboardInterrupt])
def test_killed_or_failing_at_any_moment(
    tmp_path: Path, error: type[BaseException] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = 0
    for number, die in deaths(monkeypatch, *[error] if error else []):
        path = tmp_path / str(number) / "a.json"
        path.parent.mkdir()
        plan(1.0).save(path)
        with die():
            plan(2.0).save(path)
        assert ditc.Plan.load(path) in (plan(1.0), plan(2.0))
        plan(3.0).save(path)  # and it can be saved again
        assert ditc.Plan.load(path) == plan(3.0)
        moments += 1
    assert moments > 6


def test_plans_of_one_folder_keep_their_files(tmp_path: Path) -> None:
    for name in ("a", "a.b", "b"):
        plan(float(len(name))).save(tmp_path / f"{name}.json")
    plan(9.0).save(tmp_path / "a.json")
    for name in ("a.b", "b"):
        assert ditc.Plan.load(tmp_path / f"{name}.json") == plan(float(len(name)))


def test_a_file_that_another_plan_names_is_left(tmp_path: Path) -> None:
    """A copy under another name still names the file of the first."""
    first = plan(1.0).save(tmp_path / "a.json")
    (tmp_path / "copy.json").write_text(first.read_text())
    plan(2.0).save(tmp_path / "copy.json")
    assert ditc.Plan.load(first) == plan(1.0)


@pytest.mark.parametrize("named", ["../a.safetensors", "/etc/passwd", "..", ".", "", "a/b"])
def test_files_elsewhere_are_neither_read_nor_removed(tmp_path: Path, named: str) -> None:
    (tmp_path / "in").mkdir()
    path = plan(1.0).save(tmp_path / "in" / "a.json")
    (beside,) = (tmp_path / "in").glob("*.safetensors")
    beside.rename(tmp_path / "a.safetensors")
    data = json.loads(path.read_text())
    data["measured"]["file"] = named
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match="does not lie beside it"):
        ditc.Plan.load(path)
    plan(2.0).save(path)
    assert (tmp_path / "a.safetensors").exists()
    assert Path("/etc/passwd").exists()


def test_plans_of_earlier_versions(tmp_path: Path) -> None:
    """Their measurements had the name of the plan alone."""
    path = plan(1.0).save(tmp_path / "a.json")
    (beside,) = tmp_path.glob("*.safetensors")
    beside.rename(tmp_path / "a.safetensors")
    data = json.loads(path.read_text())
    data["measured"]["file"] = "a.safetensors"
    path.write_text(json.dumps(data))
    assert ditc.Plan.load(path) == plan(1.0)
    plan(2.0).save(path)
    assert ditc.Plan.load(path) == plan(2.0)
    assert not (tmp_path / "a.safetensors").exists()


def test_a_plan_that_is_saved_while_another_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plan(1.0).save(tmp_path / "a.json")
    real = plans.read_json
    saved = []

    def slow(file: Path, **options: object) -> object:
        data = real(file, **options)  # type: ignore[arg-type]
        if not saved:
            saved.append(True)
            plan(2.0).save(path)
        return data

    monkeypatch.setattr(plans, "read_json", slow)
    assert ditc.Plan.load(path) == plan(2.0)


def test_many_writers_and_readers(tmp_path: Path) -> None:
    path = plan(1.0).save(tmp_path / "a.json")
    known = [plan(float(number)) for number in range(1, 5)]
    failures: list[object] = []

    def work(number: int) -> None:
        try:
            for _ in range(20):
                known[number].save(path)
                loaded = ditc.Plan.load(path)
                if loaded not in known and loaded.measured:
                    failures.append(loaded)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


FULL = np.zeros((2, 1))


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"0.times": np.zeros(2)}, None),
        ({"0.times": np.zeros(2)}, {"recordings": "[" * 100_000}),
        ({"0.times": np.zeros(2)}, {"recordings": "{}"}),
        ({"0.times": np.zeros(2)}, {"recordings": "[1]"}),
        ({"0.times": np.zeros(2)}, {"recordings": '["a", "b"]'}),
        ({}, {"recordings": '["a"]'}),
        ({"0.times": np.zeros((2, 2))}, {"recordings": '["a"]'}),
        ({"0.times": np.zeros(2, np.float32)}, {"recordings": '["a"]'}),
        ({"0.times": np.zeros(2), "0.changes.a": np.zeros(2)}, {"recordings": '["a"]'}),
        ({"0.times": np.zeros(2), "0.products.a": np.zeros(())}, {"recordings": '["a"]'}),
        ({"0.times": np.zeros(2), "0.more.a": FULL}, {"recordings": '["a"]'}),
        ({"0.times": np.zeros(2), "more": FULL}, {"recordings": '["a"]'}),
    ],
)
def test_odd_measurements(
    tmp_path: Path, tensors: dict[str, np.ndarray], metadata: dict[str, str] | None
) -> None:
    path = plan(1.0).save(tmp_path / "a.json")
    packed = save(tensors, metadata)
    (tmp_path / "b.safetensors").write_bytes(packed)
    data = json.loads(path.read_text())
    data["measured"] = {"file": "b.safetensors", "sha256": digest(packed)}
    path.write_text(json.dumps(data))
    with pytest.raises(PlanError, match="the measurements"):
        ditc.Plan.load(path)
