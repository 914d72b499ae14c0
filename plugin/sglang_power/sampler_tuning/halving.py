"""Successive halving of candidates within a budget of tokens. Pure.

Karnin, Koren & Somekh 2013; Jamieson & Talwalkar, arXiv 1502.07943; the inner loop of Hyperband. All of n
candidates are asked in the first of ceil(log2 n) rounds, and after each round the better half goes on, until
one is left. A round may spend an equal share of the budget, and what the rounds before it left over.
Candidates that go on are always asked the same problems, new ones as long as there are any, and are compared
by all that they answered:

    more right answers first; among as many, fewer decoded tokens an answer; then the order of the candidates.

Answers have different prices, which show only when they are there. So a round goes on by a few problems at a
time, as many as it can pay at the candidates' mean prices so far. It spends too much only by what the answers
of one such step, which are under way at once, cost beyond those prices; the next round has less by that.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class Score:
    """What a candidate has answered: how many were right, of how many, for how many decoded tokens."""

    right: int = 0
    asked: int = 0
    tokens: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(self.right + other.right, self.asked + other.asked, self.tokens + other.tokens)

    @property
    def accuracy(self) -> float:
        """Return the share of right answers; 0 of none."""
        return self.right / self.asked if self.asked else 0.0

    @property
    def price(self) -> float:
        """Return decoded tokens an answer; 0 of none."""
        return self.tokens / self.asked if self.asked else 0.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is to spend.

    Args:
        items: problems that there are.
        budget: decoded tokens of all rounds together.
        rounds: number of rounds.
        answers: at once: a step has as many problems as make about so many answers, one at least.
    """

    items: int
    budget: int
    rounds: int
    answers: int


@dataclass(frozen=True, slots=True)
class State:
    """How far it has come.

    Args:
        alive: candidates that are still asked, in their order.
        item: the next problem.
        round: from 0.
        spent: decoded tokens, of all candidates.
        scores: of all candidates that answered, those that are out included.
    """

    alive: tuple[str, ...]
    item: int = 0
    round: int = 0
    spent: int = 0
    scores: Mapping[str, Score] = field(default_factory=dict)

    def score(self, name: str) -> Score:
        """Return a candidate's score so far."""
        return self.scores.get(name, Score())

    @property
    def price(self) -> float:
        """Return what one more problem costs, all candidates together, at their mean prices."""
        return math.fsum(self.score(name).price for name in self.alive)


def rounds_of(candidates: int) -> int:
    """Return the number of rounds that leave one of so many candidates."""
    return max(1, math.ceil(math.log2(candidates)))


def next_items(plan: Plan, state: State) -> int:
    """Return how many problems each candidate is asked now; 0 where the round is over."""
    left = min(plan.items - state.item, max(1, plan.answers // len(state.alive)))
    if state.item == 0:
        return min(left, 1)
    payable = plan.budget * (state.round + 1) // plan.rounds - state.spent
    return max(0, min(left, math.floor(payable / max(state.price, 1.0))))


def answered(state: State, items: int, found: Mapping[str, Score]) -> State:
    """Return the state after a step.

    Args:
        state: before it.
        items: that each candidate was asked.
        found: what each came to.
    """
    scores = dict(state.scores) | {name: state.score(name) + score for name, score in found.items()}
    spent = state.spent + sum(score.tokens for score in found.values())
    return replace(state, item=state.item + items, spent=spent, scores=scores)


def without(state: State, names: Collection[str]) -> State:
    """Return the state without some candidates, which are not asked any more."""
    return replace(state, alive=tuple(name for name in state.alive if name not in names))


def ranked(state: State) -> list[str]:
    """Return the candidates that are still asked, best first."""
    order = {name: at for at, name in enumerate(state.alive)}
    return sorted(
        state.alive,
        key=lambda name: (-state.score(name).accuracy, state.score(name).price, order[name]),
    )


def halved(state: State) -> State:
    """Return the state of the next round, with the better half of the candidates."""
    kept = set(ranked(state)[: math.ceil(len(state.alive) / 2)])
    return replace(without(state, [n for n in state.alive if n not in kept]), round=state.round + 1)


def error_bound(candidates: int, gap: float, items_by_round: Sequence[int]) -> float:
    """Return a bound on the probability that the best candidate is lost.

    With n problems asked, another candidate has as many right answers with probability exp(-n gap^2 / 2) at
    most (Hoeffding), whatever the answers to one problem have in common. The best one is lost in a round only
    if at least half of those in it have; by Markov's inequality, since they are among all K,

        sum over rounds of (K - 1) / ceil(m / 2) * exp(-n gap^2 / 2),   m candidates in the round.

    Args:
        candidates: K, more than one.
        gap: the best one's accuracy minus the second one's.
        items_by_round: n, problems asked by the end of each round.
    """
    assert len(items_by_round) == rounds_of(candidates)
    total, left = 0.0, candidates
    for items in items_by_round:
        left = math.ceil(left / 2)
        total += (candidates - 1) / left * math.exp(-items * gap * gap / 2.0)
    return min(1.0, total)
