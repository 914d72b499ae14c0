"""When a vote by counts may end before all of its n samples are drawn.

Samples have labels, those of their classes of equal answers, and are seen in the order of their indices;
one without an answer has none. Two rules:

decided  The leading class leads by more samples than are left: lead_t > n - t. Whatever they say, it wins the
         vote of all n. A tie can still come of lead_t = n - t, so that is not decided.
certain  An anytime-valid test says that the leading class is the commonest one of the law behind the samples.

The test bets against every class b that it is the commonest. With l_i the class, other than b, that led among
the samples before i, and s_i = 1[x_i = l_i] - 1[x_i = b],

    M_t(b) = integral over lambda in [0, 1] of prod_{i <= t} (1 + lambda s_i)

is a test supermartingale if b is the commonest, since then E[s_i | past] = p(l_i) - p(b) <= 0; so
P(M_t(b) >= 1/error for some t) <= error (Ville). A class that was never seen has lost no bet. The vote ends
once the leader is the only class that is not rejected. It is wrong only if the commonest class itself was
rejected, which is one test: nothing is corrected for the number of classes, which may be unknown. The uniform
mixture over lambda is the prior-posterior ratio of one class against another (Jain et al., AISTATS 2022,
arXiv 2109.05047, PPR-1v1), made one-sided; testing a class against each of its rivals, seen or not, is CITE's
(arXiv 2605.05873), which fixes the class beforehand, where betting on whoever leads does not have to.

Pure: knows neither answers nor engines.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sglang_power.types import FloatArray

Reason = Literal["decided", "certain"]


class Tally:
    """How often every class was seen. Classes are numbered by their first appearance, which breaks ties."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}

    def add(self, label: int) -> None:
        """Count one sample."""
        self.counts[label] = self.counts.get(label, 0) + 1

    @property
    def first_two(self) -> tuple[int | None, int | None]:
        """The class that leads, and the one that leads among the others; None where there is none."""
        leader = self._most(None)
        return leader, self._most(leader)

    def _most(self, excluded: int | None) -> int | None:
        labels = (label for label in self.counts if label != excluded)
        return max(labels, key=lambda label: (self.counts[label], -label), default=None)

    @property
    def lead(self) -> int:
        """By how many samples the leading class leads."""
        first, second = (0 if label is None else self.counts[label] for label in self.first_two)
        return first - second


class StoppingRule:
    """Says how many of a vote's samples are drawn next, and why no more are; this one draws all at once.

    Args:
        samples: n.
    """

    def __init__(self, samples: int) -> None:
        self.left = samples

    @property
    def reason(self) -> Reason | None:
        """Why the vote ends before all samples are drawn; None while it does not."""
        return None

    def see(self, label: int | None) -> None:  # noqa: ARG002  (rules that stop read it)
        """Take the next sample.

        Args:
            label: its class, numbered by first appearance; None where it has no answer.
        """
        self.left -= 1

    def next_round(self) -> int:
        """Return how many samples are drawn next; 0 ends the vote."""
        return self.left


