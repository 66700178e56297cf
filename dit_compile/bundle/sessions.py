"""The graphs of a bundle in ONNX Runtime."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dit_compile.bundle.arrays import HeldArray, array_elements, as_array
from dit_compile.bundle.manifest import Graph, Manifest, Value
from dit_compile.errors import BackendError, MissingDependencyError, OptionError, suggest
from dit_compile.ir.interface import AHEAD, ROWS, OutputKind
from dit_compile.runtime.elements import Denoised, Elements
from dit_compile.runtime.generation import Hold

Array = np.ndarray[Any, Any]

#: The input that picks one of several graphs in a file.
SELECTOR = "variant"

#: Where a provider keeps tensors; the host for all others.
_DEVICES = {
    "CUDAExecutionProvider": "cuda",
    "TensorrtExecutionProvider": "cuda",
    "ROCMExecutionProvider": "cuda",
    "DmlExecutionProvider": "dml",
}


@dataclass(frozen=True)
class RuntimeOptions:
    """How graphs run.

    Attributes:
        providers: ONNX Runtime's execution providers, the first one preferred; each a name, or a
            name and its options.
        intra_op_num_threads: threads within an operator; 0 leaves it to ONNX Runtime.
        allow_fallback: let another provider run what the first one cannot.
        prepack: lay weights out anew for speed; without it they stay mapped from the file. With
            ``"once"`` they were laid out before, and the file is optimized already.
        session_options: an ``onnxruntime.SessionOptions`` to start from.
    """

    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",)
    intra_op_num_threads: int = 0
    allow_fallback: bool = False
    prepack: bool | Literal["once"] = True
    session_options: Any = None

    def __post_init__(self) -> None:
        if self.prepack not in (True, False, "once"):
            raise OptionError(f"prepack takes True, False or 'once', not {self.prepack!r}")


class Graphs:
    """All graphs of a bundle, ready to run. Values that stay between calls stay on the device.

    Args:
        folder: the bundle's.
        manifest: what it holds.
        options: how to run it.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        OptionError: a provider is not there.
        BackendError: ONNX Runtime refuses a graph, or took another provider.
    """

    def __init__(self, folder: Path, manifest: Manifest, options: RuntimeOptions) -> None:
        self.hold: Hold = HeldArray.of
        self._graphs = manifest.graphs
        self._device = _DEVICES.get(_name(options.providers[0]), "cpu") if options.providers else ""
        self._sessions = {
            file: open_session(folder / file, own) for file, own in by_file(manifest, options)
        }
        self._idle = {file: _idle_inputs(session) for file, session in self._sessions.items()}

    def elements(self, denoised: Mapping[str, Denoised]) -> Elements:
        """Reads elements of arrays."""
        return Elements(array_elements, denoised)

    def take(self, spec: Value, value: Any) -> Array:
        """What the caller passes for an input as a contiguous array."""
        return as_array(spec, value)

    def array(self, numbers: Sequence[Any], dtype: str, shape: Sequence[int]) -> Array:
        """An array of these numbers."""
        return np.array(numbers).astype(dtype).reshape(shape)

    def give(self, result: Any, *, as_torch: bool) -> Any:
        """A result for the caller."""
        return sys.modules["torch"].from_numpy(result) if as_torch else result

    def run(self, name: str, values: Mapping[str, Any]) -> list[Any]:
        """Run a graph.

        Args:
            name: the graph.
            values: at least what it reads: arrays, or what earlier graphs returned.

        Returns:
            Its outputs in order: arrays for the caller and the schedule, ``OrtValue`` for graphs.

        Raises:
            BackendError: ONNX Runtime failed.
        """
        graph = self._graphs[name]
        session = self._sessions[graph.file]
        binding = session.io_binding()
        for read, value in self._inputs(graph, values).items():
            if isinstance(value, np.ndarray):
                binding.bind_cpu_input(read, value)
            else:
                binding.bind_ortvalue_input(read, value)
        kept = (OutputKind.STATE.value, OutputKind.DERIVED.value)
        users = [output.kind not in kept for output in graph.outputs]
        for output, user in zip(graph.outputs, users, strict=True):
            binding.bind_output(output.name, "cpu" if user else self._device)
        try:
            session.run_with_iobinding(binding)
        except Exception as error:  # ONNX Runtime has a class of its own for each code
            raise BackendError(f"ONNX Runtime failed in graph {name!r}: {error}") from error
        returned = binding.get_outputs()
        return [v.numpy() if user else v for v, user in zip(returned, users, strict=True)]

    def _inputs(self, graph: Graph, values: Mapping[str, Any]) -> dict[str, Any]:
        if graph.variant is None:
            return {read: values[read] for read in graph.inputs}
        idle = self._idle[graph.file]
        given = {read: values.get(read, nothing) for read, nothing in idle.items()}
        return given | {SELECTOR: np.array(graph.variant, np.int64)}


def by_file(manifest: Manifest, options: RuntimeOptions) -> Iterator[tuple[str, RuntimeOptions]]:
    """The files of a bundle's graphs, and how each is opened.

    What runs once a generation is not worth laying out, unless the caller's settings say so.
    """
    ahead = {graph.file for name, graph in manifest.graphs.items() if name in (*AHEAD, ROWS)}
    once = options if options.session_options else replace(options, prepack=False)
    for file in dict.fromkeys(graph.file for graph in manifest.graphs.values()):
        yield file, once if file in ahead else options


def open_session(path: Path, options: RuntimeOptions) -> Any:
    """An ``onnxruntime.InferenceSession`` that runs where it was asked to.

    Raises:
        MissingDependencyError: ONNX Runtime is not installed.
        OptionError: a provider is not there.
        BackendError: ONNX Runtime refuses the model, or took another provider.
    """
    runtime = import_runtime()
    names = [_name(provider) for provider in options.providers]
    available = runtime.get_available_providers()
    for name in names:
        if name not in available:
            raise OptionError(
                f"ONNX Runtime has no provider {name!r}{suggest(name, available)}; here it has "
                f"{', '.join(available)}"
            )
    if not names:
        raise OptionError("providers is empty; name one, such as 'CPUExecutionProvider'")
    settings = options.session_options or runtime.SessionOptions()
    if options.intra_op_num_threads:
        settings.intra_op_num_threads = options.intra_op_num_threads
    if not options.prepack:
        settings.add_session_config_entry("session.disable_prepacking", "1")
    elif options.prepack == "once":
        settings.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not options.allow_fallback and "CPUExecutionProvider" not in names:
        settings.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = runtime.InferenceSession(
            str(path), settings, providers=list(options.providers), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime has a class of its own for each code
        raise BackendError(f"ONNX Runtime cannot load {path.name}: {error}") from error
    taken = session.get_providers()
    if not options.allow_fallback and taken[0] != names[0]:
        raise BackendError(
            f"ONNX Runtime runs {path.name} on {taken[0]}, not on {names[0]}; pass "
            "allow_fallback=True if that will do"
        )
    return session


def import_runtime() -> Any:
    """The module ``onnxruntime``.

    Raises:
        MissingDependencyError: it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise MissingDependencyError(
            "bundles run in ONNX Runtime; install it with: pip install onnxruntime"
        ) from error


def _name(provider: str | tuple[str, Mapping[str, Any]]) -> str:
    return provider if isinstance(provider, str) else provider[0]


def _idle_inputs(session: Any) -> dict[str, Any]:
    """Values for the inputs that a variant does not read: empty where the file allows it."""
    return {
        item.name: np.zeros([s if isinstance(s, int) else 0 for s in item.shape], _numpy(item.type))
        for item in session.get_inputs()
    }


def _numpy(kind: str) -> str:
    """The numpy name of an element type that ONNX Runtime writes as ``tensor(float)``."""
    short = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(short, short)
