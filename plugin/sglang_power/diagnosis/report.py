"""What a diagnosis found, as JSON, and its words for the terminal. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict

from sglang_power.algorithms.coupling import CoupledPair
from sglang_power.diagnosis import bounds
from sglang_power.diagnosis.convergence import Convergence, convergence
from sglang_power.diagnosis.serving import ServedChain

TARGETS: Final = (0.25, 0.1)
"""Distances whose number of steps the table shows."""

SHOWN_TEXT: Final = 40
"""Characters of a prompt in the report."""


class PromptFinding(BaseModel):
    """What the pairs of one prompt say.

    Args:
        prompt: its beginning.
        meetings: coupled steps of each pair until it met; None where it had not at the end.
        not_met: K, how many pairs had not met after t = 0, 1, ... coupled steps.
        change: u by t: the law changes by no more in `lag` further steps.
        rate: r: `lag` further steps are taken to shrink the distance by it (`bounds`, assumption A).
        distance: u / (1 - r) by t: the bound on the distance to the limit.
        steps_to: by target, steps of the last stage after which the bound is below; None: not so soon.
        convergence: R-hat and effective sample size of log p of the leaders.
        acceptance_rate: of all steps.
        mean_length: of the answers, in tokens.
        decoded_tokens: that all of it took.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: str
    meetings: tuple[int | None, ...]
    not_met: tuple[int, ...]
    change: tuple[float, ...]
    rate: float
    distance: tuple[float, ...]
    steps_to: dict[str, int | None]
    convergence: Convergence
    acceptance_rate: float
    mean_length: float
    decoded_tokens: int

    @property
    def met(self) -> int:
        """Return how many pairs have met."""
        return sum(meeting is not None for meeting in self.meetings)


class Diagnosis(BaseModel):
    """A whole run.

    Args:
        model, versions, command: of whom, and how it was asked.
        params: of `power`, without seed, steps and draft; max_tokens, stop: of an answer.
        start_steps: steps of the request that starts a chain: t = 0 of the bounds is that request's law.
        one_stage: whether t further steps are the law of a request with `steps` = start_steps + t.
        lag, steps, replicas, confidence, seed: as asked.
        prompts: of the file, in order, as far as they were done.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    versions: dict[str, str]
    command: str
    params: dict[str, Any]
    max_tokens: int
    stop: tuple[str, ...]
    start_steps: int
    one_stage: bool
    lag: int
    steps: int
    replicas: int
    confidence: float
    seed: int
    prompts: tuple[PromptFinding, ...]


def finding(
    prompt: str, pairs: Sequence[CoupledPair], chain: ServedChain, confidence: float
) -> PromptFinding:
    """Return what the pairs of a prompt say.

    Args:
        prompt: its text.
        pairs: all of them, over.
        chain: that made the moves, for its counts.
        confidence: 1 - delta.
    """
    meetings = tuple(pair.meeting for pair in pairs)
    unmet = bounds.not_met(meetings, pairs[0].steps)
    change = [bounds.upper(count, len(pairs), confidence) for count in unmet]
    r = bounds.rate(unmet, pairs[0].lag)
    distance = bounds.distances(change, r)
    steps_to = {f"{target:g}": bounds.first_below(distance, target) for target in TARGETS}
    alone = [pair.leader[: pair.lag + 1] for pair in pairs]
    return PromptFinding(
        prompt=prompt[:SHOWN_TEXT],
        meetings=meetings,
        not_met=tuple(unmet),
        change=tuple(change),
        rate=r,
        distance=tuple(distance),
        steps_to={name: None if t is None else chain.request.start_steps + t for name, t in steps_to.items()},
        convergence=convergence(np.array([[place.log_p for place in places] for places in alone])),
        acceptance_rate=chain.accepted / max(chain.steps, 1),
        mean_length=math.fsum(len(place.ids) for places in alone for place in places) / sum(map(len, alone)),
        decoded_tokens=chain.decoded,
    )


def lines(found: Diagnosis) -> list[str]:
    """Return what the terminal shows."""
    head = (
        "prompt",
        "met",
        *(f"TV <= {target:g}" for target in TARGETS),
        "bound",
        "R-hat",
        "ESS",
        "accepted",
    )
    rows = [head, *(_cells(found, number, each) for number, each in enumerate(found.prompts, start=1))]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    what = "steps" if found.one_stage else "steps of the last stage"
    most = found.start_steps + found.steps
    each = f"each bound holds with {100 * found.confidence:g}% confidence"
    return [
        f"model {found.model}, {found.replicas} pairs a prompt, lag {found.lag}; {each}",
        f"TV <= x: {what} after which the distance to p^alpha is bounded by x; bound: after {most}",
        *(row.rstrip() for row in table),
        *_remarks(found),
        advice(found),
    ]


def _cells(found: Diagnosis, number: int, each: PromptFinding) -> tuple[str, ...]:
    told = each.convergence
    return (
        f"{number} {each.prompt!r}",
        f"{each.met}/{found.replicas}",
        *("-" if steps is None else str(steps) for steps in each.steps_to.values()),
        f"{each.distance[-1]:.3f}",
        "-" if told.rhat is None else f"{told.rhat:.3f}{'*' if told.remark else ''}",
        "-" if told.ess is None else f"{told.ess:.0f}{'*' if told.remark else ''}",
        f"{each.acceptance_rate:.2f}",
    )


def _remarks(found: Diagnosis) -> list[str]:
    slow = [
        f"prompt {number}: pairs that are left meet slowly (r {each.rate:.2f}): raise --steps and --lag"
        for number, each in enumerate(found.prompts, start=1)
        if each.rate > bounds.LEAST_RATE
    ]
    remarks = dict.fromkeys(each.convergence.remark for each in found.prompts if each.convergence.remark)
    return [*slow, *(f"R-hat, ESS: {remark}" for remark in remarks)]


def advice(found: Diagnosis) -> str:
    """Return what to set."""
    target = f"{TARGETS[0]:g}"
    needed = [each.steps_to[target] for each in found.prompts]
    known = [steps for steps in needed if steps is not None]
    most = found.start_steps + found.steps
    if len(known) < len(needed):
        few = f"{len(needed) - len(known)} of {len(needed)} prompts"
        unknown = f"have no bound of {target} within {most} steps: how far they are is unknown"
        return f"{few} {unknown}. Raise --steps, lower --alpha, or try another --tau"
    bounded = f"the distance by {target} on each of these prompts"
    if found.one_stage:
        return f"steps: {max(known)} bounds {bounded}"
    stages, after = found.start_steps, max(known) - found.start_steps
    return f"behind stages of {stages} steps, {after} further steps of the last stage bound {bounded}"
