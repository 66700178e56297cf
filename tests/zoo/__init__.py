"""Tiny configurations of diffusers transformer classes, one for each class of the sweep.

`CASES` are those that Dynamo captures whole (`fullgraph=True`), `BREAKS` those that it does not,
and `LEFT_OUT` names the classes that no case stands for.
"""

from __future__ import annotations

from itertools import chain

import torch
from torch import nn

from . import audio, broken, image, joint, video
from ._case import Case
from .broken import REASONS

__all__ = ["BREAKS", "CASES", "EVERY", "LEFT_OUT", "REASONS", "Case", "build", "case"]

CASES: tuple[Case, ...] = (*image.CASES, *joint.CASES, *video.CASES, *audio.CASES)
"""Every case, in a fixed order."""

BREAKS: tuple[Case, ...] = broken.CASES
"""Those that stock Dynamo (torch 2.13) breaks into several graphs; `REASONS` says why."""

EVERY: tuple[Case, ...] = (*CASES, *BREAKS)

LEFT_OUT: tuple[tuple[str, str], ...] = (
    (
        "Cosmos3OmniTransformer",
        "takes text, video and sound packed by its pipeline",
    ),
    ("DreamLiteTransformer2DModel", "a layer of a UNet, without latents or timesteps of its own"),
    ("DualTransformer2DModel", "a layer of a UNet, without latents or timesteps of its own"),
    ("MiniMaxMusic3RVQDepthDecoder", "predicts codes one after the other, without denoising steps"),
    ("RFD4ProteinaTransformer", "takes the features of proteins that its preprocessor makes"),
    ("Transformer2DModel", "a layer of a UNet, without latents or timesteps of its own"),
    ("TransformerTemporalModel", "a layer of a UNet, without latents or timesteps of its own"),
)
"""Classes that have no case, each with the reason."""


def case(name: str) -> Case:
    """Return the case of that name; `KeyError` if there is none."""
    return {case.name: case for case in EVERY}[name]


def build(case: Case, seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Module:
    """Build a case in eval mode with weights drawn from `seed`, on the CPU.

    Diffusers starts gates, modulations and output projections at zero, which would hide most of the
    model, so every parameter is drawn anew: matrices keep the variance of their input, norm weights
    and other vectors lie about one, and biases are small.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # for the buffers that some classes draw
        model = case.build()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                fan_in = parameter.shape[1] if parameter.ndim == 3 else parameter[0].numel()
                if case.unscaled and name.startswith(f"{case.unscaled}."):
                    fan_in = 1
                parameter.copy_(noise * fan_in**-0.5)
            elif name.endswith("bias"):
                parameter.copy_(noise * 0.1)
            else:
                parameter.copy_(noise * 0.1 + 1)
    _cast(model, dtype)
    return model.eval()


def _cast(model: nn.Module, dtype: torch.dtype) -> None:
    """Cast in place to the dtypes that `from_pretrained(torch_dtype=dtype)` leaves."""
    keep = getattr(model, "_keep_in_fp32_modules", None)
    saved = model.state_dict()
    for path, module in model.named_modules():
        for name, tensor in chain(module._parameters.items(), module._buffers.items()):
            full = f"{path}.{name}".lstrip(".")
            kept = keep is not None and (full not in saved or {*keep} & {*full.split(".")})
            if tensor is None or not tensor.is_floating_point() or kept:
                continue
            if name in module._buffers:
                module._buffers[name] = tensor.to(dtype)  # it may be a view of another tensor
            else:
                tensor.data = tensor.data.to(dtype)
