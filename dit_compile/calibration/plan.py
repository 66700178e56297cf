"""The Plan: a file with every decision that calibration took, tied to a model."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import hexdigits

import torch
from rich.console import Console
from typing_extensions import Self

from dit_compile.calibration.curve import curve_table, save_curve
from dit_compile.calibration.depth import Depths, depths_of
from dit_compile.calibration.fitting import fit
from dit_compile.calibration.measured import Measured
from dit_compile.calibration.measurements import Measurements, digest, pack, unpack
from dit_compile.errors import PlanError
from dit_compile.files import write_atomically
from dit_compile.ir.fake import tensor_of
from dit_compile.ir.program import InputKind, Program, placeholders
from dit_compile.json_files import JsonError, read_as, read_json
from dit_compile.pipeline.pipeline import Pipeline
from dit_compile.report.terminal import terminal

#: Goes up when a file of an earlier version can no longer be read.
VERSION = 1
_SAMPLE = 64
#: Digits of its hash in the name of a file of measurements.
_HASH = 16


@dataclass(frozen=True)
class Weight:
    """What a Plan knows of a weight.

    Attributes:
        shape: its shape.
        sample: the sum of a few elements, spread over it.
    """

    shape: tuple[int, ...]
    sample: float

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Self:
        """What is to be known of ``tensor``."""
        flat = tensor.detach().reshape(-1)
        spread = flat[:: max(1, flat.numel() // _SAMPLE)]
        return cls(tuple(tensor.shape), float(spread.double().abs().sum()))

    def alike(self, other: Weight) -> bool:
        """Whether the elements are the same up to rounding in half precision."""
        return math.isclose(self.sample, other.sample, rel_tol=1e-2, abs_tol=1e-6)


@dataclass(frozen=True)
class Trial:
    """One pipeline that calibration tried.

    Attributes:
        passes: its text.
        psnr: dB against the uncached samples.
        rel_l2: relative L2 error against them.
        flop_ratio: operations of the uncached sampling over its own.
        seconds: wall time of its sampling; compilation apart.
        speed_up: wall time of the uncached sampling over its own.
    """

    passes: str
    psnr: float
    rel_l2: float
    flop_ratio: float
    seconds: float
    speed_up: float


@dataclass(frozen=True)
class Plan:
    """Decisions for one model.

    Attributes:
        passes: the text of the pipeline, with all that calibration found.
        steps: steps of the calibrated generations.
        weights: what is known of the model's weights, by path.
        depths: how deep the model's graphs were that ran; empty if nothing had to run.
        curve: what was tried, if a budget was given.
        made_with: versions of ditc and torch.
        measured: what calibration recorded, by the text of the pipeline that recorded it; empty if
            nothing had to be, or its file is gone.
    """

    passes: str
    steps: int
    weights: Mapping[str, Weight]
    curve: Sequence[Trial] = ()
    made_with: Mapping[str, str] = field(default_factory=dict)
    measured: Measurements = field(default_factory=dict)
    depths: Sequence[Depths] = ()

    def fitted(self, passes: str) -> Self:
        """The Plan for another pipeline, from what was recorded: nothing is sampled.

        Args:
            passes: the pipeline, such as this one with another threshold.

        Raises:
            PlanError: it must be told what was not recorded.
            PipelineError: it is no pipeline.
        """

        def known(recording: Pipeline) -> Measured:
            if str(recording) not in self.measured:
                raise PlanError(
                    f"the plan has no measurements by {recording}; sample with ditc.calibrate"
                )
            return self.measured[str(recording)]

        return dataclasses.replace(self, passes=str(fit(Pipeline.parse(passes), known)), curve=())

    def print(self, console: Console | None = None) -> None:
        """Write what was tried to the terminal, as a table."""
        (console or terminal()).print(curve_table(self.curve, self.passes))

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Draw what was tried, PSNR over the ratio of operations, as a PNG.

        Raises:
            PlanError: nothing was tried, since no budget was given.
            MissingDependencyError: matplotlib is missing.
        """
        if not self.curve:
            raise PlanError("there is no curve to plot; give ditc.calibrate a budget")
        return save_curve(path, self.curve)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the Plan as JSON, and what was recorded beside it as safetensors.

        The other file of ``my.plan.json`` is ``my.plan.<hash>.safetensors``, and the JSON names it.
        It is written first and the one of an earlier Plan removed last, so that at every moment
        the JSON is that of one Plan with its own measurements.

        Returns:
            The path of the JSON.

        Raises:
            OSError: a file cannot be written.
        """
        target = Path(path)
        data = {"version": VERSION, **dataclasses.asdict(self)}
        if self.measured:
            packed = pack(self.measured)
            name = f"{target.stem}.{digest(packed)[:_HASH]}.safetensors"
            write_atomically(target.with_name(name), packed)
            data["measured"] = {"file": name, "sha256": digest(packed)}
        before = _named(target)
        write_atomically(target, json.dumps(data, indent=1) + "\n")
        if before is not None and _is_own(before, target) and before != _named(target):
            with contextlib.suppress(OSError):
                target.with_name(before).unlink()
        return target

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a Plan.

        Raises:
            PlanError: there is no such file, or it is no Plan of this version.
        """
        saved = _Saved.read(Path(path))
        measured = saved.measurements(Path(path).parent)
        if measured is None:  # its file is gone: perhaps because another Plan was saved just now
            saved = _Saved.read(Path(path))
            measured = saved.measurements(Path(path).parent)
        return cls(
            saved.passes,
            saved.steps,
            saved.weights,
            saved.curve,
            saved.made_with,
            measured or {},
            saved.depths,
        )

    @classmethod
    def of(cls, plan: Self | str | os.PathLike[str]) -> Self:
        """A Plan, or the one in a file.

        Raises:
            PlanError: there is no such file, or it is no Plan of this version.
        """
        return plan if isinstance(plan, cls) else cls.load(plan)  # type: ignore[arg-type]

    def pipeline(self) -> Pipeline:
        """The pipeline, ready to run."""
        return Pipeline.parse(self.passes)

    def check(self, captured: Program) -> None:
        """Raise if the Plan was made for another structure than that of a captured Program.

        Raises:
            PlanError: naming the first weight or list of modules that differs.
        """
        for node in placeholders(captured.main):
            spec = captured.inputs[str(node.target)]
            if spec.kind is not InputKind.WEIGHT:
                continue
            known, shape = self.weights.get(spec.path), tuple(map(int, tensor_of(node).shape))
            if known is None or known.shape != shape:
                misfit = f"it knows no weight {spec.path}"
                if known is not None:
                    misfit = f"{spec.path} is {list(shape)}, not {list(known.shape)}"
                raise _another(misfit)
        depths = depths_of(captured)
        if self.depths and depths not in self.depths:
            raise _another(_misfit(depths, self.depths))

    def strange(self, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Paths of the weights that have other values than when the Plan was made."""
        return [
            path
            for path, tensor in tensors.items()
            if path in self.weights and not Weight.of(tensor).alike(self.weights[path])
        ]


def _another(misfit: str) -> PlanError:
    return PlanError(
        f"the plan was made for another model: {misfit}; calibrate this one, as it is sampled"
    )


def _misfit(depths: Depths, known: Sequence[Depths]) -> str:
    """The first list of modules that is not as deep as in the likest of the known graphs."""
    likest = min(known, key=lambda each: len(depths.items() ^ each.items()))
    path = next(each for each in {**likest, **depths} if likest.get(each) != depths.get(each))
    there, here = (_last(path, each) for each in (likest, depths))
    return f"{path} ends with {there} there and with {here} here"


def _last(path: str, depths: Depths) -> str:
    return f"number {depths[path]}" if path in depths else "none"


@dataclass(frozen=True)
class _Saved:
    """A Plan as its file has it; ``measured`` has the name and the hash of the file beside it."""

    passes: str
    steps: int
    weights: Mapping[str, Weight]
    curve: Sequence[Trial]
    made_with: Mapping[str, str] = field(default_factory=dict)
    measured: Mapping[str, str] = field(default_factory=dict)
    depths: Sequence[Depths] = ()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the JSON of a Plan.

        Raises:
            PlanError: there is no such file, or it is no Plan of this version.
        """
        try:
            data = read_json(path, finite=False)  # equal samples have an infinite PSNR
            if not isinstance(data, dict) or "version" not in data:
                raise JsonError("it is no plan")
        except JsonError as error:
            raise PlanError(f"cannot read the plan {str(path)!r}: {error}") from None
        version = data.pop("version")
        if version != VERSION:
            raise PlanError(
                f"the plan {str(path)!r} has version {version!r}, and this ditc reads {VERSION}; "
                "make it again with ditc.calibrate"
            )
        try:
            saved: Self = read_as(cls, data, "the plan")
            if saved.measured and not {"file", "sha256"} <= saved.measured.keys():
                raise JsonError("measured has no file")
        except JsonError as error:
            raise PlanError(f"the plan {str(path)!r} is damaged: {error}") from None
        return saved

    def measurements(self, folder: Path) -> Measurements | None:
        """What was recorded; ``None`` if its file is gone: decisions do without it.

        Raises:
            PlanError: the file is another one, or leads out of the folder.
        """
        if not self.measured:
            return {}
        name = self.measured["file"]
        if name != os.path.basename(name) or name in ("", ".", ".."):
            raise PlanError(f"the plan names the file {name!r}, which does not lie beside it")
        file = folder / name
        try:
            return unpack(file, self.measured["sha256"])
        except PlanError:
            if os.path.lexists(file):
                raise
            return None


def _named(path: Path) -> str | None:
    """The file of measurements that the Plan at ``path`` names, if there is a Plan."""
    try:
        return _Saved.read(path).measured.get("file")
    except PlanError:
        return None


def _is_own(name: str, path: Path) -> bool:
    """Whether a file of measurements is one that :meth:`Plan.save` wrote for this path."""
    stem, _, digits = name.removesuffix(".safetensors").rpartition(".")
    hashed = stem == path.stem and len(digits) == _HASH and set(digits) <= set(hexdigits)
    return hashed or name == path.with_suffix(".safetensors").name
