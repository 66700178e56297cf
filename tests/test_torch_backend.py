"""``torch.compile(model, backend="ditc")``: options, falling back, counting, training."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

import dit_compile as ditc
from dit_compile import torch_backend
from dit_compile.backends.eager import Eager
from dit_compile.errors import BackendError, CaptureError, DitcWarning, OptionError, PipelineError
from dit_compile.ir.program import Program, output_node
from dit_compile.pipeline import registry
from dit_compile.pipeline.base import Kind, Pass
from dit_compile.pipeline.rewriter import Rewriter
from dit_compile.quality.compilations import Compilations
from dit_compile.torch_backend import Options
from tests.runtime.loops import Loop, Toy, alone, assert_same, compiled, every, label, run

LOOP = Loop(label(1), times=(500.0,))


@pytest.fixture(autouse=True)
def _setting() -> Iterator[None]:
    torch._dynamo.reset()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the models are tiny; threads would only wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def model() -> Toy:
    return Toy(seed=3)


def lenient(model: nn.Module, **options: Any) -> Any:
    """Compiled as users do, strict left out."""
    return torch.compile(model, backend="ditc", options={"target": "eager"} | options)


class TestOptions:
    def test_defaults(self) -> None:
        assert Options.parse(None) == Options.parse({}) == Options()
        assert str(Options().pipeline()) == str(Options(passes="exact").pipeline())

    @pytest.mark.parametrize(
        ("options", "kind", "message"),
        [
            (
                {"pases": "exact"},
                OptionError,
                "unknown option 'pases'; did you mean 'passes'?; "
                "options are preset, passes, plan, target, bindings, strict, verify, report, "
                "offload_hoisted, progress",
            ),
            (
                {"preset": "balance"},
                OptionError,
                "unknown preset 'balance'; did you mean 'balanced'?; "
                "presets are exact, balanced, fast",
            ),
            (
                {"target": "inductr"},
                OptionError,
                "unknown target 'inductr'; did you mean 'inductor'?; targets are inductor, triton, "
                "eager, onnxruntime",
            ),
            (
                {"preset": "exact", "passes": "fuse-qkv"},
                OptionError,
                "give either 'preset' or 'passes', not both",
            ),
            (
                {"passes": "fuse-qvk"},
                PipelineError,
                "unknown pass 'fuse-qvk'; did you mean 'fuse-qkv'?; "
                "`ditc passes` lists what there is",
            ),
            ({"preset": 3}, OptionError, "option 'preset' takes str, not int 3"),
            ({"strict": "yes"}, OptionError, "option 'strict' takes bool, not str 'yes'"),
            ({"bindings": "t"}, OptionError, "option 'bindings' takes dict, not str 't'"),
        ],
    )
    def test_errors(self, options: dict[str, Any], kind: type[Exception], message: str) -> None:
        with pytest.raises(kind) as caught:
            Options.parse(options)
        assert str(caught.value) == message

    def test_reach_the_user_through_torch(self, model: Toy) -> None:
        with pytest.raises(Exception, match="did you mean 'preset'") as caught:
            run(torch.compile(model, backend="ditc", options={"prest": "fast"}), LOOP)
        assert isinstance(caught.value.__cause__ or caught.value.inner_exception, OptionError)

    def test_mode_belongs_to_inductor(self, model: Toy) -> None:
        fast = torch.compile(model, backend="ditc", mode="max-autotune")
        with pytest.raises(Exception, match=r"with ditc write options=\{\"preset\": \"exact\"\}"):
            run(fast, LOOP)

    @pytest.mark.parametrize(("value", "strict"), [("1", True), ("0", False), ("", False)])
    def test_strict_by_environment(
        self, monkeypatch: pytest.MonkeyPatch, value: str, strict: bool
    ) -> None:
        monkeypatch.setenv("DITC_STRICT", value)
        assert Options.parse(None).strict is strict

    def test_declared_bindings(self, model: Toy) -> None:
        """A declaration settles what would take two steps to observe."""
        calls = [call | {"g": torch.ones(1)} for call in Loop(label(1))]
        fast = compiled(model, bindings={"t": "timestep"})
        with ditc.session():
            assert_same(run(fast, calls), alone(model, calls, every(2, len(calls))))

    def test_unknown_binding(self, model: Toy) -> None:
        with pytest.raises(Exception, match=r"no input 'tt'; did you mean 't'\?"):
            run(compiled(model, bindings={"tt": "timestep"}), LOOP)


def test_found_by_name() -> None:
    assert "ditc" in torch._dynamo.list_backends()


@dataclass(frozen=True, kw_only=True)
class Raises(Pass):
    """Fails halfway, with the graph already changed."""

    name: ClassVar[str] = "break-things"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        end = output_node(program.main)
        end.args = ((),)
        raise ZeroDivisionError("the oven is cold")


@dataclass(frozen=True, kw_only=True)
class LeavesWrongGraph(Pass):
    """Returns something of another shape and says nothing; the verifier must tell."""

    name: ClassVar[str] = "break-things"
    kind: ClassVar[Kind] = Kind.EXACT

    def run(self, program: Program, rw: Rewriter) -> None:
        end = output_node(program.main)
        (old,) = end.args[0]
        rw.begin(old)
        new = rw.call(torch.ops.aten.unsqueeze.default, old, 0, before=end)
        end.args = ((new,),)


class TestFailingPass:
    PASSES = "remove-noops,break-things,fuse-qkv"

    @pytest.fixture(params=[Raises, LeavesWrongGraph], autouse=True)
    def _registered(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(registry.passes(), "break-things", request.param)

    def test_is_left_out_with_one_warning(self, model: Toy) -> None:
        with pytest.warns(DitcWarning) as caught:
            got = run(lenient(model, passes=self.PASSES), LOOP)
        assert_same(got, run(model, LOOP))
        (message,) = (str(item.message) for item in caught if item.category is DitcWarning)
        assert message.startswith("ditc: pass break-things is left out: ")
        assert "\n" not in message

    def test_others_still_run(self, model: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        runs = []
        run_passes = torch_backend.run_passes

        def spy(*args: Any) -> Any:
            runs.append(run_passes(*args))
            return runs[-1]

        monkeypatch.setattr(torch_backend, "run_passes", spy)
        with pytest.warns(DitcWarning):
            run(lenient(model, passes=self.PASSES), LOOP)
        hits = {record.item.name: len(record.rewrites) for record in runs[0].records}
        assert hits["fuse-qkv"] == 3  # one for each block
        assert [record.item.name for record in runs[0].dropped] == ["break-things"]

    def test_strict_raises(self, model: Toy) -> None:
        with pytest.raises(Exception, match="pass break-things"):
            run(compiled(model, passes=self.PASSES), LOOP)


class Failing(Eager):
    """Accepts everything and compiles nothing."""

    name = "failing"

    def compile(self, program: Program, graph: str) -> Callable[..., Sequence[Tensor]]:
        raise BackendError(f"no luck with @{graph}\nand a second line")


def fail_in_capture(*args: Any) -> Any:
    raise CaptureError("not today\nand a second line")


class TestFallingBack:
    @pytest.fixture
    def left_to_inductor(self, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
        """Graphs that plain Inductor got; run as they are, since compiling takes long."""
        graphs: list[Any] = []

        def compile_fx(module: Any, inputs: Any) -> Any:
            graphs.append(module)
            return module.forward

        monkeypatch.setattr(torch_backend, "compile_fx", compile_fx)
        monkeypatch.setitem(registry.backends(), "failing", Failing())
        return graphs

    def test_capture(
        self, model: Toy, left_to_inductor: list[Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch_backend, "capture_dynamo", fail_in_capture)
        self.check(lenient(model), model, left_to_inductor, "CaptureError: not today")
        with pytest.raises(Exception, match="not today"):
            run(compiled(model), LOOP)

    def test_backend(self, model: Toy, left_to_inductor: list[Any]) -> None:
        fast = lenient(model, target="failing")
        self.check(fast, model, left_to_inductor, "BackendError: no luck with @full")
        with pytest.raises(Exception, match="no luck with @full"):
            run(compiled(model, target="failing"), LOOP)

    def check(self, fast: Any, model: Toy, graphs: list[Any], cause: str) -> None:
        with pytest.warns(DitcWarning) as caught:
            got = run(fast, LOOP)
        assert_same(got, run(model, LOOP))
        assert [str(item.message) for item in caught if item.category is DitcWarning] == [
            f"ditc: the graph is left to plain Inductor: {cause}"
        ]
        assert len(graphs) == 1

    @pytest.mark.slow
    def test_inductor_itself(self, model: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch_backend, "capture_dynamo", fail_in_capture)
        with pytest.warns(DitcWarning), Compilations() as counted:
            got = run(lenient(model), LOOP)
        assert_same(got, run(model, LOOP))
        assert counted.inductor_calls == 1


class Broken(nn.Module):
    """Two toys with a graph break between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Toy(seed=1), Toy(seed=2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        x = self.first(x, t, y)
        torch._dynamo.graph_break()
        return self.second(x, t, y)


class TestCounting:
    def test_graph_break(self) -> None:
        model, loop = Broken().eval(), Loop(label(1))
        fast = torch.compile(
            model, backend="ditc", options={"strict": True, "target": "eager", "preset": "exact"}
        )
        with Compilations() as counted:
            got = run(fast, loop)
        assert_same(got, run(model, loop))
        assert (counted.graph_breaks, counted.dynamo_graphs) == (1, 2)

    def test_recompilations(self, model: Toy) -> None:
        fast = compiled(model, passes="exact")
        with Compilations() as first:
            run(fast, LOOP)
        with Compilations() as again:
            run(fast, LOOP)
        with Compilations() as other_shape:
            run(fast, Loop(label(1), times=(500.0,), tokens=9))
        counted = [item.dynamo_graphs for item in (first, again, other_shape)]
        assert counted == [1, 0, 1]

    @pytest.mark.slow
    @pytest.mark.parametrize("interval", [2, 3])
    def test_nothing_compiles_while_sampling(self, model: Toy, interval: int) -> None:
        """Both variants are compiled at the first call; fifty steps later nothing was added."""
        times = [float(t) for t in range(981, 0, -20)]
        assert len(times) == 50
        loop = Loop(label(1), times=times)
        fast = compiled(model, interval, target="inductor")
        with ditc.session(), Compilations() as warm_up:
            run(fast, list(loop)[:1])
        assert (warm_up.dynamo_graphs, warm_up.inductor_calls) == (1, 2)
        with ditc.session() as session, Compilations() as counted:
            got = run(fast, loop)
        assert counted == Compilations(graph_breaks=0, dynamo_graphs=0, inductor_calls=0)
        pattern = every(interval, 50)
        assert session.summary()["reused"] == pattern.count("r")
        assert_same(got, alone(model, loop, pattern))


class TestTraining:
    @pytest.mark.parametrize("preset", ["exact", "balanced"])
    def test_gradients(self, model: Toy, preset: str) -> None:
        """Caching and baked weights step aside while autograd records."""
        fast = compiled(copied := copy.deepcopy(model).train(), passes=preset)
        for call in Loop(label(1), times=(500.0, 400.0)):
            model(**call).square().sum().backward()
            fast(**call).square().sum().backward()
        for (name, a), b in zip(copied.named_parameters(), model.parameters(), strict=True):
            if b.grad is None:
                assert a.grad is None, name
            else:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-4)

    def test_a_step_of_training_then_sampling(self, model: Toy) -> None:
        fast = compiled(model, passes="exact")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        call = next(iter(LOOP))
        for _ in range(2):
            before = run(fast, LOOP)
            fast(**call).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert_same(run(fast, LOOP), run(model, LOOP))
            assert not torch.allclose(run(fast, LOOP)[0], before[0], rtol=1e-2)

    def test_gradient_to_the_input(self, model: Toy) -> None:
        model.requires_grad_(False)
        call = next(iter(LOOP))
        grads = []
        for item in (compiled(model), model):
            x = call["x"].clone().requires_grad_()
            item(**call | {"x": x}).sum().backward()
            grads.append(x.grad)
        assert_same(grads[:1], grads[1:])


def test_the_passes_that_a_backend_asks_for_run_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return x + gate * x.sin()

    model, inputs = Gated(), (torch.ones(2, 3, 4), torch.full((2, 1, 4), 0.5))
    monkeypatch.setattr(Eager, "lowerings", lambda *_: "fuse-gated-residual")
    path = tmp_path / "report.json"
    with torch.no_grad():
        made = compiled(model, passes="exact", report=str(path))(*inputs)
        torch.testing.assert_close(made, model(*inputs))
    passes = json.loads(path.read_text())["passes"]
    assert [item["name"] for item in passes][-2:] == ["eliminate-dead", "fuse-gated-residual"]
    assert len(passes[-1]["rewrites"]) == 1
