"""Classes of processors: what each can do, who may lower it, and that measurements stay apart."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dit_compile.analysis import machine, measured
from dit_compile.analysis.machine import (
    BASELINE,
    CLASSES,
    cache_file,
    cpu_class,
    describe_setup,
    has_avx512_bf16,
    lacks,
    onednn_multiplies,
)
from dit_compile.config import environment_with
from dit_compile.errors import OptionError
from dit_compile.torch_backend import Options

pytestmark = pytest.mark.processor

#: What torch says of instructions, in the order of the classes.
TESTS = ("avx2", "avx512", "vnni", "avx512_bf16", "amx_tile")
FLOATS = (torch.float32, torch.bfloat16, torch.float16)

#: Makes torch describe a processor: which of ``TESTS`` hold, its vectors, what oneDNN multiplies.
Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """A processor with everything, until it is given less."""

    def become(has: str, vectors: str = "AVX512", onednn: str = "bf16 fp16") -> None:
        for name in TESTS:
            monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda n=name: n in has.split())
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: vectors)
        monkeypatch.setattr(machine, "_mkldnn_says", lambda name: name in onednn.split())

    for name in ("DITC_CPU", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    become(" ".join(TESTS))
    return become


@pytest.mark.parametrize("count", range(len(TESTS) + 1))
def test_the_class_is_the_last_before_something_is_missing(fake: Fake, count: int) -> None:
    fake(" ".join(TESTS[:count]))
    assert cpu_class() == (BASELINE, *CLASSES)[count]
    fake(" ".join(TESTS[:count] + TESTS[count + 1 :]))
    assert cpu_class() == (BASELINE, *CLASSES)[count]


@pytest.mark.parametrize(
    ("vectors", "found"), [("AVX512", "amx"), ("AVX2", "avx2"), ("DEFAULT", BASELINE)]
)
def test_torchs_own_limit_bounds_it(fake: Fake, vectors: str, found: str) -> None:
    fake(" ".join(TESTS), vectors)
    assert cpu_class() == found


@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(
    ("limit", "found"),
    [
        ("SSE41", BASELINE),
        ("avx2", "avx2"),
        ("AVX2_VNNI_2", "avx2"),
        ("AVX512_CORE", "avx512"),
        ("AVX512_CORE_VNNI", "vnni"),
        ("AVX512_CORE_BF16", "bf16"),
        ("AVX512_CORE_AMX", "amx"),
        ("DEFAULT", "amx"),
        ("nonsense", "amx"),
    ],
)
def test_onednns_own_limit_bounds_it(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, variable: str, limit: str, found: str
) -> None:
    monkeypatch.setenv(variable, limit)
    assert cpu_class() == found


@pytest.mark.parametrize("has", range(1, len(CLASSES) + 1))
def test_a_lesser_class_may_be_asked_for_and_no_higher_one(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, has: int
) -> None:
    fake(" ".join(TESTS[:has]))
    for at, name in enumerate(CLASSES):
        monkeypatch.setenv("DITC_CPU", name)
        if at < has:
            assert cpu_class() == name
            continue
        message = f"DITC_CPU={name} asks for more .* of the class {CLASSES[has - 1]}; ask for that"
        with pytest.raises(OptionError, match=message):
            cpu_class()


def test_a_limit_of_torchs_counts_as_what_the_machine_has(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake(" ".join(TESTS), "AVX2", onednn="")
    monkeypatch.setenv("DITC_CPU", "bf16")
    with pytest.raises(OptionError, match="of the class avx2"):
        cpu_class()


def test_unknown_classes_are_refused_before_anything_is_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DITC_CPU", "avx521")
    message = "DITC_CPU=avx521 names no class of processors; did you mean 'avx512'?; they are avx2"
    for ask in (cpu_class, lambda: describe_setup("cpu"), lambda: Options.parse({})):
        with pytest.raises(OptionError, match=re.escape(message)):
            ask()
    monkeypatch.setenv("DITC_CPU", "")
    assert Options.parse({}).preset == "exact"


def test_what_each_class_can_do(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    can = {}
    for name in CLASSES:
        monkeypatch.setenv("DITC_CPU", name)
        can[name] = (has_avx512_bf16(), *map(onednn_multiplies, FLOATS))
    assert can == {
        "avx2": (False, True, False, False),
        "avx512": (False, True, True, False),
        "vnni": (False, True, True, False),
        "bf16": (True, True, True, False),
        "amx": (True, True, True, True),
    }
    assert not onednn_multiplies(torch.float64)


def test_a_processor_as_it_is_multiplies_what_torch_says(fake: Fake) -> None:
    fake("avx2", "AVX2", onednn="bf16 fp16")  # AVX-NE-CONVERT without AVX-512
    assert all(map(onednn_multiplies, FLOATS))
    fake("avx2", "AVX2", onednn="")
    assert [onednn_multiplies(dtype) for dtype in FLOATS] == [True, False, False]
    fake("", "SVE256", onednn="bf16")
    assert [onednn_multiplies(dtype) for dtype in FLOATS] == [True, True, False]


def test_builds_without_onednn_multiply_nothing_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", object())
    assert not any(map(onednn_multiplies, FLOATS))


@pytest.mark.parametrize("dtype", FLOATS)
def test_what_onednn_is_said_to_multiply_it_lays_out(dtype: torch.dtype) -> None:
    """The answer is torch's: where it is no, torch refuses."""
    weight = torch.ones(8, 8, dtype=dtype)
    if onednn_multiplies(dtype):
        assert torch.ops.mkldnn._reorder_linear_weight(weight, 8).is_mkldnn
    elif cpu_class() == machine._class_here():
        with pytest.raises(RuntimeError, match="path needs the cpu support"):
            torch.ops.mkldnn._reorder_linear_weight(weight, 8)


