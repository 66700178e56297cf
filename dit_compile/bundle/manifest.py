"""What ``manifest.json`` of a bundle says. ``docs/bundle.md`` describes it for other languages."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from dit_compile.bundle.schema import violation
from dit_compile.errors import BundleError
from dit_compile.ir.interface import Binding, Input, InputKind, OutputKind
from dit_compile.json_files import JsonError, parse_json

FORMAT = "ditc-bundle"
VERSION = 1
#: What a graph for the schedule returns.
MEASURED = "change"


@dataclass(frozen=True)
class Value:
    """A tensor that enters or leaves graphs under a name.

    Attributes:
        name: the name of the graphs' inputs that take it.
        dtype: its element type in numpy's words, such as ``float32``.
        shape: its sizes; a text is the name of a size that may vary, or an expression in such.
        path: how the user knows it: an argument's name, a module's path.
        binding: when it is known: ``invariant``, ``timestep`` or ``latent``.
        settled: whether ``binding`` was shown or declared, and is not just the safe assumption.
        age: of a state, how many newer values of the same path are kept.
        peer: of a state: not the stream's own, but that of its peer, from this same step.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    path: str = ""
    binding: str = "latent"
    settled: bool = True
    age: int = 0
    peer: bool = False


@dataclass(frozen=True)
class Result:
    """One output of a graph.

    Attributes:
        name: the output's name in the file.
        kind: ``user`` for the caller, ``state`` to keep, ``derived`` for the graphs that follow,
            ``rows`` for these at several steps, ``measure`` for the schedule to decide by.
        value: the name under which graphs read it; for the caller, the name of the result.
    """

    name: str
    kind: str
    value: str


@dataclass(frozen=True)
class Graph:
    """One graph.

    Attributes:
        file: where it is.
        inputs: what it reads, by name.
        outputs: what it returns.
        variant: the number to pass as the input ``variant`` where one file holds several graphs.
        weights: the tensors of the weights file that it takes behind its inputs, in order; none
            where the file itself refers to them.
    """

    file: str
    inputs: tuple[str, ...]
    outputs: tuple[Result, ...]
    variant: int | None = None
    weights: tuple[str, ...] = ()


@dataclass(frozen=True)
class Policy:
    """The caching policy: a method's name and all its options."""

    method: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """The graph that computes the groups with a 1 in ``mask``."""

    mask: tuple[int, ...]
    graph: str


@dataclass(frozen=True)
class Schedule:
    """Which graph runs at which step; without a policy ``full`` runs at every step.

    Attributes:
        full: the graph that computes everything.
        policy: says which groups are computed at a step.
        groups: what the entries of a mask stand for.
        variants: the graphs by mask.
        probe: the graph that runs before the others at each step, else empty.
        judge: the graph that measures by what a dynamic policy decides, else empty.
        critic: the graph that measures it after a full step of a stream with a peer, else empty.
    """

    full: str
    policy: Policy | None = None
    groups: tuple[str, ...] = ()
    variants: tuple[Variant, ...] = ()
    probe: str = ""
    judge: str = ""
    critic: str = ""


@dataclass(frozen=True)
class File:
    """A file of the bundle: what it must hash to, and its size."""

    sha256: str
    bytes: int


@dataclass(frozen=True)
class Manifest:
    """A bundle's contents.

    Attributes:
        format: what the files are: ``onnx``, ``aoti`` or ``pt2``.
        model: the class of the model.
        pipeline: the passes that ran, as text.
        fingerprint: of the Program.
        versions: of what wrote it, by package.
        inputs: what the caller passes, in order.
        results: what the caller gets, in order.
        states: what a session keeps from step to step.
        coefficients: of forecasts from several states: what the schedule makes at each step.
        derived: what graphs return to those that follow.
        rows: what the table for several steps reads in place of the timestep.
        graphs: all graphs by name.
        schedule: which of them runs at a step.
        files: all files but the manifest, by name.
        weights: the file that holds the weights of all graphs, if it is one of its own.
        fixed: arguments of the model that are no tensors, and had these values at export.
        notes: what was changed for the target, for a reader to know.
        device: where the graphs run, in torch's words, unless whoever runs them may choose.
    """

    format: str
    model: str
    pipeline: str
    fingerprint: str
    versions: Mapping[str, str]
    inputs: tuple[Value, ...]
    results: tuple[Value, ...]
    states: tuple[Value, ...]
    coefficients: tuple[Value, ...]
    derived: tuple[Value, ...]
    rows: tuple[Value, ...]
    graphs: Mapping[str, Graph]
    schedule: Schedule
    files: Mapping[str, File] = field(default_factory=dict)
    weights: str | None = None
    fixed: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    device: str | None = None

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        data = {"bundle": FORMAT, "version": VERSION, **dataclasses.asdict(self)}
        return json.dumps(data, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """Read and check a manifest.

        Raises:
            BundleError: it is no manifest, of another version, or contradicts itself.
        """
        try:
            data = parse_json(text)
        except JsonError as error:
            raise BundleError(
                f"manifest.json is no JSON: {error}; export the model again"
            ) from error
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: Any) -> Manifest:
        """Check what the JSON of a manifest holds.

        Raises:
            BundleError: it is no manifest, of another version, or contradicts itself.
        """
        if not isinstance(data, dict) or data.pop("bundle", None) != FORMAT:
            raise BundleError("manifest.json is not that of a ditc bundle")
        version = data.pop("version", None)
        if version != VERSION:
            raise BundleError(
                f"the bundle is of version {version!r}, this ditc reads {VERSION}; export again"
            )
        found = violation(data, json.loads(schema_text()))
        if found:
            raise BundleError(f"manifest.json is wrong: {found}; export the model again")
        manifest = _parsed(data)
        _check_references(manifest)
        return manifest

    def interface(self) -> list[Input]:
        """The inputs of all graphs as a Program describes them."""
        kinds = {
            InputKind.USER: self.inputs,
            InputKind.STATE: self.states,
            InputKind.COEFFICIENTS: self.coefficients,
            InputKind.DERIVED: self.derived,
        }
        return [
            Input(v.name, kind, v.path, Binding[v.binding.upper()], v.settled, v.age, v.peer)
            for kind, values in kinds.items()
            for v in values
        ]


