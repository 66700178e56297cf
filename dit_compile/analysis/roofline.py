"""How fast a device can be: its peak rate of arithmetic and its memory bandwidth, measured.

A bound is only as good as the peak behind it, so each rate is that of the best known way: over
several shapes, several implementations of the same product, and several readings of a buffer that
is much larger than any cache.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear

from dit_compile.analysis.cost import Cost, CostValue
from dit_compile.analysis.machine import (
    cache_file,
    checked_device,
    describe_setup,
    keep,
    onednn_multiplies,
    read_kept,
)
from dit_compile.errors import AnalysisError
from dit_compile.json_files import JsonError, parse_json, read_as

#: Rows, inputs and outputs of products that are typical of diffusion transformers, and a large one.
SHAPES = ((512, 1152, 4608), (512, 4608, 1152), (2048, 2048, 2048))
_CUDA_SHAPES = ((4096, 1152, 4608), (4096, 3072, 12288), (8192, 8192, 8192))
_BUFFER_BYTES = 512 << 20

#: A call to be timed, and the FLOPs or bytes of one call.
_Candidate = tuple[Callable[[], object], float]


@dataclass(frozen=True)
class Roofline:
    """A device's peak rates.

    Attributes:
        device: ``cpu`` or ``cuda``.
        matmul_flops: FLOP/s of a matrix product, by the name of the operands' dtype
            (``"float32"``); one multiply-add is 2 FLOPs.
        bandwidth: bytes/s of reading memory.
        setup: what the rates hold for: processor, number of threads, torch version and so on.
    """

    device: str
    matmul_flops: Mapping[str, float] = field(hash=False)
    bandwidth: float
    setup: Mapping[str, str] = field(default_factory=dict, hash=False)

    def peak(self, dtype: torch.dtype | str) -> float:
        """FLOP/s for one dtype.

        Raises:
            AnalysisError: it was not measured for this dtype.
        """
        name = str(dtype).removeprefix("torch.")
        if name not in self.matmul_flops:
            known = ", ".join(self.matmul_flops) or "nothing"
            raise AnalysisError(f"the roofline of {self.device} has {known}, not {name}")
        return self.matmul_flops[name]

    def to_json(self) -> str:
        """The text that :meth:`from_json` reads."""
        return json.dumps(asdict(self), indent=2)

    @staticmethod
    def from_json(text: str) -> Roofline:
        """Read what :meth:`to_json` wrote.

        Raises:
            AnalysisError: the text is not a roofline.
        """
        try:
            return _checked(parse_json(text))
        except JsonError as error:
            raise AnalysisError(f"this is not a roofline: {error}") from error


def _checked(data: Any) -> Roofline:
    """A roofline from its JSON.

    Raises:
        JsonError: it is none.
    """
    roofline: Roofline = read_as(Roofline, data, "the roofline")
    if not all(rate > 0 for rate in (*roofline.matmul_flops.values(), roofline.bandwidth)):
        raise JsonError("a rate is not positive")
    return roofline


def predicted_seconds(
    cost: Cost | CostValue, dtype: torch.dtype | str, roofline: Roofline
) -> float:
    """Seconds that work takes if arithmetic and memory overlap perfectly.

    Args:
        cost: the work; a :class:`Cost` must be free of symbols.
        dtype: in which the arithmetic is done.
        roofline: the device.

    Raises:
        AnalysisError: ``cost`` has symbolic sizes, or the roofline lacks ``dtype``.
    """
    value = cost.evaluate() if isinstance(cost, Cost) else cost
    return max(value.flops / roofline.peak(dtype), value.bytes_moved / roofline.bandwidth)


# --- measuring -------------------------------------------------------------------------------


def measure_roofline(
    device: str | torch.device = "cpu",
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16),
    *,
    seconds: float = 10.0,
    shapes: Sequence[tuple[int, int, int]] | None = None,
    buffer_bytes: int = _BUFFER_BYTES,
) -> Roofline:
    """Measure a device; nothing else should run on it meanwhile.

    Args:
        device: ``"cpu"`` or a CUDA device.
        dtypes: the dtypes of matrix products.
        seconds: about how long to measure, shared evenly by all that is measured.
        shapes: (rows, inputs, outputs) of the products.
        buffer_bytes: how much is read to measure bandwidth; choose many times the largest cache.

    Raises:
        AnalysisError: the device is of another type.
    """
    device = checked_device(device)
    if shapes is None:
        shapes = SHAPES if device.type == "cpu" else _CUDA_SHAPES
    jobs = [(dtype, shape) for dtype in dtypes for shape in shapes]
    share = seconds / (len(jobs) + 1)
    rates: dict[str, float] = {}
    with torch.no_grad():
        for dtype, shape in jobs:
            name = str(dtype).removeprefix("torch.")
            rate = _best_rate(list(_products(device, dtype, shape)), device, share)
            rates[name] = max(rates.get(name, 0.0), rate)
        bandwidth = _best_rate(list(_streams(device, buffer_bytes)), device, share)
    return Roofline(device.type, rates, bandwidth, describe_setup(device))


def _products(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int]
) -> Iterator[_Candidate]:
    """The known ways to multiply ``[rows, inputs]`` by ``[outputs, inputs]`` transposed."""
    rows, inputs, outputs = shape
    work = 2.0 * rows * inputs * outputs
    x = torch.randn(rows, inputs, device=device).to(dtype)
    weight = torch.randn(outputs, inputs, device=device).to(dtype)
    yield lambda: linear(x, weight), work
    if device.type != "cpu":
        return
    for pack in (_onednn, _mkl) if onednn_multiplies(dtype) else (_mkl,):
        # MKL may be missing from this build of torch, and multiplies float32 alone.
        with contextlib.suppress(AttributeError, RuntimeError):
            packed = pack(x, weight)
            packed()
            yield packed, work
    if dtype in (torch.bfloat16, torch.float16):
        # Without instructions for half precision a product by way of float32 can be several times
        # as fast as torch's own.
        wide = weight.float()
        yield lambda: linear(x.float(), wide).to(dtype), work


def _onednn(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")


def _mkl(x: torch.Tensor, weight: torch.Tensor) -> Callable[[], object]:
    packed = torch.ops.mkl._mkl_reorder_linear_weight(weight, len(x))
    return lambda: torch.ops.mkl._mkl_linear(x, packed, weight, None, len(x))


def _streams(device: torch.device, buffer_bytes: int) -> Iterator[_Candidate]:
    """Ways to read a large buffer. A matrix-vector product is what a layer with few rows does."""
    columns = 4096
    rows = max(buffer_bytes // (4 * columns), 1)
    matrix = torch.ones(rows, columns, device=device)
    vector = torch.ones(columns, device=device)
    size = float(4 * rows * columns)
    yield lambda: torch.mv(matrix, vector), size
    yield lambda: matrix.sum(), size
    target = torch.empty_like(matrix[: max(rows // 2, 1)])
    source = matrix[: len(target)]
    yield lambda: target.copy_(source), 2.0 * 4 * target.numel()


def _best_rate(candidates: Sequence[_Candidate], device: torch.device, seconds: float) -> float:
    """The highest rate of several ways, sharing the time; hopelessly slow ones are tried once."""
    timed = _time_cuda if device.type == "cuda" else _time_cpu
    first = []
    for call, work in candidates:
        timed(call)
        first.append(work / timed(call))
    kept = [
        candidate
        for candidate, rate in zip(candidates, first, strict=True)
        if rate > max(first) / 2
    ]
    share = seconds / len(kept)
    return max(work / _best_median(partial(timed, call), share) for call, work in kept)


def _best_median(sample: Callable[[], float], seconds: float) -> float:
    """The lowest of the medians of groups of five samples, taken for some seconds.

    The median drops outliers within a group, the lowest one drops spells in which something else
    ran on the machine.
    """
    medians: list[float] = []
    end = time.perf_counter() + seconds
    while not medians or time.perf_counter() < end:
        medians.append(statistics.median(sample() for _ in range(5)))
    return min(medians)


def _time_cpu(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _time_cuda(call: Callable[[], object]) -> float:
    start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3


# --- kept between runs -----------------------------------------------------------------------


def load_or_measure(
    device: str | torch.device = "cpu", refresh: bool = False, *, seconds: float = 10.0
) -> Roofline:
    """The roofline of ``device`` as torch is set up now, measured once and kept on disk.

    A roofline of another processor, number of threads or torch version is never returned; a file
    that cannot be read is measured again and replaced.

    Args:
        device: ``"cpu"`` or a CUDA device.
        refresh: measure even if there is a kept roofline.
        seconds: about how long to measure.
    """
    path = cache_file("roofline", device)
    if not refresh:
        try:
            kept = _checked(read_kept(path))
        except JsonError:
            kept = None
        if kept is not None and dict(kept.setup) == describe_setup(device):
            return kept
    roofline = measure_roofline(device, seconds=seconds)
    keep(path, asdict(roofline))
    return roofline
