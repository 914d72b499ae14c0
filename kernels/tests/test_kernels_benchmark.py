"""The benchmark: a tiny run writes complete reports; targets, rounds and settings do what they say.

Nothing here asserts how long anything takes. Error rate 0.
"""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang_power_kernels import available_backends
from sglang_power_kernels.benchmark import Settings, SettingsError, measuring, run, target_lines, write
from sglang_power_kernels.benchmark.measuring import Spread, time_rounds
from sglang_power_kernels.benchmark.stock import exponential_race, stock, stock_logprobs
from sglang_power_kernels.benchmark.targets import TARGETS, TargetVerdict, Timing, judge
from sglang_power_kernels.benchmark.traffic import byte_passes
from sglang_power_kernels.benchmark.workloads import POOL_LIMIT, Contender, rows_to_rotate

COMMAND = "sglang-power bench kernels --batches 1 2 --vocabs 1000 32000 --rounds 2 --threads 1"
SPREADS = ("seconds", "passes", "to_stock", "to_stock_logprobs", "to_reference")
CPU = torch.device("cpu")
REPORT_FIELDS = {
    "format",
    "command",
    "device",
    "date",
    "cpu",
    "gpu",
    "threads",
    "load_average",
    "python",
    "versions",
    "rounds",
    "kappa",
    "stock_sampler",
    "targets",
    "timings",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a tiny run has written; its threads are those of the process again afterwards."""
    settings = Settings.checked(device="cpu", batches=[1, 2], vocabs=[1000, 32_000], rounds=2, threads=1)
    before = torch.get_num_threads()
    report = run(settings, command=COMMAND)
    assert torch.get_num_threads() == before
    folder = tmp_path_factory.mktemp("benchmark") / "made"
    assert write(report, folder) == (folder / "cpu_1_thread.json", folder / "results.md")
    return folder


@pytest.fixture
def report(folder: Path) -> dict[str, Any]:
    """The JSON report of that run."""
    loaded: dict[str, Any] = json.loads((folder / "cpu_1_thread.json").read_text())
    return loaded


def test_the_report_has_every_field(report: dict[str, Any]) -> None:
    assert set(report) == REPORT_FIELDS
    assert report["command"].endswith(COMMAND)
    assert (report["device"], report["gpu"], report["threads"], report["rounds"]) == ("cpu", None, 1, 2)
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]
    for timing in report["timings"]:
        assert set(timing) == {field.name for field in fields(Timing)}
    for verdict in report["targets"]:
        assert set(verdict) == {field.name for field in fields(TargetVerdict)}


def test_every_candidate_is_timed_at_every_size(report: dict[str, Any]) -> None:
    operations = (
        "sampling",
        "greedy sampling",
        "sampling + statistics",
        "sampling + statistics, truncated",
        "statistics",
        "top-p bound",
    )
    expected = {(name, backend) for name in operations for backend in ("torch", "reference")}
    expected |= {("copy", "torch"), ("stock", "sglang"), ("stock + logprobs + top-2", "sglang")}
    sizes = {(timing["batch"], timing["vocab"]) for timing in report["timings"]}
    assert sizes == {(batch, vocab) for batch in (1, 2) for vocab in (1000, 32_000)}
    for size in sizes:
        timed = [timing for timing in report["timings"] if (timing["batch"], timing["vocab"]) == size]
        assert {(timing["operation"], timing["backend"]) for timing in timed} == expected
        assert len(timed) == len(expected)


def test_times_and_ratios_are_finite_and_positive(report: dict[str, Any]) -> None:
    for timing in report["timings"]:
        assert 0 < timing["bandwidth_gb_s"] < math.inf
        for name in SPREADS:
            if timing[name] is None:
                assert (name, timing["operation"]) in {
                    ("to_reference", operation) for operation in ("copy", "stock", "stock + logprobs + top-2")
                }
                continue
            assert set(timing[name]) == {"median", "lower", "upper"}
            assert 0 < timing[name]["lower"] <= timing[name]["median"] <= timing[name]["upper"] < math.inf


def test_a_ratio_to_itself_is_one(report: dict[str, Any]) -> None:
    one, two = ({"median": value, "lower": value, "upper": value} for value in (1.0, 2.0))
    for timing in report["timings"]:
        if timing["operation"] == "stock":
            assert timing["to_stock"] == one
        if timing["backend"] == "reference":
            assert timing["to_reference"] == one
        if timing["operation"] == "copy":
            assert timing["passes"] == two


def test_the_targets_of_the_cpu_are_listed_and_those_of_the_gpu_are_named(report: dict[str, Any]) -> None:
    naive, stock_row, *left = report["targets"]
    assert "over the naive reference" in naive["target"]
    assert naive["result"] in ("met", "not met")
    assert naive["measured_at"] == 2  # The two sizes with a vocabulary from 32k.
    assert naive["worst"] > 0
    assert "8 x 151936" in stock_row["target"]
    assert (stock_row["result"], stock_row["worst"]) == ("not measured", None)
    assert [verdict["result"] for verdict in left] == ["not run on CUDA"] * 3
    assert len(target_lines(report)) == len(report["targets"]) == len(TARGETS)


def test_the_page_has_its_sections(folder: Path) -> None:
    page = (folder / "results.md").read_text()
    for part in (
        "# Row functions: measured\n",
        "**Not run on CUDA**",
        "\n## cpu_1_thread\n",
        COMMAND,
        "\n### Targets\n",
        "\n### Timings\n",
        "| not run on CUDA |",
        "| cpu | 2 | 32000 | sampling + statistics | torch |",
    ):
        assert part in page
    widths = {line.count("|") for line in page.partition("### Timings")[2].splitlines() if line}
    assert widths == {13}


def test_the_page_joins_runs_and_leaves_out_other_formats(report: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "cpu_9_threads.json").write_text('{"timings": []}\n')
    (tmp_path / "notes.json").write_text("not JSON")
    write(report, tmp_path)
    write(report | {"threads": 2}, tmp_path)
    write(report | {"device": "cuda", "gpu": "imagined"}, tmp_path)
    page = (tmp_path / "results.md").read_text()
    assert page.count("\n## ") == 3
    assert "Left out: cpu_9_threads.json" in page
    assert "**Not run on CUDA**" not in page


def timing(device: str, backend: str, operation: str, batch: int, vocab: int, figure: float) -> Timing:
    """A timing all of whose ratios are `figure`."""
    spread = Spread(figure, figure, figure)
    return Timing(
        device=device,
        batch=batch,
        vocab=vocab,
        operation=operation,
        backend=backend,
        seconds=spread,
        bandwidth_gb_s=1.0,
        passes=spread,
        byte_passes=figure,
        to_stock=spread,
        to_stock_logprobs=spread,
        to_reference=spread,
    )


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_target_is_met_up_to_its_limit_at_every_size(target: Any) -> None:
    def verdict(*measured: Timing) -> TargetVerdict:
        return next(v for v in judge(measured, target.device) if v.target == target.name)

    def at(figure: float, batch: int = target.batches[-1]) -> Timing:
        size = batch, target.vocabs[-1]
        return timing(target.device, target.backend, target.operations[0], *size, figure)

    assert verdict(at(target.limit)).result == "met"
    worse = verdict(at(0.1), at(target.limit + 0.01))
    assert (worse.result, worse.met_at, worse.measured_at) == ("not met", 1, 2)
    assert worse.worst == pytest.approx(target.limit + 0.01)
    assert worse.worst_at == f"{target.operations[0]}, {target.batches[-1]} x {target.vocabs[-1]}"
    assert verdict(at(9.0, batch=target.batches[-1] + 1)).result == "not measured"
    assert verdict().result == "not measured"


def test_without_the_naive_reference_its_target_is_not_measured() -> None:
    settings = Settings.checked(
        device="cpu", batches=[1], vocabs=[32_000], rounds=1, backends=["torch"], threads=1
    )
    report = run(settings, command="")
    assert {verdict["result"] for verdict in report["targets"]} == {"not measured", "not run on CUDA"}


def test_the_gpu_targets_leave_the_cpu_out() -> None:
    assert [verdict.result for verdict in judge([], "cuda")] == ["not measured"] * 3


def test_rounds_alternate_rotate_and_drop_the_warm_up() -> None:
    seen: list[tuple[str, int]] = []

    def recorder(name: str) -> Any:
        return lambda argument: seen.append((name, argument))

    seconds = time_rounds({name: recorder(name) for name in "abc"}, [0, 1], CPU, rounds=2)
    assert [name for name, _ in seen] == [*"abc", *"cba", *"abc"]  # The first round warms up.
    assert [argument for _, argument in seen] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}


class FakeEvent:
    """A CUDA event on a clock that the calls of the test advance."""

    now = 0.0

    def __init__(self, *, enable_timing: bool) -> None:
        """Only timing events can be asked for the time."""
        assert enable_timing

    def record(self) -> None:
        """Keep the time."""
        self.at = FakeEvent.now

    def elapsed_time(self, end: FakeEvent) -> float:
        """In milliseconds."""
        return end.at - self.at


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Torch's CUDA functions that timing uses, and the order in which they were called."""
    order: list[str] = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: order.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda _: order.append("sleep"))
    return order


