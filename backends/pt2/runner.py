"""The graphs of a bundle in torch: exported programs, or machine code."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_compile.analysis.machine import lacks
from dit_compile.backends.pt2.weights import load_weights
from dit_compile.bundle.arrays import check
from dit_compile.bundle.manifest import Manifest, Value
from dit_compile.bundle.sessions import RuntimeOptions
from dit_compile.errors import BackendError, BundleError, OptionError
from dit_compile.runtime.elements import Denoised, Elements
from dit_compile.runtime.generation import Hold
from dit_compile.runtime.held import Held
from dit_compile.runtime.samples import torch_elements

#: A graph: its inputs and weights in order, to its results in order.
Call = Callable[..., Sequence[torch.Tensor]]

#: Kernels for an accelerator take tensors that begin at a multiple of this many bytes.
_ALIGNMENT = 16


class TorchGraphs:
    """All graphs of a bundle on torch's tensors, with the weights in memory once.

    Args:
        folder: the bundle's; trusted.
        manifest: what it holds.
        options: for ONNX Runtime, so all must be left as they are.

    Raises:
        OptionError: an option was given.
        BundleError: a file holds something else than the manifest says.
        BackendError: torch cannot load a graph, or the device is not there.
    """

    hold: Hold = staticmethod(Held.of)

    def __init__(self, folder: Path, manifest: Manifest, options: RuntimeOptions) -> None:
        if options != RuntimeOptions():
            raise OptionError(
                f"providers, threads and the like are ONNX Runtime's, and {manifest.format} runs "
                "in torch; leave them out (torch.set_num_threads sets the threads)"
            )
        self._device = manifest.device or "cpu"
        self._graphs = manifest.graphs
        weights: dict[str, torch.Tensor] = {}
        if manifest.weights is not None:
            file = folder / manifest.weights
            weights = _tried("the weights", lambda: load_weights(file, self._device))
        read = {key for graph in manifest.graphs.values() for key in graph.weights}
        for missing in sorted(read - weights.keys()):
            raise BundleError(f"{manifest.weights} has no {missing!r}; export the model again")
        self._weights_of = {
            name: [weights[key] for key in graph.weights] for name, graph in self._graphs.items()
        }
        self._calls = _tried("the graphs", lambda: self._load(folder, manifest))

    def elements(self, denoised: Mapping[str, Denoised]) -> Elements:
        """Reads elements of tensors."""
        return torch_elements(denoised)

    def take(self, spec: Value, value: Any) -> torch.Tensor:
        """What the caller passes for an input, as a contiguous tensor on the device.

        Numpy has no bfloat16, so float32 is taken for it.
        """
        if isinstance(value, torch.Tensor):
            tensor = value.detach()
        elif isinstance(value, (int, float, list, tuple)):
            tensor = torch.tensor(value, dtype=getattr(torch, spec.dtype))
        else:
            array = value if isinstance(value, np.ndarray) else np.from_dlpack(value)
            tensor = torch.tensor(array)  # a copy: nothing would tell of writes into the array
            if spec.dtype == "bfloat16" and tensor.dtype is torch.float32:
                tensor = tensor.to(torch.bfloat16)
        check(spec, str(tensor.dtype).removeprefix("torch."), tensor.shape)
        return tensor.to(self._device).contiguous()

    def array(self, numbers: Sequence[Any], dtype: str, shape: Sequence[int]) -> torch.Tensor:
        """A tensor of these numbers on the device."""
        exact = torch.tensor(numbers, dtype=torch.float64)
        return exact.to(self._device, getattr(torch, dtype)).reshape(list(shape))

    def give(self, result: torch.Tensor, *, as_torch: bool) -> Any:
        """A result for the caller; as an array, bfloat16 becomes float32."""
        if as_torch:
            return result
        return (result.float() if result.dtype is torch.bfloat16 else result).cpu().numpy()

    def run(self, name: str, values: Mapping[str, Any]) -> list[Any]:
        """Run a graph.

        Raises:
            BackendError: torch failed.
        """
        given = [_aligned(values[read]) for read in self._graphs[name].inputs]
        try:
            with torch.no_grad(), torch._C._DisableAutocast():  # its casts are in the graph
                return list(self._calls[name](*given, *self._weights_of[name]))
        except Exception as error:
            raise BackendError(f"torch failed in graph {name!r}: {error}") from error

    def _load(self, folder: Path, manifest: Manifest) -> dict[str, Call]:
        """All graphs by name."""
        raise NotImplementedError


class Pt2Graphs(TorchGraphs):
    """Exported programs, run operator by operator."""

    def _load(self, folder: Path, manifest: Manifest) -> dict[str, Call]:
        return {
            name: torch.export.load(folder / graph.file).graph_module
            for name, graph in manifest.graphs.items()
        }


class AotiGraphs(TorchGraphs):
    """The models of AOTInductor packages."""

    def _load(self, folder: Path, manifest: Manifest) -> dict[str, Call]:
        calls = {}
        for name, graph in manifest.graphs.items():
            model = torch._C._aoti.AOTIModelPackageLoader(
                str(folder / graph.file), name, False, 1, -1
            )
            _check_processor(model.get_metadata())
            calls[name] = _boxed(model)
        return calls


def _boxed(model: Any) -> Call:
    return lambda *given: model.boxed_run(list(given))


def _check_processor(needs: Mapping[str, str]) -> None:
    """Make sure that this processor has the vector instructions that a package was compiled for.

    Raises:
        BackendError: it has not, and would stop the process at the first one.
    """
    for word in needs.get("AOTI_CPU_ISA", "").split():
        if lacks(word):
            raise BackendError(f"it was compiled for processors with {word}; export it here")


def _aligned(value: torch.Tensor) -> torch.Tensor:
    return value if value.data_ptr() % _ALIGNMENT == 0 else value.clone()


def _tried(what: str, load: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``load`` returns, its failures as one error.

    Raises:
        BackendError: it failed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on torch's own internals
            return load()
    except Exception as error:
        raise BackendError(
            f"torch {torch.__version__} cannot load {what} of the bundle: {error}"
        ) from error
