"""A bundle, loaded: called like the model that it was exported from."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from dit_compile.bundle import prepacked
from dit_compile.bundle.arrays import bound, check_sizes, is_torch
from dit_compile.bundle.folder import checked_files, read_manifest
from dit_compile.bundle.manifest import Manifest
from dit_compile.bundle.policy import from_data
from dit_compile.bundle.runner import Runner
from dit_compile.bundle.sessions import RuntimeOptions
from dit_compile.errors import OptionError, UntrustedBundleError
from dit_compile.ir.interface import PROLOGUE, ROWS, TABLE, Compared, OutputKind
from dit_compile.pipeline.registry import find_runner
from dit_compile.runtime.elements import match
from dit_compile.runtime.generation import Call, Hold, Kept, Tracker
from dit_compile.runtime.session import current
from dit_compile.runtime.sight import Sight
from dit_compile.runtime.steps import Returned, Steps, Values
from dit_compile.runtime.table import Key, foreseen, forget, key_of
from dit_compile.runtime.timetable import Times

#: Why a format is not loaded unless the bundle is trusted.
_DANGERS = {
    "pt2": "whose files may hold pickles, and those can run any code",
    "aoti": "whose package is machine code",
}
#: Rows from which on it is faster to compute them together, filled up as they are.
_WORTHWHILE = 3


@dataclass
class _Prepared:
    """What is known of a lane's steps before they run: the prologue's values, the table's rows."""

    values: Values
    rows: dict[Key, Values] = field(default_factory=dict)


