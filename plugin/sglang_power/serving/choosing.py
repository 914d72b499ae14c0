"""The two ways to choose among candidates: the highest score, or the largest class of equal answers.

What finding the candidates cost, and what ended the run, is added by whoever found them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sglang_power.answers import Choice, Relation, build_classes, choose
from sglang_power.answers.weights import log_sum
from sglang_power.rng import Key
from sglang_power.serving.scoring import Scores
from sglang_power.serving.selection import Candidate, Selection, class_notes, reported_classes
from sglang_power.serving.tasks import gather_or_cancel
from sglang_power.types import FloatArray, in_parallel


async def by_score(candidates: Sequence[Candidate], scores: Scores) -> Selection:
    """The candidate of highest score, the first of equal ones.

    Where none has a score, the one of highest mean log p; without any answer in them, the first.
    """
    scored = await gather_or_cancel([scores.whole(one) for one in candidates])
    values = [value for value, _ in scored]
    chosen, reason = _highest(values), str(scores.name)
    if chosen is None:
        likeliest = _highest([one.mean_log_p for one in candidates])
        chosen, reason = 0 if scores.name == "confidence" else likeliest or 0, "no_answer"
    return Selection(
        candidates=tuple(candidates),
        chosen=chosen,
        reason=reason,
        scores=tuple(values),
        usage=in_parallel(cost for _, cost in scored),
        notes=scores.notes,
    )


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
    mean_log_p = np.array([one.mean_log_p for one in candidates])
    choice = choose(classes, log_weights, key, scores=mean_log_p)
    selection = Selection(
        candidates=tuple(candidates),
        chosen=choice.sample,
        reason=choice.reason,
        scores=tuple(float(value) if math.isfinite(value) else None for value in log_weights),
        usage=classes.usage,
        classes=tuple(reported_classes(classes, shares(choice.totals))),
        comparisons=classes.comparisons,
        notes=class_notes(classes),
    )
    return selection, choice


def shares(log_totals: Sequence[float]) -> list[float]:
    """Summed weights, normalised to 1, from their logarithms; all 0 where none has any."""
    whole = log_sum(np.array(log_totals))
    if whole == -math.inf:
        return [0.0] * len(log_totals)
    return [math.exp(total - whole) for total in log_totals]
