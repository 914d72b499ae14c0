"""How a chain fares: whether its last stage moved, and whether it was still far from its target.

Two signs say that a chain is evidently too short; either is enough for the hint. A chain without them may
still be too short, since one run cannot show what it has not seen.

unmoved    no step of the last stage was accepted: the answer is what that stage began with
climbing   steps of the last three quarters of that stage were accepted uphill that would hardly ever have
           been accepted downhill

A chain that has reached its target is as likely forwards as backwards, and backwards an accepted step of
log ratio r > 0 is one of log ratio -r, which is accepted with probability exp(-r). So bet against it: from
the last step back, a stake s on each such step (s may depend on r) is lost where the step was rejected, and
pays exp(r) where it was not,

    E = prod_{accepted, r > 0} (1 + s(r) * (exp(r) - 1)) * prod_{rejected} (1 - s(-r))

and by Ville's inequality E ever exceeds 1 / 0.01 with probability 0.01 at most in a chain that had reached
its target by the end of the first quarter, whatever the target, the proposals and the number of tries. Of a
proposal that was stopped early an upper bound of the log ratio is known, which makes E too small at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sglang_power.algorithms.steps import Info
from sglang_power.samplers.report import finite

FALSE_ALARM = 0.01
"""Probability, at most, of `climbing` in a chain that has reached its target."""

STAKE, STAKE_SCALE = 0.3, 8.0
"""s(r) = STAKE * exp(-r / STAKE_SCALE): rejections of hopeless proposals are frequent, and cost little."""

MAX_LOG_RATIO = 600.0
"""More than this overflows, and says nothing more."""

UNMOVED = (
    "No step of the last stage was accepted, so the answer is what that stage began with: raise steps, or "
    "lower proposal_temperature"
)
CLIMBING = (
    "The chain was still climbing in its last stage, so it is too short for its target: "
    "raise steps, or lower proposal_temperature"
)


@dataclass(frozen=True, slots=True)
class ChainHealth:
    """How the last stage went.

    Args:
        acceptance_rate: of its steps; None where it had none.
        steps_since_acceptance: its last steps without an acceptance.
        log_p_start, log_p_end: of the answer when it began, and at the end; nats. None where it had no steps.
    """

    acceptance_rate: float | None
    steps_since_acceptance: int
    log_p_start: float | None
    log_p_end: float | None

    def reported(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {name: None if value is None else finite(value) for name, value in asdict(self).items()}


def health(infos: Sequence[Info], log_p_start: float | None, log_p_end: float) -> ChainHealth:
    """Return how the last stage went.

    Args:
        infos: its steps.
        log_p_start, log_p_end: of the state before and after them.
    """
    accepted = [info.accepted for info in infos]
    since = next((i for i, moved in enumerate(reversed(accepted)) if moved), len(accepted))
    if not infos:
        return ChainHealth(None, 0, None, None)
    return ChainHealth(sum(accepted) / len(accepted), since, log_p_start, log_p_end)


def hint(infos: Sequence[Info]) -> str | None:
    """Return what to do about a chain whose last stage had these steps; None where nothing is evident."""
    if not infos:
        return None
    if not any(info.accepted for info in infos):
        return UNMOVED
    return CLIMBING if largest_bet(infos[len(infos) // 4 :]) > -math.log(FALSE_ALARM) else None


def largest_bet(infos: Sequence[Info]) -> float:
    """log of the largest E on the way back through some steps."""
    log_e = largest = 0.0
    for info in reversed(infos):
        if info.accepted and info.log_ratio > 0.0:
            log_e += math.log1p(_stake(info.log_ratio) * math.expm1(min(info.log_ratio, MAX_LOG_RATIO)))
        elif not info.accepted and not math.isnan(info.log_ratio):
            log_e += math.log1p(-_stake(-info.log_ratio))
        largest = max(largest, log_e)
    return largest


def _stake(r: float) -> float:
    return STAKE * math.exp(-min(r, MAX_LOG_RATIO) / STAKE_SCALE)
