"""Expand a torch-level graph into functional ATen, tracing each distinct operation once.

A diffusion transformer repeats its block: a graph of thousands of calls has about a hundred
distinct ones. Two calls of one operation with equal constants, whose arguments have equal shapes,
strides and dtypes, expand alike, so the second is copied from the first. Tracing the whole graph
costs time in proportion to its length; this costs time in proportion to its variety.

That holds only for calls whose meaning is local. Writes into an argument, mode switches, nested
graphs and data-dependent sizes are not; a graph with any of them is left to the whole trace.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses import FakeTensor, FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.utils import _pytree as pytree

from dit_compile.ir.fake import leaves
from dit_compile.ir.program import output_args, placeholders
from dit_compile.ir.recompute import MARKS

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_functional: Any = torch  # the functionalization calls below are not in torch's stubs
_KEPT = ("nn_module_stack", "stack_trace", *MARKS)


class NotLocalError(Exception):
    """A call's meaning depends on more than its arguments, so the graph must be traced whole."""


@dataclass(frozen=True)
class _Template:
    """The expansion of one distinct call.

    Attributes:
        module: placeholders for the call's distinct node arguments, then its operators.
        spec: how the module's flat outputs make up what the call returns.
    """

    module: fx.GraphModule
    spec: pytree.TreeSpec


def expand(module: fx.GraphModule, mode: FakeTensorMode) -> fx.GraphModule:
    """The functional pre-dispatch graph of ``module``; attributes stay attributes.

    Args:
        module: a graph from Dynamo, whose nodes carry ``example_value``.
        mode: the fake mode of these values.

    Raises:
        NotLocalError: the graph has a call that cannot be expanded by itself.
    """
    if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
        raise NotLocalError("autocast is on")
    with mode, enable_python_dispatcher():
        return _Expander(module, mode).run()


class _Expander:
    """One expansion: the new graph, what each old node became, and the templates so far."""

    def __init__(self, module: fx.GraphModule, mode: FakeTensorMode) -> None:
        self.module = module
        self.mode = mode
        self.graph = fx.Graph()
        self.attributes: dict[str, torch.Tensor] = {}
        self.became: dict[fx.Node, Any] = {}
        self.templates: dict[Any, _Template] = {}
        self.known: dict[Any, fx.Node] = {}  # the first node that holds a symbolic number
        self.kept: dict[str, Any] = {}

    def run(self) -> fx.GraphModule:
        """Expand all nodes in order."""
        for node in self.module.graph.nodes:
            self.kept = {key: node.meta[key] for key in _KEPT if key in node.meta}
            if node.op == "placeholder":
                new = self.graph.placeholder(str(node.target))
                self.became[node] = self._enter(new, node.meta.get("example_value"))
            elif node.op == "get_attr":
                self.became[node] = self._attribute(str(node.target), self.module)
            elif node.op == "output":
                self.graph.output(self._mapped(node.args[0]))
            elif node.op in ("call_function", "call_method"):
                self.became[node] = self._expand(node)
            else:
                raise NotLocalError(f"{node.op} {node.target}")
        return fx.GraphModule(self.attributes, self.graph)

    def _enter(self, new: fx.Node, value: Any) -> fx.Node:
        new.meta = {**self.kept, "val": value}
        if isinstance(value, _SYMBOLIC):
            self.known.setdefault(value.node.expr, new)
        return new

    def _attribute(self, target: str, owner: Any) -> fx.Node:
        value = owner
        for part in target.split("."):
            value = getattr(value, part)
        if not isinstance(value, torch.Tensor):
            raise NotLocalError(f"{target} is a nested graph")
        name = target if owner is self.module else f"_constant_{len(self.attributes)}"
        self.attributes[name] = value
        if not isinstance(value, FakeTensor):
            value = self.mode.from_tensor(value, static_shapes=True)
        return self._enter(self.graph.get_attr(name), value)

    def _mapped(self, arg: Any) -> Any:
        """An argument with each old node replaced by what it became, maybe a structure."""
        return fx.map_arg(arg, self.became.__getitem__)

    def _expand(self, node: fx.Node) -> Any:
        args, kwargs = self._mapped(node.args), self._mapped(node.kwargs)
        if node.target is operator.getitem and isinstance(args[0], (list, tuple)):
            return args[0][args[1]]
        if not _is_plain(node.meta.get("example_value")):
            raise NotLocalError(f"{node.target} does not compute tensors or numbers")
        inputs = _distinct_nodes((args, kwargs))
        if all(isinstance(old.meta["val"], _SYMBOLIC) for old in inputs) and _is_arithmetic(node):
            return self._compute(node.target, args)
        key = _key(node, args, kwargs, inputs)
        template = self.templates.get(key)
        if template is None:
            template = self.templates[key] = _trace(_callable(node), args, kwargs, inputs)
        return self._splice(template, inputs)

    def _compute(self, target: Any, args: Sequence[Any]) -> Any:
        """Arithmetic on sizes; one node for each distinct result."""
        value = target(*fx.map_arg(args, _value))
        if not isinstance(value, _SYMBOLIC):
            return value
        if value.node.expr in self.known:
            return self.known[value.node.expr]
        return self._enter(self.graph.call_function(target, tuple(args)), value)

    def _splice(self, template: _Template, inputs: Sequence[fx.Node]) -> Any:
        """Copy a template's operators to the end of the new graph."""
        graph = template.module.graph
        became = dict(zip(placeholders(graph), inputs, strict=True))
        for inner in graph.nodes:
            if inner.op in ("placeholder", "output"):
                continue
            value = inner.meta.get("val")
            if inner.op == "get_attr":
                became[inner] = self._attribute(str(inner.target), template.module)
            elif isinstance(value, _SYMBOLIC) and value.node.expr in self.known:
                became[inner] = self.known[value.node.expr]
            else:
                new = self.graph.node_copy(inner, became.__getitem__)
                became[inner] = self._enter(new, value)
        results = fx.map_arg(output_args(graph), became.__getitem__)
        return template.spec.unflatten(results)


