"""Binding times: which values are fixed for good, for a generation, for a step, or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping

import torch
from torch import fx

from dit_compile.analysis.tokens import find_tokens
from dit_compile.errors import AnalysisError, BindingError, suggest
from dit_compile.ir.program import (
    MAIN,
    Binding,
    Input,
    InputKind,
    OutputKind,
    Program,
    output_args,
    placeholders,
)
from dit_compile.ir.purity import SIZES, is_random

aten = torch.ops.aten

_PERIODIC = {aten.sin.default, aten.cos.default}
#: Products that leave the sinusoid's path: past them a value is an embedding, not an angle.
_EMBEDS = {aten.linear.default, aten.matmul.default, aten.mm.default, aten.addmm.default}


def node_bindings(program: Program, graph: fx.Graph | None = None) -> dict[fx.Node, Binding]:
    """The binding time of each node: the latest of its arguments'; random nodes are ``LATENT``.

    Sizes are fixed for a generation, whatever tensor they are read from, and so are numbers that
    are passed as such: each call compares them. Numbers read from the content of a tensor are not.
    """
    bindings: dict[fx.Node, Binding] = {}
    for node in (graph or program.main).nodes:
        if node.op == "placeholder":
            bindings[node] = _binding_of(program.inputs.get(str(node.target)))
        elif node.op == "call_function" and is_random(node):
            bindings[node] = Binding.LATENT
        elif node.target in SIZES:
            bindings[node] = Binding.INVARIANT
        else:
            known = [bindings[arg] for arg in node.all_input_nodes]
            bindings[node] = max(known, default=Binding.WEIGHT)
    return bindings


def _binding_of(spec: Input | None) -> Binding:
    if spec is None:
        return Binding.LATENT
    compared = spec.kind is InputKind.SIZE and not spec.settled
    return min(spec.binding, Binding.INVARIANT) if compared else spec.binding


def timestep_candidates(program: Program) -> tuple[str, ...]:
    """Names of user inputs that look like a timestep, in input order.

    A candidate is a scalar, ``[B]`` or ``[B, N]`` input that feeds both a sine and a cosine of
    itself times frequencies, whose result then reaches a matrix product. Rotary position ids feed
    sines and cosines too, but mostly reach a fused attention first. A guidance scale, or a size
    given as a condition, cannot be told from a timestep by structure; see :func:`settle`.
    """
    found = []
    for node in placeholders(program.main):
        spec = program.inputs.get(str(node.target))
        value = node.meta.get("val")
        if spec is None or spec.kind is not InputKind.USER or not isinstance(value, torch.Tensor):
            continue
        if value.dim() <= 2 and value.dtype is not torch.bool and _is_embedded_angle(node):
            found.append(spec.name)
    return tuple(found) or tuple(_embedded_numbers(program))


def _embedded_numbers(program: Program) -> Iterator[str]:
    """Numbers passed as such that are embedded as a timestep is, and by themselves.

    Lengths make positions, whose sines meet the stream before any product.
    """
    for node in placeholders(program.main):
        spec = program.inputs.get(str(node.target))
        if spec is None or spec.kind is not InputKind.SIZE or "size()" in spec.path:
            continue
        if _is_embedded_angle(node) and _is_embedded_alone(program, node):
            yield spec.name


def _is_embedded_angle(start: fx.Node) -> bool:
    """Whether ``start`` reaches a sine and a cosine, and those reach a linear's input."""
    angles = {node for node in _reach(start, stop=_PERIODIC | _EMBEDS) if node.target in _PERIODIC}
    if {node.target for node in angles} != _PERIODIC:
        return False
    return all(
        any(node.target in _EMBEDS for node in _reach(angle, stop=_EMBEDS | _mixing()))
        for angle in angles
    )


def _is_embedded_alone(program: Program, start: fx.Node) -> bool:
    """Whether the first product that the angles of ``start`` reach reads no other input.

    The sine of a position, in contrast, meets the stream before any product does.
    """
    others: set[fx.Node] = set()
    for node in program.main.nodes:
        if node.op == "placeholder":
            if node is not start and not program.is_weight(node):
                others.add(node)
        elif not isinstance(node.meta.get("val"), (torch.SymInt, int)) and not others.isdisjoint(
            node.all_input_nodes
        ):
            others.add(node)
    reached = _reach(start, stop=_EMBEDS | _mixing())
    return any(node.target in _EMBEDS and node not in others for node in reached)