class UntilDecided(StoppingRule):
    """Ends a vote once the winner of all its samples is known.

    A round is as many samples as could decide the vote if all of them were the leader's, at most `window`:
    fewer cannot end it, more might be drawn in vain.

    Args:
        samples: n.
        window: samples of a round at most.
    """

    def __init__(self, samples: int, window: int) -> None:
        super().__init__(samples)
        self._window, self._tally = window, Tally()

    @property
    def reason(self) -> Reason | None:
        """Why the vote ends before all samples are drawn."""
        return "decided" if 0 < self.left < self._tally.lead else None

    def see(self, label: int | None) -> None:
        """Take the next sample."""
        super().see(label)
        if label is not None:
            self._tally.add(label)

    def next_round(self) -> int:
        """Return the least k with lead + k > left - k, at most `window`; 0 where the vote is decided."""
        if self.reason is not None:
            return 0
        return min(self.left, self._window, (self.left - self._tally.lead) // 2 + 1)


class UntilCertain(StoppingRule):
    """Ends a vote once its leader is the commonest class of the law, but for a chance of `error`.

    Args:
        samples: n.
        window: samples of a round at most; fewer where as many could end it.
        error: bound on the chance that the vote ends so although another class is more common.
    """

    def __init__(self, samples: int, window: int, error: float) -> None:
        super().__init__(samples)
        self._window, self._error, self._tally = window, error, Tally()
        self._unseen = Bets()
        self._against: dict[int, Bets] = {}

    @property
    def reason(self) -> Reason | None:
        """Why the vote ends before all samples are drawn."""
        leader, _ = self._tally.first_two
        if leader is None or self._tally.lead == 0 or self._against[leader].rejected:
            return None
        others = [bets for label, bets in self._against.items() if label != leader]
        return "certain" if all(bets.rejected for bets in [self._unseen, *others]) else None

    def see(self, label: int | None) -> None:
        """Take the next sample: every bet on it wins, loses or is returned."""
        super().see(label)
        if label is None:
            return
        leader, second = self._tally.first_two
        if label not in self._against:
            self._against[label] = dataclasses.replace(self._unseen)
        for each, bets in self._against.items():
            rival = second if each == leader else leader
            if rival is not None and label in (rival, each):
                bets.settle(won=label == rival, error=self._error)
        if label == leader:
            self._unseen.settle(won=True, error=self._error)
        self._tally.add(label)

    def next_round(self) -> int:
        """Return how many it takes if all are the leader's, at most `window`; 0 where that is certain."""
        if self.reason is not None:
            return 0
        leader, _ = self._tally.first_two
        rivals = [self._unseen, *(bets for label, bets in self._against.items() if label != leader)]
        short = [bets.short(self._error) for bets in rivals if not bets.rejected]
        first = 1 if leader is None else 0  # on which nobody can bet
        return min(self.left, self._window, first + max(short, default=1))


@dataclass
class Bets:
    """Bets against one class, that it is the commonest: how many were won and lost.

    Attributes:
        rejected: they have once won so much that it is not the commonest, but for a chance of `error`.
    """

    won: int = 0
    lost: int = 0
    rejected: bool = False

    def settle(self, *, won: bool, error: float) -> None:
        """Note the outcome of one."""
        self.won += won
        self.lost += not won
        self.rejected |= self.short(error) <= 0

    def short(self, error: float) -> int:
        """Return how many more have to be won in a row."""
        return wins_needed(self.lost, error) - self.won


def samples_needed(error: float) -> int:
    """Return the least number of samples after which a vote can be certain: one to bet on, and the wins."""
    return 1 + wins_needed(0, error)


def wins_needed(losses: int, error: float) -> int:
    """Return the least number of bets won, beside so many lost, that rejects a class."""
    known = _known_wins(error)
    while len(known) <= losses:
        wins = known[-1] if known else 1
        while log_wealth(wins, len(known)) < -math.log(error):
            wins += 1
        known.append(wins)
    return known[losses]


@functools.lru_cache(maxsize=64)
def _known_wins(error: float) -> list[int]:  # noqa: ARG001  (what they are remembered by)
    """Return the wins that reject a class beside 0, 1, ... losses, as far as they were asked for."""
    return []


def log_wealth(wins: int, losses: int) -> float:
    """Return log M, the log of the integral over lambda in [0, 1] of (1 + lambda)^wins (1 - lambda)^losses.

    With m = wins + losses + 1 it is sum_{j <= wins} C(m, j) / (m C(m - 1, wins)): the tail of a Beta law, as
    that of a binomial one.
    """
    trials = wins + losses + 1
    terms = _log_binomials(trials)[: wins + 1]
    largest = float(terms.max())
    tail = largest + math.log(float(np.exp(terms - largest).sum()))
    return tail - math.log(trials) - float(_log_binomials(trials - 1)[wins])


def _log_binomials(n: int) -> FloatArray:
    """[n + 1] log C(n, j)."""
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])
    return np.asarray(logs[n] - logs - logs[::-1], dtype=np.float64)
