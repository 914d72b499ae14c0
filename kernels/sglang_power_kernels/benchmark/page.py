"""The page of the results, in markdown, from the JSON reports.

Owns the layout only; every figure comes from a report.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

FORMAT: Final = 2
"""Of the JSON reports; those of another format are named on the page and left out."""
NOT_ON_CUDA: Final = "**Not run on CUDA**: no GPU was at hand. Triton and FlashInfer have no figures here."
EXPLANATION: Final = """\
Every round times every candidate once, on rotating inputs; a figure is the median over the rounds, with
quartiles in brackets, and every ratio compares two times of the same round. GB/s: bytes of the logits over
the time. Passes: the time over that of one read of the logits at the measured copy bandwidth (the roofline
is 1; the copy reads and writes, hence 2). Bytes: moved over the bytes of the logits, counted from the
launches (Triton). /stock and /logprobs: over SGLang's stock sampler without logprobs, and with logprobs
and top-2. /naive: over the naive reference of the same operation."""
TARGET_COLUMNS: Final = ("target", "at most", "worst", "where", "met at", "result")
TIMING_COLUMNS: Final = (
    "device",
    "batch",
    "vocab",
    "operation",
    "backend",
    "ms",
    "GB/s",
    "passes",
    "bytes",
    "/stock",
    "/logprobs",
    "/naive",
)


def render(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page of these reports, keyed by name."""
    readable = {name: report for name, report in reports.items() if report.get("format") == FORMAT}
    lines = ["# Row functions: measured", "", "Written by `sglang-power bench kernels`; do not edit.", ""]
    if not any(report["device"] == "cuda" for report in readable.values()):
        lines += [NOT_ON_CUDA, ""]
    lines += [EXPLANATION, ""]
    for name, report in readable.items():
        lines += _section(name, report)
    lines += [
        f"Left out: {name}.json, which another version of the benchmark has written."
        for name in reports
        if name not in readable
    ]
    return "\n".join(lines).rstrip() + "\n"


def target_lines(report: Mapping[str, Any]) -> list[str]:
    """Return the verdicts of a report, a line each, for a terminal."""
    return [
        f"{verdict['result']:15} {verdict['target']}: {_number(verdict['worst']) or '-'}, "
        f"to be at most {_number(verdict['limit'])}"
        for verdict in report["targets"]
    ]


def _section(name: str, report: Mapping[str, Any]) -> list[str]:
    """The section of one report: hardware, versions, command, targets, timings."""
    versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items() if number)
    load = report["load_average"][0]
    shared = " (other processes ran too)" if load > 1.2 * report["threads"] else ""
    threads = f"{report['threads']} thread{'s' if report['threads'] > 1 else ''}"
    return [
        f"## {name}",
        "",
        f"{report['date']}; {report['cpu']}, {threads}, load average {load}{shared}; "
        f"GPU: {report['gpu'] or 'none'}; Python {report['python']}, {versions}.",
        f"Stock sampler: {report['stock_sampler']}. Logits float32, kappa {report['kappa']:g}, "
        f"rounds: {report['rounds']}.",
        "",
        f"    {report['command']}",
        "",
        "### Targets",
        "",
        *_table(TARGET_COLUMNS, [_target_cells(verdict) for verdict in report["targets"]]),
        "",
        "### Timings",
        "",
        *_table(TIMING_COLUMNS, [_timing_cells(timing) for timing in report["timings"]]),
        "",
    ]


def _target_cells(verdict: Mapping[str, Any]) -> list[str]:
    return [
        verdict["target"],
        _number(verdict["limit"]),
        _number(verdict["worst"]),
        verdict["worst_at"] or "",
        f"{verdict['met_at']} of {verdict['measured_at']}" if verdict["measured_at"] else "",
        verdict["result"],
    ]


def _timing_cells(timing: Mapping[str, Any]) -> list[str]:
    return [
        *(str(timing[key]) for key in ("device", "batch", "vocab", "operation", "backend")),
        _spread(timing["seconds"], 1e3),
        _number(timing["bandwidth_gb_s"]),
        _spread(timing["passes"]),
        _number(timing["byte_passes"]),
        *(_spread(timing[key]) for key in ("to_stock", "to_stock_logprobs", "to_reference")),
    ]


def _spread(spread: Mapping[str, float] | None, unit: float = 1.0) -> str:
    if spread is None:
        return ""
    median, lower, upper = (_number(unit * spread[key]) for key in ("median", "lower", "upper"))
    return median if lower == upper else f"{median} ({lower} to {upper})"


def _number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.5f}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
