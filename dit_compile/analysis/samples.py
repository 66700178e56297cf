"""Which dimension of each value numbers the samples of a batch, shown operator by operator."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from dit_compile.analysis.sizes import Miss
from dit_compile.ir.program import AHEAD, MAIN, InputKind, OutputKind, Program, output_args
from dit_compile.ir.schema import argument_names, arguments

#: A size as it was traced.
Size = int | torch.SymInt


@dataclass(frozen=True)
class Samples:
    """Where the values of a graph hold the samples of a batch.

    Along that dimension the sample is the outermost factor: the first half of it belongs to the
    first half of the batch. No sample's values depend on another's. A node that is in neither
    ``dims`` nor ``misses`` is the same for all samples.

    Attributes:
        batch: how many samples there are.
        dims: the dimension of each node that has one; of several results, the same in each.
        misses: for each node that may hold a mixture of samples, the operator that is not known to
            keep them apart.
    """

    batch: int
    dims: Mapping[fx.Node, int] = field(default_factory=dict)
    misses: Mapping[fx.Node, Miss] = field(default_factory=dict)


def find_samples(program: Program, batch: int) -> Samples:
    """Find the samples of the full step, also in what is computed ahead of it.

    Args:
        program: the Program. Inputs whose leading size is ``batch`` hold samples.
        batch: the number of samples.
    """
    made: dict[str, int] = {}
    unknown: dict[str, Miss] = {}
    for name in (*AHEAD, MAIN):
        if name not in program.graphs:
            continue
        found = _Search(program, batch, made, unknown).run(program.graphs[name].graph)
        if name == MAIN:
            return found
        values = output_args(program.graphs[name].graph)
        for output, value in zip(program.outputs[name], values, strict=True):
            if output.kind is OutputKind.DERIVED and value in found.dims:
                made[output.name] = found.dims[value]
            elif output.kind is OutputKind.DERIVED and value in found.misses:
                unknown[output.name] = found.misses[value]
    raise AssertionError("a Program has a full step")  # pragma: no cover


class MixedError(Exception):
    """An operator does not keep samples apart, or is not known to."""


@dataclass(frozen=True)
class Value:
    """A tensor argument while a rule runs.

    Attributes:
        shape: its sizes.
        dim: where its samples lie; ``None`` if it is the same for all.
    """

    shape: tuple[Size, ...]
    dim: int | None

    @property
    def end(self) -> int | None:
        """The same, counted from the end."""
        return None if self.dim is None else self.dim - len(self.shape)


def joined(values: Sequence[Value]) -> int:
    """The samples of operands that are broadcast, counted from the end."""
    ends = {end for value in values if (end := value.end) is not None}
    if len(ends) != 1:
        raise MixedError("the samples of its arguments lie along different dimensions")
    (end,) = ends
    if any(v.dim is None and len(v.shape) >= -end and v.shape[end] != 1 for v in values):
        raise MixedError("an argument without samples has a size where others have samples")
    return end


@dataclass(frozen=True)
class Call:
    """A node while its rule runs: arguments by their names in the schema, tensors as Values."""

    args: Mapping[str, Any]
    shape: tuple[Size, ...]
    batch: int

    def __getitem__(self, name: str) -> Any:
        """An argument by its name."""
        return self.args[name]

    @property
    def values(self) -> list[Value]:
        """All tensor arguments, those in lists too."""
        return list(_values(self.args.values()))

    @property
    def first(self) -> Value:
        """The first tensor."""
        return self.values[0]

    def own(self) -> int:
        """The dimension of the first tensor's samples, where no other tensor has any."""
        first, *others = self.values
        self.plain(*others)
        if first.dim is None:
            raise MixedError("its samples are in an argument that works on all of them")
        return first.dim

    def plain(self, *values: Value) -> None:
        """Check that arguments are the same for all samples."""
        if any(value.dim is not None for value in values):
            raise MixedError("its samples are in an argument that works on all of them")

    def dimension(self, name: str = "dim", extra: int = 0) -> int:
        """A dimension of the first tensor, counted from the front."""
        return int(self[name]) % max(len(self.first.shape) + extra, 1)

    def apart(self, dim: int, *mixed: int) -> int:
        """``dim``, where the operator works along other dimensions."""
        if dim in mixed:
            raise MixedError("it works along the samples")
        return dim


