"""The tests that may be skipped where ``CI`` is set; there, any other skip is a failure.

A test that nobody sees skipped is a test that nobody runs. An entry says which tests, for which
reason, and on what machines: elsewhere the skip is a failure as well. One that never applies is no
error, since each machine meets but some of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch

from dit_compile.analysis.machine import has_avx512_bf16


@dataclass(frozen=True)
class Skip:
    """Tests that may be skipped.

    Attributes:
        tests: a pattern of their ids, as of :mod:`fnmatch`, where ``[`` stands for itself.
        reason: why, in the words of the skip.
        applies: whether that is so on this machine.
    """

    tests: str
    reason: str
    applies: Callable[[], bool]


ALLOWED = (
    Skip(
        "tests/analysis/test_roofline.py::test_cuda",
        "needs a CUDA device",
        lambda: not torch.cuda.is_available(),
    ),
    Skip(
        "tests/kernels/test_attention.py::*",
        "this processor does not multiply pairs of bfloat16",
        lambda: not has_avx512_bf16(),
    ),
)


def is_allowed(test: str, reason: str, allowed: tuple[Skip, ...] = ALLOWED) -> bool:
    """Whether a test may be skipped here for this reason."""
    return any(
        fnmatchcase(test, each.tests.replace("[", "[[]"))
        and each.reason == reason
        and each.applies()
        for each in allowed
    )
