"""Where a value holds the samples of a batch, and what is taken of each sample by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

import dit_compile.analysis.sample_rules  # noqa: F401  (registers the rules)
from dit_compile.analysis.samples import find_samples
from dit_compile.errors import PassError
from dit_compile.ir.fake import same_size, tensor_of
from dit_compile.ir.program import MAIN, OutputKind, Program, output_args

#: Makes a node of an operator and its arguments.
Make = Callable[..., fx.Node]

aten = torch.ops.aten


@dataclass(frozen=True)
class Places:
    """Where a value holds samples.

    Attributes:
        dim: the dimension along which they lie, the sample its outermost factor.
        each: how many places along it belong to one sample, such as the frames of a video.
    """

    dim: int
    each: int = 1

    def mean(self, value: fx.Node, call: Make) -> fx.Node:
        """The mean over all but the samples, ``[batch]``."""
        dim, count = self.dim, tensor_of(value).dim()
        if self.each > 1:
            value = call(aten.unflatten.int, value, dim, [-1, self.each])
            count += 1
        rest = [at for at in range(count) if at != dim]
        return call(aten.mean.dim, value, rest) if rest else value


def places_of_samples(program: Program, value: fx.Node) -> Places | None:
    """Where a value of the full step holds samples; ``None`` if it is the same for all of them.

    Where the batch has no fixed size, only a leading dimension of that size is known to hold them.

    Raises:
        PassError: samples are mixed, or cannot be told apart.
    """
    batch, shape = _batch(program), tensor_of(value).shape
    if not isinstance(batch, int):
        if len(shape) and same_size(shape[0], batch):
            return Places(0)
        raise _refusal(value, "the size of the batch is not fixed")
    samples = find_samples(program, batch)
    if value in samples.misses:
        miss = samples.misses[value]
        raise _refusal(value, f"at %{miss.node.name} {miss.reason}")
    if value not in samples.dims:
        return None
    dim = samples.dims[value]
    return Places(dim, int(shape[dim]) // batch)


def _batch(program: Program) -> int | torch.SymInt:
    """The leading size of the first result that has one."""
    pairs = zip(program.outputs[MAIN], output_args(program.main), strict=True)
    shapes = (
        tensor_of(value).shape
        for output, value in pairs
        if output.kind is OutputKind.USER and isinstance(value, fx.Node)
    )
    return next((shape[0] for shape in shapes if len(shape)), 1)


def _refusal(value: fx.Node, why: str) -> PassError:
    return PassError(
        f"the samples of %{value.name} are not known to stay apart: {why}; give decide=mean"
    )
