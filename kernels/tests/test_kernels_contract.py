"""What holds for all backends alike: errors, no host reads, lazy imports, counters, the public names."""

from __future__ import annotations

import doctest
import importlib
import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import sglang_power_kernels as kernels
import torch
from sglang_power_kernels import KernelInputError, ops
from sglang_power_kernels.testing import NoHostReads, hard_rows

LOGITS = torch.zeros(2, 5)
IDS = torch.zeros(2, dtype=torch.int64)
UNIFORMS = torch.zeros(2, dtype=torch.float64)
GOOD: dict[str, dict[str, Any]] = {
    "row_statistics": {"logits": LOGITS, "sampled_ids": IDS, "kappa": 1.0},
    "sample_rows": {"logits": LOGITS, "kappa": 1.0, "uniforms": UNIFORMS},
    "truncation_bounds": {"logits": LOGITS, "kappa": 1.0, "top_k": IDS},
}
TABLES = {"row_statistics": ops.STATISTICS, "sample_rows": ops.SAMPLING, "truncation_bounds": ops.TRUNCATION}
MISTAKES: list[tuple[str, dict[str, Any], str]] = [
    ("*", {"logits": [[0.0]]}, r"^logits must be a floating \[batch, vocab\] tensor, got list; convert"),
    ("*", {"logits": torch.zeros(5)}, r"^logits must have shape \[batch, vocab\], got \[5\]; add the batch"),
    (
        "*",
        {"logits": torch.zeros(2, 0)},
        r"^logits must hold at least one token per row, got \[2, 0\]; check",
    ),
    ("*", {"logits": LOGITS.long()}, "^logits must be float32, bfloat16 or float16, got int64; convert"),
    ("*", {"kappa": 0.0}, "^kappa must be finite and above 0, got 0; kappa is 1/temperature"),
    ("*", {"kappa": math.inf}, "^kappa must be finite and above 0, got inf; "),
    ("*", {"kappa": torch.tensor([1.0, -2.0])}, "^kappa must be finite and above 0, got -2 in row 1; "),
    ("*", {"kappa": torch.tensor([math.nan, 1.0])}, "^kappa must be finite and above 0, got nan in row 0; "),
    ("*", {"kappa": torch.ones(3)}, r"^kappa must have shape \[2\] for logits \[2, 5\], got \[3\]; pass one"),
    ("*", {"kappa": torch.ones(2).double()}, "^kappa must be float32, got float64; convert it"),
    ("*", {"kappa": "warm"}, r"^kappa must be a float32 \[batch\] tensor, got str; convert"),
    (
        "*",
        {"kappa": torch.ones(2, device="meta")},
        "^kappa must be on the device of logits, cpu, got meta; move",
    ),
    ("*", {"backend": "cuda"}, '^backend must be one of auto, .*, got "cuda"'),
    (
        "row_statistics",
        {"sampled_ids": IDS.float()},
        "^sampled_ids must be int64 or int32, got float32; convert",
    ),
    (
        "row_statistics",
        {"sampled_ids": IDS + 5},
        r"^sampled_ids must lie in \[0, 5\), .*, got 5 in row 0; check",
    ),
    (
        "row_statistics",
        {"sampled_ids": IDS - 2},
        r"^sampled_ids must lie in \[0, 5\), .*, got -2 in row 0; check",
    ),
    ("row_statistics", {"keep_min": torch.ones(2, 1)}, r"^keep_min must have shape \[2\] .*, got \[2, 1\]; "),
    ("sample_rows", {"keep_max": torch.ones(2).half()}, "^keep_max must be float32, got float16; convert"),
    ("sample_rows", {"uniforms": torch.ones(2)}, r"^uniforms must lie in \[0, 1\), got 1 in row 0; draw"),
    ("sample_rows", {"uniforms": -torch.ones(2)}, r"^uniforms must lie in \[0, 1\), got -1 in row 0; draw"),
    ("sample_rows", {"greedy": torch.tensor([True])}, r"^greedy must be an int64 .* rows, got bool \[1\]; "),
    (
        "sample_rows",
        {"greedy": torch.tensor([0, 2])},
        r"^greedy must name rows in \[0, 2\), got 2 in row 1; ",
    ),
    ("sample_rows", {"greedy": torch.tensor([1, 1])}, r"^greedy must name each row once, got \[1, 1\]; "),
    (
        "sample_rows",
        {"greedy": torch.tensor([0], device="meta")},
        "^greedy must be on the device of logits, cpu, got meta; ",
    ),
    ("truncation_bounds", {"top_k": torch.ones(2)}, "^top_k must be int64 or int32, got float32; convert"),
    (
        "truncation_bounds",
        {"top_p": torch.tensor([0.5, math.nan])},
        "^top_p must be a number, got nan in row 1; ",
    ),
    (
        "truncation_bounds",
        {"min_p": torch.tensor([0.5, 2.0])},
        "^min_p must be a number of at most 1, got 2 in",
    ),
]
CASES = [
    pytest.param(name, change, message, id=f"{name}-{'-'.join(change)}-{index}")
    for index, (names, change, message) in enumerate(MISTAKES)
    for name in (GOOD if names == "*" else [names])
]


