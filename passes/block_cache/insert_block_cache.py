"""Insert a cache across steps, by any method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from typing_extensions import Self

from dit_compile.calibration.measured import GUIDANCE, Measured
from dit_compile.errors import PipelineError, suggest
from dit_compile.ir.program import MAIN, Program
from dit_compile.ir.schedule import Row, Schedule
from dit_compile.passes.block_cache.half_batch import add_half
from dit_compile.passes.block_cache.insertion import (
    State,
    add_variant,
    return_states,
    states_of,
    store,
)
from dit_compile.passes.block_cache.interval import Interval
from dit_compile.passes.block_cache.policies import POLICIES
from dit_compile.passes.block_cache.policy import CachePolicy
from dit_compile.passes.block_cache.probe import JUDGE, PROBE, REST, Probe, split
from dit_compile.passes.block_cache.record import Record
from dit_compile.passes.block_cache.second_call import add_second_call
from dit_compile.passes.block_cache.sites import Candidates, Site
from dit_compile.passes.block_cache.worth import state_bytes, within
from dit_compile.pipeline.base import Kind, Pass, changed_fields, coerce, unknown_option
from dit_compile.pipeline.rewriter import Rewriter

_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}

#: Scopes that one recording serves.
_TOGETHER = {"branch", "span"}

_NO_BLOCKS = "no repeated blocks with residual branches were found, so nothing is cached"


@dataclass(frozen=True, kw_only=True)
class InsertBlockCache(Pass):
    """Reuse values of earlier steps, as state that enters and leaves the graph.

    Before:  full:  %y = aten.add(%x, %gate * %attn)
    After:   full:  the same, and %attn is returned as state
             reuse: %y = aten.add(%x, %gate * %state); the attention is gone
    Fires only if: repeated blocks are found, and the policy reuses at all.

    Attributes:
        policy: says what is kept and which steps are computed; its options are this pass's
            options, its name is the option ``method``.
        max_state_bytes: bytes that states may take for each lane; sites that save the fewest
            operations for each byte are left out first. ``None`` for no limit.
        state_dtype: what states are kept in: ``float16``, ``bfloat16`` or ``float32``; ``None`` for
            the dtype of the model.
        only: paths of modules such as ``transformer_blocks.3``; sites that lie in none of them are
            computed at every step. Empty for all sites.
    """

    name: ClassVar[str] = "insert-block-cache"
    kind: ClassVar[Kind] = Kind.APPROX
    after: ClassVar[tuple[str, ...]] = ("remove-noops", "eliminate-common")
    policy: CachePolicy = field(default_factory=Interval)
    max_state_bytes: int | None = None
    state_dtype: str | None = None
    only: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.state_dtype is not None and self.state_dtype not in _DTYPES:
            raise PipelineError(
                f"{self.name}: state-dtype is one of {', '.join(_DTYPES)}, not "
                f"{self.state_dtype!r}{suggest(self.state_dtype, _DTYPES)}"
            )

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Pick the policy by ``method`` and give it the options that are not this pass's own.

        Raises:
            PipelineError: unknown method or option.
        """
        rest = {key.replace("-", "_"): value for key, value in options.items()}
        method = rest.pop("method", "interval")
        if method not in POLICIES:
            raise PipelineError(
                f"{cls.name} has no method {method!r}{suggest(str(method), POLICIES)}; "
                f"methods are {', '.join(POLICIES)}"
            )
        policy = POLICIES[method]
        own = {item.name: item for item in dataclasses.fields(cls) if item.name != "policy"}
        known = {item.name: item for item in dataclasses.fields(policy)} | own
        values = {}
        for name, value in rest.items():
            if name not in known:
                key = name.replace("_", "-")
                raise unknown_option(f"{cls.name}{{method={method}}}", key, known)
            values[name] = coerce(cls.name, name.replace("_", "-"), value, known[name])
        kept = {name: values.pop(name) for name in own if name in values}
        return cls(policy=policy(**values), **kept)

    def to_options(self) -> dict[str, Any]:
        """``method``, and the options that differ from their defaults."""
        own = changed_fields(self)
        own.pop("policy", None)
        return {"method": self.policy.method, **changed_fields(self.policy), **own}

    @property
    def uncalibrated(self) -> str:
        """What its policy must be told by calibration first."""
        return self.policy.uncalibrated

    def recorder(self, also: Sequence[Pass] = ()) -> Self:
        """This pass with a policy that records what its own must be told, and those of others."""
        scopes = {self.uncalibrated, *(other.uncalibrated for other in also)}
        both = self.uncalibrated in _TOGETHER and scopes >= _TOGETHER
        return dataclasses.replace(self, policy=Record(scope="all" if both else self.uncalibrated))

    def own(self, measured: Measured) -> Measured:
        """The branches or the span, whichever its policy must be told."""
        return Record(scope=self.uncalibrated).of(measured)

    def fitted(self, measured: Measured) -> Self:
        """This pass with what calibration measured."""
        return dataclasses.replace(self, policy=self.policy.fitted(measured))

    def ladder(self) -> Sequence[Self]:
        """This pass with each setting of its policy."""
        return [dataclasses.replace(self, policy=policy) for policy in self.policy.ladder()]

    def parts(self, program: Program) -> Mapping[str, Self]:
        """This pass in each block alone, where its sites lie in blocks."""
        found = Candidates(program)
        sites = self.policy.sites(found) if found.stacks else []
        blocks = dict.fromkeys(block.path for stack in found.stacks for block in stack.blocks)
        return {
            path: dataclasses.replace(self, only=(path,))
            for path in blocks
            if any(_lies_in(site, path) for site in sites)
        }

    def run(self, program: Program, rw: Rewriter) -> None:
        """Return what is kept as state, and make one variant for each row of the policy."""
        if program.schedule.stateful:
            raise PipelineError(f"{self.name} is in the pipeline twice; leave one out")
        rw.graph_name = MAIN
        if self.policy.half or self.policy.second_call:
            self._leave_out(program, rw)
            return
        found = Candidates(program)
        sites, rows = _first(rw.left, *self._decide(found, rw))
        if not (rows or self.policy.records):
            return
        groups = tuple(dict.fromkeys(site.group for site in sites))
        dtype = _DTYPES[self.state_dtype] if self.state_dtype else None
        states = store(rw, sites, depth=self.policy.depth, dtype=dtype)
        return_states(program, MAIN, states)
        probe = self.policy.probe(found)
        named = tuple((state.names[0], state.group) for state in states)
        if probe is None:
            variants = _add_variants(program, MAIN, states, groups, rows)
            program.schedule = Schedule(MAIN, self.policy, groups, named, variants)
        else:
            variants = _add_probed(program, rw, probe, states, groups, rows)
            program.schedule = Schedule(REST, self.policy, groups, named, variants, PROBE, JUDGE)
        rw.note(f"{len(variants)} variants, {len(sites)} sites, {self.policy.describe()}")

    def _leave_out(self, program: Program, rw: Rewriter) -> None:
        """Make a variant without one of guidance's predictions, where the policy may skip it."""
        if self.max_state_bytes is not None or self.state_dtype is not None or self.only:
            raise PipelineError(
                f"{self.name}: method={self.policy.method} keeps no values of blocks; leave out "
                "max-state-bytes, state-dtype and only"
            )
        policy, groups = self.policy, (GUIDANCE,)
        if not policy.records and (0,) not in policy.rows(groups):
            rw.warn(f"{policy.describe()} computes every step, so no cache is inserted")
            return
        depth = policy.depth if policy.directions else 0
        if policy.half:
            made = add_half(program, rw, policy.half, depth=depth, records=policy.records)
        else:
            made = add_second_call(program, rw, depth=depth, records=policy.records)
        if made is None:
            return
        variants = [((1,), MAIN), *([((0,), made.graph)] if made.graph else [])]
        named = tuple((state.names[0], state.group) for state in made.states)
        program.schedule = Schedule(
            MAIN, policy, groups, named, tuple(variants), critic=made.critic
        )
        rw.note(f"{len(variants)} variants, {policy.describe()}")

    def _decide(self, found: Candidates, rw: Rewriter) -> tuple[Sequence[Site], Sequence[Row]]:
        """The sites that may be kept, and the policy's rows of their groups."""
        sites = self.policy.sites(found) if found.stacks else []
        if not sites:
            if not found.stacks:
                rw.note(_NO_BLOCKS)
            else:
                rw.warn(f"{self.policy.describe()} may reuse nothing here, so nothing is cached")
            return [], []
        if self.only:
            sites = self._asked_for(sites)
        if self.max_state_bytes is not None:
            sites = self._affordable(sites, self.max_state_bytes, found, rw)
        if not sites:
            return [], []
        if self.policy.records:
            return sites, []
        groups = list(dict.fromkeys(site.group for site in sites))
        rows = [row for row in self.policy.rows(groups) if not all(row)]
        reused = {group for row in rows for group, has in zip(groups, row, strict=True) if not has}
        if not rows:
            rw.warn(f"{self.policy.describe()} computes every step, so no cache is inserted")
        kept = [site for site in sites if site.group in reused]
        columns = [groups.index(group) for group in groups if group in reused]
        return kept, list(dict.fromkeys(tuple(row[i] for i in columns) for row in rows))

    def _affordable(
        self, sites: Sequence[Site], max_bytes: int, found: Candidates, rw: Rewriter
    ) -> Sequence[Site]:
        """The sites whose states fit ``max_bytes`` beside what a probe keeps."""
        probe = self.policy.probe(found)
        spent = state_bytes((probe.measured,), found) if probe else 0
        dtype = _DTYPES[self.state_dtype] if self.state_dtype else None
        sizes = {site: state_bytes(site.kept, found, dtype) * self.policy.depth for site in sites}
        return within(sizes, max_bytes, spent, found, rw)

    def _asked_for(self, sites: Sequence[Site]) -> Sequence[Site]:
        """The sites that ``only`` names.

        Raises:
            PipelineError: a path has none.
        """
        for path in self.only:
            if not any(_lies_in(site, path) for site in sites):
                known = [site.path for site in sites]
                raise PipelineError(
                    f"{self.name}: only={path} has no site{suggest(path, known)}; "
                    f"the first of {len(known)} sites is {known[0]}"
                )
        return [site for site in sites if any(_lies_in(site, path) for path in self.only)]


