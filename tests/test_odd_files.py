"""Damaged and hostile files of every kind are read, or refused by an error of ditc's own.

Each valid file is changed in ways that no writer would: any of its values replaced by an odd one,
bytes cut, changed or added. Nothing outside of its folder is opened.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from dit_compile.analysis import measured, roofline
from dit_compile.analysis.machine import cache_file
from dit_compile.bench.caching.report import tried_before
from dit_compile.bisect import _told
from dit_compile.bundle.folder import MANIFEST, open_bundle
from dit_compile.bundle.manifest import FORMAT, File, Graph, Manifest, Result, Schedule, Value
from dit_compile.bundle.policy import from_data
from dit_compile.calibration.measured import Measured
from dit_compile.calibration.plan import Plan, Trial, Weight
from dit_compile.cli.described import _input_table, _origin, _schedule, graph_table
from dit_compile.errors import DitcError
from dit_compile.passes.block_cache.mask import Mask
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.analysis import print_analysis
from dit_compile.report.codec import load, to_json
from dit_compile.report.compare import run_diff
from dit_compile.report.graphs import FORMS
from dit_compile.report.markdown import markdown
from dit_compile.report.page import page
from dit_compile.report.table import print_report
from dit_compile.report.text import stage_text
from tests.report.entries import sampled

SILENT = Console(file=open(os.devnull, "w"))  # noqa: SIM115 - as long as the module

#: What no field expects, as JSON's text; some is none.
ODD = (
    *("null", "true", "0", "-1", "1.5", "-0.0", "1e308", "1e999", "NaN", "-Infinity"),
    *(str(1 << 31), str(1 << 63), str(-(1 << 200)), "9" * 5000, '""', '"\\u0000"', '"\\ud800"'),
    *('"../../etc/passwd"', '"/etc/passwd"', '"."', '".."', '"\\u001b[31m"', '"%99999"', '"%x"'),
    *('"nan"', '"a,b{c=[[[[]]]]}"', "[]", "{}", "[null]", '[[["a"]]]', '{"": {}}', '{"a":1,"a":2}'),
    *("[" * 300 + "]" * 300, "[" * 100_000, '{"a":' * 300 + "1" + "}" * 300, "]", ""),
)
BINARY = (b"", b"\x00", b"\xff\xfe{\x00}\x00", b"\x89PNG\r\n", b"\xef\xbb\xbf{}", b"[" * 100_000)


def read_report(path: Path) -> None:
    """Read a report, and show it in all of its forms."""
    report = load(path)
    stage = report.stages[-1]
    print_report(report, SILENT, diffs=True)
    for form in (*FORMS.values(), lambda report, stage: stage_text(report, stage)):
        form(report, stage)
    markdown(report)
    page(report)
    run_diff(report, report)
    print_analysis(report.analysis, SILENT)


def read_plan(path: Path) -> None:
    plan = Plan.load(path)
    plan.print(SILENT)
    plan.pipeline()
    plan.fitted("exact")


def read_manifest(path: Path) -> None:
    manifest = Manifest.from_json(path.read_bytes().decode("utf-8", "replace"))
    from_data(manifest.schedule)
    manifest.interface()
    SILENT.print(graph_table(manifest), _input_table(manifest), *_origin(manifest))
    SILENT.print(*_schedule(manifest))
    path.rename(path.with_name(MANIFEST))
    open_bundle(path.parent)


def read_mask(path: Path) -> None:
    mask = Mask(mask=str(path))
    assert Mask(mask=mask.mask) == mask


def read_speedups(path: Path) -> None:
    kept = cache_file("speedups", "cpu")
    put_in_cache(path, kept)
    measured._known.clear()
    ratio = measured.speedup_of("a", lambda: (lambda: None, lambda: None))
    assert ratio >= 0
    assert math.isfinite(ratio)


def read_roofline(path: Path) -> None:
    put_in_cache(path, cache_file("roofline", "cpu"))
    found = roofline.load_or_measure("cpu")
    assert found.bandwidth > 0


def put_in_cache(path: Path, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, kept)
    kept.chmod(0o600)


def read_tried(path: Path) -> None:
    path.rename(path.with_name("cache.json"))
    options = {"tuned": 1, "steps": 2, "guidance_scale": 3.0}
    tried_before(path.parent, "digits", options, [])


def read_log(path: Path) -> None:
    _told(False, path)


def manifest_text() -> str:
    x = Value("x", "float32", (1, "s"), "x", "latent")
    schedule = {
        "policy": {"method": "interval", "options": {"interval": 2}},
        "groups": ["attn"],
        "variants": [{"mask": [1], "graph": "full"}, {"mask": [0], "graph": "full"}],
    }
    made = Manifest(
        format="onnx",
        model="M",
        pipeline="exact",
        fingerprint="0" * 64,
        versions={"ditc": "1"},
        inputs=(x,),
        results=(Value("y", "float32", (1,), "y"),),
        states=(),
        coefficients=(),
        derived=(),
        rows=(),
        graphs={"full": Graph("a.onnx", ("x",), (Result("y", "user", "y"),))},
        schedule=Schedule("full"),
        files={"a.onnx": File("0" * 64, 3)},
        fixed={"a": 1},
        notes=("n",),
    )
    data = json.loads(made.to_json())
    assert data["bundle"] == FORMAT
    data["schedule"].update(schedule)
    return json.dumps(data)


def plan_text(folder: Path) -> str:
    recorded = {"insert-block-cache": Measured([2.0, 1.0], {"a": [[0.1], []]}, {}, {})}
    trials = [Trial("exact", float("inf"), 0.0, 1.0, 1.0, 1.0)]
    plan = Plan("exact", 8, {"w": Weight((2, 3), 1.0)}, trials, {"ditc": "1"}, recorded, [{"b": 1}])
    return plan.save(folder / "a.json").read_text()


def roofline_text() -> str:
    setup = {"torch": "1"}
    return roofline.Roofline("cpu", {"float32": 1.0}, 2.0, setup).to_json()


def tried_text() -> str:
    named = {"group": "g", "method": "m", "setting": "s"}
    numbers = {"flop_ratio": 1.0, "psnr": 2.0, "frechet": 3.0, "kept_bytes": 4}
    options = {"tuned": 1, "steps": 2, "guidance_scale": 3.0}
    return json.dumps({"options": options, "tried": {"digits": [{"contender": named, **numbers}]}})


def log_text() -> str:
    last = {"graph": "full", "path": "", "removed": [], "added": []}
    return json.dumps({"names": ["a"], "counts": [1], "last": last}) + "\n"


KINDS: dict[str, tuple[Callable[[Path], str], Callable[[Path], None]]] = {
    "report": (lambda folder: to_json(sampled()), read_report),
    "plan": (plan_text, read_plan),
    "manifest": (lambda folder: manifest_text(), read_manifest),
    "mask": (lambda folder: '{"attn1": [1, 0, 1], "ff": [1, 1, 0]}', read_mask),
    "speedups": (lambda folder: '{"a": 2.0, "b": 0.5}', read_speedups),
    "roofline": (lambda folder: roofline_text(), read_roofline),
    "tried": (lambda folder: tried_text(), read_tried),
    "log": (lambda folder: log_text(), read_log),
}


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Nothing is measured for real."""
    with pytest.MonkeyPatch.context() as patch:
        known = roofline.Roofline("cpu", {"float32": 1.0}, 1.0, {})
        patch.setattr(roofline, "measure_roofline", lambda device, seconds: known)
        patch.setattr(measured, "_SAMPLES", 1)
        yield


