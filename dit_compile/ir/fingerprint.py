"""A Program's fingerprint: equal for equal computations, whatever its nodes are called."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import fx

from dit_compile.errors import VerificationError
from dit_compile.ir.fake import describe
from dit_compile.ir.printer import target_name
from dit_compile.ir.program import Program, output_args
from dit_compile.ir.purity import is_random
from dit_compile.ir.verifier import excerpt


def fingerprint(program: Program) -> str:
    """Hash of all graphs, their outputs' meaning, the inputs' bindings, schedule and annotations.

    Renaming nodes, or ordering independent ones differently, changes nothing. Weights count by
    path, shape and dtype, not by value.
    """
    digest = hashlib.sha256(computation(program).encode())
    digest.update(repr(sorted(program.annotations.items())).encode())
    return digest.hexdigest()


def computation(program: Program) -> str:
    """Like :func:`fingerprint`, but blind to annotations."""
    digest = hashlib.sha256()
    for name in sorted(program.graphs):
        digest.update(f"{name}:{graph_fingerprint(program, name)}".encode())
        digest.update(repr([(out.kind.value, out.name) for out in program.outputs[name]]).encode())
    for spec in program.inputs.values():
        digest.update(f"{spec.path}:{spec.kind.value}:{spec.binding}".encode())
    digest.update(repr(program.schedule).encode())
    return digest.hexdigest()


def graph_fingerprint(program: Program, name: str) -> str:
    """Hash of one graph: the multiset of its nodes, each by what it computes, and its outputs."""
    graph = program.graphs[name].graph
    hashes = node_hashes(program, name)
    digest = hashlib.sha256()
    for item in sorted(hashes[node] for node in graph.nodes if node.op == "call_function"):
        digest.update(item)
    for arg in output_args(graph):
        digest.update(hashes[arg] if isinstance(arg, fx.Node) else repr(arg).encode())
    return digest.hexdigest()


def node_hashes(program: Program, name: str) -> dict[fx.Node, bytes]:
    """For each node of a graph, a hash of the expression it computes from the graph's inputs.

    Raises:
        VerificationError: the graph is not in topological order.
    """
    hashes: dict[fx.Node, bytes] = {}
    draws = 0
    for node in program.graphs[name].graph.nodes:
        late = next((arg for arg in node.all_input_nodes if arg not in hashes), None)
        if late is not None:
            raise VerificationError(
                f"%{node.name} reads %{late.name}, which is made after it or was erased\n"
                + excerpt(program, name, node)
            )
        if node.op == "output":
            continue
        digest = hashlib.sha256()
        if node.op == "placeholder":
            spec = program.inputs.get(str(node.target))
            path = spec.path if spec else str(node.target)
            digest.update(f"in {path} {describe(node.meta.get('val'))}".encode())
        else:
            digest.update(f"{node.op} {_target(node)}".encode())
            if is_random(node):  # no two draws are equal, and their order counts
                draws += 1
                digest.update(f"draw {draws}".encode())
            _update(digest, node.args, hashes)
            _update(digest, tuple(sorted(node.kwargs.items())), hashes)
        hashes[node] = digest.digest()
    return hashes


def _target(node: fx.Node) -> str:
    target = node.target
    return str(target) if isinstance(target, torch._ops.OpOverload) else target_name(target)


def _update(digest: Any, arg: Any, hashes: dict[fx.Node, bytes]) -> None:
    if isinstance(arg, fx.Node):
        digest.update(hashes[arg])
    elif isinstance(arg, (list, tuple)):
        digest.update(b"(")
        for item in arg:
            _update(digest, item, hashes)
        digest.update(b")")
    else:
        digest.update(f"{type(arg).__name__}:{arg}".encode())
