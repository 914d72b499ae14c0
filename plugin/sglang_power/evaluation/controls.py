"""What plain answers would give at the same price: a vote among, or the likeliest of, so many of them. Pure.

For a sampler that decodes D tokens an answer, and plain answers of d tokens, m = ceil(D / d) plain answers
cost as much, or a little more. The plain answers that a problem has are cut into groups of m, in their order;
each group gives one answer, by each rule. Where a problem has fewer than m of them nothing is computed.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict

from sglang_power.evaluation.grading import class_of
from sglang_power.evaluation.records import Kept
from sglang_power.evaluation.statistics import Interval, Paired, mean_of, paired, pass_at, share
from sglang_power.evaluation.table import Answers, Table

Rule: TypeAlias = Literal["vote", "best_of"]

POWERS: Final = (1, 2, 4, 8, 16, 32)
"""Numbers of answers for pass@k, and for the curves of controls."""


class Control(BaseModel):
    """A control at the price of a sampler.

    Args:
        arm: the sampler.
        rule: the majority of the answers, or the one of largest mean log p.
        samples: m, the plain answers that one answer of the sampler pays for.
        problems, groups: how many of either there are; 0 where no problem has m plain answers.
        accuracy: of the control.
        decoded: its tokens an answer.
        against: the sampler against it, on the same problems.
        any_right: how often one of the m is right, the most that any choice among them could give.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str
    rule: Rule
    samples: int
    problems: int
    groups: int
    accuracy: Interval | None
    decoded: float | None
    against: Paired | None
    any_right: float | None


class Point(BaseModel):
    """A point of a control's curve: so many plain answers, and a choice among them. As `Control`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: Rule
    samples: int
    problems: int
    accuracy: Interval
    decoded: float


def controls(table: Table) -> list[Control]:
    """Return both controls of every sampler that is no baseline; none without plain answers."""
    plain = table.of("plain")
    if plain is None:
        return []
    return [
        _control(table, answers, plain, rule)
        for answers in table.arms.values()
        if not answers.arm.is_baseline
        for rule in _rules(table)
    ]


def curve(table: Table) -> list[Point]:
    """Return accuracy and tokens of both rules, over 2, 4, ... plain answers."""
    plain = table.of("plain")
    points = []
    for rule in _rules(table) if plain is not None else ():
        for samples in POWERS[1:]:
            assert plain is not None
            chosen = _chosen(table, plain.by_item, samples, rule)
            if chosen:
                verdicts = [[float(one.is_right) for one in group] for group in chosen.values()]
                points.append(
                    Point(
                        rule=rule,
                        samples=samples,
                        problems=len(chosen),
                        accuracy=share(verdicts),
                        decoded=samples * plain.mean(lambda answer: answer.decoded),
                    )
                )
    return points


def _rules(table: Table) -> tuple[Rule, ...]:
    """No two programs are equal, so they are not voted on."""
    return ("best_of",) if "code" in table.run.kinds.values() else ("vote", "best_of")


def _control(table: Table, answers: Answers, plain: Answers, rule: Rule) -> Control:
    price = plain.mean(lambda answer: answer.decoded)
    samples = max(1, math.ceil(answers.mean(lambda answer: answer.decoded) / price)) if price else 1
    items = table.common(answers, plain)
    chosen = _chosen(table, {item: plain.by_item[item] for item in items}, samples, rule)
    if not chosen:
        return Control(
            arm=answers.arm.name,
            rule=rule,
            samples=samples,
            problems=0,
            groups=0,
            accuracy=None,
            decoded=None,
            against=None,
            any_right=None,
        )
    own = [[float(one.is_right) for one in answers.by_item[item]] for item in chosen]
    verdicts = [[float(one.is_right) for one in group] for group in chosen.values()]
    enough = [[one.is_right for one in plain.by_item[item]] for item in chosen]
    return Control(
        arm=answers.arm.name,
        rule=rule,
        samples=samples,
        problems=len(chosen),
        groups=sum(map(len, chosen.values())),
        accuracy=share(verdicts),
        decoded=samples * price,
        against=paired(own, verdicts),
        any_right=float(np.mean([pass_at(len(group), sum(group), samples) for group in enough])),
    )


def _chosen(
    table: Table, by_item: Mapping[str, Sequence[Kept]], samples: int, rule: Rule
) -> dict[str, list[Kept]]:
    """What a rule picks of every group of plain answers, by item."""
    found = {}
    for item, answers in by_item.items():
        groups = [answers[at : at + samples] for at in range(0, len(answers) - samples + 1, samples)]
        if groups:
            kind = table.run.kinds[item]
            choose: Callable[[Sequence[Kept]], Kept] = likeliest if rule == "best_of" else _voting(kind)
            found[item] = [choose(group) for group in groups]
    return found


def _voting(kind: str) -> Callable[[Sequence[Kept]], Kept]:
    return lambda answers: majority(answers, kind)


def likeliest(answers: Sequence[Kept]) -> Kept:
    """Return the answer of largest mean log p; those without one count for nothing, of equals the first."""
    return max(answers, key=lambda one: -math.inf if one.mean_log_p is None else one.mean_log_p)


def majority(answers: Sequence[Kept], kind: str) -> Kept:
    """Return the first answer of the largest class of equal ones; of equal classes the one that came first.

    Right answers are one class, since they equal the one that is right. The others are told apart by the
    normal form of their value, so that of wrong answers to a formula two that are equal may stand in two
    classes. Answers without a value count for nobody.

    Args:
        answers: in the order in which they were drawn.
        kind: how the item is judged.
    """
    classes = {
        answer.sample: "right" if answer.is_right else f"={class_of(kind, answer.value)}"
        for answer in answers
        if answer.value is not None
    }
    if not classes:
        return answers[0]
    winner = Counter(classes.values()).most_common(1)[0][0]
    return next(answer for answer in answers if classes.get(answer.sample) == winner)


class PassAt(BaseModel):
    """pass@k of an arm: the mean over problems that have k answers, with t's interval."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arm: str
    k: int
    problems: int
    value: Interval


def passes(table: Table) -> list[PassAt]:
    """Return pass@k of every arm, for every k that it has answers for."""
    found = []
    for name, answers in table.arms.items():
        for k in POWERS:
            groups = [group for group in answers.by_item.values() if len(group) >= k]
            if groups:
                values = [pass_at(len(group), sum(one.is_right for one in group), k) for group in groups]
                interval = mean_of(np.array(values, dtype=np.float64), 0.0, 1.0)
                found.append(PassAt(arm=name, k=k, problems=len(groups), value=interval))
    return found
