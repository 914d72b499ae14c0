"""Time of the row functions by backend and device, against one pass over the logits and SGLang's sampler.

Run as a script: `python kernels/benchmarks/bench_rows.py --quick`. Writes `results/<name>.json` and renders
all of them to `results/results.md`. The candidates of one size are timed in turn, repeat by repeat, so that
a busy machine slows all of them; ratios are between fastest times, which other processes disturb least.

The stock sampler is SGLang's own sequence (`layers/sampler.py`, 0.5.23): divide by the temperature,
softmax, copy back, `sampling_from_probs_torch`; with logprobs also log, clamp, top-2 and the gather of the
sampled token.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

import torch
from sglang_power_kernels import available_backends, row_statistics, sample_rows, truncation_bounds

RESULTS: Final = Path(__file__).parent / "results"
BATCHES: Final = (1, 2, 8, 32, 128, 256)
VOCABS: Final = (32_000, 151_936, 262_144)
QUICK_BATCHES: Final = (1, 8)
QUICK_VOCABS: Final = (32_000, 151_936)
NAIVE_LIMIT: Final = 1 << 22
"""Logits beyond which the naive reference is not timed."""
KAPPA: Final = 4.0
TOP_P: Final = 0.95
PACKAGES: Final = ("torch", "triton", "flashinfer-python", "sglang", "numpy")
STOCK: Final = "stock"
STOCK_LOGPROBS: Final = "stock + logprobs + top-2"
POWER_ROW: Final = "sampling + statistics"

Call = Callable[[], object]


@dataclass(frozen=True)
class Timing:
    """One candidate at one size; seconds are per call, ratios come from the same run.

    Attributes:
        bandwidth_gb_s: bytes of the logits, read once, over the fastest time.
        passes: fastest time over the time to read the logits once at the measured copy bandwidth.
        to_stock: fastest time over the stock sampler's.
        to_stock_logprobs: fastest time over that of the stock sampler with logprobs and top-2.
        to_reference: fastest time over that of the naive reference of the same operation.
    """

    device: str
    batch: int
    vocab: int
    operation: str
    backend: str
    median_s: float
    fastest_s: float
    bandwidth_gb_s: float
    passes: float
    to_stock: float
    to_stock_logprobs: float
    to_reference: float | None


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write the JSON file, render the page; returns the exit status."""
    arguments = parse(argv)
    if arguments.render_only:
        render_all()
        return 0
    stock_sampler, stock_source = load_stock_sampler()
    devices = [torch.device("cpu")] + ([torch.device("cuda", 0)] if torch.cuda.is_available() else [])
    timings: list[Timing] = []
    for device in devices:
        for vocab in arguments.vocabs or (QUICK_VOCABS if arguments.quick else VOCABS):
            for batch in arguments.batches or (QUICK_BATCHES if arguments.quick else BATCHES):
                timings += measure(device, batch, vocab, arguments.repeats, stock_sampler)
                print(f"{device.type} {batch} x {vocab}: done", file=sys.stderr)
    report = {"command": command(argv), **machine(), "stock_sampler": stock_source, "timings": []}
    report["timings"] = [asdict(timing) for timing in timings]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{arguments.name}.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    render_all()
    print(f"wrote {path} and {RESULTS / 'results.md'}")
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="bench_rows.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two batch sizes and two vocabularies")
    parser.add_argument(
        "--name", default="cuda" if torch.cuda.is_available() else "cpu", help="of the JSON file"
    )
    parser.add_argument("--repeats", type=int, default=15, help="timings of each call")
    parser.add_argument("--batches", type=int, nargs="+", help="instead of the default batch sizes")
    parser.add_argument("--vocabs", type=int, nargs="+", help="instead of the default vocabularies")
    parser.add_argument("--render-only", action="store_true", help="rewrite results.md from the JSON files")
    return parser.parse_args(argv)


