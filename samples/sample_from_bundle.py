"""Sample the bundled digits model from a bundle alone: ONNX Runtime and numpy, without torch.

Write the bundle once, where torch is installed, then run this anywhere::

    ditc export digits digits_onnx --passes fast
    python samples/sample_from_bundle.py digits_onnx digits.npy

The example arguments of ``digits`` are one image and its twin for guidance, so it draws one image.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

import dit_compile as ditc

NUM_INFERENCE_STEPS = 50
TRAIN_TIMESTEPS = 1000
GUIDANCE_SCALE = 3.0
NULL_CLASS = 10

Array = np.ndarray[Any, Any]

#: How much of the image is left at each timestep: linear betas, as the model was trained.
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, TRAIN_TIMESTEPS, dtype=np.float32))


def ddim(latents: Array, predicted: Array, timestep: int) -> Array:
    """One step of DDIM for a model that predicts the velocity."""
    before = timestep - TRAIN_TIMESTEPS // NUM_INFERENCE_STEPS
    alpha, next_alpha = ALPHAS[timestep], ALPHAS[before] if before >= 0 else np.float32(1)
    image = np.sqrt(alpha) * latents - np.sqrt(1 - alpha) * predicted
    noise = np.sqrt(alpha) * predicted + np.sqrt(1 - alpha) * latents
    return np.sqrt(next_alpha) * image + np.sqrt(1 - next_alpha) * noise


def sample(bundle: str, label: int, noise: Array) -> tuple[Array, dict[str, Any]]:
    """An image of the digit ``label`` from ``noise`` [1, 1, 8, 8], and what was computed."""
    model = ditc.load(bundle)
    labels = np.array([label, NULL_CLASS])
    timesteps = np.arange(0, TRAIN_TIMESTEPS, TRAIN_TIMESTEPS // NUM_INFERENCE_STEPS)[::-1]
    latents = noise
    with ditc.session(model, timesteps=timesteps) as stated:
        for timestep in timesteps:
            doubled = np.concatenate([latents, latents])
            times = np.full(2, timestep)
            (predicted,) = model(doubled, timestep=times, class_labels=labels)
            conditional, unconditional = predicted[:1], predicted[1:]
            guided = unconditional + GUIDANCE_SCALE * (conditional - unconditional)
            latents = ddim(latents, guided, int(timestep))
        counts = stated.summary()
    return latents.clip(-1, 1), counts


def main(bundle: str, out: str) -> None:
    """Draw a three, save it and show it."""
    noise = np.random.default_rng(0).standard_normal((1, 1, 8, 8), dtype=np.float32)
    image, counts = sample(bundle, 3, noise)
    np.save(out, image)
    print(counts)
    for row in image[0, 0]:
        print("".join(" .:-=+*#%@"[round(float(value + 1) * 4.5)] * 2 for value in row))


if __name__ == "__main__":
    main(*sys.argv[1:])
