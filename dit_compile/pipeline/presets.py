"""Named pipelines. A preset is nothing but its text."""

from __future__ import annotations

from dit_compile.errors import find_named

_EXACT = (
    "remove-noops,eliminate-common,fuse-attention,fuse-qkv,fuse-adaln,"
    "fold-weights,hoist-invariant,hoist-timestep,widen-products,eliminate-dead"
)

PRESETS: dict[str, str] = {
    "exact": _EXACT,
    "balanced": f"{_EXACT},insert-block-cache{{method=interval,interval=2}}",
    "fast": f"{_EXACT},insert-block-cache{{method=interval,interval=3}}",
}

#: What calibration tries under a budget when no pipeline is given.
SEARCHED = tuple(
    f"{_EXACT},insert-block-cache{{method={method}}}"
    for method in (
        "interval",
        "delta",
        "smooth",
        "taylor,ramp=true",
        "first-block",
        "magnitude",
    )
)


def preset(name: str) -> str:
    """The pipeline text of a preset.

    Raises:
        OptionError: there is no such preset.
    """
    return find_named("preset", name, PRESETS)
