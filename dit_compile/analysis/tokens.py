"""The token axis of every node, found from symbolic sizes and not by position."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
import torch
from torch import fx

import dit_compile.analysis.size_rules  # noqa: F401  (registers the rules)
from dit_compile.analysis.sizes import Inference, Miss
from dit_compile.errors import AnalysisError
from dit_compile.ir.program import InputKind, OutputKind, Program, output_args, placeholders


def infer_sizes(
    program: Program, graph: fx.Graph | None = None
) -> tuple[dict[fx.Node, tuple[sympy.Expr | None, ...]], dict[sympy.Symbol, int]]:
    """The sizes of every node with one tensor, ``None`` where unknown, and each symbol's number."""
    run = Inference(program, program.main if graph is None else graph)
    return {node: run.expressions(node) for node in run.shapes}, run.numbers


@dataclass(frozen=True)
class TokenAxis:
    """Where a value holds tokens.

    Attributes:
        dim: the dimension.
        count: its length; of ``B*F`` where frames are folded into the batch.
        role: ``tokens`` (all of the latent's), ``joint`` (those and another stream's), or in a
            model that treats them apart ``spatial`` and ``temporal``.
        others: further dimensions that hold tokens, such as the keys of attention scores.
    """

    dim: int
    count: sympy.Expr
    role: str = "tokens"
    others: tuple[TokenAxis, ...] = ()


@dataclass(frozen=True)
class Tokens:
    """The tokens of a graph.

    Attributes:
        latent: the input whose spatial dimensions make the tokens.
        axes: the token axis of each node that has one; maps not yet flattened have none.
        count: number of the latent's tokens in one sample.
        misses: operators whose result sizes are unknown.
        sizes: the captured number of each symbol. Of the latent, ``B`` and ``C`` are batch and
            channels; ``N``, ``H, W``, ``F, H, W`` or ``K, F, H, W`` (several videos) are what
            becomes tokens. Dimension 1 of another input ``text`` is ``text_1``.
    """

    latent: fx.Node
    axes: Mapping[fx.Node, TokenAxis]
    count: sympy.Expr
    misses: tuple[Miss, ...]
    sizes: Mapping[sympy.Symbol, int]


def find_tokens(program: Program, graph: fx.Graph | None = None) -> Tokens:
    """Find the latent among the inputs of ``graph``, and the token axis of each node.

    The latent is the floating-point input whose dimensions reach the output and are attended over.
    Where nothing is attended over, the leading dimension is taken to be the batch.

    Args:
        program: the program that ``graph`` belongs to.
        graph: the full step by default.

    Raises:
        AnalysisError: no input has such dimensions, or nothing is laid out along them.
    """
    run = Inference(program, program.main if graph is None else graph)
    latent, grid = _find_latent(run)
    groups = _groups(run, grid)
    axes = {node: axis for node in run.shapes if (axis := _axis(run, node, grid, groups))}
    counts = [_count(axes, grid, group) for group in _cover(groups, grid)]
    if not counts or None in counts:
        raise AnalysisError(
            f"no value is laid out along tokens of input {latent.name!r}{_hint(run.misses)}"
        )
    names = _readable(run, latent, grid)
    return Tokens(
        latent,
        {node: _rename(axis, names) for node, axis in axes.items()},
        sympy.Mul(*counts).xreplace(names),
        tuple(run.misses),
        {names.get(s, s): number for s, number in run.numbers.items() if s not in run.equal},
    )


def describe_tokens(tokens: Tokens) -> dict[str, Any]:
    """``tokens`` as plain data for a report."""

    def plain(axis: TokenAxis) -> dict[str, Any]:
        return {"dim": axis.dim, "count": str(axis.count), "role": axis.role}

    return {
        "latent": tokens.latent.name,
        "count": str(tokens.count),
        "tokens": int(tokens.count.subs(tokens.sizes)),
        "sizes": {str(symbol): number for symbol, number in tokens.sizes.items()},
        "axes": {
            node.name: plain(axis) | {"others": [plain(other) for other in axis.others]}
            for node, axis in tokens.axes.items()
        },
        "misses": [{"node": miss.node.name, "reason": miss.reason} for miss in tokens.misses],
    }


def _hint(misses: Sequence[Miss]) -> str:
    if not misses:
        return ""
    return f"; {len(misses)} sizes are unknown, first at %{misses[0].node.name}: {misses[0].reason}"