def measure(
    device: torch.device,
    batch: int,
    vocab: int,
    repeats: int,
    stock_sampler: Callable[[torch.Tensor], torch.Tensor],
) -> list[Timing]:
    """Time every candidate at one size, in turn."""
    logits = 3.0 * torch.randn(batch, vocab, device=device)
    calls = candidates(logits, stock_sampler)
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in calls}
    for repeat in range(repeats + 1):
        for key, call in calls.items():
            elapsed = timed(call, device)
            if repeat > 0:
                seconds[key].append(elapsed)
    fastest = {key: min(values) for key, values in seconds.items()}
    size = logits.numel() * logits.element_size()
    one_pass = fastest["copy", "torch"] / 2  # A copy reads and writes.
    return [
        Timing(
            device=device.type,
            batch=batch,
            vocab=vocab,
            operation=operation,
            backend=backend,
            median_s=statistics.median(seconds[operation, backend]),
            fastest_s=shortest,
            bandwidth_gb_s=size / shortest / 1e9,
            passes=shortest / one_pass,
            to_stock=shortest / fastest[STOCK, "sglang"],
            to_stock_logprobs=shortest / fastest[STOCK_LOGPROBS, "sglang"],
            to_reference=None
            if (operation, "reference") not in fastest
            else shortest / fastest[operation, "reference"],
        )
        for (operation, backend), shortest in fastest.items()
    ]


def candidates(
    logits: torch.Tensor, stock_sampler: Callable[[torch.Tensor], torch.Tensor]
) -> dict[tuple[str, str], Call]:
    """What is timed, keyed by operation and backend."""
    batch, device = logits.shape[0], logits.device
    copy, stock_buffer = torch.empty_like(logits), torch.empty_like(logits)
    temperatures = torch.full((batch, 1), 1 / KAPPA, device=device)
    calls: dict[tuple[str, str], Call] = {
        ("copy", "torch"): lambda: copy.copy_(logits),
        (STOCK, "sglang"): lambda: stock(logits, stock_buffer, temperatures, stock_sampler),
        (STOCK_LOGPROBS, "sglang"): lambda: stock_logprobs(logits, stock_buffer, temperatures, stock_sampler),
    }
    for backend in available_backends(device):
        if backend != "reference" or logits.numel() <= NAIVE_LIMIT:
            calls |= backend_calls(logits, backend)
    return calls


def backend_calls(logits: torch.Tensor, backend: str) -> dict[tuple[str, str], Call]:
    """The calls of one backend; FlashInfer's samples are paired with the statistics of "auto"."""
    batch, device = logits.shape[0], logits.device
    kappa = torch.full((batch,), KAPPA, device=device)
    uniforms = torch.rand(batch, dtype=torch.float64, device=device)
    top_p = torch.full((batch,), TOP_P, device=device)
    ids = logits.argmax(dim=-1)
    bound = logits.amax(dim=-1) - 2.0
    has_statistics = backend != "flashinfer"

    def sample(keep_min: torch.Tensor | None = None) -> torch.Tensor:
        return sample_rows(
            logits, kappa=kappa, uniforms=uniforms, keep_min=keep_min, backend=backend, validate=False
        )

    def statistics_of(sampled: torch.Tensor, keep_min: torch.Tensor | None = None) -> object:
        chosen = backend if has_statistics else "auto"
        return row_statistics(logits, sampled, kappa=kappa, keep_min=keep_min, backend=chosen, validate=False)

    calls: dict[tuple[str, str], Call] = {
        ("sampling", backend): sample,
        (POWER_ROW, backend): lambda: statistics_of(sample()),
        (f"{POWER_ROW}, truncated", backend): lambda: statistics_of(sample(bound), bound),
    }
    if has_statistics:
        calls["statistics", backend] = lambda: statistics_of(ids)
    if backend != "triton":
        calls["top-p bound", backend] = lambda: truncation_bounds(
            logits, kappa=kappa, top_p=top_p, backend=backend, validate=False
        )
    return calls