def test_on_cuda_a_time_is_that_of_several_calls_behind_a_waiting_device(fake_cuda: list[str]) -> None:
    def call(milliseconds: float) -> None:
        fake_cuda.append("call")
        FakeEvent.now += milliseconds

    rounds = time_rounds({"a": call}, [1.0, 3.0], torch.device("cuda", 0), rounds=2)
    assert rounds["a"] == pytest.approx([2e-3, 2e-3])
    once = ["synchronize", "sleep", *["call"] * measuring.CALLS_PER_TIMING, "synchronize"]
    assert fake_cuda == once * (measuring.WARM_UP_ROUNDS["cuda"] + 2)


def test_quartiles() -> None:
    assert Spread.of([4.0]) == Spread(4.0, 4.0, 4.0)
    assert Spread.of([5.0, 1.0, 2.0, 3.0, 4.0]) == Spread(median=3.0, lower=2.0, upper=4.0)
    assert Spread.of_ratios([2.0, 9.0], [1.0, 3.0]) == Spread(median=2.5, lower=2.25, upper=2.75)


def test_rows_rotate_beyond_any_cache() -> None:
    pool = rows_to_rotate(CPU, 2, 1000)
    assert len(pool) == POOL_LIMIT
    assert len({rows.logits.data_ptr() for rows in pool}) == POOL_LIMIT
    again = rows_to_rotate(CPU, 2, 1000)
    assert torch.equal(pool[3].logits, again[3].logits)
    large = rows_to_rotate(CPU, 32, 131_072)
    assert len(large) * large[0].logits.numel() * 4 == 128 << 20