def _mixing() -> set[object]:
    """Operators at which an angle's sine meets the stream: it is a rotation, not an embedding."""
    return {aten.scaled_dot_product_attention.default}


def _reach(start: fx.Node, *, stop: set[object]) -> list[fx.Node]:
    """Nodes reachable from ``start``; nothing is followed past an operator in ``stop``."""
    seen: dict[fx.Node, None] = {}
    queue = deque(start.users)
    while queue:
        node = queue.popleft()
        if node in seen:
            continue
        seen[node] = None
        if node.target not in stop:
            queue.extend(node.users)
    return list(seen)


def settle(program: Program, declared: Mapping[str, str] | None = None) -> None:
    """Set the bindings of user inputs from structure and declaration, in place.

    One timestep candidate that a linear embeds by itself settles itself, and so does the input that
    is denoised. Other candidates are *taken* to be the timestep and, where the denoised input is
    found, all other inputs to be fixed for a generation, without being settled: each call compares
    them, so a wrong guess is only slower. Where it is not found, they stay ``LATENT``.

    Args:
        program: the Program.
        declared: binding by argument name, such as ``{"img_ids": "invariant"}``.

    Raises:
        BindingError: an unknown argument or binding.
    """
    candidates = timestep_candidates(program)
    if len(candidates) == 1 and _is_embedded_alone(program, _placeholder(program, candidates[0])):
        program.bind(candidates[0], Binding.TIMESTEP)
    latent = _denoised(program)
    for name in candidates:
        if not program.inputs[name].settled:
            program.bind(name, Binding.TIMESTEP, settled=False)
    if latent is not None:
        _take_for_granted(program)
        for name in (latent, *_denoised_beside(program, latent)):
            program.bind(name, Binding.LATENT)
    given = [*program.of_kind(InputKind.USER), *program.of_kind(InputKind.SIZE)]
    users = {spec.path: spec for spec in given}
    for path, text in (declared or {}).items():
        if path not in users:
            raise BindingError(
                f"bindings: the model has no input {path!r}{suggest(path, users)}; "
                f"inputs are {', '.join(users)}"
            )
        try:
            binding = Binding[str(text).upper()]
        except KeyError:
            raise BindingError(
                f"bindings: {path!r} cannot be {text!r}; choose invariant, timestep or latent"
            ) from None
        if binding is Binding.WEIGHT:
            raise BindingError(
                f"bindings: {path!r} is an argument of the call, so it is never fixed for good; "
                "choose invariant"
            )
        program.bind(users[path].name, binding)


def _take_for_granted(program: Program) -> None:
    """Take what nothing else is known of to be fixed for a generation."""
    for spec in [*program.of_kind(InputKind.USER), *program.of_kind(InputKind.SIZE)]:
        if not spec.settled and spec.binding is Binding.LATENT:
            program.bind(spec.name, Binding.INVARIANT, settled=False)


def _placeholder(program: Program, name: str) -> fx.Node:
    return next(node for node in placeholders(program.main) if node.target == name)


def _denoised_beside(program: Program, latent: str) -> Iterator[str]:
    """Further inputs that are denoised, where the model returns several results.

    As many inputs as results must have the same sizes: one of two such inputs may be a condition.
    """
    kinds = [output.kind for output in program.outputs[MAIN]]
    returned = zip(kinds, output_args(program.main), strict=True)
    results = [v for kind, v in returned if kind is OutputKind.USER and isinstance(v, fx.Node)]
    free = [
        node
        for node in placeholders(program.main)
        if (spec := program.inputs.get(str(node.target))) is not None
        and spec.kind is InputKind.USER
        and spec.binding is not Binding.TIMESTEP
        and _is_floating(node)
    ]
    for sizes in {_sizes(node) for node in results} if len(results) > 1 else ():
        inputs = [str(node.target) for node in free if _sizes(node) == sizes]
        if len(inputs) == sum(_sizes(node) == sizes for node in results):
            yield from (name for name in inputs if name != latent)


def _is_floating(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _sizes(node: fx.Node) -> tuple[str, ...]:
    value = node.meta.get("val")
    return tuple(map(str, value.shape)) if isinstance(value, torch.Tensor) else ()


def _denoised(program: Program) -> str | None:
    """The input that is being denoised: the one whose tokens the result is made of."""
    try:
        return str(find_tokens(program).latent.target)
    except AnalysisError:
        return None
