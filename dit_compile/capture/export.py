"""The way in for offline work: an ``nn.Module`` and example arguments."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.export.graph_signature import InputKind as ExportKind
from torch.export.graph_signature import OutputKind as ExportOutput
from torch.export.graph_signature import SymFloatArgument, SymIntArgument, TensorArgument
from torch.utils import _pytree as pytree

from dit_compile.capture.build import build_program
from dit_compile.capture.dynamo import records_gradients
from dit_compile.errors import CaptureError
from dit_compile.ir.program import InputKind, Program, placeholders

_KINDS = {
    ExportKind.PARAMETER: InputKind.WEIGHT,
    ExportKind.BUFFER: InputKind.WEIGHT,
    ExportKind.CONSTANT_TENSOR: InputKind.WEIGHT,
    ExportKind.USER_INPUT: InputKind.USER,
}
_WRITES = {
    ExportOutput.BUFFER_MUTATION,
    ExportOutput.PARAMETER_MUTATION,
    ExportOutput.USER_INPUT_MUTATION,
}


def capture_module(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
) -> Program:
    """Export ``model`` on example arguments and turn it into a Program.

    The Program's inputs are the weights that are used, whose values are its ``constants``, and the
    tensors among the arguments, flattened in order.

    Args:
        model: the module; its training mode is left as it is.
        args: positional example arguments.
        kwargs: keyword example arguments.
        dynamic_shapes: as for ``torch.export.export``.

    Raises:
        CaptureError: torch.export refused the model; the message carries its reason.
    """
    kwargs = dict(kwargs or {})
    training = records_gradients([*model.parameters(), *pytree.tree_leaves((args, kwargs))])
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec", FutureWarning)
            exported = torch.export.export(
                model, tuple(args), kwargs, dynamic_shapes=dynamic_shapes, strict=False
            ).run_decompositions({})
    except Exception as error:  # torch.export raises many unrelated types
        reason = str(error).strip().splitlines()
        raise CaptureError(
            f"torch.export cannot trace {type(model).__name__}: {reason[0] if reason else error!r}"
        ) from error
    signature = exported.graph_signature
    module = exported.graph_module
    by_name = {node.name: node for node in placeholders(module.graph)}
    described: list[tuple[InputKind, str]] = []
    constants: dict[str, torch.Tensor] = {}
    mutated = [str(spec.target) for spec in signature.output_specs if spec.kind in _WRITES]
    for spec in signature.input_specs:
        if not isinstance(spec.arg, TensorArgument | SymIntArgument | SymFloatArgument):
            module.graph.erase_node(by_name[spec.arg.name])  # a Python value, baked by the export
            continue
        if spec.kind not in _KINDS:
            raise CaptureError(f"input {spec.arg.name!r} of kind {spec.kind.name} is not supported")
        path, node = spec.target or spec.arg.name, by_name[spec.arg.name]
        if _KINDS[spec.kind] is InputKind.WEIGHT and not node.users and path not in mutated:
            module.graph.erase_node(node)  # of a module that nothing calls
            continue
        described.append((_KINDS[spec.kind], path))
        if _KINDS[spec.kind] is InputKind.WEIGHT:
            known = exported.constants.get(path)
            constants[path] = exported.state_dict[path] if known is None else known
    return build_program(
        module, described, mutated, _fake_mode(module), constants=constants, training=training
    )


def _fake_mode(module: torch.fx.GraphModule) -> FakeTensorMode:
    for node in module.graph.find_nodes(op="placeholder"):
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    raise CaptureError("the model takes no tensors, so there is nothing to compile")
