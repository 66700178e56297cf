"""Costs against closed forms, torch's own counter, and each other under substitution."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import sympy
import torch
import torch.nn.functional as F
from diffusers import DiTTransformer2DModel
from torch import fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dit_compile.analysis.cost import (
    Cost,
    bound_parts,
    cost_of,
    graph_bound,
    graph_cost,
    node_cost,
)
from dit_compile.analysis.cost_rules import einsum_flops, is_view
from dit_compile.analysis.roofline import Roofline
from dit_compile.errors import AnalysisError
from dit_compile.ir.hints import symbol_hints
from dit_compile.ir.schema import argument

aten = torch.ops.aten
FAST = Roofline("cpu", {"float32": 1e9, "bfloat16": 4e9}, 1e6)


class _Function(nn.Module):
    def __init__(self, function: Callable[..., Any], *weights: torch.Tensor) -> None:
        super().__init__()
        self.function = function
        self.weights = nn.ParameterList(nn.Parameter(w, requires_grad=False) for w in weights)

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(*args, *self.weights)


def _export(
    module: nn.Module, args: tuple[Any, ...], dynamic: Any = None, **kwargs: Any
) -> tuple[fx.Graph, set[fx.Node]]:
    """The graph of ``module`` and its weights."""
    program = torch.export.export(module.eval(), args, kwargs, dynamic_shapes=dynamic)
    program = program.run_decompositions({})
    signature = program.graph_signature
    held = {*signature.inputs_to_parameters, *signature.inputs_to_buffers}
    return program.graph, {
        node for node in program.graph.find_nodes(op="placeholder") if node.name in held
    }


def _of(
    function: Callable[..., Any], *args: torch.Tensor, weights: tuple[torch.Tensor, ...] = ()
) -> tuple[fx.Graph, set[fx.Node]]:
    return _export(_Function(function, *weights), args)


def _find(graph: fx.Graph, target: Any) -> fx.Node:
    node: fx.Node
    (node,) = graph.find_nodes(op="call_function", target=target)
    return node


def _cost(target: Any, graph: fx.Graph, weights: set[fx.Node]) -> tuple[int, int, int, int]:
    value = node_cost(_find(graph, target), weights).evaluate()
    return value.flops, value.bytes_read, value.bytes_written, value.parameter_bytes


class TestClosedForms:
    def test_linear(self) -> None:
        graph, weights = _of(
            F.linear, torch.randn(2, 5, 8), weights=(torch.randn(3, 8), torch.randn(3))
        )
        assert _cost(aten.linear.default, graph, weights) == (
            2 * 2 * 5 * 8 * 3,
            4 * (2 * 5 * 8 + 3 * 8 + 3),
            4 * 2 * 5 * 3,
            4 * (3 * 8 + 3),
        )

    def test_bfloat16_is_half_the_bytes(self) -> None:
        wide = _of(F.linear, torch.randn(2, 8), weights=(torch.randn(3, 8),))
        half = _of(F.linear, torch.randn(2, 8).bfloat16(), weights=(torch.randn(3, 8).bfloat16(),))
        a, b = (_cost(aten.linear.default, *each) for each in (wide, half))
        assert a == (b[0], *(2 * x for x in b[1:]))

    @pytest.mark.parametrize("keys", [7, 5])
    def test_attention_with_other_keys(self, keys: int) -> None:
        q, k, v = torch.randn(2, 3, 5, 8), torch.randn(2, 3, keys, 8), torch.randn(2, 3, keys, 6)
        graph, weights = _of(F.scaled_dot_product_attention, q, k, v)
        flops, read, written, parameters = _cost(
            aten.scaled_dot_product_attention.default, graph, weights
        )
        assert flops == 2 * (2 * 3) * 5 * keys * (8 + 6)
        assert read == 4 * 6 * (5 * 8 + keys * 8 + keys * 6)
        assert written == 4 * 6 * 5 * 6
        assert parameters == 0

    def test_grouped_heads_are_broadcast(self) -> None:
        q, k = torch.randn(1, 6, 5, 8), torch.randn(1, 2, 5, 8)
        graph, weights = _of(
            lambda q, k: F.scaled_dot_product_attention(q, k, k, enable_gqa=True), q, k
        )
        value = _cost(aten.scaled_dot_product_attention.default, graph, weights)
        assert value[0] == 2 * 2 * 6 * 5 * 5 * 8
        assert value[1] == 4 * (6 * 5 * 8 + 2 * 5 * 8), "keys and values are one tensor, read once"

    @pytest.mark.parametrize(("queries", "keys"), [(4, 4), (3, 5), (5, 3)])
    def test_causal_attention_counts_visible_scores(self, queries: int, keys: int) -> None:
        q, k = torch.randn(1, 1, queries, 8), torch.randn(1, 1, keys, 8)
        graph, weights = _of(
            lambda q, k: F.scaled_dot_product_attention(q, k, k, is_causal=True), q, k
        )
        visible = int(torch.ones(queries, keys).tril().sum())
        assert _cost(aten.scaled_dot_product_attention.default, graph, weights)[0] == (
            2 * 2 * visible * 8
        )

    def test_patch_embedding(self) -> None:
        graph, weights = _export(nn.Conv2d(4, 16, 2, 2), (torch.randn(2, 4, 8, 6),))
        flops, _, written, parameters = _cost(aten.conv2d.default, graph, weights)
        assert flops == 2 * (2 * 16 * 4 * 3) * 4 * 2 * 2
        assert written == 4 * 2 * 16 * 4 * 3
        assert parameters == 4 * (16 * 4 * 2 * 2 + 16)

    @pytest.mark.parametrize(
        ("module", "shape"),
        [
            (nn.Conv1d(4, 8, 3, groups=2), (2, 4, 9)),
            (nn.Conv3d(4, 8, (1, 2, 2), stride=(1, 2, 2)), (1, 4, 2, 4, 6)),
            (nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2), (2, 4, 3, 5)),
            (nn.Linear(4, 3), (2, 5, 4)),
        ],
    )
    def test_agrees_with_torchs_counter(self, module: nn.Module, shape: tuple[int, ...]) -> None:
        graph, weights = _export(module, (torch.randn(shape),))
        assert graph_cost(graph, weights).total.evaluate().flops == _counted(
            module, torch.randn(shape)
        )

    @pytest.mark.parametrize(
        ("left", "right", "flops"),
        [
            ((3, 4), (4, 5), 2 * 60),
            ((2, 3, 4), (2, 4, 5), 2 * 120),
            ((2, 1, 3, 4), (6, 4, 5), 2 * 12 * 60),
            ((4,), (4,), 2 * 4),
            ((3, 4), (4,), 2 * 12),
        ],
    )
    def test_matmul(self, left: tuple[int, ...], right: tuple[int, ...], flops: int) -> None:
        graph, weights = _of(torch.matmul, torch.randn(left), torch.randn(right))
        assert graph_cost(graph, weights).total.evaluate().flops == flops

    @pytest.mark.parametrize("function", [torch.addmm, torch.baddbmm])
    def test_products_with_addition(self, function: Callable[..., Any]) -> None:
        batch = (2,) if function is torch.baddbmm else ()
        graph, weights = _of(
            function,
            torch.randn(*batch, 3, 5),
            torch.randn(*batch, 3, 4),
            torch.randn(*batch, 4, 5),
        )
        assert graph_cost(graph, weights).total.evaluate().flops == 2 * 60 * (2 if batch else 1)

    def test_norms_and_pointwise(self) -> None:
        graph, weights = _of(
            lambda x, w: F.gelu(F.layer_norm(x, (8,)) * F.rms_norm(x, (8,), w)),
            torch.randn(4, 8),
            weights=(torch.randn(8),),
        )
        costs = graph_cost(graph, weights)
        assert costs.total.evaluate().flops == 32 * (5 + 4 + 1 + 1)
        assert costs.total.evaluate().parameter_bytes == 4 * 8
        assert not costs.unknown

    def test_embedding_reads_only_the_rows(self) -> None:
        graph, weights = _of(
            lambda i, w: F.embedding(i, w), torch.tensor([1, 2, 1]), weights=(torch.randn(1000, 4),)
        )
        assert _cost(aten.embedding.default, graph, weights) == (0, 3 * 8 + 3 * 16, 3 * 16, 3 * 16)


class TestEinsum:
    @staticmethod
    def _flops(equation: str, *shapes: tuple[int, ...], path: list[int] | None = None) -> int:
        return int(einsum_flops(equation, [[sympy.Integer(n) for n in s] for s in shapes], path))

    def test_two_operands(self) -> None:
        assert self._flops("bqhd, bkhd -> bhqk", (2, 5, 3, 8), (2, 7, 3, 8)) == 2 * 6 * 5 * 7 * 8
        assert self._flops("ij,jk", (2, 3), (3, 4)) == 2 * 24

    def test_products_without_a_sum(self) -> None:
        assert self._flops("m,d->md", (5,), (7,)) == 35

    def test_one_operand(self) -> None:
        assert self._flops("nhwpqc->nchpwq", (1, 2, 3, 4, 5, 6)) == 0
        assert self._flops("ii->i", (4, 4)) == 0
        assert self._flops("ij->i", (4, 5)) == 20

    def test_ellipsis_broadcasts(self) -> None:
        assert self._flops("...ij,...jk->...ik", (6, 1, 2, 3), (5, 3, 4)) == 2 * 30 * 24

    def test_a_lone_label_is_summed_first(self) -> None:
        assert self._flops("ij,k->k", (4, 5), (7,)) == 20 + 7

    def test_three_operands_in_either_order(self) -> None:
        shapes = ((2, 3), (3, 50), (50, 4))
        assert self._flops("ij,jk,kl->il", *shapes) == 2 * (2 * 3 * 50 + 2 * 50 * 4)
        right_first = self._flops("ij,jk,kl->il", *shapes, path=[1, 2, 0, 1])
        assert right_first == 2 * (3 * 50 * 4 + 2 * 3 * 4)

    @pytest.mark.parametrize(
        ("equation", "shapes"),
        [
            ("bqhd,bkhd->bhqk", ((2, 5, 3, 8), (2, 7, 3, 8))),
            ("bc,ncd->bnd", ((2, 4), (3, 4, 5))),
        ],
    )
    def test_agrees_with_torchs_counter(
        self, equation: str, shapes: tuple[tuple[int, ...], ...]
    ) -> None:
        args = tuple(map(torch.randn, shapes))
        module = _Function(lambda *tensors: torch.einsum(equation, *tensors))
        graph, weights = _export(module, args)
        assert graph_cost(graph, weights).total.evaluate().flops == _counted(module, *args)


class TestViews:
    def test_views_are_free(self) -> None:
        def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            x = x.transpose(1, 2).unsqueeze(0)[..., 1:].permute(0, 3, 1, 2)
            return torch.einsum("abcd->dcba", x).chunk(2, dim=1)

        graph, weights = _of(function, torch.randn(2, 4, 6))
        calls = graph.find_nodes(op="call_function", target=operator.getitem)
        assert calls
        assert graph_cost(graph, weights).total == Cost()

    def test_contiguous_counts_only_if_it_copies(self) -> None:
        graph = fx.Graph()
        x = graph.placeholder("x")
        same = graph.call_function(aten.contiguous.default, (x,))
        flipped = graph.call_function(aten.transpose.int, (x, 0, 1))
        copied = graph.call_function(aten.contiguous.default, (flipped,))
        x.meta["val"] = same.meta["val"] = torch.empty(2, 3, device="meta")
        flipped.meta["val"] = torch.empty(2, 3, device="meta").t()
        copied.meta["val"] = torch.empty(3, 2, device="meta")
        assert [is_view(node) for node in (same, flipped, copied)] == [True, True, False]
        assert node_cost(copied, ()).bytes_written == 24

    def test_expanded_inputs_count_as_stored(self) -> None:
        graph, weights = _of(
            lambda x, y: x * y.expand(6, 5, 4), torch.randn(6, 5, 4), torch.randn(5, 1)
        )
        assert _cost(aten.mul.Tensor, graph, weights) == (120, 4 * (120 + 5), 4 * 120, 0)

    def test_parameters_behind_views(self) -> None:
        graph, weights = _of(
            lambda x, w: x @ w[1].t(), torch.randn(3, 4), weights=(torch.randn(2, 5, 4),)
        )
        assert _cost(aten.matmul.default, graph, weights)[3] == 4 * 20

    def test_nothing_is_counted_without_a_tensor(self) -> None:
        graph = fx.Graph()
        x = graph.placeholder("x")
        x.meta["val"] = torch.empty(2, 3, device="meta")
        graph.call_function(aten._assert_tensor_metadata.default, (x,))
        size = graph.call_function(aten.sym_size.int, (x, 0))
        size.meta["val"] = 2
        graph.output(x)
        assert graph_cost(graph, ()).total == Cost()
        assert not graph_cost(graph, ()).unknown


@pytest.fixture(scope="module")
def namespace() -> Iterator[Any]:
    """Operators that nobody knows: untagged, pointwise, and one to register a formula for."""
    library: Any = torch.library.Library("ditc_cost_test", "DEF")  # type: ignore[no-untyped-call]
    for name, tags in (("blur", ()), ("glow", (torch.Tag.pointwise,)), ("product", ())):
        library.define(f"{name}(Tensor x, Tensor? w=None, int k=3) -> Tensor", tags=tags)
    yield torch.ops.ditc_cost_test
    library._destroy()


class TestRegistry:
    @staticmethod
    def _call(target: Any, *sizes: int) -> fx.Graph:
        graph = fx.Graph()
        x = graph.placeholder("x")
        y = graph.call_function(target, (x,))
        x.meta["val"] = y.meta["val"] = torch.empty(sizes, device="meta")
        graph.output(y)
        return graph

    def test_unknown_operators_are_listed(self, namespace: Any) -> None:
        costs = graph_cost(self._call(namespace.blur.default, 4, 5), ())
        assert costs.unknown == {"ditc_cost_test.blur.default": 1}
        assert costs.total == Cost(20, 80, 80, 0)

    def test_tagged_pointwise_is_known(self, namespace: Any) -> None:
        costs = graph_cost(self._call(namespace.glow.default, 4, 5), ())
        assert not costs.unknown
        assert costs.total.flops == 20

    def test_a_formula_for_a_new_operator(self, namespace: Any) -> None:
        @cost_of(namespace.product, heavy=True)
        def product(node: fx.Node) -> sympy.Expr:
            return 7 * argument(node, "k")

        graph = self._call(namespace.product.default, 4, 5)
        costs = graph_cost(graph, ())
        assert costs.total.flops == 21
        assert not costs.unknown
        assert bound_parts(graph, (), FAST).flops == 21
        with pytest.raises(AnalysisError, match="already"):
            cost_of(namespace.product)(product)

    def test_modules_are_refused(self) -> None:
        traced = fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2)))
        with pytest.raises(AnalysisError, match="call_module"):
            graph_cost(traced.graph, ())

    def test_weights_of_another_graph_are_refused(self) -> None:
        graph, _ = _of(torch.sin, torch.randn(2))
        _, weights = _of(torch.mul, torch.randn(2), weights=(torch.randn(2),))
        with pytest.raises(AnalysisError, match="not a node of this graph"):
            graph_cost(graph, weights)


def _counted(module: nn.Module, *args: Any, **kwargs: Any) -> int:
    """What torch's counter says; attention as the matrix products that it stands for."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(*args, **kwargs)
    return int(counter.get_total_flops())


