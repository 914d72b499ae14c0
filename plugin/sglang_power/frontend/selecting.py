"""`sp.select`: a group becomes one program again, that of the branch that is chosen.

Owns the criteria and the merge. `scores` measures, `laws` weighs, `sglang_power.answers` compares answers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sglang_power.answers import (
    LLM,
    LlmRelation,
    Relation,
    build_classes,
    choose,
    effective_sample_size,
    equivalence,
    power_weights,
    right_question,
    uniform_weights,
    value_of,
)
from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.frontend._lang import ProgramState, merge
from sglang_power.frontend.group import Generated, Group
from sglang_power.frontend.laws import DrawnSegment, draw, endings_of, log_density, normaliser
from sglang_power.frontend.scores import (
    ChatJudge,
    answer_of,
    delta,
    run_coroutine,
    segment_of,
    token_log_probs,
)
from sglang_power.frontend.settings import SelectSettings, parsed
from sglang_power.rng import Key, Purpose, fresh_seed

Score = Callable[[ProgramState], float]


@dataclass(frozen=True, slots=True)
class Selected:
    """What was chosen, and why.

    Args:
        name: of the branch.
        by: the criterion, "callable" for a function.
        scores: per branch that could be chosen: mean log p, Delta (None without an answer), normalised
            weight, votes for its answer, probability of being right, what the function said.
        reason: "largest"; "tie" (drawn among the commonest answers); "drawn" by weight; "no_answer".
        seed: of draws and ties.
        ess: effective sample size, by="power".
        errors: of branches that had failed.
    """

    name: str
    by: str
    scores: dict[str, float | None]
    reason: str
    seed: int
    ess: float | None
    errors: dict[str, Exception]


@dataclass(frozen=True, slots=True)
class _Choice:
    index: int
    scores: Sequence[float | None]
    reason: str = "largest"
    ess: float | None = None


class _Chooser:
    """One selection under way, among the branches that can be chosen.

    Args:
        group: the branches.
        names: of those.
        settings: how to choose.
        seed: in force.
    """

    def __init__(self, group: Group, names: Sequence[str], settings: SelectSettings, seed: int) -> None:
        self._group, self._names, self._settings, self._seed = group, names, settings, seed
        self._client = group.origin.stream_executor.backend.client

    def choose(self) -> _Choice:
        """By the criterion of the settings."""
        criteria: dict[str, Callable[[], _Choice]] = {
            "mean_log_p": self._by_log_p,
            "confidence": self._by_confidence,
            "power": self._by_power,
            "vote": self._by_vote,
            "self_evaluation": self._by_self_evaluation,
        }
        return criteria[self._settings.by]()

    def _by_log_p(self) -> _Choice:
        branches = [[log_p for _, part in branch for log_p in part] for branch in self._scored()]
        return largest([math.fsum(branch) / len(branch) for branch in branches])

    def _scored(self) -> list[list[tuple[Generated, list[float]]]]:
        """What each branch has generated, with log p of every token; one request for all of them."""
        for name in self._names:
            segment_of(self._group, name, None)
        draws = [self._group.draws(name) for name in self._names]
        parts = iter(token_log_probs(self._client, [generated for branch in draws for generated in branch]))
        return [[(generated, next(parts)) for generated in branch] for branch in draws]

    def _by_confidence(self) -> _Choice:
        segments = [segment_of(self._group, name, self._settings.of) for name in self._names]
        deltas = [delta(self._client, segment, self._settings.extractor) for segment in segments]
        known = [-math.inf if value is None else value for value in deltas]
        if max(known) == -math.inf:
            hint = "Name the kind of answer that there is, or select by another criterion"
            raise RequestError("answer", self._settings.answer, "no branch has such an answer", hint)
        return _Choice(int(np.argmax(known)), deltas)

    def _by_power(self) -> _Choice:
        alpha = self._settings.alpha
        branches = [
            [
                DrawnSegment(prefix, math.fsum(log_p), generated.exponent, endings_of(generated.settings))
                for (prefix, generated), log_p in branch
            ]
            for branch in self._scored()
        ]
        normalisers = [normaliser(branch, alpha) for branch in branches]
        densities = [log_density(branch, alpha) for branch in branches]
        for name, density, own in zip(self._names, densities, normalisers, strict=True):
            if density is None or own != normalisers[0]:
                problem = "the density that this branch was drawn from is unknown"
                hint = "Draw at temperature 1 without truncation, or every branch by power in the same way"
                raise UnsupportedError("group", name, problem, hint)
        log_p = [math.fsum(part.log_p for part in branch) for branch in branches]
        weights = power_weights(alpha, log_p, densities)
        shares = np.exp(weights - weights.max())
        index = draw(weights, self._seed, Purpose.CHOICE)
        return _Choice(index, (shares / shares.sum()).tolist(), "drawn", effective_sample_size(weights))

    def _by_vote(self) -> _Choice:
        segments = [segment_of(self._group, name, self._settings.of) for name in self._names]
        extractor = self._settings.extractor
        answers = [value_of(answer_of(segment.text, extractor)) for _, segment in segments]
        classes = run_coroutine(build_classes(answers, self._relation()))
        made = choose(classes, uniform_weights(len(answers)), Key(self._seed))
        scores: list[float | None] = [None] * len(answers)
        for group in classes.classes:
            for sample in group.members if group.value is not None else ():
                scores[sample] = float(len(group.members))
        return _Choice(made.sample, scores, made.reason)

    def _relation(self) -> Relation:
        name = self._settings.relation
        return LlmRelation(ChatJudge(self._client)) if name == LLM else equivalence(name)

    def _by_self_evaluation(self) -> _Choice:
        judge, question = ChatJudge(self._client), self._settings.question or self._group.question
        return largest([judge.probability(right_question(question, self._answer(n))) for n in self._names])

    def _answer(self, name: str) -> str:
        if self._settings.of is None:
            return self._group.added_text(name)
        return segment_of(self._group, name, self._settings.of)[1].text


def largest(scores: Sequence[float]) -> _Choice:
    """The first of the largest score.

    Raises:
        RequestError: a score is not a number.
    """
    if any(math.isnan(score) for score in scores):
        raise RequestError("by", list(scores), "a score is not a number", "Return a number for every branch")
    return _Choice(int(np.argmax(scores)), list(scores))


def select(
    group: Group,
    by: str | Score = "mean_log_p",
    *,
    answer: str | None = None,
    answer_regex: str | None = None,
    of: str | None = None,
    equivalence: str | None = None,
    alpha: float | None = None,
    seed: int | None = None,
    question: str | None = None,
) -> Selected:
    """Choose a branch, and let the program that branched go on as that branch: `sp.select(group, by="vote")`.

    Its text, token ids, variables, meta information, messages and role become the program's.

    Args:
        group: of `branch`.
        by: a criterion, or a function of a branch that returns a score, the largest of which wins.
        answer, answer_regex, of, equivalence, alpha, seed, question: see `SelectSettings`.

    Raises:
        RequestError: an argument is wrong, a branch lacks what the criterion needs, or left its role.
        UnsupportedError: by="power" among branches whose density is unknown.
        PowerError: every branch failed.
    """
    named = {
        "by": None if callable(by) else by,
        "answer": answer,
        "answer_regex": answer_regex,
        "of": of,
        "equivalence": equivalence,
        "alpha": alpha,
        "seed": seed,
        "question": question,
    }
    settings = parsed(SelectSettings, named)
    used_seed = fresh_seed() if settings.seed is None else settings.seed
    alive = group.survivors()
    names = list(alive)
    if callable(by):
        made = largest([float(by(state)) for state in alive.values()])
    else:
        made = _Chooser(group, names, settings, used_seed).choose()
    errors, name = group.errors, names[made.index]
    merge(alive[name].stream_executor, group.origin.stream_executor)
    group.close()
    scores = dict(zip(names, made.scores, strict=True))
    kind = "callable" if callable(by) else by
    return Selected(name, kind, scores, made.reason, used_seed, made.ess, errors)
