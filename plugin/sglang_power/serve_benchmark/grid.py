"""The rows of the benchmark and the loads that each is measured under: what is compared, as data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal

from sglang_power.serve_benchmark.record import Concurrency
from sglang_power.serve_benchmark.workloads import Workload

Client = Literal["plain", "plugin", "naive", "published"]
"""Who asks: for SGLang's own sampling, for a sampler of the plugin, or for what MH needs, step by step."""

LADDER: Final = ("plain", "power", "fast_exact", "smc")
"""Rows that are measured under more loads than the others."""

PLAIN: Final = "plain"
SMC_NAMES: Final = {(16, 1): "smc", (8, 4): "smc_exact"}
"""Names by N and K; others say them."""


@dataclass(frozen=True)
class Options:
    """The size of a grid.

    Args:
        answers: of a cell.  seconds: after which a cell asks for no further one.
        concurrency: clients at once, for every row.
        ladder: further numbers of them, for rows of LADDER.
        open_load: arrivals of the open loop, as a share of what the row answered under the largest number of
            clients; 0 leaves it out.
        alphas: exponents; empty means those of the workloads.
        particles, runs: N and K of smc, each with each; empty means 8, 16 and 8 x 4.
        prefetch: proposals at once of a chain.
        horizons: max_new_tokens; empty means those of the workloads.
        rows: names of rows; empty means all.
    """

    answers: int = 64
    seconds: float = 40.0
    concurrency: Sequence[int] = (1, 32)
    ladder: Sequence[int] = (8,)
    open_load: float = 0.7
    alphas: Sequence[float] = ()
    particles: Sequence[int] = ()
    runs: Sequence[int] = ()
    prefetch: Sequence[int] = (8, 32)
    horizons: Sequence[int] = ()
    rows: Sequence[str] = ()

    @property
    def populations(self) -> Sequence[tuple[int, int]]:
        """Return N and K of every row of smc."""
        if not self.particles and not self.runs:
            return ((8, 1), (16, 1), (8, 4))
        return [(n, k) for n in self.particles or (16,) for k in self.runs or (1,)]


QUICK: Final = Options(answers=4, seconds=5.0, concurrency=(4,), ladder=())
"""Whether everything runs, in a minute; its figures mean nothing."""


@dataclass(frozen=True)
class RowSpec:
    """One row of the grid.

    Args:
        name: in serve.json.
        client: who asks.
        params: as they are sent; of `plain`, SGLang's sampling parameters.
    """

    name: str
    client: Client
    params: Mapping[str, Any]

    def shown(self, presets: Mapping[str, Mapping[str, Any]], workload: Workload) -> dict[str, Any]:
        """Return the parameters for serve.json: what a preset of the server stands for, and the horizon."""
        preset = presets.get(str(self.params.get("preset")), {})
        return {**preset, **self.params, "max_new_tokens": workload.max_new_tokens}

    def loads(self, options: Options) -> Iterator[Concurrency]:
        """Yield the loads, the open loop last: it needs the row's throughput."""
        if self.client == "published":
            yield 1  # one sequence at a time is what it is
            return
        on_ladder = self.name in LADDER
        yield from sorted({*options.concurrency, *(options.ladder if on_ladder else ())})
        if on_ladder and options.open_load > 0:
            yield "open"


def workloads(base: Sequence[Workload], options: Options) -> list[Workload]:
    """Return the workloads with every horizon that is asked for."""
    if not options.horizons:
        return list(base)
    return [replace(one, max_new_tokens=horizon) for one in base for horizon in options.horizons]


def row_specs(workload: Workload, options: Options) -> list[RowSpec]:
    """Return the rows of a workload, plain sampling first; some may be unknown to the server."""
    rows = [RowSpec(PLAIN, "plain", {"temperature": 1.0})]
    for alpha in options.alphas or (None,):
        exponent = {} if alpha is None else {"alpha": alpha}
        rows += _power_rows(workload, exponent, options)
        rows += _other_rows(workload, exponent, options)
    vote = {"sampler": "vote", **workload.vote}
    rows.append(RowSpec("vote", "plugin", {**vote, "stopping": "never"}))
    rows.append(RowSpec("vote_decided", "plugin", {**vote, "stopping": "decided", **workload.deciding}))
    return [row for row in rows if not options.rows or row.name in (PLAIN, *options.rows)]


def _power_rows(workload: Workload, exponent: Mapping[str, Any], options: Options) -> Iterator[RowSpec]:
    """Yield every way to a Metropolis-Hastings chain."""
    chain = {**workload.chain, **exponent}
    for depth in options.prefetch:
        params = {"sampler": "power", **chain, "prefetch": depth}
        yield RowSpec(f"power_prefetch_{depth}", "plugin", params)
    yield RowSpec("power_uniform", "plugin", {"sampler": "power", **chain})
    yield RowSpec("power", "plugin", {"sampler": "power", **workload.power, **exponent})
    yield RowSpec("naive", "naive", chain)
    yield RowSpec("published", "published", chain)


def _other_rows(workload: Workload, exponent: Mapping[str, Any], options: Options) -> Iterator[RowSpec]:
    yield RowSpec("fast_exact", "plugin", {"preset": "fast-exact", **exponent})
    for particles, runs in options.populations:
        name = SMC_NAMES.get((particles, runs), f"smc_{particles}x{runs}" if runs > 1 else f"smc_{particles}")
        population = {"particles": particles, "runs": runs}
        yield RowSpec(name, "plugin", {"sampler": "smc", **workload.particles, **exponent, **population})
    alpha = {"alpha": workload.chain["alpha"], **exponent}
    yield RowSpec("perfect", "plugin", {"sampler": "perfect", **alpha})


def row_names(options: Options) -> list[str]:
    """Return the names of all rows of a grid."""
    some = Workload("any", (), 1)
    return [row.name for row in row_specs(some, replace(options, rows=()))]
