"""Insert a cache across steps, by any method."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from typing_extensions import Self

from dit_compile.analysis.blocks import find_stacks
from dit_compile.errors import PipelineError, suggest
from dit_compile.ir.program import MAIN, Program
from dit_compile.ir.schedule import Schedule
from dit_compile.passes.block_cache.insertion import Site, add_state_outputs, make_variant
from dit_compile.passes.block_cache.interval import Interval
from dit_compile.passes.block_cache.policies import POLICIES
from dit_compile.pipeline.base import Kind, Pass, changed_fields, coerce, unknown_option
from dit_compile.pipeline.rewriter import Rewriter


@dataclass(frozen=True, kw_only=True)
class InsertBlockCache(Pass):
    """Reuse branch outputs of earlier steps, as state that enters and leaves the graph.

    Before:  full:  %y = aten.add(%x, %gate * %attn)
    After:   full:  the same, and %attn is returned as state
             reuse: %y = aten.add(%x, %gate * %state); the attention is gone
    Fires only if: repeated blocks with residual branches are found, and the policy reuses at all.

    Attributes:
        policy: says which steps are computed; its options are this pass's options, its name is
            the option ``method``.
    """

    name: ClassVar[str] = "insert-block-cache"
    kind: ClassVar[Kind] = Kind.APPROX
    after: ClassVar[tuple[str, ...]] = ("remove-noops", "eliminate-common")
    policy: Interval = field(default_factory=Interval)

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Pick the policy by ``method`` and give it the other options.

        Raises:
            PipelineError: unknown method or option.
        """
        rest = dict(options)
        method = rest.pop("method", "interval")
        if method not in POLICIES:
            raise PipelineError(
                f"{cls.name} has no method {method!r}{suggest(str(method), POLICIES)}; "
                f"methods are {', '.join(POLICIES)}"
            )
        policy = POLICIES[method]
        known = {item.name: item for item in dataclasses.fields(policy)}
        values = {}
        for key, value in rest.items():
            name = key.replace("-", "_")
            if name not in known:
                raise unknown_option(f"{cls.name}{{method={method}}}", key, known)
            values[name] = coerce(cls.name, key, value, known[name])
        return cls(policy=policy(**values))

    def to_options(self) -> dict[str, Any]:
        """``method`` and the policy's options that differ from their defaults."""
        method = next(name for name, kind in POLICIES.items() if kind is type(self.policy))
        return {"method": method, **changed_fields(self.policy)}

    def run(self, program: Program, rw: Rewriter) -> None:
        """Return every branch's output as state, and make one variant for each other mask row."""
        rows = [row for row in self.policy.rows() if not all(row)]
        if not rows:
            rw.note(f"{self.policy.describe()} computes every step, so no cache is inserted")
            return
        if program.schedule.stateful:
            raise PipelineError(f"{self.name} is in the pipeline twice; leave one out")
        rw.graph_name = MAIN
        sites = [
            Site(branch.path, branch.output)
            for stack in find_stacks(program)
            for block in stack.blocks
            for branch in block.branches
        ]
        if not sites:
            rw.note("no repeated blocks with residual branches were found, so nothing is cached")
            return
        for site in sites:
            rw.begin(site.node)
        names = add_state_outputs(program, sites)
        variants = [((1,) * len(rows[0]), MAIN)]
        for row in rows:
            name = "reuse" if len(rows) == 1 else f"reuse_{len(variants)}"
            make_variant(program, name, sites, names)
            variants.append((row, name))
        program.schedule = Schedule(MAIN, self.policy, tuple(variants))
        rw.note(f"{len(variants)} variants, {len(sites)} sites, {self.policy.describe()}")