def stock(
    logits: torch.Tensor,
    buffer: torch.Tensor,
    temperatures: torch.Tensor,
    sampler: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """SGLang's simple case without logprobs; out of place where SGLang divides in place, same traffic."""
    torch.div(logits, temperatures, out=buffer)
    buffer[:] = torch.softmax(buffer, dim=-1)
    return sampler(buffer)


def stock_logprobs(
    logits: torch.Tensor,
    buffer: torch.Tensor,
    temperatures: torch.Tensor,
    sampler: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """SGLang's simple case with the sampled token's logprob and the top 2."""
    ids = stock(logits, buffer, temperatures, sampler)
    logprobs = torch.log(buffer).clamp_(min=torch.finfo(buffer.dtype).min)
    logprobs.topk(2, dim=-1)
    return logprobs[torch.arange(len(ids), device=ids.device), ids]


def load_stock_sampler() -> tuple[Callable[[torch.Tensor], torch.Tensor], str]:
    """SGLang's sampling function, or the same operations where SGLang is not installed."""
    try:
        from sglang.srt.layers.sampler import sampling_from_probs_torch
    except ImportError:
        return exponential_race, "torch replica of sglang's sampling_from_probs_torch"
    return sampling_from_probs_torch, f"sglang {version('sglang')} sampling_from_probs_torch"


def exponential_race(probs: torch.Tensor) -> torch.Tensor:
    """What `sampling_from_probs_torch` does by default in SGLang 0.5.23."""
    noise = torch.empty_like(probs).exponential_(1.0).clamp_min_(torch.finfo(torch.float32).tiny)
    return (probs / noise).argmax(dim=-1).to(torch.int32)


def timed(call: Call, device: torch.device) -> float:
    """Seconds of one call; on CUDA by events, so that what is timed is the device."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize(device)
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize(device)
    return float(begin.elapsed_time(end)) / 1e3


def command(argv: Sequence[str] | None) -> str:
    """The command line that gives these results."""
    threads = f"OMP_NUM_THREADS={os.environ['OMP_NUM_THREADS']} " if "OMP_NUM_THREADS" in os.environ else ""
    arguments = sys.argv[1:] if argv is None else argv
    return f"{threads}python kernels/benchmarks/bench_rows.py {shlex.join(arguments)}".strip()


def machine() -> dict[str, Any]:
    """Hardware, versions and load, for the record."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        cpu = names[0] if names else cpu
    return {
        "date": time.strftime("%Y-%m-%d"),
        "cpu": f"{cpu}, {os.cpu_count()} cores",
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
    }


def installed(package: str) -> str | None:
    """The version of a package, None where it is missing."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def render_all() -> None:
    """Write `results.md` from all result files."""
    reports = [(path.stem, json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    lines = ["# Row functions: measured", "", "Written by `bench_rows.py`; do not edit.", ""]
    if not any(report["gpu"] for _, report in reports):
        lines += ["**Not run on CUDA**: no GPU was at hand. Triton and FlashInfer have no figures here.", ""]
    lines += [
        "Milliseconds: median and fastest. GB/s and the ratios are of fastest times: over one read of the",
        "logits at the measured copy bandwidth (passes), over the stock sampler, over the stock sampler with",
        "logprobs and top-2, over the naive reference of the same operation.",
        "",
    ]
    for name, report in reports:
        lines += render(name, report)
    (RESULTS / "results.md").write_text("\n".join(lines))


def render(name: str, report: dict[str, Any]) -> list[str]:
    """The section of one result file."""
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items() if number)
    load = report["load_average"][0]
    shared = " (other processes ran too: trust the fastest times)" if load > 1.2 * report["threads"] else ""
    columns = [
        "device",
        "batch",
        "vocab",
        "operation",
        "backend",
        "median",
        "fastest",
        "GB/s",
        "passes",
        "/stock",
        "/logprobs",
        "/naive",
    ]
    rows = [
        [
            *(str(row[key]) for key in ("device", "batch", "vocab", "operation", "backend")),
            *(f"{row[key] * 1e3:.3f}" for key in ("median_s", "fastest_s")),
            *(f"{row[key]:.1f}" for key in ("bandwidth_gb_s", "passes")),
            *(f"{row[key]:.2f}" for key in ("to_stock", "to_stock_logprobs")),
            "" if row["to_reference"] is None else f"{row['to_reference']:.2f}",
        ]
        for row in report["timings"]
    ]
    return [
        f"## {name}",
        "",
        f"{report['date']}; {report['cpu']}, {report['threads']} threads, load average {load}{shared}; "
        f"GPU: {report['gpu'] or 'none'}; Python {report['python']}, {versions}.",
        f"Stock sampler: {report['stock_sampler']}. Logits float32, kappa {KAPPA:g}.",
        "",
        f"    {report['command']}",
        "",
        *("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)),
        "",
    ]


if __name__ == "__main__":
    sys.exit(main())
