"""Which transformer classes of diffusers ditc serves, measured: ``python -m tests.support``.

Each class of the zoo is compiled with exact passes, and run in two shapes; then six steps are
sampled with the preset ``fast``, as a user would: the latent follows the model's own outputs by
Euler's method, and all else stays what it was. The table is ``docs/support.md``; naming cases
measures those alone.
"""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import dit_compile as ditc
from dit_compile.errors import DitcWarning
from tests import zoo

STEPS = 6
LIMIT = 1e-5
TABLE = Path(__file__).parents[1] / "docs" / "support.md"
#: A flow map's second timestep: where the step ends.
_NEXT_TIMESTEP = "r_timestep"
#: A second latent, which the second output belongs to.
_SECOND_LATENT = "audio_hidden_states"

_HEAD = f"""\
# What ditc does with the transformer classes of diffusers

Measured on tiny configurations with random weights (`tests/zoo`), in float32 on a CPU, by
`python -m tests.support`; `make test-full` checks that it is still so and that no class is missing.

- *Captured* whole: with `fullgraph=True` and `strict`, one graph gives eager's results within 1e-5,
  in two shapes. Otherwise why Dynamo itself breaks the step into several graphs: with `strict` they
  give the same results, but no cache reuses anything.
- *Stated*, *not stated*: how many of the last {STEPS // 2} of {STEPS} steps reuse something with
  the preset `fast` in `ditc.session(model, timesteps=...)`, and in one without timesteps; or why
  none does.

| class | captured | stated | not stated |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Row:
    """What was measured of a class.

    Attributes:
        name: the class.
        captured: ``whole``, or why not.
        stated: steps of the last three that reuse something, of a loop that is stated; or why none.
        unstated: the same where it is not.
    """

    name: str
    captured: str
    stated: str
    unstated: str

    def __str__(self) -> str:
        return f"| {' | '.join(astuple(self))} |"


def measured(case: zoo.Case) -> Row:
    """The row of one class.

    Raises:
        AssertionError: results are not eager's.
    """
    broken = zoo.REASONS.get(case.name)
    check_exact(case, whole=broken is None)
    reuse = [] if broken else [_reuse(case, stated=stated) for stated in (True, False)]
    name = type(zoo.build(case)).__name__
    return Row(name, broken or "whole", *(reuse or ["-", "-"]))


def tensors(result: Any) -> list[Tensor]:
    """All tensors of a model's output, whatever holds them."""
    values = result.to_tuple() if hasattr(result, "to_tuple") else result
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]


def worst_error(model: nn.Module, compiled: Any, inputs: dict[str, Any]) -> float:
    """Largest relative L2 error over the outputs."""
    with torch.no_grad():
        want, have = tensors(model(**inputs)), tensors(compiled(**inputs))
    assert len(want) == len(have)
    return max(float((b - a).norm() / a.norm()) for a, b in zip(want, have, strict=True))


def check_exact(case: zoo.Case, *, whole: bool) -> None:
    """Require the results of eager, with nothing left to it, in both shapes.

    Args:
        case: the class.
        whole: whether it must be one graph.
    """
    torch._dynamo.reset()
    model = zoo.build(case)
    compiled = torch.compile(
        model, backend="ditc", fullgraph=whole, options={"strict": True, "target": "eager"}
    )
    for variant in (0, 1):
        error = worst_error(model, compiled, inputs_of(case, variant))
        assert error <= LIMIT, f"{case.name}: {error:.1e} from eager"


def inputs_of(case: zoo.Case, variant: int = 0) -> dict[str, Any]:
    """The inputs of one variant, always the same."""
    return case.inputs(variant, torch.Generator().manual_seed(variant))