class LoadedProgram:
    """Runs a bundle's graphs, keeping state in the current Session.

    Call it like the model: arrays in the model's order or by name, a tuple of arrays back. If any
    argument is a tensor of torch, so are the results. ``with ditc.session(loaded, timesteps=...)``
    states the loop, as for a compiled model.

    Args:
        manifest: what the bundle holds.
        runner: runs its graphs.
    """

    def __init__(self, manifest: Manifest, runner: Runner) -> None:
        self.manifest = manifest
        self.schedule = from_data(manifest.schedule)
        self.hold: Hold = runner.hold
        given = Compared.of(manifest.interface())
        shapes = {v.name: v.shape for v in manifest.inputs if v.name in given.latents}
        denoised = match(shapes, [result.shape for result in manifest.results])
        self._sight = Sight(manifest.interface(), runner.elements(denoised))
        self.clock = self._sight.clock
        self.origin: object = self
        self._graphs = runner
        self._steps = Steps(self.schedule, manifest.interface(), self._run, self._vector)

    @property
    def stateful(self) -> bool:
        """Whether steps depend on earlier ones."""
        return self.schedule.stateful

    def __call__(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Run one step.

        Args:
            args: the inputs in order.
            kwargs: the inputs by name.

        Returns:
            The results in order.

        Raises:
            OptionError: the arguments are not those of the exported model.
            BackendError: a graph failed.
        """
        given = bound(self.manifest.inputs, self.manifest.fixed, args, kwargs)
        inputs = self.manifest.inputs
        values: Values = {v.name: self._graphs.take(v, given[v.name]) for v in inputs}
        check_sizes(inputs, values)
        as_torch = any(map(is_torch, given.values()))
        return tuple(self._graphs.give(v, as_torch=as_torch) for v in self._step(values))

    def _step(self, values: Values) -> tuple[Any, ...]:
        tracker, form = current((self,)).follow(self, ())
        latents = self.stateful or tracker.clock is None
        with tracker.lock:
            try:
                call = self._sight.look(values, latents=latents)
                place = tracker.place(call, form)
                self.clock = self.clock or tracker.clock
                self._fill(values, call, place.kept, tracker)
                results = self._steps.serve(values, place).returned.results
                if latents:
                    self._sight.record(tracker, place, values, results)
            except BaseException:
                tracker.end()
                raise
        return results

    def _fill(self, values: Values, call: Call, kept: Kept, tracker: Tracker) -> None:
        """Add what graphs that run ahead of the steps return, computed when it is not known yet."""
        if kept.prepared is None:
            ready = PROLOGUE in self.manifest.graphs
            kept.prepared = _Prepared(self._run(PROLOGUE, values).named if ready else {})
        values.update(kept.prepared.values)
        if TABLE not in self.manifest.graphs:
            return
        reads = self.manifest.graphs[TABLE].inputs
        clock = [name for name in call.times if name in reads]
        key = key_of(call.times, clock)
        rows = kept.prepared.rows
        if key not in rows:
            expected = {key_of(t, clock): t for t in self._foreseen(tracker, clock, call)}
            missing = {k: times for k, times in expected.items() if k not in rows}
            if len(missing) >= _WORTHWHILE:
                rows.update(self._rows(values, clock, missing))
            if key not in rows:
                rows[key] = self._run(TABLE, values).named
            forget(rows, key)
        values.update(rows[key])

    def _foreseen(self, tracker: Tracker, clock: list[str], call: Call) -> Sequence[Times]:
        """The timesteps to come, this one among them, where one table can serve several."""
        if len(self.manifest.rows) != 1 or len(clock) != 1:
            return []
        dtype = self.manifest.rows[0].dtype

        def rounded(_: str, numbers: Sequence[float]) -> Any:
            return self._graphs.array(numbers, dtype, [len(numbers)])

        return foreseen(tracker, call.times, clock, rounded)

    def _rows(
        self, values: Values, clock: list[str], missing: Mapping[Key, Times]
    ) -> dict[Key, Values]:
        """The table's values at several timesteps, as many at a time as its graph takes."""
        (spec,) = self.manifest.rows
        shape = [int(size) for size in spec.shape]
        found: dict[Key, Values] = {}
        keys = list(missing)
        for start in range(0, len(keys), shape[0]):
            some = keys[start : start + shape[0]]
            filled = [*some, *[some[-1]] * (shape[0] - len(some))]
            numbers = [missing[key][clock[0]] for key in filled]
            times = self._graphs.array(numbers, spec.dtype, shape)
            table = self._run(ROWS, {**values, spec.name: times}).named
            for i, key in enumerate(some):
                found[key] = {name: value[i] for name, value in table.items()}
        return found

    def _run(self, name: str, values: Values) -> Returned:
        """Run a graph and sort its outputs by what they are for."""
        results: list[Any] = []
        done = Returned()
        returned = self._graphs.run(name, values)
        for output, value in zip(self.manifest.graphs[name].outputs, returned, strict=True):
            if output.kind == OutputKind.USER.value:
                results.append(value)
            elif output.kind == OutputKind.MEASURE.value:
                done.measure = float(value)
            else:
                done.named[output.value] = value
        done.results = tuple(results)
        return done

    def _vector(self, name: str, row: Sequence[float]) -> Any:
        return self._graphs.array(row, "float32", [len(row)])


def load(
    path: str | os.PathLike[str],
    *,
    providers: Sequence[str | tuple[str, Mapping[str, Any]]] = ("CPUExecutionProvider",),
    intra_op_num_threads: int = 0,
    allow_fallback: bool = False,
    prepack: bool | Literal["once"] = True,
    session_options: Any = None,
    verify: bool = True,
    trust: bool = False,
) -> LoadedProgram:
    """Load a bundle that ``ditc.export`` wrote.

    One of the format ``onnx`` needs onnxruntime and numpy alone, and runs no code of its own. Those
    of the other formats need torch, and the files of such a bundle can do whatever you can.

    Args:
        path: the bundle's folder.
        providers: ONNX Runtime's execution providers, the first one preferred.
        intra_op_num_threads: threads within an operator; 0 leaves it to ONNX Runtime.
        allow_fallback: let another provider run what the first one cannot, which is an error
            otherwise.
        prepack: lay weights out anew for speed; without it they stay mapped from the file, in
            least memory. ``"once"`` lays them out for this machine and keeps that in ditc's cache
            folder, which takes twice the weights' space: later loads, of other processes too, map
            it from there and share its memory.
        session_options: an ``onnxruntime.SessionOptions`` to start from.
        verify: compare the hash of each file with the manifest's; without it, sizes alone.
        trust: you know who made the bundle; the formats ``pt2`` and ``aoti`` are refused without.

    Raises:
        BundleError: the bundle is damaged.
        UntrustedBundleError: it can run code of its own, and ``trust`` is not set.
        MissingDependencyError: what runs it is not installed.
        OptionError, BackendError: a provider is not there, a graph cannot be loaded, or weights
            cannot be laid out once.
    """
    folder = Path(path)
    if isinstance(providers, str):
        raise OptionError(f"providers takes a list of names, such as [{providers!r}]")
    options = RuntimeOptions(
        tuple(providers), intra_op_num_threads, allow_fallback, prepack, session_options
    )
    manifest = read_manifest(folder)
    if manifest.format in _DANGERS and not trust:
        raise UntrustedBundleError(
            f"{str(path)!r} is of the format {manifest.format}, {_DANGERS[manifest.format]}; if "
            "you know who made it, pass trust=True, or --trust"
        )
    kept = prepacked.laid_out(folder, manifest, options) if prepack == "once" else None
    with checked_files(folder, manifest, verify=verify and kept is None):
        runner = find_runner(manifest.format)(kept or folder, manifest, options)
    return LoadedProgram(manifest, runner)
