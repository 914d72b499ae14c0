"""What the benchmark's figures are held against: ratios of rows of one run. Pure.

A target is about one workload; where a row of it is missing, nothing is said but that it was not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from sglang_power.serve_benchmark.record import Concurrency, Row

Figure = Callable[["Rows"], float]
"""Computes a figure; raises KeyError where a row, or a field of it, is missing."""


class Rows:
    """Rows of one workload, by sampler and load; the first one, where several have other parameters."""

    def __init__(self, rows: Sequence[Row], workload: str) -> None:
        self._rows = [row for row in rows if row.workload == workload]

    def of(self, sampler: str, load: Concurrency) -> Row:
        """Return a row.

        Raises:
            KeyError: it was not measured.
        """
        for row in self._rows:
            if (row.sampler, row.concurrency) == (sampler, load):
                return row
        raise KeyError(sampler, load)

    def value(self, sampler: str, load: Concurrency, field: str) -> float:
        """Return a field of a row.

        Raises:
            KeyError: it was not measured.
        """
        found = getattr(self.of(sampler, load), field)
        if found is None:
            raise KeyError(sampler, load, field)
        return float(found)

    def ratio(self, sampler: str, other: str, load: Concurrency, field: str) -> float:
        """Return one row's field by another's, under the same load."""
        return self.value(sampler, load, field) / self.value(other, load, field)


@dataclass(frozen=True)
class Target:
    """A bound on a figure.

    Args:
        workload: whose rows it is computed from.
        words: what is bounded.
        kind: of the bound.
        limit: the bound.
        figure: computes it.
    """

    workload: str
    words: str
    kind: Literal["at most", "at least"]
    limit: float
    figure: Figure


@dataclass(frozen=True)
class Verdict:
    """A target, with what was measured; None where a row is missing."""

    target: Target
    measured: float | None

    @property
    def result(self) -> str:
        """Return "met", "missed" or "not measured"."""
        if self.measured is None:
            return "not measured"
        below, limit = self.measured <= self.target.limit, self.target.limit
        met = below if self.target.kind == "at most" else self.measured >= limit
        return "met" if met else "missed"


def _depth(sampler: str) -> Figure:
    return lambda rows: rows.value(sampler, 1, "depth_per_returned")


def _throughput_ratio(sampler: str, other: str) -> Figure:
    return lambda rows: rows.ratio(sampler, other, 32, "answers_per_minute")


def _not_worse(sampler: str, other: str) -> Figure:
    """p of Fisher's exact test that a row's accuracy is below another's, at 32 clients."""

    def figure(rows: Rows) -> float:
        from scipy.stats import fisher_exact

        table = []
        for name in (sampler, other):
            row = rows.of(name, 32)
            right = round(rows.value(name, 32, "accuracy") * row.answers)
            table.append([right, row.answers - right])
        return float(fisher_exact(table, alternative="less").pvalue)

    return figure


def _against_published(rows: Rows) -> float:
    return rows.value("fast_exact", 32, "answers_per_minute") / rows.value(
        "published", 1, "answers_per_minute"
    )


def _samples(rows: Rows) -> float:
    return rows.of("vote_decided", 1).decoded_per_answer / rows.of("vote", 1).decoded_per_answer


TARGETS: Final = (
    Target("R", "depth of smc, N 16", "at most", 1.2, _depth("smc")),
    Target("R", "depth of smc, 8 x 4", "at most", 1.2, _depth("smc_exact")),
    Target("R", "depth of fast-exact", "at most", 1.5, _depth("fast_exact")),
    Target("Q", "depth of fast-exact", "at most", 1.5, _depth("fast_exact")),
    Target(
        "R",
        "power's median latency by fast-exact's, one client",
        "at least",
        15.0,
        lambda rows: rows.ratio("power", "fast_exact", 1, "p50_s"),
    ),
    Target(
        "R",
        "fast-exact's median latency by a plain answer's, one client",
        "at most",
        5.0,
        lambda rows: rows.value("fast_exact", 1, "wall_vs_plain"),
    ),
    Target(
        "R",
        "answers of fast-exact by the naive client's, 32 clients",
        "at least",
        3.0,
        _throughput_ratio("fast_exact", "naive"),
    ),
    Target(
        "R",
        "p that fast-exact is right less often than the naive client",
        "at least",
        0.05,
        _not_worse("fast_exact", "naive"),
    ),
    Target(
        "R",
        "answers of power with prefetch 8 by the naive client's, same steps, 32 clients",
        "at least",
        1.5,
        _throughput_ratio("power_prefetch_8", "naive"),
    ),
    Target(
        "R",
        "extend passes of prefetch 8 by those of prefetch 1, 32 clients",
        "at most",
        0.5,
        lambda rows: rows.ratio("power_prefetch_8", "power_uniform", 32, "extend_passes_per_answer"),
    ),
    Target(
        "R",
        "answers of fast-exact, 32 clients, by those of the published algorithm",
        "at least",
        10.0,
        _against_published,
    ),
    Target("Q", "decoded tokens of a vote that stops when decided", "at most", 0.85, _samples),
    Target("R", "decoded tokens of a vote that stops when decided", "at most", 0.85, _samples),
)


def judge(rows: Sequence[Row]) -> list[Verdict]:
    """Return the verdict on every target."""
    verdicts = []
    for target in TARGETS:
        try:
            measured: float | None = target.figure(Rows(rows, target.workload))
        except KeyError:
            measured = None
        verdicts.append(Verdict(target, measured))
    return verdicts
