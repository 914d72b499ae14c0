"""How long the answers of a request may be read, compared and scored: until it is aborted.

Wraps whatever asks somebody for that: the served model, a reward, another process. What is not known by then
stays unknown and says so, so that the answers that are there can still be chosen from. Tokenizer process.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from sglang_power.answers import Relation, Verdict, undecided
from sglang_power.answers.equivalence import Keyed
from sglang_power.errors import ChainAbortedError
from sglang_power.serving.evaluation import Evaluator
from sglang_power.serving.scoring import AnswerReward
from sglang_power.serving.selection import Reader, Reading
from sglang_power.types import Tokens, Usage

T = TypeVar("T")

Work = Callable[[], Coroutine[Any, Any, T]]

ABORTED: Final = "the request was aborted"


@dataclass
class Patience:
    """Of one selection.

    Attributes:
        aborted: something was left unknown because of an abort.
    """

    aborted: bool = field(default=False, init=False)

    @property
    def reason(self) -> str:
        """Why something was left unknown."""
        return ABORTED

    async def known(self, work: Work[T]) -> T | None:
        """What the work comes to; None where an abort ends it."""
        try:
            return await work()
        except ChainAbortedError:
            self.aborted = True
            return None


@dataclass(frozen=True)
class PatientReader:
    """A Reader that asks the model."""

    reader: Reader
    patience: Patience

    def text(self, ids: Sequence[int], finished: bool) -> str:
        """See Reader."""
        return self.reader.text(ids, finished)

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:
        """See Reader."""
        found = await self.patience.known(lambda: self.reader.answer(tokens, finished))
        return Reading(None, note=self.patience.reason) if found is None else found


@dataclass(frozen=True)
class PatientRelation:
    """A Relation whose comparisons take time."""

    relation: Relation
    patience: Patience

    async def same(self, a: str, b: str) -> Verdict:
        """See Relation."""
        verdict = await self.patience.known(lambda: self.relation.same(a, b))
        return undecided(self.patience.reason) if verdict is None else verdict


def patient(relation: Relation, patience: Patience) -> Relation:
    """The relation; one that compares keys answers at once and needs no patience."""
    return relation if isinstance(relation, Keyed) else PatientRelation(relation, patience)


@dataclass(frozen=True)
class PatientEvaluator:
    """An Evaluator that asks the model."""

    evaluator: Evaluator
    patience: Patience

    async def right(self, answer: str) -> tuple[float | None, Usage]:
        """See Evaluator."""
        value = await self.patience.known(lambda: self.evaluator.right(answer))
        return (None, Usage()) if value is None else value


@dataclass(frozen=True)
class PatientReward:
    """A reward of answers."""

    reward: AnswerReward
    patience: Patience

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        """See AnswerReward."""
        return await self.patience.known(lambda: self.reward(ids, finished))

    def report(self) -> dict[str, Any]:
        """See AnswerReward."""
        return self.reward.report()
