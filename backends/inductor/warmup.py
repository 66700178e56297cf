"""What Inductor finds out about a CPU, found out while something else runs.

The first compilation in a process builds and loads a small program for each instruction set that
the CPU may have, which takes up to ten seconds of waiting for other processes. Dynamo's trace comes
before it and leaves that time unused.
"""

from __future__ import annotations

import functools
import threading

import torch


@functools.cache
def start() -> threading.Thread | None:
    """Begin, once a process; ``None`` where an accelerator makes it unlikely to be needed."""
    if torch.cuda.is_available():
        return None
    thread = threading.Thread(target=_probe, name="ditc-warmup", daemon=True)
    thread.start()
    return thread


def finish() -> None:
    """Wait until it is done."""
    if (thread := start()) is not None:
        thread.join()


def _probe() -> None:
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    pick_vec_isa()
