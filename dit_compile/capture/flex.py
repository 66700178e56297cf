"""``flex_attention``, whose mask is a nested graph, as attention with the mask as a tensor.

That is what it computes in eager. The mask, one value for each pair of tokens, depends on positions
alone as a rule, and so is computed once for all steps; blocks that it leaves empty are computed.
"""

from __future__ import annotations

import inspect
import math
import operator
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._higher_order_ops.flex_attention import flex_attention, math_attention
from torch._subclasses import FakeTensorMode
from torch.nn.functional import scaled_dot_product_attention

from dit_compile.capture.batched import write_out
from dit_compile.errors import DitcWarning
from dit_compile.ir.hints import hint_of
from dit_compile.ir.program import copy_graph, output_node, placeholders

#: A mask of more bytes is worth a warning.
_LARGE = 2**26


def without_flex_attention(module: fx.GraphModule, mode: FakeTensorMode) -> fx.GraphModule:
    """A graph from Dynamo with all calls of ``flex_attention`` written out; itself without any."""
    if not module.graph.find_nodes(op="call_function", target=flex_attention):
        return module
    module = copy_graph(module)
    for call in module.graph.find_nodes(op="call_function", target=flex_attention):
        _Call(module, call, mode).write_out()
    for node in module.graph.find_nodes(op="get_attr"):
        if not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return module


class _Call:
    """One call of ``flex_attention``.

    Args:
        module: the graph.
        call: the node.
        mode: the fake mode of the graph's values.
    """

    def __init__(self, module: fx.GraphModule, call: fx.Node, mode: FakeTensorMode) -> None:
        self.module, self.call, self.mode = module, call, mode
        bound = inspect.signature(flex_attention.__call__).bind(*call.args, **call.kwargs)
        bound.apply_defaults()
        self.given: dict[str, Any] = bound.arguments
        self.query, self.key, self.value = (self.given[n] for n in ("query", "key", "value"))

    def write_out(self) -> None:
        """Put plain attention in the place of the call."""
        score = self._graph(self.given["score_mod"])
        plain = output_node(score.graph).args[0] is placeholders(score.graph)[0]
        if plain and {user.args[1] for user in self.call.users} <= {0}:
            results = [self._masked_attention()]
        else:
            results = self._dense_attention(score)
        for user in list(self.call.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(results[user.args[1]])  # type: ignore[index]
            self.module.graph.erase_node(user)
        self.module.graph.erase_node(self.call)

    def _graph(self, handle: fx.Node) -> fx.GraphModule:
        found = getattr(self.module, str(handle.target))
        assert isinstance(found, fx.GraphModule)
        return found

    def _masked_attention(self) -> fx.Node:
        """Attention whose scores nothing changes, as torch's own operator."""
        mask = self._graph(self.given["block_mask"][-1])
        buffers = list(self.given["mask_mod_other_buffers"])
        (made,) = self._traced(_mask_of(mask), [self.query, self.key, *buffers])
        with self.module.graph.inserting_after(made):
            new = self.module.graph.call_function(
                scaled_dot_product_attention,
                (self.query, self.key, self.value),
                {"attn_mask": made, "scale": self.given["scale"], "enable_gqa": self._is_grouped()},
            )
        value, users = self.call.meta["example_value"], list(self.call.users)
        first = users[0].meta["example_value"] if users else value[0]
        new.meta = {**self.call.meta, "example_value": first}
        self._warn(made.meta["example_value"])
        return new

    def _dense_attention(self, score: fx.GraphModule) -> list[fx.Node]:
        """Attention with changed scores, operator by operator as in eager."""
        mask = self._graph(self.given["block_mask"][-1])
        scores, masks = (
            list(self.given[f"{name}_other_buffers"]) for name in ("score_mod", "mask_mod")
        )

        def dense(query: Tensor, key: Tensor, value: Tensor, *buffers: Any) -> Sequence[Any]:
            first, second = buffers[: len(scores)], buffers[len(scores) :]
            given = self.given["scale"], self.given["kernel_options"]
            block_mask = (None, mask)
            return list(math_attention(query, key, value, score, block_mask, *given, first, second))

        inputs = [self.query, self.key, self.value, *scores, *masks]
        made = self._traced(dense, inputs)
        query, key = (node.meta["example_value"] for node in (self.query, self.key))
        self._warn(query.new_empty((*query.shape[:-1], key.shape[-2])))
        return made

    def _traced(self, function: Callable[..., Any], inputs: Sequence[Any]) -> list[Any]:
        """Trace ``function`` on the nodes among ``inputs``; what else there is, is as it is."""
        nodes = list(dict.fromkeys(item for item in inputs if isinstance(item, fx.Node)))

        def on_nodes(*values: Any) -> Any:
            given = dict(zip(nodes, values, strict=True))
            return function(*(given[i] if isinstance(i, fx.Node) else i for i in inputs))

        return write_out(self.module, on_nodes, nodes, self.call, self.mode)

    def _is_grouped(self) -> bool:
        heads = [node.meta["example_value"].shape[1] for node in (self.query, self.key)]
        return bool(heads[0] != heads[1])

    def _warn(self, value: Tensor) -> None:
        size = math.prod(map(hint_of, value.shape)) * value.dtype.itemsize
        if size > _LARGE:
            warnings.warn(
                f"ditc: flex_attention is computed with a dense tensor of {size / 2**20:.0f} MiB, "
                "empty blocks included",
                DitcWarning,
                stacklevel=2,
            )


def _mask_of(graph: fx.GraphModule) -> Callable[..., Sequence[Tensor]]:
    """The values of a mask for all pairs of tokens: batch, head, query, key; 1 where all agree."""
    batch, head = (bool(node.users) for node in placeholders(graph.graph)[:2])

    def mask(query: Tensor, key: Tensor, *buffers: Any) -> Sequence[Tensor]:
        def one(b: Tensor, h: Tensor, m: Tensor, n: Tensor) -> Any:
            return graph(b, h, m, n, *buffers)

        for dims in ((None, None, None, 0), (None, None, 0, None), (None, 0, None, None)):
            one = torch.vmap(one, in_dims=dims)
        every = torch.vmap(one, in_dims=(0, None, None, None))
        sizes = (
            query.shape[0] if batch else 1,
            query.shape[1] if head else 1,
            query.shape[-2],
            key.shape[-2],
        )
        made = every(*(torch.arange(size, device=query.device) for size in sizes))
        # a mask that looks at no position is one value for all
        return [made.expand(sizes)]

    return mask
