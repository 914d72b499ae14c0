"""What a response says of particle runs: estimates, law, and a hint where runs say little. Pure."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from sglang_power.algorithms.smc import SMCConfig
from sglang_power.samplers.particles import RunsResult
from sglang_power.samplers.report import finite

HINT_RUNS = 4
"""Runs from which on a hint is given."""

HINT_SPREAD = 1.0
"""Standard deviation of log Zhat, nats, from which on it is: below, rejections in a row are chance."""


def runs_law(
    config: SMCConfig, result: RunsResult, *, asked: int, drafted: bool
) -> Literal["power", "approximate"]:
    """Return the law of a particle that was drawn by its weight.

    "power" where at least one step stands behind it that leaves p^alpha invariant: a run that was accepted or
    rejected on Zhat, or one that was conditional on a draft; and where nothing was cut off.

    Args:
        config: of the runs.
        result: where they came to.
        asked: runs that were asked for.
        drafted: the first one was conditional.
    """
    steps = asked - 1 + drafted
    exact = steps > 0 and result.stopped_by == "completed" and not config.law.truncated
    return "power" if exact else "approximate"


def runs_headline(result: RunsResult) -> dict[str, Any]:
    """Return the first entries of the report."""
    hint = runs_hint(result)
    return {} if hint is None else {"hint": hint}


def runs_report(config: SMCConfig, result: RunsResult) -> dict[str, Any]:
    """Return the entries of `meta_info.power` that only particle runs have.

    Where a run has not ended, its log Zhat is null; a run whose particles are all dead has none either.
    """
    decided, accepted = len(ended_runs(result)) - 1, max(0, len(result.current) - 1)
    report: dict[str, Any] = {
        "runs": len(result.states),
        "particles": config.particles,
        "log_z": [finite(value) for value in result.log_z],
        "log_z_sd": spread(result),
        "ess": [list(state.ess) for state in result.states],
        "resamplings": sum(state.resamplings for state in result.states),
        "accepted": accepted,
        "acceptance_rate": accepted / decided if decided > 0 else None,
    }
    if died := sum(state.died for state in result.states):
        report["not_a_number"] = died
    return report


def ended_runs(result: RunsResult) -> list[float]:
    """log Zhat of the runs that have ended."""
    return [value for value in result.log_z if not math.isnan(value)]


def spread(result: RunsResult) -> float | None:
    """Standard deviation of log Zhat over runs, nats; None for fewer than two with a living particle."""
    known = [value for value in result.log_z if math.isfinite(value)]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None


def runs_hint(result: RunsResult) -> str | None:
    """What to do about runs that were all rejected: of at least 4, all after the first quarter.

    Only where estimates spread by at least HINT_SPREAD: otherwise that is chance.
    """
    count, sd = len(ended_runs(result)), spread(result)
    if count < HINT_RUNS or sd is None or sd < HINT_SPREAD or not result.current:
        return None
    last = result.current[-1]
    if last >= math.ceil(count / 4):
        return None
    return (
        f"no run after run {last + 1} of {count} was accepted, and log Zhat has a standard deviation of "
        f"{sd:.1f} nats over runs: the answer is hardly better than that of one run. More particles, "
        "proposal_temperature=1 or a ramp bring the estimates closer to each other"
    )
