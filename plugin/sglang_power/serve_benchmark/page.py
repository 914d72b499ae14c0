"""The results as Markdown. Owns the layout only; every figure comes from the record."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from sglang_power.serve_benchmark.driver import Gap
from sglang_power.serve_benchmark.record import Concurrency, Record, Row
from sglang_power.serve_benchmark.targets import judge

COLUMNS: Final = (
    "row",
    "clients",
    "accuracy (95% interval)",
    "decoded / returned",
    "prefilled / returned",
    "depth / returned",
    "wall / plain",
    "answers / min",
    "p50, p95, p99 (s)",
    "extend, decode passes / answer",
    "answers",
)
SHORT_COLUMNS: Final = (
    "row",
    "accuracy (95% interval)",
    "decoded / returned",
    "depth / returned",
    "wall / plain, 1 client",
    "answers / min, 1 client",
    "answers / min, {} clients",
    "extend passes / answer, {} clients",
)
EXPLANATION: Final = """\
Decoded and prefilled tokens (without what the cache held) and depth (tokens and launches in a row)
are per token that is returned. Wall / plain: median latency by that of plain answers, asked for right before
and right after under the same load, or in their own open loop. Passes: forward passes of the server; extend
passes are launches. `naive` runs MH as a client, by plain requests; `published` by Hugging Face transformers,
one sequence at a time and without a cache between calls. `power_uniform`, `power_prefetch_*`, `naive` and
`published` have the same parameters. An open loop has Poisson arrivals; its waits count from the arrival."""


def render(record: Record, gaps: Sequence[Gap], failed: Sequence[Gap]) -> str:
    """Return the whole page.

    Args:
        record: serve.json.
        gaps: rows that this server does not serve, or that were left out.
        failed: cells that went wrong.
    """
    lines = ["# Serving: measured", "", "Written by `sglang-power bench serve`; do not edit.", ""]
    lines += [caption(record), "", EXPLANATION, "", "## Targets", "", *target_table(record.rows)]
    for workload, horizon in _workloads(record.rows):
        rows = _rows_of(record.rows, workload, horizon)
        lines += ["", f"## {workload}, at most {horizon} tokens", "", *_table(COLUMNS, map(_cells, rows))]
        lines += ["", *_parameters(rows)]
    lines += gap_lines(gaps, failed)
    return "\n".join(lines) + "\n"


def short(record: Record, gaps: Sequence[Gap], failed: Sequence[Gap]) -> str:
    """Return what a guide shows of it: a line per row and workload. Args: as `render`."""
    busiest = max((row.concurrency for row in record.rows if row.concurrency != "open"), default=1)
    columns = [column.format(busiest) for column in SHORT_COLUMNS]
    lines = [caption(record), ""]
    for workload, horizon in _workloads(record.rows):
        rows = _rows_of(record.rows, workload, horizon)
        first = {(row.sampler, row.params.get("alpha")): row for row in reversed(rows)}
        found = {(row.sampler, row.params.get("alpha"), row.concurrency): row for row in rows}
        cells = [
            _short_cells(row, found.get((*key, 1)), found.get((*key, busiest)))
            for key, row in reversed(first.items())
        ]
        lines += [f"**{workload}**, at most {horizon} tokens:", "", *_table(columns, cells), ""]
    return "\n".join([*lines, *target_table(record.rows), *gap_lines(gaps, failed)]).rstrip()


def caption(record: Record) -> str:
    """Return where it was measured, in one line."""
    versions = ", ".join(f"{name} {number}" for name, number in record.versions.items())
    return f"{record.hardware}; {versions}; `{record.command}`."


def target_table(rows: Sequence[Row]) -> list[str]:
    """Return the verdicts on the targets that this record's workloads have."""
    names = {row.workload for row in rows}
    verdicts = [verdict for verdict in judge(rows) if verdict.target.workload in names]
    if not verdicts:
        return ["No target is about these workloads."]
    cells = [
        (
            f"{verdict.target.workload}: {verdict.target.words}",
            f"{verdict.target.kind} {verdict.target.limit:g}",
            _number(verdict.measured),
            verdict.result,
        )
        for verdict in verdicts
    ]
    return _table(("target", "bound", "measured", "result"), cells)


def gap_lines(gaps: Sequence[Gap], failed: Sequence[Gap]) -> list[str]:
    """Return what has no figures, and why."""
    lines = [f"- Not served by this server, or left out: {gap}" for gap in gaps]
    lines += [f"- Failed: {gap}" for gap in failed]
    return ["", *lines] if lines else []


def _workloads(rows: Sequence[Row]) -> list[tuple[str, int]]:
    """Names and horizons, in the order of the file."""
    return list(dict.fromkeys((row.workload, int(row.params["max_new_tokens"])) for row in rows))


def _rows_of(rows: Sequence[Row], workload: str, horizon: int) -> list[Row]:
    """The rows of one table: by row, then by load."""
    mine = [row for row in rows if (row.workload, row.params["max_new_tokens"]) == (workload, horizon)]
    order = list(dict.fromkeys(row.sampler for row in mine))
    return sorted(mine, key=lambda row: (order.index(row.sampler), _load_order(row.concurrency)))


def _load_order(load: Concurrency) -> float:
    return float("inf") if load == "open" else load


def _cells(row: Row) -> list[str]:
    open_loop = f"open, {_number(row.arrivals_per_minute)} a minute"
    return [
        row.sampler,
        open_loop if row.concurrency == "open" else str(row.concurrency),
        _accuracy(row),
        *map(_number, (row.decoded_per_returned, row.prefilled_per_returned, row.depth_per_returned)),
        _number(row.wall_vs_plain),
        _number(row.answers_per_minute),
        ", ".join(map(_number, (row.p50_s, row.p95_s, row.p99_s))),
        ", ".join(filter(None, map(_number, (row.extend_passes_per_answer, row.decode_passes_per_answer)))),
        str(row.answers),
    ]


def _short_cells(any_load: Row, alone: Row | None, busiest: Row | None) -> list[str]:
    """One line: tokens and accuracy from the cell with most answers."""
    fullest = max((row for row in (busiest, alone, any_load) if row is not None), key=lambda row: row.answers)
    return [
        fullest.sampler,
        _accuracy(fullest),
        _number(fullest.decoded_per_returned),
        _number(fullest.depth_per_returned),
        _number(None if alone is None else alone.wall_vs_plain),
        _number(None if alone is None else alone.answers_per_minute),
        _number(None if busiest is None else busiest.answers_per_minute),
        _number(None if busiest is None else busiest.extend_passes_per_answer),
    ]


def _parameters(rows: Sequence[Row]) -> list[str]:
    """A line per row: what was asked for."""
    shown = {f"{row.sampler}: {row.params}".replace("'", "").replace("|", "or") for row in rows}
    return [f"- {line}" for line in sorted(shown)]


def _accuracy(row: Row) -> str:
    if row.accuracy is None or row.ci95 is None:
        return ""
    low, high = row.ci95
    return f"{row.accuracy:.3f} ({low:.2f} to {high:.2f})"


def _number(value: float | None) -> str:
    """Three digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 1e-3 else f"{value:.5f}"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows)]
