"""Classes of answers and the choice among them, by hand-made rows and by what must not matter.

Deterministic, but for the frequencies of ties (fixed seeds; error rate 1e-6). Error rate 0 elsewhere.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sglang_power.answers import (
    DIFFERENT,
    EQUAL,
    AnswerClass,
    Choice,
    Classes,
    Relation,
    Undecided,
    Verdict,
    build_classes,
    choose,
    choose_by_delta,
    effective_sample_size,
    equivalence,
    power_weights,
    undecided,
    uniform_weights,
)
from sglang_power.answers.weights import log_sum
from sglang_power.errors import HostError, UnsupportedError
from sglang_power.rng import Key

quick = settings(derandomize=True, database=None, deadline=None)
KEY = Key(7)
EXACT = equivalence("exact")


@dataclass
class Table:
    """A relation that is given by its pairs, and remembers what it was asked."""

    equal: set[tuple[str, str]]
    unknown: set[tuple[str, str]] = field(default_factory=set)
    asked: list[tuple[str, str]] = field(default_factory=list)

    async def same(self, a: str, b: str) -> Verdict:
        self.asked.append((a, b))
        if (a, b) in self.unknown:
            return undecided(f"{a}?{b}")
        return EQUAL if (a, b) in self.equal else DIFFERENT


def classes_of(answers: Sequence[str | None], relation: Relation = EXACT) -> Classes:
    return asyncio.run(build_classes(answers, relation))


def members(classes: Classes) -> list[tuple[int, ...]]:
    return [one.members for one in classes.classes]


def both_ways(*pairs: tuple[str, str]) -> set[tuple[str, str]]:
    return {pair for a, b in pairs for pair in ((a, b), (b, a))}


# --- classes ------------------------------------------------------------------------------------------


def test_equal_answers_make_classes_in_order_of_their_first() -> None:
    found = classes_of(["1/2", "3", "0.5", "50%", "3.0"], equivalence("number"))
    assert found.classes == (AnswerClass("1/2", (0, 2, 3)), AnswerClass("3", (1, 4)))
    assert found.undecided == ()


def test_an_identical_string_asks_nothing() -> None:
    relation = Table(both_ways(("a", "b")))
    assert members(classes_of(["a", "a", "b", "b", "a"], relation)) == [(0, 1, 2, 3, 4)]
    assert relation.asked == [("a", "b"), ("b", "a")]


def test_an_identical_string_is_in_its_class_even_if_the_relation_denies_it() -> None:
    assert members(classes_of(["a", "a"], Table(set()))) == [(0, 1)]


def test_only_representatives_are_compared_and_the_first_wins() -> None:
    relation = Table(both_ways(("a", "c"), ("b", "c"), ("c", "d")))
    found = classes_of(["a", "b", "c", "d"], relation)
    assert members(found) == [(0, 2), (1,), (3,)], "c is in a's class, and d is not compared with c"
    assert ("c", "d") not in relation.asked


def test_equal_one_way_is_not_equal() -> None:
    for pair in (("a", "b"), ("b", "a")):
        assert members(classes_of(["a", "b"], Table({pair}))) == [(0,), (1,)]


def test_undecided_counts_as_different_and_is_recorded() -> None:
    relation = Table(both_ways(("a", "b"), ("a", "c")), unknown={("b", "a"), ("c", "b")})
    found = classes_of(["a", "b", None, "c"], relation)
    assert members(found) == [(0, 3), (1,), (2,)]
    assert found.undecided == (Undecided(0, 1, "b?a"),)
    assert found.comparisons == len(relation.asked) == 4


def test_missing_answers_are_classes_of_their_own() -> None:
    relation = Table(set())
    found = classes_of([None, "a", None], relation)
    assert [one.value for one in found.classes] == [None, "a", None]
    assert members(found) == [(0,), (1,), (2,)]
    assert relation.asked == []


def test_no_answers() -> None:
    assert classes_of([]) == Classes((), 0, ())


numbers = st.lists(st.sampled_from(["1", "1.0", "2/2", "2", "200%", "3", "x", None]), max_size=12)


@given(numbers, st.randoms(use_true_random=False))
@quick
def test_an_equivalence_gives_the_same_classes_in_any_order(
    answers: list[str | None], random: object
) -> None:
    order = list(range(len(answers)))
    random.shuffle(order)  # type: ignore[attr-defined]
    relation = equivalence("number")
    straight = {frozenset(one) for one in members(classes_of(answers, relation))}
    shuffled = classes_of([answers[i] for i in order], relation)
    assert {frozenset(order[i] for i in one) for one in members(shuffled)} == straight
    assert sorted(i for one in members(shuffled) for i in one) == sorted(order)


@given(
    st.lists(st.sampled_from("abcdef"), max_size=8),
    st.sets(st.tuples(*[st.sampled_from("abcdef")] * 2)),
    st.data(),
)
@quick
def test_duplicates_change_nothing_wherever_they_stand_behind_the_first(
    answers: list[str], equal: set[tuple[str, str]], data: st.DataObject
) -> None:
    """For any relation, sensible or not."""
    plain = classes_of(answers, Table(equal))
    copied = list(answers)
    for _ in range(data.draw(st.integers(0, 4)) if answers else 0):
        copy = data.draw(st.sampled_from(answers))
        copied.insert(data.draw(st.integers(copied.index(copy) + 1, len(copied))), copy)
    with_copies = classes_of(copied, Table(equal))
    assert with_copies.comparisons == plain.comparisons
    values = [{copied[i] for i in one} for one in members(with_copies)]
    assert values == [{answers[i] for i in one} for one in members(plain)]


@given(st.lists(st.text("ab", max_size=3), max_size=12))
@quick
def test_comparisons_are_bounded(answers: list[str]) -> None:
    found = classes_of(answers, Table(set()))
    assert found.comparisons <= len(set(answers)) * len(found.classes)
    assert found.samples == len(answers)


# --- the choice ---------------------------------------------------------------------------------------

FIVE = classes_of(["a", "b", "a", None, "b"])
"""Classes a (0, 2), b (1, 4), none (3)."""


def test_the_largest_sum_of_weights_wins_by_its_best_member() -> None:
    weights = np.log([0.5, 0.3, 0.1, 9.0, 0.4])
    choice = choose(FIVE, weights, KEY)
    assert (choice.chosen, choice.sample, choice.reason, choice.tied) == (1, 4, "largest", (1,))
    assert choice.totals[:2] == pytest.approx(np.log([0.6, 0.7]))
    assert choice.totals[2] == -math.inf
    assert choice.ess == pytest.approx(10.3**2 / (0.25 + 0.09 + 0.01 + 81.0 + 0.16))


def test_scores_say_which_member_is_returned() -> None:
    scores = np.array([0.0, 3.0, 9.0, 9.0, 2.0])
    assert choose(FIVE, np.log([0.5, 0.3, 0.1, 9.0, 0.4]), KEY, scores).sample == 1
    assert choose(FIVE, np.log([2.0, 1.0, 1.0, 1.0, 1.0]), KEY, np.zeros(5)).sample == 0


def test_the_count_is_weights_of_one() -> None:
    classes = classes_of(["a", "b", "b", None, None, None])
    choice = choose(classes, uniform_weights(6), KEY)
    assert (choice.chosen, choice.sample) == (1, 1)
    assert choice.ess == pytest.approx(6.0)
    assert choice.totals == (0.0, math.log(2), *[-math.inf] * 3)


def test_sums_are_taken_in_log_space() -> None:
    classes = classes_of(["a", "b", "b"])
    far = np.array([-5000.0, -5000.5, -5000.5])
    assert choose(classes, far, KEY).chosen == 1
    assert choose(classes, far + 9000.0, KEY).chosen == 1
    assert choose(classes, far, KEY).ess == pytest.approx(choose(classes, far + 5000.0, KEY).ess)


def test_impossible_samples_weigh_nothing() -> None:
    classes = classes_of(["a", "a", "b"])
    choice = choose(classes, np.array([-math.inf, -math.inf, -900.0]), KEY)
    assert (choice.chosen, choice.sample) == (1, 2)
    assert choice.ess == pytest.approx(1.0)
    nothing = choose(classes, np.full(3, -math.inf), KEY)
    assert (nothing.reason, nothing.tied, nothing.ess) == ("tie", (0, 1), 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_none_are_refused(bad: float) -> None:
    with pytest.raises(HostError, match="log weight of sample 3"):
        choose(FIVE, np.array([0.0, 0.0, 0.0, bad, 0.0]), KEY)
    with pytest.raises(HostError, match="score of sample 2"):
        choose(FIVE, np.zeros(5), KEY, np.array([0.0, 0.0, math.nan, 0.0, 0.0]))


def test_no_answer_at_all() -> None:
    none = classes_of([None, None])
    expected = Choice(0, None, "no_answer", (), (-math.inf, -math.inf), 2.0)
    assert choose(none, np.zeros(2), KEY) == expected
    assert choose_by_delta(none, [None, None], KEY).reason == "no_answer"
    assert choose(classes_of([]), np.zeros(0), KEY).reason == "no_answer"


def test_ties_are_drawn_from_the_seed() -> None:
    classes = classes_of(["a", "b", "c", "c", "b", "a", "d"])
    drawn = [choose(classes, uniform_weights(7), Key(seed)) for seed in range(3000)]
    assert {choice.reason for choice in drawn} == {"tie"}
    assert {choice.tied for choice in drawn} == {(0, 1, 2)}
    assert stats.chisquare([sum(c.chosen == i for c in drawn) for i in range(3)]).pvalue > 1e-6
    assert choose(classes, uniform_weights(7), Key(3)) == choose(classes, uniform_weights(7), Key(3))


@given(st.lists(st.floats(-2, 2), min_size=1, max_size=9), st.randoms(use_true_random=False))
@quick
def test_the_order_of_the_same_weights_makes_no_winner(weights: list[float], random: object) -> None:
    """Two classes of the same weights in another order tie exactly: rounding draws no winner."""
    other = list(weights)
    random.shuffle(other)  # type: ignore[attr-defined]
    classes = classes_of(["a"] * len(weights) + ["b"] * len(other))
    assert choose(classes, np.array(weights + other), KEY).tied == (0, 1)


# --- confidences --------------------------------------------------------------------------------------


def test_confidences_are_summed_per_class_and_the_most_confident_path_is_returned() -> None:
    choice = choose_by_delta(FIVE, [0.5, 0.4, -0.2, None, 0.3], KEY)
    assert (choice.chosen, choice.sample, choice.ess) == (1, 1, None)
    assert choice.totals == pytest.approx([0.3, 0.7, -math.inf])


def test_negative_confidences_count_against_a_class() -> None:
    choice = choose_by_delta(FIVE, [-0.5, -0.9, -0.1, None, -0.2], KEY)
    assert (choice.chosen, choice.sample) == (0, 2)


def test_an_answer_without_confidence_is_refused() -> None:
    with pytest.raises(HostError, match="score of sample 1"):
        choose_by_delta(FIVE, [0.5, None, 0.1, None, 0.3], KEY)


# --- weights ------------------------------------------------------------------------------------------


def test_power_weights() -> None:
    log_p, log_q = [-1.0, -2.0, -math.inf], [-1.0, -0.5, -3.0]
    assert power_weights(4.0, log_p, log_q).tolist() == [-3.0, -7.5, -math.inf]


@pytest.mark.parametrize("unknown", [None, math.nan, -math.inf])
def test_power_weights_need_the_density_of_every_sample(unknown: float | None) -> None:
    with pytest.raises(UnsupportedError, match="sample 1 was drawn from is unknown"):
        power_weights(4.0, [-1.0, -1.0], [-1.0, unknown])


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(-1000, 1000))
@quick
def test_the_effective_sample_size_is_between_one_and_all_and_has_no_scale(
    weights: list[float], shift: float
) -> None:
    log_w = np.array(weights)
    ess = effective_sample_size(log_w)
    assert 1.0 - 1e-9 <= ess <= len(weights) + 1e-9
    assert effective_sample_size(log_w + shift) == pytest.approx(ess)
    assert log_sum(log_w) == pytest.approx(np.logaddexp.reduce(log_w))