class Case:
    """One kind of file, in a folder of its own for each try."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._folder, self._tries = folder, 0
        make, self._read = KINDS[kind]
        self.text = make(folder)
        self.data = json.loads(self.text)
        self.places = list(places(self.data))
        self._beside = [path for path in folder.iterdir() if path.suffix != ".json"]

    def read(self, content: bytes) -> None:
        """Read ``content`` as a file of this kind."""
        self._tries += 1
        folder = self._folder / f"try{self._tries}"
        folder.mkdir()
        for path in self._beside:
            (folder / path.name).hardlink_to(path)
        (folder / "a.json").write_bytes(content)
        with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            patch.setenv("DITC_CACHE_DIR", str(folder / "cache"))
            with watched(folder), contextlib.suppress(DitcError):
                self._read(folder / "a.json")


@pytest.fixture(scope="module", params=KINDS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp(request.param))


_watching: list[Path] = []
_OWN = tuple(
    os.path.realpath(path)
    for path in (*filter(None, sys.path), sys.prefix, sys.base_prefix, Path(__file__).parents[1])
)


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if not _watching or event not in ("open", "os.remove", "os.rename", "os.mkdir"):
        return
    if not isinstance(args[0], (str, bytes)):
        return
    path = os.path.realpath(os.fsdecode(args[0]).replace("\0", ""))
    own = (*_OWN, str(_watching[0]), "/proc", "/dev/null", "/usr", "/sys")
    assert path.startswith(own), f"{event} of {path}"


sys.addaudithook(_audit)


class watched:
    """While it is open, no file is opened outside of a folder but Python's and this checkout's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> None:
        _watching.append(Path(os.path.realpath(self._folder)))

    def __exit__(self, *error: object) -> None:
        _watching.clear()


