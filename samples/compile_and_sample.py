"""Compile a diffusion transformer, state its sampling loop, and reuse work across its steps.

Run it with ``python samples/compile_and_sample.py``. A bundled model stands for yours: nothing
below knows more about it than how to call it.
"""

from __future__ import annotations

import time

import torch

import dit_compile as ditc
from dit_compile.demo.models import BUNDLED

NUM_INFERENCE_STEPS = 20
GUIDANCE_SCALE = 3.0


def main() -> None:
    """Sample the ten digits, exactly and with two steps in three reused."""
    digits = BUNDLED["digits"]
    model = digits.load()
    timesteps = digits.timesteps(NUM_INFERENCE_STEPS)
    labels = torch.arange(10)

    ways = {
        "exact": torch.compile(model, backend="ditc"),
        "cached": torch.compile(model, backend="ditc", options={"preset": "fast"}),
    }
    for name, fast in ways.items():
        for run in ("first", "again"):
            started = time.perf_counter()
            with ditc.session(fast, timesteps=timesteps) as stated:
                images = digits.sample(
                    fast,
                    labels,
                    num_inference_steps=NUM_INFERENCE_STEPS,
                    guidance_scale=GUIDANCE_SCALE,
                    seed=0,
                )
                counts = stated.summary()
            seconds = time.perf_counter() - started
            print(f"{name:<6} {run}: {len(images)} images in {seconds:.2f} s, {counts}")


if __name__ == "__main__":
    main()