def _model(blocks: int) -> tuple[nn.Module, dict[str, Any]]:
    model = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=blocks,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=10,
    )
    return model.eval(), {
        "timestep": torch.tensor([1, 1]),
        "class_labels": torch.tensor([1, 2]),
        "return_dict": False,
    }


@cache
def _model_graph(blocks: int) -> tuple[fx.Graph, set[fx.Node]]:
    model, inputs = _model(blocks)
    return _export(model, (torch.randn(2, 4, 8, 8),), **inputs)


class TestModel:
    def test_products_agree_with_torchs_counter(self) -> None:
        model, inputs = _model(2)
        graph, weights = _model_graph(2)
        costs = graph_cost(graph, weights)
        heavy = {
            aten.linear.default,
            aten.conv2d.default,
            aten.scaled_dot_product_attention.default,
        }
        ours = Cost.sum(cost for node, cost in costs.per_node.items() if node.target in heavy)
        assert ours.evaluate().flops == _counted(model, torch.randn(2, 4, 8, 8), **inputs)
        assert not costs.unknown

    def test_each_block_costs_the_same(self) -> None:
        totals = [graph_cost(*_model_graph(blocks)).total.evaluate() for blocks in (1, 2, 3)]
        for name in ("flops", "bytes_read", "bytes_written", "parameter_bytes"):
            one, two, three = (getattr(total, name) for total in totals)
            assert three - two == two - one > 0

    def test_grouping_sums_to_the_total(self) -> None:
        graph, weights = _model_graph(2)
        costs = graph_cost(graph, weights)

        def attention(node: fx.Node) -> str:
            stack = node.meta.get("nn_module_stack") or {}
            return next((path for path, _ in stack.values() if path.endswith(".attn1")), "")

        groups = costs.by(attention)
        assert set(groups) == {"", *(f"transformer_blocks.{i}.attn1" for i in (0, 1))}
        assert Cost.sum(groups.values()) == costs.total
        assert groups["transformer_blocks.0.attn1"] == groups["transformer_blocks.1.attn1"]

    def test_bound_is_near_the_weights_for_few_tokens(self) -> None:
        graph, weights = _model_graph(2)
        parts = bound_parts(graph, weights, Roofline("cpu", {"float32": 1e15}, 1e6))
        stored = sum(node.meta["val"].numel() * 4 for node in weights)
        assert 0.9 * stored < parts.weight_bytes < stored, "only some rows of the class table"
        assert parts.seconds == pytest.approx((parts.weight_bytes + parts.other_bytes) / 1e6)


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(4, 8, 2, 2)
        self.qkv = nn.Linear(8, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return F.gelu(torch.einsum("bnc,bmc->bnm", x, x))


@pytest.fixture(scope="module")
def symbolic() -> tuple[fx.Graph, set[fx.Node]]:
    """The graph of a block whose batch and height are symbols."""
    dims = {0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC}
    return _export(_Block(), (torch.randn(3, 4, 8, 6),), dynamic=(dims,))


class TestSymbols:
    @pytest.mark.parametrize(("batch", "height"), [(3, 8), (2, 12), (5, 20)])
    def test_substitution_gives_the_static_cost(
        self, symbolic: tuple[fx.Graph, set[fx.Node]], batch: int, height: int
    ) -> None:
        graph, weights = symbolic
        (x,) = (n for n in graph.find_nodes(op="placeholder") if n not in weights)
        hints = {}
        for size, value in zip(x.meta["val"].shape, (batch, 4, height, 6), strict=True):
            if isinstance(size, torch.SymInt):
                (symbol,) = size.node.expr.free_symbols
                hints[symbol] = next(
                    n
                    for n in range(1, 99)
                    if size.node.expr.xreplace({symbol: sympy.Integer(n)}) == value
                )
        static = _export(_Block(), (torch.randn(batch, 4, height, 6),))
        total = graph_cost(graph, weights).total
        assert total.flops.free_symbols == set(hints)
        assert total.evaluate(hints) == graph_cost(*static).total.evaluate()
        assert bound_parts(graph, weights, FAST, hints) == bound_parts(*static, FAST)

    def test_hints_of_the_trace(self, symbolic: tuple[fx.Graph, set[fx.Node]]) -> None:
        graph, weights = symbolic
        static = _export(_Block(), (torch.randn(3, 4, 8, 6),))
        total = graph_cost(graph, weights).total
        assert total.evaluate(symbol_hints(graph)) == graph_cost(*static).total.evaluate()

    def test_missing_hints_are_named(self, symbolic: tuple[fx.Graph, set[fx.Node]]) -> None:
        graph, weights = symbolic
        total = graph_cost(graph, weights).total
        with pytest.raises(AnalysisError, match="no size is given for s"):
            total.evaluate()
        with pytest.raises(AnalysisError, match="no size is given for s"):
            graph_bound(graph, weights, FAST)

    def test_cost_adds(self) -> None:
        n = sympy.Symbol("n")
        total = Cost(n, 1) + Cost(2 * n, 3, 4)
        assert total == Cost(3 * n, 4, 4)
        assert total.evaluate({n: 5}).flops == 15
        assert total.evaluate({n: 5}).bytes_moved == 8
        assert Cost.sum([]) == Cost()


class TestBound:
    def test_linear_is_the_slower_of_two(self) -> None:
        graph, weights = _of(F.linear, torch.randn(2, 8), weights=(torch.randn(4, 8),))
        moved = 4 * (16 + 32 + 8)
        assert graph_bound(graph, weights, FAST) == pytest.approx(moved / 1e6)
        slow = Roofline("cpu", {"float32": 1e3}, 1e6)
        parts = bound_parts(graph, weights, slow)
        assert parts.seconds == parts.arithmetic_seconds == pytest.approx(2 * 64 / 1e3)
        assert (parts.weight_bytes, parts.other_bytes) == (4 * 32, 4 * 24)

    def test_pointwise_operators_are_free(self) -> None:
        x, w = torch.randn(2, 8), torch.randn(8, 8)
        plain = _of(lambda x, w: F.linear(F.linear(x, w), w), x, weights=(w,))
        fused = _of(
            lambda x, w: F.linear(F.gelu(F.linear(x, w)).sin() + 1, w).relu() * 2, x, weights=(w,)
        )
        assert bound_parts(*plain, FAST) == bound_parts(*fused, FAST)
        assert bound_parts(*plain, FAST).weight_bytes == 4 * 64, "read once by two operators"

    def test_siblings_read_their_input_once(self) -> None:
        x, w = torch.randn(2, 8), torch.randn(8, 8)
        apart = _of(
            lambda x, a, b: (F.linear(x, a), F.linear(x, b)), x, weights=(w, torch.randn(8, 8))
        )
        merged = _of(lambda x, w: F.linear(x, w).chunk(2, -1), x, weights=(torch.randn(16, 8),))
        a, b = bound_parts(*apart, FAST), bound_parts(*merged, FAST)
        assert a.seconds == pytest.approx(b.seconds)
        assert (a.flops, a.weight_bytes, a.other_bytes) == (b.flops, b.weight_bytes, b.other_bytes)

    def test_masks_are_made_where_they_are_used(self) -> None:
        q = torch.randn(1, 2, 16, 4)

        def masked(q: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
            mask = (keep[:, None, :, None] & keep[:, None, None, :]).float()
            return F.scaled_dot_product_attention(q, q, q, attn_mask=mask)

        plain = _of(lambda q: F.scaled_dot_product_attention(q, q, q), q)
        other = _of(masked, q, torch.ones(1, 16, dtype=torch.bool))
        extra = bound_parts(*other, FAST).other_bytes - bound_parts(*plain, FAST).other_bytes
        assert extra == 16

    def test_cast_weights_are_read_as_stored(self) -> None:
        graph, weights = _of(
            lambda x, w: F.linear(x, w.bfloat16()),
            torch.randn(2, 8).bfloat16(),
            weights=(torch.randn(4, 8),),
        )
        parts = bound_parts(graph, weights, FAST)
        assert parts.weight_bytes == 4 * 32
        assert parts.other_bytes == 2 * (16 + 8)
        slow = Roofline("cpu", {"bfloat16": 1.0}, 1e6)
        assert graph_bound(graph, weights, slow) == 2 * 64, "reading hides behind arithmetic"

    def test_state_is_moved_once(self) -> None:
        def reuse(x: torch.Tensor, state: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return x + state, x.sin() + state.cos(), state

        parts = bound_parts(*_of(reuse, torch.randn(4, 8), torch.randn(4, 8)), FAST)
        assert parts.other_bytes == 4 * 4 * 32, "two inputs, two new results, one passed through"
        assert parts.seconds == pytest.approx(4 * 4 * 32 / 1e6)
        assert parts.flops == 0

    def test_a_fused_result_stands_for_the_products_own(self) -> None:
        x, w = torch.randn(2, 8), torch.randn(8, 8)
        raw = _of(F.linear, x, weights=(w,))
        one = _of(lambda x, w: F.linear(x, w).sin(), x, weights=(w,))
        two = _of(lambda x, w: (F.linear(x, w).sin(), F.linear(x, w).cos()), x, weights=(w,))
        assert bound_parts(*raw, FAST) == bound_parts(*one, FAST)
        both = bound_parts(*two, FAST)
        assert both.other_bytes - bound_parts(*raw, FAST).other_bytes == 4 * 16

    def test_the_peak_is_that_of_the_dtype(self) -> None:
        graph, weights = _of(
            F.linear, torch.randn(64, 64).bfloat16(), weights=(torch.randn(64, 64).bfloat16(),)
        )
        fast = Roofline("cpu", {"float32": 1.0, "bfloat16": 4.0}, 1e9)
        assert graph_bound(graph, weights, fast) == pytest.approx(2 * 64**3 / 4)
        with pytest.raises(AnalysisError, match="bfloat16"):
            graph_bound(graph, weights, Roofline("cpu", {"float32": 1.0}, 1.0))