def _trace(
    call: Callable[..., Any], args: Any, kwargs: Any, inputs: Sequence[fx.Node]
) -> _Template:
    """Trace one call to functional pre-dispatch ATen."""
    spec: list[pytree.TreeSpec] = []

    def functional(*values: Any) -> list[Any]:
        with (
            torch._C._ExcludeDispatchKeyGuard(
                torch._C.DispatchKeySet(torch._C.DispatchKey.Functionalize)
            ),
            FunctionalTensorMode(pre_dispatch=True, export=True),
        ):
            wrapped = [_wrap(value) for value in values]
            given = dict(zip(inputs, wrapped, strict=True))
            result = call(
                *fx.map_arg(args, given.__getitem__), **fx.map_arg(kwargs, given.__getitem__)
            )
            if any(isinstance(value, FunctionalTensor) and _written(value) for value in wrapped):
                raise NotLocalError(f"{call} writes to its argument")
            flat, structure = pytree.tree_flatten(
                tuple(result) if isinstance(result, torch.Size) else result
            )
            spec.append(structure)
            return [_unwrap(value) for value in flat]

    try:
        module = make_fx(functional, pre_dispatch=True)(*map(_example, inputs))
    except NotLocalError:
        raise
    except Exception as error:  # the whole trace will tell the user what is wrong
        raise NotLocalError(f"{call} cannot be traced by itself: {error}") from error
    values = [value for node in module.graph.nodes for value in leaves(node.meta.get("val"))]
    if any(free_unbacked_symbols(v) for v in values if isinstance(v, (torch.Tensor, *_SYMBOLIC))):
        raise NotLocalError(f"{call} has sizes that depend on data")
    return _Template(module, spec[0])


def _wrap(value: Any) -> Any:
    return FunctionalTensor.to_functional(value) if isinstance(value, torch.Tensor) else value


def _unwrap(value: Any) -> Any:
    if not isinstance(value, FunctionalTensor):
        return value
    _functional._sync(value)
    return _functional._from_functional_tensor(value.elem)


def _written(value: FunctionalTensor) -> bool:
    _functional._sync(value)
    return bool(
        _functional._functionalize_has_data_mutation(value.elem)
        or _functional._functionalize_has_metadata_mutation(value.elem)
    )


def _callable(node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_method":
        return partial(_call_method, str(node.target))
    return node.target  # type: ignore[return-value]


def _call_method(name: str, owner: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(owner, name)(*args, **kwargs)


def _value(node: fx.Node) -> Any:
    return node.meta["val"]


def _example(node: fx.Node) -> Any:
    """A value to trace with; never shared by two arguments, which tracing would take for one."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor):
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _is_plain(value: Any) -> bool:
    """Whether a call yields tensors and numbers, and is not there for what it does."""
    kinds = (torch.Tensor, *_SYMBOLIC, int, float, type(None))
    found = [*leaves(tuple(value) if isinstance(value, torch.Size) else value)]
    return value is not None and all(isinstance(item, kinds) for item in found)


def _is_arithmetic(node: fx.Node) -> bool:
    return getattr(node.target, "__module__", "") in ("_operator", "math") or (
        getattr(node.target, "__name__", "").startswith("sym_")
    )


def _distinct_nodes(arg: Any) -> list[fx.Node]:
    found: dict[fx.Node, None] = {}
    fx.map_arg(arg, lambda node: found.setdefault(node))
    return list(found)


def _key(node: fx.Node, args: Any, kwargs: Any, inputs: Sequence[fx.Node]) -> Any:
    """What two calls must share to expand alike."""
    position = {old: i for i, old in enumerate(inputs)}

    def mark(old: fx.Node) -> Any:
        return _Marker(position[old], _facts(_value(old)))

    return node.op, node.target, repr(fx.map_arg((args, kwargs), mark))


@dataclass(frozen=True)
class _Marker:
    """Stands for a node argument in a key."""

    position: int
    facts: str


def _facts(value: Any) -> str:
    """All that tracing can see of a fake value."""
    if not isinstance(value, torch.Tensor):
        return f"{type(value).__name__} {value}"
    bits = value.requires_grad, value.is_conj(), value.is_neg(), value.storage_offset()
    return f"{value.dtype} {value.device} {tuple(value.shape)} {value.stride()} {bits}"