def _lies_in(site: Site, path: str) -> bool:
    """Whether all of a site's work is that of one module."""
    return f"{site.path}.".startswith(f"{path}.") and ".." not in site.path


def _first(
    count: int | None, sites: Sequence[Site], rows: Sequence[Row]
) -> tuple[Sequence[Site], Sequence[Row]]:
    """The first ``count`` sites, and the rows that still reuse some; ``None`` for all."""
    known = list(dict.fromkeys(site.group for site in sites))
    kept = sites[:count]
    columns = [known.index(group) for group in dict.fromkeys(site.group for site in kept)]
    left = dict.fromkeys(tuple(row[i] for i in columns) for row in rows)
    return kept, [row for row in left if not all(row)]


def _add_variants(
    program: Program,
    source: str,
    states: Sequence[State],
    groups: Sequence[str],
    rows: Sequence[Row],
    **how: Any,
) -> tuple[tuple[Row, str], ...]:
    """A graph for each row, ``source`` for the row of ones.

    Args:
        program: the Program.
        source: the graph that computes everything.
        states: all states.
        groups: what the entries of a row stand for.
        rows: rows that reuse something.
        how: further arguments of :func:`add_variant`.
    """
    variants = [((1,) * len(groups), source)]
    for row in rows:
        name = "reuse" if len(rows) == 1 else f"reuse_{len(variants)}"
        reused = [group for group, has in zip(groups, row, strict=True) if not has]
        add_variant(program, name, source, states, reused, **how)
        variants.append((row, name))
    return tuple(variants)


def _add_probed(
    program: Program,
    rw: Rewriter,
    probe: Probe,
    states: Sequence[State],
    groups: Sequence[str],
    rows: Sequence[Row],
) -> tuple[tuple[Row, str], ...]:
    """Split each step at the probe; the variants are of what comes after it."""
    site = Site("probe", "probe", (probe.measured,), frozenset())
    measured = states_of(rw, site)
    return_states(program, MAIN, measured)
    carried = split(program, probe, measured[0])
    held = () if probe.always else ("probe",)
    all_states = [*states, *measured]
    return _add_variants(program, REST, all_states, groups, rows, held=held, carried=carried)
