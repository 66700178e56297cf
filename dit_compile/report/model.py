"""The report: everything that one run of the compiler did, as plain data.

Text, Markdown and HTML only render it. ``report.schema.json`` beside this file is its contract;
:mod:`dit_compile.report.codec` writes it and reads it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

#: Raised whenever a reader of an older report could misread a newer one.
VERSION = 2

#: An argument of a node: the text of a constant, ``%12`` for the value 12, or a list of these.
Argument = str | list[Any]


@dataclass(frozen=True)
class Result:
    """One of several results of a node, picked in the node's own line.

    Attributes:
        id: identity of the value.
        name: its name.
        type: its dtype and shape.
    """

    id: int
    name: str
    type: str


@dataclass(frozen=True)
class Node:
    """One line of IR, or one input of a graph.

    A node that a pass keeps has the same ``id`` in all stages, whatever it is called in each.

    Attributes:
        id: identity, and what arguments of other nodes call its value.
        name: what it is called.
        op: the operator without its overload, ``input`` for an input.
        type: dtype and shape of its value.
        overload: the operator's overload, empty for the default.
        role: for an input what it stands for: ``weight``, ``state``, ``derived``, ``size``, or the
            binding of a value that the caller passes.
        args, kwargs: its arguments.
        results: what is picked of its results, ``None`` for one that nobody reads.
        path: the module it comes from; for an input what the user calls it.
        source: ``file:line`` of the user's code.
        copy_of: identity of the node of another graph that it is a copy of.
        flops, bytes: operations, and bytes moved if it runs on its own.
    """

    id: int
    name: str
    op: str
    type: str
    overload: str = ""
    role: str = ""
    args: list[Argument] = field(default_factory=list)
    kwargs: dict[str, Argument] = field(default_factory=dict)
    results: list[Result | None] | None = None
    path: str = ""
    source: str = ""
    copy_of: int | None = None
    flops: int = 0
    bytes: int = 0

    @property
    def hidden(self) -> bool:
        """Whether it is an input that other lines call by its path."""
        return self.role in ("weight", "derived")

    def values(self) -> Iterator[int]:
        """Identities of its value and of the results picked from it."""
        yield self.id
        for result in self.results or ():
            if result is not None:
                yield result.id


@dataclass(frozen=True)
class Returned:
    """One result of a graph.

    Attributes:
        kind: ``user``, ``mutation``, ``state`` or ``derived``.
        value: the value, or the text of a constant.
        name: the input, state or derived value that it is for.
    """

    kind: str
    value: Argument
    name: str = ""


@dataclass(frozen=True)
class Graph:
    """One graph of a stage.

    Attributes:
        name: ``full`` for a whole step.
        ahead: whether it runs ahead of the steps.
        nodes: indices into :attr:`Report.nodes`, in the order of execution.
        returns: its results.
    """

    name: str
    ahead: bool
    nodes: list[int]
    returns: list[Returned]


@dataclass(frozen=True)
class GraphCost:
    """Cost of one run of a graph; bytes are moved if each operator runs on its own."""

    flops: int
    bytes_moved: int
    parameter_bytes: int


@dataclass(frozen=True)
class Cost:
    """Cost of a step, averaged over the schedule.

    Attributes:
        flops: operations of a step.
        bytes_moved: bytes of a step if each operator runs on its own.
        computed: steps of the average that run in full, ``None`` if only running tells.
        steps: steps that the average is over.
        graphs: cost of each graph that serves steps.
    """

    flops: float
    bytes_moved: float
    computed: int | None
    steps: int
    graphs: dict[str, GraphCost]


@dataclass(frozen=True)
class Stage:
    """The Program between two passes.

    Attributes:
        fingerprint: equal for equal computations.
        graphs: its graphs.
        cost: what a step of it costs.
        errors: relative L2 distance of each result from the captured Program in float64, by graph;
            ``None`` where it was not measured.
    """

    fingerprint: str
    graphs: list[Graph]
    cost: Cost
    errors: dict[str, list[float | None]] | None = None


@dataclass(frozen=True)
class Rewrite:
    """One rewrite of a pass: the lines that it took away and put in their place.

    Attributes:
        graph: where it was.
        path: the module.
        removed, added: lines of IR, as they read at that moment.
        source: the user's line.
    """

    graph: str
    path: str
    removed: list[str]
    added: list[str]
    source: str = ""


@dataclass(frozen=True)
class Miss:
    """A place that nearly matched, why it did not, and because of whom."""

    graph: str
    path: str
    node: str
    reason: str
    culprit: str = ""
    source: str = ""


@dataclass(frozen=True)
class Move:
    """Values before a pass, and the values after it that stand for them; either may be empty.

    Attributes:
        before, after: identities.
        rewrites: positions among the pass's rewrites.
    """

    before: list[int]
    after: list[int]
    rewrites: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class PassEntry:
    """What one pass did.

    Attributes:
        name: its name.
        text: its element of the pipeline's text.
        kind: what it promises: ``exact``, ``lower``, ``annotate`` or ``APPROX``.
        summary: what it does, in one line.
        options: all of its options, defaults included.
        changed: whether the Program's fingerprint moved.
        stage: index of the stage that it left.
        nodes_before, nodes_after: operators of the main graph.
        seconds: time in the pass.
        verify_seconds, numerics_seconds: time in the checks of what it left.
        error_growth: the error against float64 in units of the error before, at the worst result.
        skipped, failure: why it did not run, or the error that dropped it.
        notes, rewrites, misses: what it recorded.
        moves: how values map to those of the stage before, where they are not simply kept.
    """

    name: str
    text: str
    kind: str
    summary: str
    options: dict[str, Any]
    changed: bool
    stage: int
    nodes_before: int
    nodes_after: int
    seconds: float
    verify_seconds: float = 0.0
    numerics_seconds: float = 0.0
    error_growth: float | None = None
    skipped: str = ""
    failure: str = ""
    notes: list[str] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    misses: list[Miss] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)


@dataclass(frozen=True)
class CacheSchedule:
    """Which graph serves which step, and which sites each graph takes from state.

    Attributes:
        policy: the caching policy in one line.
        steps: name of the graph for each step of a generation, empty if only running tells.
        sites: paths of the sites.
        reused: for each graph, the positions of the sites that it does not compute.
    """

    policy: str
    steps: list[str]
    sites: list[str]
    reused: dict[str, list[int]]


@dataclass(frozen=True)
class Share:
    """What a part of a pipeline does to the samples that whole generations end with.

    Attributes:
        name: of the pass, or the path of the block.
        psnr: dB against the uncompiled model, ``None`` if nothing bounds it: samples are equal.
        rel_l2: relative L2 error against it, ``None`` if it is no finite number.
        flop_ratio: operations of the model without any pass over those with this part.
        position: of the pass in the pipeline, ``None`` for a block.
    """

    name: str
    psnr: float | None
    rel_l2: float | None
    flop_ratio: float
    position: int | None = None


@dataclass(frozen=True)
class Trajectory:
    """What the pipeline costs of the final samples, by pass and by block.

    Attributes:
        passes: with all passes up to each one that changes the model, in their order.
        blocks: with the last approximation in one block alone; empty if it has no parts.
        approximation: text of that approximation; empty if the pipeline is exact.
        generations: generations that each number was taken on.
        steps: denoising steps of the longest of them.
        seed: of the first; the others follow it.
    """

    passes: list[Share]
    blocks: list[Share]
    approximation: str
    generations: int
    steps: int
    seed: int


@dataclass(frozen=True)
class Seconds:
    """Where the time of a run went; ``pipeline`` includes ``verify``, ``numerics``, ``report``."""

    capture: float
    pipeline: float
    verify: float
    numerics: float
    report: float


@dataclass(frozen=True)
class Report:
    """One run of a pipeline on a model.

    Attributes:
        model: the model's class.
        torch, ditc: versions.
        pipeline: the text that reproduces the pipeline.
        command: the command that reproduces the run, where there is one.
        seconds: where time went.
        nodes: all nodes of all stages; a node that changes has one entry for each form.
        stages: the Program at each stage, the captured one first.
        passes: what each pass did.
        schedule: which graph serves which step, ``None`` without a cache.
        trajectory: what the passes cost of the final samples, ``None`` if it was not measured.
        annotations: what passes wrote about sites.
        plan: decisions taken from a plan file, ``None`` if none was given.
        analysis: what was found in the captured model.
        version: of this data model.
    """

    model: str
    torch: str
    ditc: str
    pipeline: str
    seconds: Seconds
    nodes: list[Node]
    stages: list[Stage]
    passes: list[PassEntry]
    schedule: CacheSchedule | None = None
    trajectory: Trajectory | None = None
    annotations: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: dict[str, Any] | None = None
    analysis: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    version: int = VERSION

    def before(self, position: int) -> Stage:
        """The stage that the pass at ``position`` started from."""
        return self.stages[self.passes[position - 1].stage if position else 0]

    def after(self, position: int) -> Stage:
        """The stage that the pass at ``position`` left."""
        return self.stages[self.passes[position].stage]

    def share(self, position: int) -> Share | None:
        """What the final samples cost with all passes up to the one at ``position``, if known."""
        shares = self.trajectory.passes if self.trajectory else ()
        return next((share for share in shares if share.position == position), None)

    def nodes_of(self, graph: Graph) -> list[Node]:
        """The nodes of a graph in order."""
        return [self.nodes[index] for index in graph.nodes]