def _outputs(run: Inference) -> Iterator[fx.Node]:
    """The nodes that the caller gets."""
    name = next((n for n, m in run.program.graphs.items() if m.graph is run.graph), "")
    kinds = [output.kind for output in run.program.outputs.get(name, ())]
    for i, node in enumerate(output_args(run.graph)):
        if isinstance(node, fx.Node) and (not kinds or kinds[i] is OutputKind.USER):
            yield node


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _find_latent(run: Inference) -> tuple[fx.Node, list[sympy.Symbol]]:
    """The latent, and its symbols that reach the output and do not number samples."""
    mixed = set().union(*(run.resolve(s.expr).free_symbols for s in run.mixed if s.symbolic))
    best: tuple[Any, ...] = ()
    for place, output in enumerate(_outputs(run)):
        sizes = [expr for expr in run.expressions(output) if expr is not None]
        reached: set[sympy.Basic] = set().union(*(expr.free_symbols for expr in sizes))
        for node in placeholders(run.graph):
            if run.program.kind_of(node) is not InputKind.USER or not _is_float(node):
                continue
            own = run.expressions(node)
            flows = [expr for expr in own if expr in reached]
            # a batch of one is not told apart by what it is flattened with
            alone = [own[0]] if len(flows) > 1 and run.shapes[node][0].value == 1 else []
            grid = [s for s in flows if s in mixed and s not in alone]
            grid = grid or [s for s in flows if s != own[0]]
            if not grid:
                continue
            shapes = [[size.value for size in run.shapes[n]] for n in (node, output)]
            alike = sum(one == two for one, two in zip(*shapes, strict=False))
            score = (bool(mixed & set(grid)), len(grid), -place, alike, len(flows))
            if not best or score > best[0]:
                best = (score, node, list(dict.fromkeys(grid)), set(alone) & mixed)
    if not best:
        raise AnalysisError(f"no input has dimensions that reach the output{_hint(run.misses)}")
    run.equal |= dict.fromkeys(best[3], sympy.Integer(1))
    return best[1], best[2]


def _groups(run: Inference, grid: Sequence[sympy.Symbol]) -> set[frozenset[sympy.Basic]]:
    """The sets of the latent's dimensions that are attended over together."""
    grids = [run.resolve(size.expr).free_symbols & set(grid) for size in run.mixed if size.symbolic]
    if not any(grids):
        exprs = [e for node in run.shapes for e in run.expressions(node) if e is not None]
        grids = [max((e.free_symbols & set(grid) for e in exprs), key=len)]
    return {frozenset(symbols) for symbols in grids if symbols}


def _cover(
    groups: set[frozenset[sympy.Basic]], grid: Sequence[sympy.Symbol]
) -> list[frozenset[sympy.Basic]]:
    """Disjoint groups that hold all of the latent's tokens between them, the largest first."""
    chosen: list[frozenset[sympy.Basic]] = []
    for group in sorted(groups, key=lambda g: (-len(g), sorted(map(str, g)))):
        if not any(group & other for other in chosen):
            chosen.append(group)
    return chosen


def _own(expr: sympy.Expr, grid: set[sympy.Basic]) -> tuple[sympy.Expr, bool]:
    """The latent's tokens among ``expr``, and whether samples or frames are folded in with them."""
    terms = [term for term in sympy.Add.make_args(sympy.expand(expr)) if term.free_symbols & grid]
    return sympy.Add(*terms), any(term.free_symbols - grid for term in terms)


def _axis(
    run: Inference,
    node: fx.Node,
    grid: Sequence[sympy.Symbol],
    groups: set[frozenset[sympy.Basic]],
) -> TokenAxis | None:
    """The token axis of ``node``: first what is purely tokens, then what most dimensions share."""
    found: list[tuple[Any, TokenAxis]] = []
    for dim, expr in enumerate(run.expressions(node)):
        group = frozenset() if expr is None else expr.free_symbols & set(grid)
        if group not in groups:
            continue
        own, folded = _own(expr, set(grid))
        role = "joint" if sympy.expand(own - expr) != 0 else "tokens"
        if len(grid) > len(group):  # parts of a sample's tokens treated apart
            inner = set(grid[-2:]) if len(grid) > 2 else set(grid)
            role = "spatial" if group <= inner else "temporal" if not group & inner else role
        found.append(((folded, -len(group), dim), TokenAxis(dim, expr, role)))
    found.sort(key=lambda item: item[0])
    if not found:
        return None
    first = found[0][1]
    return TokenAxis(first.dim, first.count, first.role, tuple(axis for _, axis in found[1:]))


def _count(
    axes: Mapping[fx.Node, TokenAxis], grid: Sequence[sympy.Symbol], group: frozenset[sympy.Basic]
) -> sympy.Expr | None:
    """The number of tokens of one sample that most values hold along ``group``."""
    votes: Counter[sympy.Expr] = Counter()
    for first in axes.values():
        for axis in (first, *first.others):
            own, _ = _own(axis.count, set(grid))
            if own.free_symbols & set(grid) == group:
                votes[own.subs(dict.fromkeys(own.free_symbols - set(grid), 1))] += 1
    return max(votes, key=lambda own: votes[own]) if votes else None


def _readable(
    run: Inference, latent: fx.Node, grid: Sequence[sympy.Symbol]
) -> dict[sympy.Basic, sympy.Symbol]:
    """Short names for the latent's symbols."""
    letters = {1: "N", 2: "HW", 3: "FHW", 4: "KFHW"}.get(len(grid), "")
    names = dict(zip(grid, letters, strict=False))
    rest = [s for s in run.expressions(latent) if s not in grid and s is not None and s.is_Symbol]
    names |= dict(zip(rest, "BC", strict=True)) if len(rest) == 2 else {}
    return {old: sympy.Symbol(new, integer=True, positive=True) for old, new in names.items()}


def _rename(axis: TokenAxis, names: Mapping[sympy.Basic, sympy.Symbol]) -> TokenAxis:
    others = tuple(_rename(other, names) for other in axis.others)
    return TokenAxis(axis.dim, axis.count.xreplace(names), axis.role, others)
