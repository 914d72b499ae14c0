"""When a vote may end early: by every way in which it could go on, and by an exact supermartingale.

The rates of wrong and of certain ends are tested at fixed seeds against binomial bounds with a chance of 1e-6
of a false alarm each; the controls break the same bounds.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sglang_power.algorithms.votes import (
    Bets,
    Reason,
    StoppingRule,
    Tally,
    UntilCertain,
    UntilDecided,
    log_wealth,
    samples_needed,
    wins_needed,
)

Label = int | None
LEVEL = 1e-6
ERROR = 0.05

votes = st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=40)


def numbered(labels: Sequence[Label]) -> list[Label]:
    """The same with classes numbered by their first appearance."""
    order = {label: i for i, label in enumerate(dict.fromkeys(x for x in labels if x is not None))}
    return [None if label is None else order[label] for label in labels]


def drawn(rule: StoppingRule, labels: Sequence[Label]) -> int:
    """How many samples a rule sees."""
    seen = 0
    while size := rule.next_round():
        for label in labels[seen : seen + size]:
            rule.see(label)
        seen += size
    return seen


def winners(labels: Sequence[Label]) -> set[int]:
    counts = Counter(label for label in labels if label is not None)
    return {label for label, count in counts.items() if count == max(counts.values())}


# --- decided ------------------------------------------------------------------------------------------


def is_decided(seen: Sequence[Label], left: int) -> bool:
    """Whether one class wins whatever the rest says: straight from the definition, by the worst rest."""
    possible = {label for label in seen if label is not None} | {-1}  # -1: of a class not seen yet
    return bool(seen) and all(
        winners([*seen, *[rival] * left]) == winners(seen) != set() for rival in possible
    )


@given(labels=votes, window=st.integers(1, 40))
def test_a_decided_vote_is_that_of_all_samples(labels: list[Label], window: int) -> None:
    labels = numbered(labels)
    rule = UntilDecided(len(labels), window)
    seen = drawn(rule, labels)
    if seen < len(labels):
        assert rule.reason == "decided"
        assert winners(labels[:seen]) == winners(labels)
        assert len(winners(labels)) == 1
    else:
        assert rule.reason is None


@given(labels=votes)
def test_one_by_one_a_vote_ends_where_it_is_decided_and_not_before(labels: list[Label]) -> None:
    labels = numbered(labels)
    seen = drawn(UntilDecided(len(labels), 1), labels)
    first = next(t for t in range(1, len(labels) + 1) if t == len(labels) or _decided_at(labels, t))
    assert seen == first


def _decided_at(labels: Sequence[Label], t: int) -> bool:
    return len(winners(labels[:t])) == 1 and is_decided(labels[:t], len(labels) - t)


@given(labels=votes, window=st.integers(1, 8))
def test_no_round_is_larger_than_what_could_decide(labels: list[Label], window: int) -> None:
    """So whatever the window is, as many samples are drawn as one by one."""
    labels = numbered(labels)
    assert drawn(UntilDecided(len(labels), window), labels) == drawn(UntilDecided(len(labels), 1), labels)


class TooEarly(UntilDecided):
    """Ends where a tie can still come."""

    @property
    def reason(self) -> None:
        return None

    def next_round(self) -> int:
        return 0 if self._tally.lead >= self.left else 1


def test_a_rule_that_forgets_ties_is_found_out() -> None:
    labels = [0, 0, 1, 1]
    assert drawn(TooEarly(4, 1), labels) == 2
    assert winners(labels[:2]) != winners(labels)


def test_without_a_rule_all_samples_are_one_round() -> None:
    rule = StoppingRule(5)
    assert rule.next_round() == 5
    for _ in range(5):
        rule.see(None)
    assert (rule.next_round(), rule.reason) == (0, None)


# --- certain ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wins", "losses"), [(0, 0), (7, 0), (10, 2), (3, 9), (40, 35)])
def test_the_wealth_is_its_integral(wins: int, losses: int) -> None:
    grid = (np.arange(400_000) + 0.5) / 400_000
    integral = float(((1 + grid) ** wins * (1 - grid) ** losses).mean())
    assert log_wealth(wins, losses) == pytest.approx(math.log(integral), abs=1e-8)


def test_wins_are_the_least_that_reject() -> None:
    for losses, error in itertools.product(range(30), (0.2, 0.05, 1e-6)):
        wins = wins_needed(losses, error)
        assert log_wealth(wins, losses) >= -math.log(error) > log_wealth(wins - 1, losses)
    assert samples_needed(0.05) == 8


Leader = Callable[[Sequence[int], int, int], int | None]


def predicted(sequence: Sequence[int], t: int, b: int) -> int | None:
    """The class, other than b, that led before sample t."""
    tally = Tally()
    for label in sequence[:t]:
        if label != b:
            tally.add(label)
    return tally.first_two[0]


def hindsight(sequence: Sequence[int], t: int, b: int) -> int | None:
    """Negative control: the sample that is bet on has been seen."""
    return predicted(sequence, t + 1, b)


def mean_wealth(p: Sequence[float], b: int, length: int, rival: Leader) -> float:
    """E[M_t(b)], by enumerating all sequences."""
    mean = 0.0
    for sequence in itertools.product(range(len(p)), repeat=length):
        bets = Bets()
        for t, label in enumerate(sequence):
            against = rival(sequence, t, b)
            bets.won += against is not None and label == against
            bets.lost += against is not None and label == b
        mean += math.prod(p[label] for label in sequence) * math.exp(log_wealth(bets.won, bets.lost))
    return mean


@pytest.mark.parametrize("p", [(0.4, 0.3, 0.2, 0.1), (0.5, 0.5), (0.34, 0.33, 0.33)])
def test_against_the_commonest_class_the_wealth_is_a_supermartingale(p: tuple[float, ...]) -> None:
    means = [mean_wealth(p, 0, length, predicted) for length in range(6)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(means))
    assert means[0] == pytest.approx(1.0)
    assert mean_wealth(p, 0, 5, hindsight) > 1.001


def test_between_equals_it_is_a_martingale() -> None:
    assert mean_wealth((0.25,) * 4, 0, 5, predicted) == pytest.approx(1.0, abs=1e-12)


@given(labels=votes)
def test_bets_are_those_of_the_definition(labels: list[Label]) -> None:
    labels = numbered(labels)
    rule = UntilCertain(len(labels), 8, ERROR)
    for label in labels:
        rule.see(label)
    known = [label for label in labels if label is not None]
    for b in {*known, 99}:
        rivals = [(label, predicted(known, t, b)) for t, label in enumerate(known)]
        bets = rule._unseen if b == 99 else rule._against[b]
        assert bets.won == sum(label == rival for label, rival in rivals)
        assert bets.lost == sum(rival is not None and label == b for label, rival in rivals)


class Impatient(UntilCertain):
    """Negative control: a test of fixed size, looked at after every sample."""

    @property
    def reason(self) -> Reason | None:
        most = sorted((0, 0, *self._tally.counts.values()))
        fixed = stats.binom.sf(most[-1] - 1, most[-1] + most[-2], 0.5) if most[-1] else 1.0
        return "certain" if fixed <= ERROR else None


def ends(rule: type[UntilCertain], p: Sequence[float], runs: int, samples: int) -> tuple[int, int]:
    """In how many runs a vote was certain, and in how many of another class than the commonest, 0."""
    generator = np.random.default_rng(3)
    certain = wrong = 0
    for _ in range(runs):
        draws = generator.choice(len(p), samples, p=p).tolist()
        order = list(dict.fromkeys(draws))
        vote = rule(samples, 8, ERROR)
        seen = drawn(vote, [order.index(label) for label in draws])
        certain += vote.reason == "certain"
        wrong += vote.reason == "certain" and winners(draws[:seen]) != {0}
    return certain, wrong


HARD = [(0.27, 0.25, 0.25, 0.23), (0.505, 0.495), (0.12, *[0.11] * 8)]


@pytest.mark.parametrize("p", HARD, ids=len)
def test_a_certain_vote_is_wrong_as_rarely_as_it_says(p: tuple[float, ...]) -> None:
    runs = 400
    _, wrong = ends(UntilCertain, p, runs, 120)
    assert wrong <= stats.binom.isf(LEVEL, runs, ERROR)
    if len(p) == 2:
        _, control = ends(Impatient, p, runs, 120)
        assert control > stats.binom.isf(LEVEL, runs, ERROR)


def test_a_vote_for_a_clear_law_becomes_certain() -> None:
    certain, _ = ends(UntilCertain, (0.6, 0.1, 0.1, 0.1, 0.1), 200, 64)
    assert certain >= stats.binom.ppf(LEVEL, 200, 0.95)


@given(labels=votes, window=st.integers(1, 12))
def test_rounds_are_no_larger_than_what_could_make_it_certain(labels: list[Label], window: int) -> None:
    labels = numbered(labels)
    rules = [UntilCertain(len(labels), size, 0.4) for size in (window, 1)]
    assert drawn(rules[0], labels) == drawn(rules[1], labels)
    assert rules[0].reason == rules[1].reason


def test_unanimous_samples_are_certain_as_soon_as_any_can_be() -> None:
    rule = UntilCertain(64, 64, ERROR)
    assert rule.next_round() == 8
    assert drawn(rule, [0] * 64) == 8
    assert rule.reason == "certain"
