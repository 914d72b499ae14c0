"""A run of the benchmark: time every size, judge, write the files.

Owns the order of things and the two files of a run: its JSON report and the page of all reports beside it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch

from .machine import describe_machine
from .measuring import Spread, time_rounds
from .page import FORMAT, render
from .settings import Settings
from .stock import SOURCE
from .targets import Timing, judge
from .traffic import byte_passes
from .workloads import (
    COPY,
    KAPPA,
    LOGIT_BYTES,
    STOCK,
    STOCK_LOGPROBS,
    Contender,
    candidates,
    rows_to_rotate,
)

PAGE: Final = "results.md"
REPORTS: Final = ("cpu_*_thread*.json", "cuda.json")


def run(settings: Settings, *, command: str) -> dict[str, Any]:
    """Measure and return the report, ready for JSON; `command` is recorded as what gives these results."""
    timings: list[Timing] = []
    with _threads(settings.threads):
        for vocab in settings.vocabs:
            for batch in settings.batches:
                timings += measure(settings, batch, vocab)
                print(f"{settings.device} {batch} x {vocab}: done", file=sys.stderr)
        machine = describe_machine(settings.device)
    return {
        "format": FORMAT,
        "command": _environment() + command,
        "device": settings.device.type,
        **machine,
        "rounds": settings.rounds,
        "kappa": KAPPA,
        "stock_sampler": SOURCE,
        "targets": [asdict(verdict) for verdict in judge(timings, settings.device.type)],
        "timings": [asdict(timing) for timing in timings],
    }


def write(report: dict[str, Any], folder: Path) -> tuple[Path, Path]:
    """Write the report, and the page of all reports in the folder; returns both paths."""
    folder.mkdir(parents=True, exist_ok=True)
    path, page = folder / f"{_name(report)}.json", folder / PAGE
    path.write_text(_one_timing_a_line(report))
    paths = sorted(found for pattern in REPORTS for found in folder.glob(pattern))
    page.write_text(render({found.stem: json.loads(found.read_text()) for found in paths}))
    return path, page


def _one_timing_a_line(report: dict[str, Any]) -> str:
    """The report as JSON that stays small and whose differences can be read: five digits of every figure."""
    *head, _ = json.dumps(
        _short({name: value for name, value in report.items() if name != "timings"}), indent=1
    ).split("\n")
    timings = ",\n".join(
        "  " + json.dumps(_short(timing), separators=(",", ":")) for timing in report["timings"]
    )
    return "\n".join(head) + f',\n "timings": [\n{timings}\n ]\n}}\n'


def _short(value: Any) -> Any:
    """The same JSON value with its floats rounded to five significant digits."""
    match value:
        case float():
            return float(f"{value:.5g}")
        case dict():
            return {name: _short(part) for name, part in value.items()}
        case list() | tuple():
            return [_short(part) for part in value]
        case _:
            return value


def measure(settings: Settings, batch: int, vocab: int) -> list[Timing]:
    """Time every candidate at one size, in interleaved rounds."""
    pool = rows_to_rotate(settings.device, batch, vocab)
    calls = candidates(pool[0].logits, settings.backends)
    seconds = time_rounds(calls, pool, settings.device, settings.rounds)
    return [_timing(settings, batch, vocab, candidate, seconds) for candidate in calls]


def _timing(
    settings: Settings,
    batch: int,
    vocab: int,
    candidate: Contender,
    seconds: Mapping[Contender, Sequence[float]],
) -> Timing:
    """The figures of one candidate from the times of all, round by round."""
    times = seconds[candidate]
    spread = Spread.of(times)
    one_pass = [copied / 2 for copied in seconds[COPY]]  # A copy reads and writes.
    naive = seconds.get(Contender(candidate.operation, "reference"))
    return Timing(
        device=settings.device.type,
        batch=batch,
        vocab=vocab,
        operation=candidate.operation,
        backend=candidate.backend,
        seconds=spread,
        bandwidth_gb_s=LOGIT_BYTES * batch * vocab / spread.median / 1e9,
        passes=Spread.of_ratios(times, one_pass),
        byte_passes=byte_passes(candidate, batch, vocab),
        to_stock=Spread.of_ratios(times, seconds[STOCK]),
        to_stock_logprobs=Spread.of_ratios(times, seconds[STOCK_LOGPROBS]),
        to_reference=None if naive is None else Spread.of_ratios(times, naive),
    )


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Torch's threads inside, as they were afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _environment() -> str:
    """What of the environment belongs to the command line."""
    threads = os.environ.get("OMP_NUM_THREADS")
    return "" if threads is None else f"OMP_NUM_THREADS={threads} "


def _name(report: dict[str, Any]) -> str:
    """One report per device type and number of threads."""
    if report["device"] == "cuda":
        return "cuda"
    threads = report["threads"]
    return f"cpu_{threads}_thread{'s' if threads > 1 else ''}"
