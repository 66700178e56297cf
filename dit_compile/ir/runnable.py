"""A Program as a Python module that runs on its own: one function a graph, one line a node."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import fx

from dit_compile.ir.fake import describe
from dit_compile.ir.origin import origin_of
from dit_compile.ir.printer import is_unpacked, unpacked
from dit_compile.ir.program import MAIN, InputKind, Output, OutputKind, Program, placeholders

_HEAD = '''\
"""{title}

Written by ditc. ``run(values())`` computes every graph on seeded inputs; ``values(path)`` takes
weights from a safetensors file; ``target()`` is for the command ``ditc explain file.py:target``.
"""

from __future__ import annotations

import torch
from torch import nn

import dit_compile.ops  # the operators ditc::

#: Inputs by name: what each stands for, the user's name of it, dtype and shape.
INPUTS = {{
{inputs}}}

{graphs}

#: Graphs in the order in which they run: their inputs, and the inputs that hold each result.
GRAPHS = [
{order}]
'''

_TAIL = '''

def values(weights: str | None = None, seed: int = {seed}) -> dict[str, object]:
    """Values for the inputs: drawn with ``seed``, weights from a file if there is one."""
    generator = torch.Generator().manual_seed(seed)
    found = {{name: _drawn(*spec, generator) for name, spec in INPUTS.items()}}
    if weights is not None:
        from safetensors.torch import load_file

        tensors = load_file(weights)
        paths = {{spec[1]: name for name, spec in INPUTS.items() if spec[0] == "weight"}}
        found.update((paths[path], value) for path, value in tensors.items())
    return found


def run(values: dict[str, object]) -> dict[str, list[object]]:
    """What each graph that serves a step returns to the caller."""
    known, results = dict(values), {{}}
    for graph, names, outputs in GRAPHS:
        returned = graph(*(known[name] for name in names))
        results[graph.__name__] = []
        for holders, value in zip(outputs, returned):
            known.update(dict.fromkeys(holders, value))
            if not holders:
                results[graph.__name__].append(value)
    return {{name: found for name, found in results.items() if found}}


class Model(nn.Module):
    """The main graph as a module with the weights as its parameters."""

    def __init__(self, weights: str | None = None) -> None:
        super().__init__()
        self.given = values(weights)
        self.names = [name for name, spec in INPUTS.items() if spec[0] != "weight"]
        for name, spec in INPUTS.items():
            if spec[0] == "weight":
                self._place(spec[1].split("."), self.given.pop(name))

    def _place(self, path: list[str], value: torch.Tensor) -> None:
        owner = self
        for part in path[:-1]:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        owner.register_buffer(path[-1], value)

    def forward(self, *args: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The results of the main graph."""
        tensors = dict(self.named_buffers(remove_duplicate=False))
        known = {{n: tensors[s[1]] for n, s in INPUTS.items() if s[0] == "weight"}}
        return tuple(run({{**self.given, **known, **dict(zip(self.names, args))}})["{main}"])


def target() -> tuple[nn.Module, tuple[object, ...], dict[str, object]]:
    """The model and one call of it."""
    model = Model()
    return model.eval(), tuple(model.given[name] for name in model.names), {{}}


def _drawn(role: str, path: str, dtype: torch.dtype, shape: tuple[int, ...], generator) -> object:
    if dtype is None:
        return shape[0]
    if role == "coefficients":  # the forecast is the latest state
        return torch.eye(*shape)[0]
    if dtype is torch.bool or not (dtype.is_floating_point or dtype.is_complex):
        return torch.randint(0, 2, shape, generator=generator).to(dtype)
    return (torch.randn(shape, generator=generator) * 0.1).to(dtype)


if __name__ == "__main__":
    for graph, found in run(values()).items():
        for value in found:
            print(graph, tuple(value.shape), value.double().abs().mean().item())
'''


def runnable(program: Program, *, title: str = "A stage of a pipeline.", seed: int = 0) -> str:
    """The source of a module that computes what ``program`` does.

    Its ``run`` is :func:`dit_compile.runtime.reference.run_reference` written out: the graphs ahead
    of the steps first, then the main graph, whose state the others read.

    Args:
        program: the Program. Symbolic sizes are inputs, drawn as they were at capture.
        title: first line of the module's docstring.
        seed: for the inputs that it draws.
    """
    steps = [name for name, _ in program.step_graphs() if name != MAIN]
    order = [*(name for name, _ in program.ahead_graphs()), MAIN, *steps]
    inputs = "".join(f"    {_input_line(program, name)},\n" for name in _entered(program))
    graphs = "\n\n\n".join("\n".join(_function(program, name)) for name in order)
    head = _HEAD.format(
        title=title.replace("\\", "/").replace('"""', "'''"),
        inputs=inputs,
        graphs="\n" + graphs + "\n",
        order="".join(f"    {_order_line(program, name)},\n" for name in order),
    )
    return head + _TAIL.format(seed=seed, main=MAIN)


