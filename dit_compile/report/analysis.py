"""What the analyses found in a model, for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def print_analysis(analysis: Mapping[str, Any], console: Console) -> None:
    """Inputs with their bindings, stacks of blocks with their branches, tokens."""
    inputs = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("input", "binding", ""):
        inputs.add_column(title)
    for item in analysis["inputs"]:
        settled = "" if item["settled"] else "(taken for granted; every call compares it)"
        inputs.add_row(item["name"], item["binding"], settled)
    console.print(inputs)
    counts = ", ".join(f"{count} {when}" for when, count in analysis["nodes_by_binding"].items())
    console.print(f"nodes by binding time: {counts}")
    for stack in analysis["stacks"]:
        _print_stack(stack, console)
    for miss in analysis["structure_misses"]:
        console.print(f"not recognised: {miss}")
    _print_tokens(analysis["tokens"], console)


def _print_tokens(tokens: Mapping[str, Any], console: Console) -> None:
    if "error" in tokens:
        console.print(f"tokens: {tokens['error']}")
        return
    count, latent = tokens["count"], tokens["latent"]
    console.print(
        f"tokens: {count} = {tokens['tokens']}, from {latent}; {len(tokens['axes'])} values carry "
        f"them, {len(tokens['misses'])} sizes are unknown"
    )
    for miss in tokens["misses"]:
        console.print(f"  %{miss['node']}: {miss['reason']}")


def _print_stack(stack: Mapping[str, Any], console: Console) -> None:
    kinds = len(set(stack["classes"]))
    same = "all alike" if kinds == 1 else f"{kinds} classes"
    console.print(f"stack {stack['path']}: {stack['blocks']} blocks, {same}")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("  branch", "kind", "gated", "output"):
        table.add_column(title)
    for branch in stack["branches"]:
        gated = "yes" if branch["gated"] else "no"
        table.add_row(f"  {branch['path']}", branch["kind"], gated, str(branch["output"]))
    console.print(table)
