"""Classes of equal answers, and the choice among them.

A sample's answer joins the class that holds its very string, else the first class whose representative (its
first member) the relation calls equal both ways, else it opens a class: N answers cost at most
2 * N * classes comparisons, and none where answers have keys. An answer that is missing, or that the relation
cannot read, is a class of its own that cannot be chosen.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from sglang_power.answers.equivalence import ComparisonOutcome, Keyed, Relation, unreadable
from sglang_power.answers.weights import delta_sum, effective_sample_size, log_sum
from sglang_power.errors import HostError
from sglang_power.rng import Key, Purpose
from sglang_power.types import FloatArray, Usage


@dataclass(frozen=True, slots=True)
class AnswerClass:
    """Samples with the same answer.

    Args:
        value: the representative's answer; None for a sample without one that can be read.
        members: their indices, ascending; the first is the representative.
    """

    value: str | None
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Undecided:
    """A comparison without a result, which counted as different."""

    representative: int
    sample: int
    reason: str


@dataclass(frozen=True, slots=True)
class Unreadable:
    """An answer that the relation cannot read."""

    sample: int
    reason: str


@dataclass(frozen=True, slots=True)
class Classes:
    """A partition of the samples, and what it took.

    Args:
        classes: in order of their representatives.
        comparisons: how often the relation was asked about two answers.
        undecided: those without a result.
        usage: what the relation cost; one comparison follows another.
        unreadable: answers that are classes of their own because they cannot be read.
    """

    classes: tuple[AnswerClass, ...]
    comparisons: int
    undecided: tuple[Undecided, ...]
    usage: Usage = field(default_factory=Usage)
    unreadable: tuple[Unreadable, ...] = ()

    @property
    def samples(self) -> int:
        """How many samples there are."""
        return sum(len(group.members) for group in self.classes)


class GrowingClasses:
    """Classes of samples that come one after the other.

    A sample's class depends on those before it only, so the classes of the first samples are those of all
    samples without the later ones. What was found out about an answer, or about two, is not asked again.

    Args:
        relation: says which answers are the same.
    """

    def __init__(self, relation: Relation) -> None:
        self._relation = relation
        self._decided = isinstance(relation, Keyed)  # answers of other names are others: nothing to compare
        self._names: dict[str, Hashable] = {}
        self._problems: dict[str, str] = {}
        self._members: list[list[int]] = []
        self._values: list[str | None] = []
        self._class_of: dict[Hashable, int] = {}
        self._samples = 0
        self._comparisons = 0
        self._undecided: list[Undecided] = []
        self._unreadable: list[Unreadable] = []
        self._usage = Usage()

    @property
    def classes(self) -> Classes:
        """Those of the samples so far."""
        pairs = zip(self._values, self._members, strict=True)
        return Classes(
            tuple(AnswerClass(value, tuple(members)) for value, members in pairs),
            self._comparisons,
            tuple(self._undecided),
            self._usage,
            tuple(self._unreadable),
        )

    async def add(self, answers: Sequence[str | None]) -> list[int | None]:
        """Put the next samples where they belong.

        Args:
            answers: one per sample, in order; None where the answer is missing.

        Returns:
            Index of each one's class; None where it has no answer that can be read.
        """
        await self._read(list(dict.fromkeys(each for each in answers if each is not None)))
        return [await self._add(answer) for answer in answers]

    async def _read(self, answers: Sequence[str]) -> None:
        """Find the name of each new answer, by which it is the same as others, or why it cannot be read."""
        new = [answer for answer in answers if answer not in self._names]
        if isinstance(self._relation, Keyed):
            keys = await self._relation.keys(new)
            self._names |= keys
            self._problems |= {each: self._relation.problem(each) for each in new if keys[each] is None}
            return
        asked = [(each, await unreadable(self._relation, each)) for each in new]
        self._names |= {each: each for each in new}
        self._problems |= {each: reason for each, reason in asked if reason is not None}

    async def _add(self, answer: str | None) -> int | None:
        sample, self._samples = self._samples, self._samples + 1
        if answer is not None and answer in self._problems:
            self._unreadable.append(Unreadable(sample, self._problems[answer]))
            answer = None
        place = None if answer is None else await self._place(sample, answer)
        if place is None:
            place = len(self._members)
            self._members.append([])
            self._values.append(answer)
        self._members[place].append(sample)
        if answer is None:
            return None
        self._class_of[self._names[answer]] = place
        return place

    async def _place(self, sample: int, answer: str) -> int | None:
        known = self._class_of.get(self._names[answer])
        if known is not None or self._decided:
            return known
        for place, value in enumerate(self._values):
            if value is not None and await self._equal(place, value, sample, answer):
                return place
        return None

    async def _equal(self, place: int, value: str, sample: int, answer: str) -> bool:
        for a, b in ((value, answer), (answer, value)):
            self._comparisons += 1
            verdict = await self._relation.same(a, b)
            self._usage += verdict.usage
            if verdict.outcome is ComparisonOutcome.UNDECIDED:
                self._undecided.append(Undecided(self._members[place][0], sample, verdict.reason))
            if verdict.outcome is not ComparisonOutcome.EQUAL:
                return False
        return True


async def build_classes(answers: Sequence[str | None], relation: Relation) -> Classes:
    """Partition samples by their answers.

    Args:
        answers: one per sample, in order; None where the answer is missing.
        relation: says which are the same.
    """
    growing = GrowingClasses(relation)
    await growing.add(answers)
    return growing.classes


@dataclass(frozen=True, slots=True)
class Choice:
    """The answer that was chosen, and why.

    Args:
        sample: index of the sample to return.
        chosen: index of its class; None if no class can be chosen.
        reason: "largest" total, "tie" (drawn among those of the largest), or "no_answer" (sample 0).
        tied: classes of the largest total, ascending.
        totals: per class: log of the summed weights, or the sum of Delta; -inf without an answer.
        ess: effective sample size of the weights of all samples; None where the totals are no weights.
    """

    sample: int
    chosen: int | None
    reason: Literal["largest", "tie", "no_answer"]
    tied: tuple[int, ...]
    totals: tuple[float, ...]
    ess: float | None


def choose(classes: Classes, log_weights: FloatArray, key: Key, scores: FloatArray | None = None) -> Choice:
    """The class of the largest summed weight: argmax_a sum_{samples with answer a} w.

    Args:
        classes: of the samples.
        log_weights: [samples] float64, nats, -inf allowed; all zero counts samples.
        key: draws among ties.
        scores: [samples] of the class, the sample of the highest is returned, the first of equal ones; the
            weights where absent.

    Raises:
        HostError: a weight is NaN or +inf, or a score is NaN.
    """
    if bad := np.flatnonzero(np.isnan(log_weights) | np.isposinf(log_weights)).tolist():
        raise HostError(f"log weight of sample {bad[0]} is {log_weights[bad[0]]}")
    totals = [
        -math.inf if group.value is None else log_sum(log_weights[list(group.members)])
        for group in classes.classes
    ]
    ess = effective_sample_size(log_weights)
    return _decide(classes, totals, key, log_weights if scores is None else scores, ess)


def choose_by_delta(classes: Classes, deltas: Sequence[float | None], key: Key) -> Choice:
    """The class of the largest summed confidence, by its most confident path (CoT-decoding, section 3.2).

    Args:
        classes: of the paths.
        deltas: confidence per path, maybe negative; None where it has no answer.
        key: draws among ties.

    Raises:
        HostError: a path with an answer has no confidence.
    """
    scores = np.array([math.nan if delta is None else delta for delta in deltas])
    totals = [
        -math.inf if group.value is None else delta_sum(scores[list(group.members)])
        for group in classes.classes
    ]
    return _decide(classes, totals, key, scores, None)


def _decide(
    classes: Classes, totals: Sequence[float], key: Key, scores: FloatArray, ess: float | None
) -> Choice:
    assert len(scores) == classes.samples, (len(scores), classes.samples)
    candidates = [i for i, group in enumerate(classes.classes) if group.value is not None]
    if not candidates:
        return Choice(0, None, "no_answer", (), tuple(totals), ess)
    for sample in (sample for i in candidates for sample in classes.classes[i].members):
        if math.isnan(scores[sample]):
            raise HostError(f"score of sample {sample} is not a number")
    largest = max(totals[i] for i in candidates)
    tied = tuple(i for i in candidates if totals[i] == largest)
    chosen = tied[int(key.uniform(0, Purpose.TIE) * len(tied))]
    best = max(classes.classes[chosen].members, key=lambda sample: float(scores[sample]))
    return Choice(best, chosen, "tie" if len(tied) > 1 else "largest", tied, tuple(totals), ess)