def test_each_class_has_measurements_of_its_own(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
    files = {cache_file("speedups", "cpu")}
    for name in CLASSES:
        monkeypatch.setenv("DITC_CPU", name)
        assert describe_setup("cpu")["class"] == name
        files.add(cache_file("speedups", "cpu"))
    assert len(files) == len(CLASSES)  # the highest is the machine as it is
    monkeypatch.delenv("DITC_CPU")
    for limit in ("AVX2", "AVX512_CORE_AMX"):  # one bounds the class, one what is measured alone
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
        files.add(cache_file("speedups", "cpu"))
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA")
    fake(" ".join(TESTS), "AVX2", onednn="")
    files.add(cache_file("speedups", "cpu"))
    assert len(files) == len(CLASSES) + 3


def test_the_speedups_of_a_class_are_not_read_as_anothers(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DITC_CACHE_DIR", str(tmp_path))
    asked = []

    def ways() -> measured.Ways:
        asked.append(cpu_class())
        return lambda: None, lambda: None

    for name in ("avx2", "bf16", "avx2"):
        monkeypatch.setenv("DITC_CPU", name)
        measured.speedup_of("a", ways)
    assert asked == ["avx2", "bf16"]


def test_what_packages_of_machine_code_need_is_asked_of_what_is_there(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    has = {"avx2": True, "avx512_f": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has, raising=False)
    assert [lacks(word) for word in ("AVX2", "AVX512", "AVX512_VNNI", "ASIMD")] == [
        *(False, True, False, False)
    ]
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert not lacks("AVX512")


def test_the_lowest_class_can_be_imitated() -> None:
    """torch reads its limits when it is loaded, so this takes another process."""
    if machine._class_here() == BASELINE:
        assert not has_avx512_bf16()
        return
    limits = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DITC_CPU": ""}
    script = (
        "import torch; from dit_compile.analysis.machine import *;"
        "print(cpu_class(), has_avx512_bf16(), onednn_multiplies(torch.bfloat16))"
    )
    said = subprocess.run(
        [sys.executable, "-c", script],
        env=environment_with(**limits),
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout.split() == ["avx2", "False", "False"]


def test_no_other_place_asks_processors() -> None:
    root = Path(__file__).parents[2]
    asks = re.compile(r"torch\.cpu\.|backends\.(cpu|mkldnn)|get_cpu_capability|cpuinfo|_is_mkldnn")
    askers = {
        path.relative_to(root).as_posix()
        for folder in ("dit_compile", "passes", "backends")
        for path in (root / folder).rglob("*.py")
        if asks.search(path.read_text("utf-8"))
    }
    assert askers == {"dit_compile/analysis/machine.py"}