Rule = Callable[[Call], int | None]
RULES: dict[str, Rule] = {}
#: Rules of operators that may make samples of what is the same for all.
SPREADING: set[str] = set()


def sample_rule(*names: str, spreads: bool = False) -> Callable[[Rule], Rule]:
    """Register the rule of operators, named without overload, like ``ditc::gate`` or ``view``.

    A rule gives the dimension of the result's samples, ``None`` for none; a negative one counts
    from the end. It raises :class:`MixedError` where samples are not kept apart.

    Args:
        names: the operators.
        spreads: whether the rule is asked though no argument has samples.
    """

    def register(rule: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, rule))
        SPREADING.update(names if spreads else ())
        return rule

    return register


class _Search:
    """Goes through a graph from its inputs to its end."""

    def __init__(
        self,
        program: Program,
        batch: int,
        made: Mapping[str, int],
        unknown: Mapping[str, Miss],
    ) -> None:
        self._program, self._batch = program, batch
        self._made, self._unknown = made, unknown
        self._dims: dict[fx.Node, int] = {}
        self._misses: dict[fx.Node, Miss] = {}

    def run(self, graph: fx.Graph) -> Samples:
        for node in graph.nodes:
            if node.op == "placeholder":
                self._enter(node)
            elif node.op == "call_function":
                self._follow(node)
        return Samples(self._batch, self._dims, self._misses)

    def _enter(self, node: fx.Node) -> None:
        name, shape = str(node.target), shape_of(node)
        kind = self._program.kind_of(node)
        if kind is InputKind.DERIVED and name in self._made:
            self._dims[node] = self._made[name]
        elif kind is InputKind.DERIVED and name in self._unknown:
            self._misses[node] = self._unknown[name]
        elif kind in (InputKind.USER, InputKind.STATE) and shape and _is(shape[0], self._batch):
            self._dims[node] = 0

    def _follow(self, node: fx.Node) -> None:
        missed = next((self._misses[n] for n in node.all_input_nodes if n in self._misses), None)
        if missed is not None:
            self._misses[node] = missed
            return
        try:
            dim = self._dim(node)
        except MixedError as error:
            self._misses[node] = Miss(node, str(error))
        else:
            if dim is not None:
                self._dims[node] = dim

    def _dim(self, node: fx.Node) -> int | None:
        if node.target is operator.getitem:
            return self._dims.get(node.all_input_nodes[0])
        schema = getattr(node.target, "_schema", None)
        name = schema.name.removeprefix("aten::") if schema is not None else ""
        carrying = any(arg in self._dims for arg in node.all_input_nodes)
        if not (carrying or name in SPREADING) or not _has_tensor(node.meta.get("val")):
            return None
        rule = RULES.get(name) or _general_rule(node)
        if rule is None:
            raise MixedError("it is not known to keep samples apart")
        shape = shape_of(node)
        dim = rule(Call(self._arguments(node), shape, self._batch))
        if dim is None:
            return None
        dim %= max(len(shape), 1)
        if dim >= len(shape) or not isinstance(shape[dim], int) or shape[dim] % self._batch:
            raise MixedError("its samples have no dimension of their own")
        return dim

    def _arguments(self, node: fx.Node) -> dict[str, Any]:
        def replaced(arg: fx.Node) -> Any:
            value = arg.meta.get("val")
            return Value(shape_of(arg), self._dims.get(arg)) if _has_tensor(value) else value

        return {name: fx.map_arg(value, replaced) for name, value in arguments(node).items()}


def _general_rule(node: fx.Node) -> Rule | None:
    """The rule of all pointwise operators, or of all that take a value from a whole dimension."""
    if torch.Tag.pointwise in getattr(node.target, "tags", ()):
        return RULES["*"]
    return RULES["keepdim"] if "keepdim" in argument_names(node) else None


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, (list, tuple)) and value else value


def _has_tensor(value: Any) -> bool:
    return isinstance(_first(value), torch.Tensor)


def shape_of(node: fx.Node) -> tuple[Size, ...]:
    """Sizes of a node's value, of the first one where it has several."""
    value = _first(node.meta.get("val"))
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def _is(size: Size, number: int) -> bool:
    return isinstance(size, int) and size == number


def _values(args: Any) -> Iterator[Value]:
    for arg in args:
        if isinstance(arg, Value):
            yield arg
        elif isinstance(arg, (list, tuple)):
            yield from _values(arg)
