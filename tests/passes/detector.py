"""Looks for what the exact passes remove, by other means than theirs: on lists of plain facts.

Nothing here is shared with the passes. Each function returns the names of the nodes at which a
pattern is left; a place that a pass could not rewrite must be among its recorded near misses.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterator

from torch import fx

from dit_compile.ir.origin import origin_of
from dit_compile.ir.program import Program

_RANDOM = re.compile(r"^aten\.(rand|normal|bernoulli|multinomial|dropout)")
_SCALARS = {"mul": 1, "div": 1, "add": 0, "sub": 0, "pow": 1}
_RESHAPES = {"view", "reshape", "expand", "permute", "slice", "contiguous", "clone", "_to_copy"}


def name(node: fx.Node) -> str:
    """``layer_norm`` for ``aten.layer_norm.default``."""
    return str(node.target).removeprefix("aten.").split(".")[0]


def calls(program: Program, *names: str) -> Iterator[fx.Node]:
    """The calls of some operators in the main graph, all without names."""
    for node in program.main.nodes:
        if node.op == "call_function" and (not names or name(node) in names):
            yield node


def modulated_norms(program: Program) -> set[str]:
    """Layer norms without weights that are multiplied by ``1 + scale`` and then shifted."""
    found = set()
    for add in calls(program, "add"):
        for product in add.all_input_nodes:
            if name(product) != "mul" or len(product.all_input_nodes) != 2:
                continue
            if len(add.all_input_nodes) != 2:
                continue
            for norm in product.all_input_nodes:
                (factor,) = set(product.all_input_nodes) - {norm} or {norm}
                plain = name(norm) == "layer_norm" and len(norm.all_input_nodes) == 1
                if plain and name(factor) == "add" and 1 in factor.args:
                    found.add(norm.name)
    return found


def sibling_linears(program: Program, excused: Collection[str] = ()) -> set[str]:
    """Linears that share their input, their block and their weight's dtype with another one.

    Those in ``excused`` are nobody's siblings.
    """
    groups = defaultdict(list)
    for node in calls(program, "linear"):
        weight, *rest = node.all_input_nodes[1:]
        block = re.match(r"(.*?\.\d+)(\.|$)", origin_of(node).path)
        known = all(arg.op == "placeholder" and program.is_weight(arg) for arg in (weight, *rest))
        if known and node.name not in excused:
            key = node.args[0], block and block[1], weight.meta["val"].dtype, len(rest)
            groups[key].append(node.name)
    return {one for group in groups.values() if len(group) > 1 for one in group}


def noops(program: Program) -> set[str]:
    """Dropouts out of training, identical reshapes, neutral arithmetic, casts to the same dtype."""
    return {node.name for node in calls(program) if _changes_nothing(node)}


def _changes_nothing(node: fx.Node) -> bool:
    source = node.args[0] if node.args else None
    made = node.meta["val"]
    read = source.meta["val"] if isinstance(source, fx.Node) else None
    if not hasattr(made, "shape") or not hasattr(read, "shape"):
        return False
    if str(made.shape) != str(read.shape) or made.dtype != read.dtype:
        return False
    kind, rest = name(node), node.args[1:]
    if kind in _SCALARS:
        return rest == (_SCALARS[kind],) and not node.kwargs
    if kind in _RESHAPES:
        return made.stride() == read.stride()
    return kind in ("detach", "alias", "lift_fresh_copy") or (kind == "dropout" and False in rest)


def repeated(program: Program) -> set[str]:
    """Expressions that read the same as an earlier one."""
    seen: set[str] = set()
    found = set()
    for node in calls(program):
        text = f"{node.target} {node.args!r} {node.kwargs!r}"
        if text in seen and not _RANDOM.match(str(node.target)):
            found.add(node.name)
        seen.add(text)
    return found


def unread(program: Program) -> set[str]:
    """Operators whose result nobody reads."""
    return {node.name for node in calls(program) if not node.users}