@pytest.mark.parametrize("vocab", [32_000, 151_936, 262_144])
@pytest.mark.parametrize("batch", [1, 32, 256])
def test_a_kernel_moves_hardly_more_than_one_pass(batch: int, vocab: int) -> None:
    """The target of 1.3 passes in bytes, on the count; the power row reads the logits twice."""
    for operation in ("sampling", "statistics"):
        passes = byte_passes(Contender(operation, "triton"), batch, vocab)
        assert passes is not None
        assert 1.0 < passes <= 1.3
    row = byte_passes(Contender("sampling + statistics", "triton"), batch, vocab)
    assert row is not None
    assert 2.0 < row <= 2.6
    assert byte_passes(Contender("sampling", "torch"), batch, vocab) is None


def test_the_stock_sampler_draws_from_the_tempered_law() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]]).repeat(4000, 1)
    buffer, temperatures = torch.empty_like(logits), torch.full((4000, 1), 0.5)
    ids = stock(logits, buffer, temperatures)
    law = torch.softmax(torch.tensor([0.0, 2.0]), dim=0)
    assert buffer[0, :2].tolist() == pytest.approx(law.tolist())
    assert set(ids.tolist()) == {0, 1}
    assert exponential_race(torch.tensor([[0.0, 1.0], [1.0, 0.0]])).tolist() == [1, 0]
    assert {round(value, 5) for value in stock_logprobs(logits, buffer, temperatures).tolist()} == {
        round(value, 5) for value in law.log().tolist()
    }


@pytest.mark.parametrize(
    ("changed", "option", "message"),
    [
        ({"device": "tpu"}, "device", 'must be "cpu", "cuda" or "cuda:N", got "tpu"'),
        ({"device": "meta"}, "device", 'must be "cpu", "cuda" or "cuda:N", got "meta"'),
        ({"device": "cuda:99"}, "device", r'"cuda:99" is not here: torch sees \d+ CUDA devices'),
        ({"batches": [1, 0]}, "batches", "must be at least 1, got 0"),
        ({"batches": []}, "batches", "must name at least one size"),
        ({"vocabs": [1]}, "vocabs", "must be at least 2, got 1"),
        ({"backends": ["torch", "cuda"]}, "backends", 'must be among torch, reference on cpu, got "cuda"'),
        ({"backends": []}, "backends", "must be among"),
        ({"rounds": 0}, "rounds", "must be at least 1, got 0"),
        ({"threads": 0}, "threads", "must be at least 1, got 0"),
    ],
)
def test_a_wrong_setting_is_named(changed: dict[str, Any], option: str, message: str) -> None:
    settings: dict[str, Any] = {"device": "cpu", "batches": [1], "vocabs": [1000], "rounds": 1}
    with pytest.raises(SettingsError, match=message) as caught:
        Settings.checked(**(settings | changed))
    assert caught.value.option == option


def test_defaults_are_the_device_and_backends_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # Lists the interpreter among the backends.
    settings = Settings.checked(batches=[2, 2], vocabs=[10], rounds=1, device="cpu:0")
    assert (settings.device, settings.backends) == (CPU, ("torch", "reference"))
    assert settings.batches == (2,)
    assert settings.threads == torch.get_num_threads()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    imagined = Settings.checked(batches=[1], vocabs=[10], rounds=1)
    assert imagined.device == torch.device("cuda", 0)
    assert imagined.backends == available_backends("cuda")
    assert imagined.backends[0] == "triton"
