"""The schedule of a Program as plain data, and back."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from dit_compile.bundle import manifest as saved
from dit_compile.errors import BundleError, suggest
from dit_compile.ir.schedule import Policy, Schedule
from dit_compile.pipeline.registry import policies

#: Options of a policy are values. A text with a dot or a slash may name a file to read.
_TEXT = re.compile(r"[\w: -]*")


def to_data(schedule: Schedule) -> saved.Schedule:
    """What a manifest says of a schedule: the policy's method, and all its options."""
    policy = schedule.policy
    if policy is None:
        return saved.Schedule(schedule.full)
    method = next(name for name, kind in policies().items() if kind is type(policy))
    options = dataclasses.asdict(policy)  # type: ignore[call-overload]
    return saved.Schedule(
        schedule.full,
        saved.Policy(method, options),
        schedule.groups,
        tuple(saved.Variant(tuple(row), graph) for row, graph in schedule.variants),
        schedule.probe,
        schedule.judge,
        schedule.critic,
    )


def from_data(data: saved.Schedule) -> Schedule:
    """The schedule that a manifest describes.

    Raises:
        BundleError: its policy is unknown or refuses its options, or masks do not fit its groups.
    """
    if data.policy is None:
        return Schedule(data.full)
    if any(len(item.mask) != len(data.groups) for item in data.variants):
        raise BundleError("a mask of the bundle's schedule does not fit its groups; export again")
    return Schedule(
        data.full,
        policy=_policy(data.policy.method, data.policy.options),
        groups=data.groups,
        variants=tuple((item.mask, item.graph) for item in data.variants),
        probe=data.probe,
        judge=data.judge,
        critic=data.critic,
    )


def _policy(method: str, options: Mapping[str, Any]) -> Policy:
    known = policies()
    if method not in known:
        raise BundleError(
            f"the bundle's schedule is of the method {method!r}{suggest(method, known)}, which "
            "this ditc does not know; export the model again"
        )
    if not all(_TEXT.fullmatch(value) for value in options.values() if isinstance(value, str)):
        raise BundleError(f"the bundle's schedule {method!r} has a text that may name a file")
    try:
        policy: Policy = known[method](
            **{key: tuple(v) if isinstance(v, list) else v for key, v in options.items()}
        )
    except Exception as error:  # options of another version, or none that a policy takes
        raise BundleError(
            f"the bundle's schedule {method!r} has options that do not fit: {error}"
        ) from error
    return policy
