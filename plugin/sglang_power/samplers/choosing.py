"""The ways to choose among candidates: the highest score, or a class of equal answers, by weight or Delta.

What finding the candidates cost, and what ended the run, is added by whoever found them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from sglang_power.algorithms.cot import most_confident
from sglang_power.answers import Choice, Classes, Relation, build_classes, choose, choose_by_delta
from sglang_power.answers.weights import log_sum
from sglang_power.rng import Key
from sglang_power.samplers.candidates import Candidate, Selection, class_notes, reported_classes
from sglang_power.samplers.evaluation import added_notes
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.types import FloatArray, Usage, in_parallel


async def by_score(candidates: Sequence[Candidate], scores: Scores) -> Selection:
    """The candidate of highest score, the first of equal ones.

    Where none has a score, the one of highest mean log p ("no_score"); a confidence is missing where there is
    no answer, and then it is the first ("no_answer").
    """
    scored = await gather_or_cancel([_scored(one, scores) for one in candidates])
    values = [value for value, _ in scored]
    chosen, reason = _highest(values), str(scores.name)
    if chosen is None and scores.name == "confidence":
        chosen, reason = 0, "no_answer"
    elif chosen is None:
        likely = [None if one.dropped else one.mean_log_p for one in candidates]
        chosen, reason = _highest(likely) or 0, "no_score"
    return Selection(
        candidates=tuple(candidates),
        chosen=chosen,
        reason=reason,
        scores=tuple(values),
        usage=in_parallel(cost for _, cost in scored),
        notes=scores.notes,
    )


async def _scored(one: Candidate, scores: Scores) -> tuple[float | None, Usage]:
    """The score of a candidate and what it cost; a sample that was ended has none."""
    return (None, Usage()) if one.dropped else await scores.whole(one)


def _highest(values: Sequence[float | None]) -> int | None:
    """Index of the largest value, the first of equal ones; None where there is none."""
    known = [(value, -i) for i, value in enumerate(values) if value is not None]
    return -max(known)[1] if known else None


async def by_vote(
    candidates: Sequence[Candidate], relation: Relation, log_weights: FloatArray, key: Key
) -> tuple[Selection, Choice]:
    """The class of largest summed weight, and of it the candidate of highest mean log p.

    Args:
        candidates: in sample order.
        relation: says which answers are the same.
        log_weights: [candidates] what each adds to its class, nats.
        key: draws among ties.
    """
    classes = await build_classes([one.value for one in candidates], relation)
    return voted(candidates, classes, log_weights, key)


def voted(
    candidates: Sequence[Candidate],
    classes: Classes,
    log_weights: FloatArray,
    key: Key,
    *,
    voters: Sequence[bool] | None = None,
) -> tuple[Selection, Choice]:
    """The same among classes that are known.

    Args:
        candidates: in sample order.
        classes: of them.
        log_weights: [candidates] what each adds to its class, nats.
        key: draws among ties.
        voters: which candidates may be returned; None: all.
    """
    mean_log_p = np.array([one.mean_log_p for one in candidates])
    if voters is not None:
        mean_log_p[~np.array(voters)] = -math.inf
    choice = choose(classes, log_weights, key, scores=mean_log_p)
    scores = [float(value) if math.isfinite(value) else None for value in log_weights]
    chosen = choice.sample, choice.reason
    return _among_classes(candidates, classes, shares(choice.totals), scores, *chosen), choice


async def by_confidence(
    candidates: Sequence[Candidate], relation: Relation, key: Key, *, aggregate: bool = True
) -> Selection:
    """The class of largest summed confidence, and of it the most confident candidate.

    Args:
        candidates: in sample order.
        relation: says which answers are the same.
        key: draws among ties.
        aggregate: sum over classes; otherwise the most confident candidate whose answer can be read.
    """
    deltas = [one.delta for one in candidates]
    values = [None if one.delta is None else one.value for one in candidates]
    classes = await build_classes(values, relation)
    choice = choose_by_delta(classes, deltas, key)
    chosen, reason = choice.sample, choice.reason
    if not aggregate and choice.chosen is not None:
        answered = {i for one in classes.classes if one.value is not None for i in one.members}
        best = most_confident([delta if i in answered else None for i, delta in enumerate(deltas)])
        chosen, reason = best or 0, "largest"
    return _among_classes(candidates, classes, choice.totals, deltas, chosen, reason)


def _among_classes(
    candidates: Sequence[Candidate],
    classes: Classes,
    weights: Sequence[float],
    scores: Sequence[float | None],
    chosen: int,
    reason: str,
) -> Selection:
    """A choice by classes, with what finding them cost."""
    return Selection(
        candidates=tuple(candidates),
        chosen=chosen,
        reason=reason,
        scores=tuple(scores),
        usage=classes.usage,
        classes=tuple(reported_classes(classes, weights)),
        comparisons=classes.comparisons,
        notes=class_notes(classes),
        tied=reason == "tie",
    )


async def with_classes(selection: Selection, relation: Relation) -> Selection:
    """A selection by score with the classes of equal answers among its candidates.

    They have no part in the choice. The weight of a class is its share of the candidates with an answer.
    """
    classes = await build_classes([one.value for one in selection.candidates], relation)
    sizes = [len(one.members) if one.value is not None else 0 for one in classes.classes]
    weights = [size / max(sum(sizes), 1) for size in sizes]
    return dataclasses.replace(
        selection,
        usage=selection.usage + classes.usage,
        classes=tuple(reported_classes(classes, weights)),
        comparisons=classes.comparisons,
        notes=added_notes(selection.notes, class_notes(classes)),
    )


def shares(log_totals: Sequence[float]) -> list[float]:
    """Summed weights, normalised to 1, from their logarithms; all 0 where none has any."""
    whole = log_sum(np.array(log_totals))
    if whole == -math.inf:
        return [0.0] * len(log_totals)
    return [math.exp(total - whole) for total in log_totals]