Place = tuple[Any, ...]


def places(data: Any, at: Place = ()) -> Iterator[Place]:
    """Where each value of some JSON is."""
    yield at
    if isinstance(data, (dict, list)):
        for key, item in data.items() if isinstance(data, dict) else enumerate(data):
            yield from places(item, (*at, key))


_MARK = "\u2603 here"


def with_odd(data: Any, place: Place, odd: str) -> str:
    """The text of ``data`` with something odd at a place; it need not be JSON any more."""
    if not place:
        return odd
    data = copy.deepcopy(data)
    inner = data
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = _MARK
    return json.dumps(data).replace(json.dumps(_MARK), odd)


def test_as_it_was_written(case: Case) -> None:
    case.read(case.text.encode())
    case.read(b"\xef\xbb\xbf" + case.text.encode())


@pytest.mark.parametrize("content", BINARY)
def test_binary(case: Case, content: bytes) -> None:
    case.read(content)


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_odd_as_a_whole(case: Case, odd: str) -> None:
    case.read(odd.encode())


_SETTINGS = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@_SETTINGS
@given(data=st.data())
def test_an_odd_value_anywhere(case: Case, data: st.DataObject) -> None:
    place = data.draw(st.sampled_from(case.places))
    odd = data.draw(st.sampled_from(ODD) | st.text(max_size=9).map(json.dumps))
    case.read(with_odd(case.data, place, odd).encode())


@_SETTINGS
@given(data=st.data())
def test_one_value_in_place_of_another(case: Case, data: st.DataObject) -> None:
    place, other = (data.draw(st.sampled_from(case.places)) for _ in range(2))
    value: Any = case.data
    for key in other:
        value = value[key]
    case.read(with_odd(case.data, place, json.dumps(value)).encode())


@_SETTINGS
@given(data=st.data())
def test_a_value_that_is_missing_or_given_twice(case: Case, data: st.DataObject) -> None:
    inside = [place for place in case.places if place]
    place = data.draw(st.sampled_from(inside or [()]))
    if not place:
        return
    changed = copy.deepcopy(case.data)
    inner = changed
    for key in place[:-1]:
        inner = inner[key]
    if data.draw(st.booleans()) or isinstance(inner, list):
        del inner[place[-1]]
        case.read(json.dumps(changed).encode())
    else:
        inner[_MARK] = inner[place[-1]]
        case.read(json.dumps(changed).replace(json.dumps(_MARK), json.dumps(place[-1])).encode())


@_SETTINGS
@given(data=st.data())
def test_bytes_cut_changed_or_added(case: Case, data: st.DataObject) -> None:
    content = case.text.encode()
    at = data.draw(st.integers(0, len(content)))
    until = data.draw(st.integers(at, min(len(content), at + 9)) | st.just(len(content)))
    case.read(content[:at] + data.draw(st.binary(max_size=9)) + content[until:])


@settings(deadline=None)
@given(st.text(alphabet='exact-pas,{}[]="\\\x1b 019.é\n', max_size=60))
def test_any_text_is_a_pipeline_or_is_refused(text: str) -> None:
    with contextlib.suppress(DitcError):
        Pipeline.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "insert-block-cache{only=" + "[" * 100_000,
        "insert-block-cache{only=" + "[" * 500 + "]" * 500 + "}",
        "insert-block-cache{method=interval,interval=" + "9" * 5000 + "}",
        "insert-block-cache{method=smooth,alpha=" + "9" * 400 + "}",
        "insert-block-cache{method=mask,mask=" + '"a\0.json"' + "}",
        "hoist-timestep{min-speedup=" + "9" * 400 + "}",
        "," * 100_000,
    ],
    ids=range(7),
)
def test_pipelines_that_no_one_writes(text: str) -> None:
    with pytest.raises(DitcError):
        Pipeline.parse(text)


def test_no_reader_waits_for_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.json")
    for read in (load, Plan.load, lambda path: Mask(mask=str(path))):
        with pytest.raises(DitcError, match="it is no regular file"):
            read(tmp_path / "a.json")


def test_no_reader_reads_without_end(tmp_path: Path) -> None:
    with (tmp_path / "a.json").open("wb") as file:
        file.truncate(300 << 20)
    for read in (load, Plan.load, lambda path: Mask(mask=str(path))):
        with pytest.raises(DitcError, match="it has more than 256 MiB"):
            read(tmp_path / "a.json")
