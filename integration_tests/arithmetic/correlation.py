"""How closely the likelihood of an answer and its being right go together. Pure.

A sampler of p^alpha prefers likely answers, whatever is right: where likely answers of a problem are no more
often right than unlikely ones, it cannot help.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from scipy import stats

__all__ = ["Draw", "correlation"]


@dataclass(frozen=True, slots=True)
class Draw:
    """One plain draw.

    Args:
        log_p: of the whole answer, in nats, at temperature 1.
        tokens: of it, the end token included.
        correct: whether it solves its problem.
    """

    log_p: float
    tokens: int
    correct: bool

    @property
    def mean_log_p(self) -> float:
        """Return the log probability per token, in nats."""
        return self.log_p / self.tokens


MEASURES: Final[dict[str, Callable[[Draw], float]]] = {
    "mean_log_p": lambda draw: draw.mean_log_p,
    "log_p": lambda draw: draw.log_p,
}


def correlation(draws: Sequence[Sequence[Draw]]) -> dict[str, dict[str, Any]]:
    """Return, for the mean and the whole log probability, what they say of being right.

    `r` is the point-biserial correlation over the first draw of every problem, with its two-sided p and a
    95% interval (Fisher's z; None where all draws are right or all wrong). `within` is the chance that of two
    draws of one problem, one right and one wrong, the right one is the likelier (a tie counts half), with how
    many `pairs` of how many problems (`mixed`) it is the mean of: each problem counts alike.

    Args:
        draws: problem by problem.
    """
    return {name: {**_across(draws, of), **_within(draws, of)} for name, of in MEASURES.items()}


def _across(draws: Sequence[Sequence[Draw]], of: Callable[[Draw], float]) -> dict[str, Any]:
    firsts = [drawn[0] for drawn in draws]
    if len({draw.correct for draw in firsts}) == 1:
        return {"r": None, "p": None, "ci95": None}
    found = stats.pearsonr([float(draw.correct) for draw in firsts], [of(draw) for draw in firsts])
    interval = found.confidence_interval()
    return {
        "r": float(found.statistic),
        "p": float(found.pvalue),
        "ci95": [float(interval.low), float(interval.high)],
    }


def _within(draws: Sequence[Sequence[Draw]], of: Callable[[Draw], float]) -> dict[str, Any]:
    shares, pairs = [], 0
    for drawn in draws:
        right = [of(draw) for draw in drawn if draw.correct]
        wrong = [of(draw) for draw in drawn if not draw.correct]
        if right and wrong:
            count = len(right) * len(wrong)
            shares.append(float(stats.mannwhitneyu(right, wrong).statistic) / count)
            pairs += count
    return {"within": sum(shares) / len(shares) if shares else None, "pairs": pairs, "mixed": len(shares)}
