"""The kernels against the decompositions, and compiled to machine code for a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from dit_compile.backends.triton import kernels
from tests.backends.triton.interpreted import DTYPES, MODULATED, ROTATED

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def errors() -> dict[str, list[list[float]]]:
    """Of each case, for each result: the errors of the kernel and of the decomposition."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.backends.triton.interpreted"],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        check=True,
        capture_output=True,
        text=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", [*MODULATED, *ROTATED], ids=lambda case: "-".join(map(str, case)))
def test_no_less_exact_than_the_decomposition(
    errors: dict[str, list[list[float]]], case: tuple[Any, ...]
) -> None:
    """The rule of exact passes: twice the noise, three times in half precision.

    Triton's interpreter cuts bfloat16 off where a GPU rounds it, which alone doubles that error.
    """
    margin, tiny = (2, 1e-7) if case[1] == "f32" else (3, 1e-5)
    found = errors[" ".join(map(str, case))]
    assert found
    for error, noise in found:
        assert error <= margin * noise + tiny


def test_all_cases_ran(errors: dict[str, list[list[float]]]) -> None:
    assert len(errors) == len(MODULATED) + len(ROTATED) > 100
    assert all(len(errors[" ".join(case)]) == 3 for case in MODULATED)


#: Pointers of each kernel; what else it takes are sizes and strides, and ``eps``.
POINTERS = {
    "adaln_norm_kernel": 4,
    "gated_residual_norm_kernel": 7,
    "norm_rotary_kernel": 6,
}
FLAGS = {
    "norm_rotary_kernel": {
        "WEIGHTED": True,
        "BIASED": True,
        "CENTERED": True,
        "ACROSS_HEADS": True,
        "INTERLEAVED": False,
        "BY_CHANNEL": True,
    }
}


@pytest.mark.parametrize("name", POINTERS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_machine_code_for_sm_90(name: str, dtype: str) -> None:
    kernel = getattr(kernels, name)
    constants = {**FLAGS.get(name, {}), "BLOCK": 1024, "ROWS": 2}
    short = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}[dtype]
    names = [param for param in kernel.arg_names if param not in constants]
    signature = {param: "fp32" if param == "eps" else "i32" for param in names}
    signature |= dict.fromkeys(names[: POINTERS[name]], f"*{short}")
    signature |= dict.fromkeys(constants, "constexpr")
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4})
    assert len(made.asm["cubin"]) > 1000
    assert ".target sm_90a" in made.asm["ptx"]
    assert "local" not in made.asm["ptx"], "registers must not spill"