def schema_text() -> str:
    """The JSON schema of a manifest."""
    return (resources.files("dit_compile.bundle") / "manifest.schema.json").read_text("utf-8")


def _parsed(data: dict[str, Any]) -> Manifest:
    schedule = data["schedule"]
    policy = schedule["policy"]
    values = {
        key: tuple(Value(**{**item, "shape": tuple(item["shape"])}) for item in data[key])
        for key in ("inputs", "results", "states", "coefficients", "derived", "rows")
    }
    graphs = {
        name: Graph(
            item["file"],
            tuple(item["inputs"]),
            tuple(Result(**output) for output in item["outputs"]),
            item["variant"],
            tuple(item.get("weights", ())),
        )
        for name, item in data["graphs"].items()
    }
    parsed = {
        **data,
        **values,
        "graphs": graphs,
        "notes": tuple(data["notes"]),
        "files": {name: File(**item) for name, item in data["files"].items()},
        "schedule": Schedule(
            schedule["full"],
            None if policy is None else Policy(**policy),
            tuple(schedule["groups"]),
            tuple(Variant(tuple(v["mask"]), v["graph"]) for v in schedule["variants"]),
            schedule["probe"],
            schedule["judge"],
            schedule.get("critic", ""),
        ),
    }
    return Manifest(**parsed)


def _check_references(manifest: Manifest) -> None:
    """Every name that is used is declared, and every value that is read is made."""
    users, results, states, coefficients, derived, rows = (
        _unique(what, getattr(manifest, what))
        for what in ("inputs", "results", "states", "coefficients", "derived", "rows")
    )
    schedule = manifest.schedule
    _known("weights", [manifest.weights] if manifest.weights else [], manifest.files)
    helpers = [schedule.probe, schedule.judge, schedule.critic]
    names = [schedule.full, *helpers, *(v.graph for v in schedule.variants)]
    _known("schedule", [name for name in names if name], manifest.graphs)
    targets = {
        OutputKind.USER.value: results,
        OutputKind.STATE.value: states,
        OutputKind.DERIVED.value: derived,
        OutputKind.ROWS.value: derived,
        OutputKind.MEASURE.value: [MEASURED],
    }
    made = {kind: set[str]() for kind in targets}
    for name, graph in manifest.graphs.items():
        _known(f"graph {name!r}: file", [graph.file], manifest.files)
        _known(
            f"graph {name!r}: inputs",
            graph.inputs,
            {*users, *states, *coefficients, *derived, *rows},
        )
        for output in graph.outputs:
            _known(f"graph {name!r}: outputs", [output.value], targets[output.kind])
            made[output.kind].add(output.value)
    latest = [value.name for value in manifest.states if value.age == 0 and not value.peer]
    own = {value.path for value in manifest.states if not value.peer}
    _known("states", [value.path for value in manifest.states if value.peer], own)
    _known("states", latest, made[OutputKind.STATE.value])
    _known("derived", derived, made[OutputKind.DERIVED.value])


def _unique(what: str, values: Sequence[Value]) -> list[str]:
    names = [value.name for value in values]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BundleError(f"manifest.json is wrong: {what} names {twice!r} twice")
    return names


def _known(what: str, names: Sequence[str], known: Any) -> None:
    for name in names:
        if name not in known:
            raise BundleError(f"manifest.json is wrong: {what} names {name!r}, which is not there")