def _entered(program: Program) -> Iterator[str]:
    """Inputs that no graph of the program computes, in order."""
    modules = program.graphs.values()
    read = {str(node.target) for module in modules for node in placeholders(module.graph)}
    made = {output.name for outputs in program.outputs.values() for output in outputs}
    for spec in program.inputs.values():
        if spec.name not in read or spec.kind is InputKind.STATE:
            continue
        if spec.kind is not InputKind.DERIVED or spec.name not in made:
            yield spec.name


def _input_line(program: Program, name: str) -> str:
    spec = program.inputs[name]
    node = next(
        node
        for module in program.graphs.values()
        for node in placeholders(module.graph)
        if node.target == name
    )
    value = node.meta.get("val")
    role = str(spec.binding) if spec.kind is InputKind.USER else spec.kind.value
    if not isinstance(value, torch.Tensor):
        return f'"{name}": ("{role}", {spec.path!r}, None, ({_size(value)},))'
    shape = "".join(f"{_size(size)}, " for size in value.shape)
    return f'"{name}": ("{role}", {spec.path!r}, {value.dtype}, ({shape.rstrip()}))'


def _size(size: Any) -> Any:
    """The number that a size was at capture."""
    if isinstance(size, torch.SymInt):
        return size.node.hint if size.node.hint is not None else 2
    return size


def _order_line(program: Program, name: str) -> str:
    names = [str(node.target) for node in placeholders(program.graphs[name].graph)]
    holders = [_holders(program, output) for output in program.outputs[name]]
    return f"({name}, {names!r}, {holders!r})"


def _holders(program: Program, output: Output) -> list[str]:
    """The inputs that a result is kept in; none for one that the caller gets."""
    if output.kind in (OutputKind.USER, OutputKind.MUTATION):
        return []
    if output.kind is not OutputKind.STATE:
        return [output.name or "measured"]
    path = program.inputs[output.name].path
    return [spec.name for spec in program.of_kind(InputKind.STATE) if spec.path == path]


def _function(program: Program, name: str) -> Iterator[str]:
    graph = program.graphs[name].graph
    arguments = ", ".join(node.name for node in placeholders(graph))
    yield f"def {name}({arguments}):"
    path = None
    for node in graph.nodes:
        if node.op == "placeholder" or is_unpacked(node):
            continue
        if node.op == "output":
            returned = "".join(f"{_text(arg)}, " for arg in node.args[0])
            yield f"    return ({returned.rstrip()})"
            continue
        if origin_of(node).path != path:
            path = origin_of(node).path
            yield f"    # {path or 'top of the model'}"
        yield f"    {_call(node)}  # {describe(node.meta.get('val'))}"


def _call(node: fx.Node) -> str:
    picked = unpacked(node)
    left = node.name
    if picked:
        left = ", ".join(user.name if user else "_" for user in picked)
        left += "," if len(picked) == 1 else ""
    if node.target is operator.getitem:
        return f"{left} = {_text(node.args[0])}[{_text(node.args[1])}]"
    inner = [_text(arg) for arg in node.args]
    inner += [f"{key}={_text(value)}" for key, value in node.kwargs.items()]
    return f"{left} = {_callee(node.target)}({', '.join(inner)})"


def _callee(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return f"torch.ops.{target}"
    module = target.__module__
    if module == "_operator":
        return f"__import__('operator').{target.__name__}"
    return f"{module}.{target.__name__}"


def _text(arg: Any) -> str:
    """An argument as Python."""
    if isinstance(arg, fx.Node):
        return arg.name
    if isinstance(arg, (list, tuple)):
        return "[" + ", ".join(map(_text, arg)) + "]"
    if isinstance(arg, Mapping):
        return "{" + ", ".join(f"{key!r}: {_text(value)}" for key, value in arg.items()) + "}"
    if isinstance(arg, torch.device):
        return f'torch.device("{arg}")'
    if isinstance(arg, float) and not math.isfinite(arg):
        return f'float("{arg}")'
    return repr(arg)
