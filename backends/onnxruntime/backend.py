"""ONNX Runtime under torch.compile: each graph becomes a session that holds its weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from dit_compile.errors import BackendError
from dit_compile.ir.fake import device_types
from dit_compile.ir.program import Binding, OutputKind, Program, output_args, placeholders
from dit_compile.runtime.weights import DerivedWeights

_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class OnnxRuntime:
    """Runs graphs in ONNX Runtime on the CPU; half precision is computed in float32."""

    name = "onnxruntime"

    def prepare(self) -> None:
        """There is nothing to find out."""

    def supports(self, program: Program) -> list[str]:
        """Inference on the CPU, of models that write into none of their inputs."""
        reasons = [
            f"{package} is not installed (pip install 'dit-compile[onnx]')"
            for package in _PACKAGES
            if find_spec(package) is None
        ]
        if program.training:
            reasons.append("autograd records; call the model under torch.no_grad()")
        devices = device_types(placeholders(program.main)) - {"cpu"}
        reasons += [f"the model is on {device}, not on the CPU" for device in devices]
        written = {o.name for o in program.outputs["full"] if o.kind is OutputKind.MUTATION}
        reasons += [f"the model writes into {program.inputs[name].path}" for name in written]
        return reasons

    def lowerings(self, program: Program) -> str:
        """Operators of ditc are written as what they decompose to, so no fusion into them pays."""
        return ""

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[torch.Tensor]]:
        """A session for one graph, made at its first call and again when a weight changes."""
        nodes = placeholders(program.graphs[graph].graph)
        names = [str(node.target) for node in nodes]
        is_weight = [program.inputs[name].binding is Binding.WEIGHT for name in names]
        weights = [name for name, weight in zip(names, is_weight, strict=True) if weight]
        dtypes = [node.meta["val"].dtype for node in output_args(program.graphs[graph].graph)]

        def build(*tensors: torch.Tensor) -> _Session:
            return _Session(program, graph, dict(zip(weights, tensors, strict=True)))

        sessions = DerivedWeights(build)

        def run(*args: Any) -> Sequence[torch.Tensor]:
            own = [arg for arg, weight in zip(args, is_weight, strict=True) if weight]
            session = sessions.get(own, check_content=True)
            returned = session(dict(zip(names, args, strict=True)))
            return [value.to(dtype) for value, dtype in zip(returned, dtypes, strict=True)]

        return run


class _Session:
    """A graph and its weights in ONNX Runtime.

    Args:
        program: the Program.
        graph: which of its graphs.
        weights: the values of its weights by input name.
    """

    def __init__(self, program: Program, graph: str, weights: Mapping[str, torch.Tensor]) -> None:
        import onnx_ir as ir

        from dit_compile.backends.onnxruntime.weights import WeightsFile
        from dit_compile.backends.onnxruntime.writer import WEIGHTS_FILE, make_model
        from dit_compile.backends.written import ExportOptions
        from dit_compile.bundle.sessions import RuntimeOptions, open_session

        with tempfile.TemporaryDirectory(prefix="ditc-") as folder:
            path = Path(folder) / f"{graph}.onnx"
            file = WeightsFile(path.with_name(WEIGHTS_FILE))
            ir.save(make_model(program, graph, weights, file, ExportOptions()), path)
            threads = RuntimeOptions(intra_op_num_threads=torch.get_num_threads())
            self._session = open_session(path, threads)
        self._graph = graph
        self._reads = [item.name for item in self._session.get_inputs()]

    def __call__(self, values: Mapping[str, Any]) -> list[torch.Tensor]:
        """The graph's outputs for the values of its inputs."""
        given = {name: _array(values[name]) for name in self._reads}
        try:
            returned = self._session.run(None, given)
        except Exception as error:  # ONNX Runtime has a class of its own for each code
            raise BackendError(f"ONNX Runtime failed in @{self._graph}: {error}") from error
        return [torch.from_numpy(array) for array in returned]


def _array(value: Any) -> Any:
    if not isinstance(value, torch.Tensor):
        value = torch.tensor(value)
    value = value.detach()
    if value.is_floating_point() and value.itemsize == 2:
        value = value.float()
    return value.contiguous().numpy()
