"""What samplers that choose among answers share: candidates, how they are read, what is reported.

Knows neither SGLang nor HTTP: the host gives an Engine and a Reader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from sglang_power.algorithms.cot import confidence
from sglang_power.answers import Classes
from sglang_power.samplers.budgets import StoppedBy, late
from sglang_power.samplers.evaluation import judge_notes
from sglang_power.types import ROW_FIELDS, Tokens, Usage

MAX_REPORTED_TEXT = 4096
"""Characters of a path's text in the report; a longer one is cut there, and the answer says so."""


MAX_REPORTED_ROWS = 8192
"""Of a path in the report; `tokens` tells its whole length."""


@dataclass(frozen=True, slots=True)
class ReadAnswer:
    """The answer inside a text.

    Args:
        value: in the form in which answers are compared.
        span: its characters in the text; None where it stands in a continuation of the text only.
        tokens: indices of its tokens.
        margins: their margins, where they are not tokens of the path itself.
    """

    value: str
    span: tuple[int, int] | None
    tokens: tuple[int, ...]
    margins: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What reading one sequence gave.

    Args:
        answer: None where there is none.
        usage: what finding it cost.
        note: why there is none, where that is worth telling.
    """

    answer: ReadAnswer | None
    usage: Usage = field(default_factory=Usage)
    note: str | None = None


TIMED_OUT = "the search for the answer timed out"


class Reader(Protocol):
    """Turns token ids into text and finds answers in it."""

    def text(self, ids: Sequence[int], finished: bool) -> str:
        """What a client would be given."""
        ...

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        """The answer of a sequence."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """One answer that may be chosen.

    Args:
        tokens, finished: the whole sequence.
        text: of it.
        answer: None where there is none.
        delta: confidence of its answer tokens; None without an answer.
        first_log_p: of the token at the fork (`cot`).
        note: what else there is to say.
        dropped: it was ended for its low confidence: it cannot be chosen, and counts for no answer.
    """

    tokens: Tokens
    finished: bool
    text: str
    answer: ReadAnswer | None
    delta: float | None
    first_log_p: float | None = None
    note: str | None = None
    dropped: bool = False

    @property
    def log_p(self) -> float:
        """Of the whole sequence, nats."""
        return float(self.tokens.log_p.sum())

    @property
    def mean_log_p(self) -> float:
        """Per token, nats."""
        return self.log_p / len(self.tokens)

    @property
    def mean_entropy(self) -> float:
        """Of the rows that its tokens were drawn from, nats."""
        return float(self.tokens.entropy.mean())

    @property
    def value(self) -> str | None:
        """What is compared."""
        return None if self.answer is None else self.answer.value


async def candidate(
    reader: Reader, tokens: Tokens, finished: bool, first_log_p: float | None = None
) -> tuple[Candidate, Usage]:
    """Read one sequence."""
    reading = await reader.answer(tokens, finished)
    text = reader.text(tokens.ids, finished)
    delta = _delta(tokens, reading.answer)
    found = Candidate(tokens, finished, text, reading.answer, delta, first_log_p, reading.note)
    return found, reading.usage


DROPPED = "ended: its confidence fell below that of the first samples"


def dropped(reader: Reader, tokens: Tokens, finished: bool) -> Candidate:
    """Return a sample that was ended for its low confidence; nothing is read in it."""
    return Candidate(
        tokens, finished, reader.text(tokens.ids, finished), None, None, note=DROPPED, dropped=True
    )


def _delta(tokens: Tokens, answer: ReadAnswer | None) -> float | None:
    if answer is None:
        return None
    if answer.margins is not None:
        return math.fsum(answer.margins) / len(answer.margins) if answer.margins else None
    return confidence(tokens, answer.tokens)


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome of one run.

    Args:
        candidates: in sample order.
        chosen: index of the answer that is returned.
        reason: why that one.
        scores: per candidate, what was compared; None where a candidate has none.
        classes: one dictionary per class of equivalent answers.
        comparisons: of answers, by the relation.
        usage: what all of it cost.
        stopped_by: "completed", or the limit that ended it.
        headline: entries of the report that stand at its top.  notes: further ones.
        tied: a seed drew the class among several of equal weight.
    """

    candidates: tuple[Candidate, ...]
    chosen: int
    reason: str
    scores: tuple[float | None, ...]
    usage: Usage
    classes: tuple[dict[str, Any], ...] = ()
    comparisons: int = 0
    stopped_by: StoppedBy = "completed"
    headline: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    tied: bool = False

    @property
    def best(self) -> Candidate:
        """The answer that is returned."""
        return self.candidates[self.chosen]


def stopped_by(aborted: bool, cut_short: bool, deadline: float | None) -> StoppedBy:
    """Return what ended a run.

    Args:
        aborted: something was left unknown, or undone, because of an abort.
        cut_short: the same because of the deadline.
        deadline: of the run, seconds of `clock.now`; None: no limit.

    Raises:
        HostError: cut short without a deadline.
    """
    return "abort" if aborted else late(deadline) if cut_short else "completed"


def reported_classes(classes: Classes, weights: Sequence[float]) -> list[dict[str, Any]]:
    """Classes of equal answers as JSON; `weight` is what they were compared by, null without an answer."""
    reported = []
    for group, total in zip(classes.classes, weights, strict=True):
        weight = total if group.value is not None else None
        reported.append({"representative": group.value, "members": list(group.members), "weight": weight})
    return reported


MAX_REPORTED_PROBLEMS = 20
"""Of a kind."""


def class_notes(classes: Classes) -> dict[str, Any]:
    """How classes were built: the judge's cost, comparisons without a result, answers that cannot be read."""
    notes = judge_notes(classes.usage)
    if classes.undecided:
        notes["undecided"] = [asdict(comparison) for comparison in classes.undecided[:MAX_REPORTED_PROBLEMS]]
    if classes.unreadable:
        notes["unreadable"] = [asdict(answer) for answer in classes.unreadable[:MAX_REPORTED_PROBLEMS]]
    return notes


def reported_path(candidate: Candidate, score: float | None, *, rows: bool = False) -> dict[str, Any]:
    """Return one candidate as JSON, with the statistics of its rows where they are asked for."""
    answer = candidate.answer
    shown: dict[str, Any] = {
        "text": candidate.text[:MAX_REPORTED_TEXT],
        "answer": candidate.value,
        "answer_span": None if answer is None or answer.span is None else list(answer.span),
        "confidence": candidate.delta,
        "log_p": candidate.log_p if math.isfinite(candidate.log_p) else None,
        "score": score,
        "mean_entropy": candidate.mean_entropy if math.isfinite(candidate.mean_entropy) else None,
        "tokens": len(candidate.tokens),
        "finished": candidate.finished,
    }
    if candidate.first_log_p is not None:
        shown["first_log_p"] = candidate.first_log_p
    if candidate.note is not None:
        shown["note"] = candidate.note
    if rows:
        shown["rows"] = reported_rows(candidate.tokens)
    return shown


def reported_rows(tokens: Tokens) -> dict[str, list[float | None]]:
    """Return ROW_FIELDS -> one value per token, None where it is no finite number."""
    table = tokens.rows[:MAX_REPORTED_ROWS]
    return {
        name: [value if math.isfinite(value) else None for value in column]
        for name, column in zip(ROW_FIELDS, table.T.tolist(), strict=True)
    }
