"""report.json: its schema is the one in the package, and what is wrong is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from dit_compile.errors import ReportError
from dit_compile.report.codec import from_json, load, schema, to_json
from dit_compile.report.model import VERSION, Report
from tests.report.entries import real, sampled


def packaged() -> dict[str, Any]:
    return json.loads(files("dit_compile.report").joinpath("report.schema.json").read_text())


def test_the_schema_in_the_package_is_that_of_the_model() -> None:
    assert packaged() == schema(), "run: python -m dit_compile.report.codec"


@pytest.mark.parametrize(
    "made", [lambda: real(""), real, sampled], ids=["empty", "fast", "sampled"]
)
def test_reports_keep_to_the_schema(made: Callable[[], Report]) -> None:
    report = made()
    validator = jsonschema.Draft202012Validator(packaged())
    validator.check_schema(packaged())
    data = json.loads(to_json(report))
    assert not list(validator.iter_errors(data))
    data["passes"].append({"name": 3})
    assert list(validator.iter_errors(data))


def test_a_report_is_read_back() -> None:
    report = real()
    assert from_json(to_json(report)) == report
    assert from_json(to_json(report, indent=2)) == report


def spoiled(*path: Any, value: Any) -> str:
    data = json.loads(to_json(real()))
    place = data
    for key in path[:-1]:
        place = place[key]
    if value is KeyError:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "the report is not JSON"),
        ("[]", "the report is not a report of ditc; `ditc explain --json` writes one"),
        ('{"a": 1}', "is not a report of ditc"),
        (spoiled("version", value=1), f"has version 1, this ditc reads version {VERSION}; make it"),
        (spoiled("model", value=3), "the report.model must be string, not int"),
        (spoiled("model", value=KeyError), "the report lacks the field 'model'"),
        (spoiled("extra", value=1), "the report has an unknown field 'extra'"),
        (spoiled("nodes", value={}), "the report.nodes must be a list, not dict"),
        (spoiled("nodes", 3, value=7), r"the report.nodes\[3\] must be an object, not int"),
        (spoiled("passes", 1, "changed", value=1), r"passes\[1\].changed must be boolean, not int"),
        (spoiled("passes", 1, "seconds", value=True), "seconds must be number, not bool"),
        (spoiled("passes", 3, "options", value=[]), "options must be an object, not list"),
        (spoiled("stages", 0, "graphs", 0, "returns", 0, "value", value=1), "a string or a list"),
    ],
)
def test_what_is_wrong_is_said(text: str, message: str) -> None:
    with pytest.raises(ReportError, match=message):
        from_json(text)


def test_files(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(to_json(real()))
    assert load(path) == real()
    with pytest.raises(ReportError, match=r"cannot read 'missing\.json'"):
        load("missing.json")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ReportError, match="cannot read"):
        load(path)
