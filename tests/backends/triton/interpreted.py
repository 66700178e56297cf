"""Runs the kernels in Triton's interpreter, which the environment must ask for before its import.

Prints, for each case, the error of the kernel and that of the decomposition in the same dtype, both
against the decomposition in float64.
"""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch
from torch import Tensor

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
#: Of the stream and of what modulates it: odd and wide rows, one row, each way to broadcast.
SHAPES = {
    "tokens": ((2, 5, 64), (2, 1, 64)),
    "odd": ((2, 3, 37), (2, 1, 37)),
    "one row": ((1, 1, 130), (1, 1, 130)),
    "wide": ((1, 2, 1300), (1, 1, 1300)),
    "vector": ((3, 48), (48,)),
    "each token": ((2, 5, 16), (2, 5, 16)),
    "frames": ((2, 3, 4, 20), (2, 1, 1, 20)),
    "each frame": ((2, 3, 4, 20), (2, 3, 1, 20)),
}
#: Of queries: tokens before heads and behind them, no batch, an odd number of heads and pairs.
QUERIES = {
    "heads last": (2, 5, 3, 16),
    "heads first": (2, 3, 5, 16),
    "flat": (2, 5, 22),
    "one row": (1, 1, 1, 90),
}
FLAGS = tuple(itertools.product((False, True), repeat=4))
FEW_FLAGS = ((False, False, True, True), (True, True, False, False))

MODULATED = tuple(itertools.product(SHAPES, DTYPES, ("dense", "strided")))
ROTATED = tuple(
    (name, dtype, *flags)
    for name, dtype in itertools.product(QUERIES, DTYPES)
    for flags in (FLAGS if dtype == "f32" else FEW_FLAGS)
    if not (flags[1] and name == "flat")
)


def main() -> None:
    """Run all cases."""
    errors = {" ".join(case): modulated(*case) for case in MODULATED}
    errors |= {" ".join(map(str, case)): rotated(*case) for case in ROTATED}
    print(json.dumps(errors))


def modulated(shape: str, dtype: str, layout: str) -> list[list[float]]:
    """Errors of both kernels with an adaptive norm."""
    from dit_compile import ops
    from dit_compile.backends.triton import operators

    stream, vector = SHAPES[shape]
    x, y = (value(stream, dtype, layout, seed) for seed in (0, 1))
    gate, scale, shift = (value(vector, dtype, layout, seed) for seed in (2, 3, 4))
    both = x, y, gate, scale, shift
    return [
        *compared(operators.launch_adaln_norm, ops.adaln_norm, (x, scale, shift), 1e-6),
        *compared(operators.launch_gated_residual_norm, ops.gated_residual_norm, both, 1e-6),
    ]


def rotated(
    name: str, dtype: str, centered: bool, across_heads: bool, interleaved: bool, by_channel: bool
) -> list[list[float]]:
    """Errors of the norm with a rotation; the angles are float32 and the same for all heads."""
    from dit_compile import ops
    from dit_compile.backends.triton import operators

    shape = QUERIES[name]
    x = value(shape, dtype, "strided" if name == "heads last" else "dense", 0)
    if name == "heads first":
        x = value((2, 5, 3, 16), dtype, "dense", 0).transpose(1, 2)
    channels = shape[-1] * (shape[-2] if across_heads else 1)
    weight = value((channels,), dtype, "strided", 1) if name != "one row" else None
    bias = value((channels,), dtype, "dense", 2) if centered and weight is not None else None
    width = shape[-1] if by_channel else shape[-1] // 2
    tokens = shape[2] if name == "heads first" else shape[1]
    lead = (tokens,) if name in ("heads first", "flat") else (1, tokens, 1)
    angles = value((*lead, width), "f32", "strided", 3)
    given = x, weight, bias, angles.cos(), angles.sin()
    flags = 1e-6, centered, across_heads, interleaved
    contiguous = name != "heads first"
    found = compared(
        lambda *args: operators.launch_norm_rotary(*args, contiguous),
        ops.norm_rotary,
        given,
        *flags,
    )
    made = operators.launch_norm_rotary(*given, *flags, contiguous)
    assert made.stride() == (made if contiguous else torch.empty_like(x)).stride()
    assert made.is_contiguous() == contiguous
    return found


def compared(kernel: Any, reference: Any, given: tuple[Any, ...], *rest: Any) -> list[list[float]]:
    """For each result: root mean square error of the kernel, and of the reference."""
    wide = [None if item is None else item.double() for item in given]
    made, plain, exact = kernel(*given, *rest), reference(*given, *rest), reference(*wide, *rest)
    if isinstance(made, Tensor):
        made, plain, exact = [made], [plain], [exact]
    assert [item.dtype for item in made] == [item.dtype for item in plain]
    return [
        [float((item.double() - true).square().mean().sqrt()) for item in (one, other)]
        for one, other, true in zip(made, plain, exact, strict=True)
    ]


def value(shape: tuple[int, ...], dtype: str, layout: str, seed: int) -> Tensor:
    """Random numbers; if strided, every second along each axis of what is stored."""
    step = 2 if layout == "strided" else 1
    stored = [step * size for size in shape]
    made = torch.randn(stored, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])
    return made[tuple(slice(None, None, step) for _ in shape)]


if __name__ == "__main__":
    main()