@pytest.mark.parametrize(("name", "change", "message"), CASES)
def test_a_mistake_gives_one_message_over_all_backends(
    name: str, change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_runs_on", lambda *_: True)
    monkeypatch.setattr(ops, "_load", lambda _: pytest.fail("the backend ran on bad input"))
    messages = set()
    for backend in TABLES[name]:
        with pytest.raises(KernelInputError, match=message) as caught:
            getattr(kernels, name)(**(GOOD[name] | {"backend": backend} | change))
        messages.add(str(caught.value))
    assert len(messages) == 1


@pytest.mark.parametrize("name", GOOD)
def test_float64_logits_are_for_the_reference_only(name: str) -> None:
    arguments = GOOD[name] | {"logits": LOGITS.double()}
    getattr(kernels, name)(**arguments, backend="reference")
    with pytest.raises(KernelInputError, match="got float64"):
        getattr(kernels, name)(**arguments)


@pytest.mark.parametrize("name", GOOD)
def test_a_backend_of_another_device_is_refused(name: str) -> None:
    for backend in set(TABLES[name]) - {"torch", "reference"}:
        with pytest.raises(
            KernelInputError, match=f'"{backend}" cannot run on cpu tensors here; use one of auto, '
        ):
            getattr(kernels, name)(**GOOD[name], backend=backend)


def every_call(backend: str, validate: bool | None) -> list[Callable[[], object]]:
    """One call of each function with all of its optional arguments."""
    logits = hard_rows(700)
    ids, kappa, bound = torch.arange(10), torch.ones(10), torch.zeros(10)
    uniforms = torch.rand(10)
    limits: dict[str, Any] = {"top_k": ids, "top_p": uniforms, "min_p": uniforms}
    common: dict[str, Any] = {"kappa": kappa, "backend": backend, "validate": validate}
    kept: dict[str, Any] = {"keep_min": bound, "keep_max": bound + 3}
    return [
        lambda: kernels.row_statistics(logits, ids, **common),
        lambda: kernels.row_statistics(logits, ids, **common, **kept),
        lambda: kernels.sample_rows(logits, uniforms=uniforms, **common),
        lambda: kernels.sample_rows(logits, uniforms=uniforms, **common, **kept),
        lambda: kernels.sample_rows(logits, uniforms=uniforms, greedy=ids[:4], **common, **kept),
        lambda: kernels.sample_rows(logits, uniforms=uniforms, greedy=ids, **common, **kept),
        lambda: kernels.truncation_bounds(logits, **common, **limits),
        lambda: kernels.counter_uniforms(ids, ids),
    ]


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
def test_nothing_is_read_on_the_host(backend: str) -> None:
    for call in every_call(backend, validate=False):
        with NoHostReads():
            call()


def test_the_guard_against_host_reads_sees_value_checks() -> None:
    for call in every_call("torch", validate=True)[:7]:
        with NoHostReads(), pytest.raises(AssertionError, match="reads values on the host"):
            call()
    mask = torch.tensor([True, False])
    with NoHostReads(), pytest.raises(AssertionError, match="reads values on the host"):
        mask[mask]


def test_values_are_checked_by_default_on_cpu_tensors_only() -> None:
    assert kernels.row_statistics(LOGITS, IDS + 5, kappa=1.0, validate=False).log_p.isnan().all()
    with pytest.raises(KernelInputError):
        kernels.row_statistics(LOGITS, IDS + 5, kappa=1.0)


def test_the_package_imports_neither_gpu_libraries_nor_the_host() -> None:
    code = (
        "import sys, torch; before = set(sys.modules); import sglang_power_kernels;"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before};"
        "sys.exit(str(new & {'triton', 'flashinfer', 'sglang', 'sglang_power', 'scipy'} or ''))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.stderr.strip() == ""


def test_calls_are_counted_by_backend_and_function() -> None:
    before = kernels.counters()
    kernels.sample_rows(**GOOD["sample_rows"])
    kernels.row_statistics(**GOOD["row_statistics"], backend="reference")
    after = kernels.counters()
    changed = {
        name: count - before.get(name, 0) for name, count in after.items() if count != before.get(name, 0)
    }
    assert changed == {"torch.sample_rows": 1, "reference.row_statistics": 1}


def test_only_the_cpu_backends_are_available_here() -> None:
    assert kernels.available_backends("cpu") == ("torch", "reference")
    assert kernels.available_backends(torch.device("cuda")) == ("triton", "flashinfer", "torch", "reference")


def test_all_is_what_is_documented() -> None:
    for name in kernels.__all__:
        assert getattr(kernels, name).__doc__, name


@pytest.mark.parametrize("module", ["ops", "uniforms"])
def test_the_examples_of_the_docstrings_run(module: str) -> None:
    failed, run = doctest.testmod(importlib.import_module(f"sglang_power_kernels.{module}"))
    assert failed == 0
    assert run > 0