def sample(
    case: zoo.Case, model: Callable[..., Any], after: Callable[[int], None] = lambda step: None
) -> dict[str, Any]:
    """Six steps by Euler's method.

    Args:
        case: the class.
        model: it, compiled or not.
        after: called behind each step with its number.

    Returns:
        The inputs that an evaluation at the end would take.
    """
    inputs = inputs_of(case)
    first, second = inputs[case.timestep], inputs.get(_NEXT_TIMESTEP)
    for step in range(STEPS):
        inputs[case.timestep] = _scaled(first, 1 - step / STEPS)
        if second is not None:
            inputs[_NEXT_TIMESTEP] = _scaled(first, 1 - (step + 1) / STEPS)
        with torch.no_grad():
            found = tensors(model(**inputs))
        for name, velocity in zip((case.latent, _SECOND_LATENT), found, strict=False):
            if name in inputs:
                inputs[name] = _moved(inputs[name], velocity)
        after(step)
    return inputs


def timesteps(case: zoo.Case) -> list[float]:
    """The timesteps of :func:`sample`, as a scheduler states them."""
    first = inputs_of(case)[case.timestep]
    return [float(_scaled(first, 1 - step / STEPS).flatten()[0]) for step in range(STEPS)]


def _scaled(timestep: Tensor, part: float) -> Tensor:
    return (timestep * part).to(timestep.dtype)


def _moved(latent: Any, velocity: Tensor) -> Any:
    """A latent one step on, where the velocity covers it: conditions beside it stay.

    Predictions may have more channels than latents (a variance), or fewer (conditions beside them).
    """
    if isinstance(latent, list):
        return [_moved(latent[0], velocity), *latent[1:]]
    shared = tuple(slice(min(pair)) for pair in zip(latent.shape, velocity.shape, strict=True))
    latent = latent.clone()
    latent[shared] -= velocity[shared] / STEPS
    return latent


def _reuse(case: zoo.Case, *, stated: bool) -> str:
    """How many of the last three steps reuse something, or why none does."""
    torch._dynamo.reset()
    options = {"preset": "fast", "strict": True, "target": "eager"}
    compiled = torch.compile(zoo.build(case), backend="ditc", fullgraph=True, options=options)
    counts: list[int] = []
    with (
        warnings.catch_warnings(record=True) as said,
        ditc.session(compiled, timesteps=timesteps(case) if stated else None) as session,
    ):
        warnings.simplefilter("always", DitcWarning)
        sample(case, compiled, lambda step: counts.append(session.summary()["reused"]))
        why = session.summary()["why"]
    late = counts[-1] - counts[STEPS // 2 - 1]
    if late:
        return f"{late} of {STEPS // 2}"
    return "; ".join([*why, *(str(w.message) for w in said if w.category is DitcWarning)]) or "none"


def rows(text: str) -> dict[str, Row]:
    """The rows of a table by class."""
    found = re.findall(r"^\| (\w+) \| (.*) \| (.*) \| (.*) \|$", text, re.MULTILINE)
    return {cells[0]: Row(*cells) for cells in found if cells[0] != "class"}


def page(found: Iterable[Row]) -> str:
    """The whole of ``docs/support.md``."""
    lines: Iterator[str] = (str(row) for row in sorted(found, key=lambda row: row.name))
    left = (f"| {name} | {reason} |" for name, reason in zoo.LEFT_OUT)
    tail = "\nNot measured:\n\n| class | why |\n|---|---|\n"
    return _HEAD + "\n".join(lines) + "\n" + tail + "\n".join(left) + "\n"


def main() -> None:
    """Measure, and write the table anew after each class."""
    parser = argparse.ArgumentParser(prog="python -m tests.support", description=__doc__)
    names = [case.name for case in zoo.EVERY]
    parser.add_argument("cases", nargs="*", metavar="case", help="of the zoo; all without any")
    asked = parser.parse_args().cases
    if unknown := set(asked) - set(names):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    for case in zoo.EVERY:
        if asked and case.name not in asked:
            continue
        row = measured(case)
        known = rows(TABLE.read_text()) if TABLE.exists() else {}
        TABLE.write_text(page((known | {row.name: row}).values()))
        print(row, flush=True)


if __name__ == "__main__":
    main()
