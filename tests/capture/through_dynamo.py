"""Models as torch.compile hands them to a backend."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx

from dit_compile.capture.dynamo import capture_dynamo
from dit_compile.ir.program import Program, placeholders


def from_dynamo(
    model: Callable[..., Any],
    *args: Any,
    dynamic: bool | None = False,
    grad: bool = False,
    **kwargs: Any,
) -> tuple[Program, dict[str, Any]]:
    """The Program of ``model``'s one graph, and a value for each of its inputs by name."""
    made: list[tuple[Program, dict[str, Any]]] = []

    def backend(module: fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        program = capture_dynamo(module)
        given: Iterator[Any] = iter(inputs)
        names = [node.name for node in placeholders(program.main)]
        values = {n: program.constants[n] if n in program.constants else next(given) for n in names}
        made.append((program, values))
        return module.forward

    torch._dynamo.reset()
    with torch.set_grad_enabled(grad):
        torch.compile(model, backend=backend, fullgraph=True, dynamic=dynamic)(*args, **kwargs)
    return made[-1]


def run(program: Program, values: dict[str, Any], graph: str = "full") -> list[Any]:
    """All outputs of one graph, interpreted; autograd records if it is on."""
    module = program.graphs[graph]
    return list(
        fx.Interpreter(module).run(*(values[str(n.target)] for n in placeholders(module.graph)))
    )
