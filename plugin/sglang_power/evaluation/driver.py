"""Runs an evaluation: asks what is not answered yet, grades it, keeps it, and shows how it goes."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tqdm import tqdm

from sglang_power.evaluation.arms import Arm, seed_of
from sglang_power.evaluation.asking import Answer, Asker, RefusedError, UnansweredError
from sglang_power.evaluation.folder import Folder
from sglang_power.evaluation.grading import Grade, Grader
from sglang_power.evaluation.prompts import Asked
from sglang_power.evaluation.records import Kept, Key

HOPELESS: Final = 3
"""Refusals of an arm for one reason, and no answer: it is not asked for any more."""

SHOWN: Final = 3
"""Reasons that are told of one arm; prompts that are too long have one each."""


@dataclass(frozen=True, slots=True)
class Question:
    """One answer that is wanted."""

    asked: Asked
    arm: Arm
    sample: int

    @property
    def key(self) -> Key:
        """Return what the answer will be kept under."""
        return self.asked.item.id, self.arm.name, self.sample


@dataclass
class Missing:
    """Answers that there are not.

    Args:
        reasons: how many, by arm and reason.
        dropped: arms that the server does not serve, and why.
    """

    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
    dropped: dict[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> list[str]:
        """Return what there is to say."""
        told = [f"not served: {arm}: {reason}" for arm, reason in self.dropped.items()]
        for arm in dict.fromkeys(arm for arm, _ in self.reasons if arm not in self.dropped):
            reasons = [(count, why) for (name, why), count in self.reasons.most_common() if name == arm]
            told += [f"no answer to {count} of {arm}: {why}" for count, why in reasons[:SHOWN]]
            if others := sum(count for count, _ in reasons[SHOWN:]):
                told.append(f"no answer to {others} of {arm}: for reasons like these")
        return told


class Driver:
    """One run.

    Args:
        asker, grader: for each answer.
        folder: opened; takes the answers.
        kept: the answers that are there already.
        seed: of the whole run.
    """

    def __init__(
        self, asker: Asker, grader: Grader, folder: Folder, kept: Mapping[Key, Kept], seed: int
    ) -> None:
        self._asker, self._grader, self._folder, self._seed = asker, grader, folder, seed
        self.kept = dict(kept)
        self.missing = Missing()
        self._answered = Counter(answer.arm for answer in kept.values())
        self._right = Counter(answer.arm for answer in kept.values() if answer.is_right)

    async def run(
        self, asked: Sequence[Asked], arms: Sequence[Arm], clients: int, *, shown: bool = True
    ) -> None:
        """Ask whatever is not answered yet, item by item.

        Args:
            asked: the items.
            arms: the samplers.
            clients: requests at once.
            shown: whether there is a progress bar.

        Raises:
            PowerError: the server or the disk is gone; what was answered is kept.
        """
        wanted = list(questions(asked, arms))
        waiting = iter([question for question in wanted if question.key not in self.kept])
        done = sum(question.key in self.kept for question in wanted)
        with tqdm(
            total=len(wanted),
            initial=done,
            desc="answers",
            unit="answer",
            file=sys.stderr,
            disable=not shown,
        ) as bar:
            workers = [asyncio.create_task(self._work(waiting, bar)) for _ in range(clients)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(self, waiting: Iterator[Question], bar: Any) -> None:
        for question in waiting:
            if question.arm.name not in self.missing.dropped:
                await self._answer(question)
            bar.set_postfix_str(self._standing(), refresh=False)
            bar.update()

    async def _answer(self, question: Question) -> None:
        item, arm = question.asked.item, question.arm
        seed = seed_of(self._seed, item.id, arm.name, question.sample)
        try:
            answer = await self._asker.ask(question.asked.prompt, arm, seed)
        except RefusedError as error:
            self._refuse(arm.name, str(error))
            return
        except UnansweredError as error:
            self.missing.reasons[arm.name, str(error)] += 1
            return
        grade = await self._grader.grade(item, answer.text)
        kept = kept_answer(question, seed, answer, grade)
        self._folder.append(kept)
        self.kept[kept.key] = kept
        self._answered[arm.name] += 1
        self._right[arm.name] += kept.is_right

    def _refuse(self, arm: str, reason: str) -> None:
        self.missing.reasons[arm, reason] += 1
        if not self._answered[arm] and self.missing.reasons[arm, reason] >= HOPELESS:
            self.missing.dropped.setdefault(arm, reason)

    def _standing(self) -> str:
        """The accuracy of every arm so far."""
        return " ".join(f"{arm} {self._right[arm] / count:.2f}" for arm, count in self._answered.items())


def questions(asked: Sequence[Asked], arms: Sequence[Arm]) -> Iterator[Question]:
    """Yield every answer that is wanted: all of an item, then those of the next one."""
    for each in asked:
        for arm in arms:
            for sample in range(arm.samples):
                yield Question(each, arm, sample)


def kept_answer(question: Question, seed: int, answer: Answer, grade: Grade) -> Kept:
    """Return what is kept of an answer."""
    item, arm, sample = question.key
    return Kept(
        item=item,
        arm=arm,
        sample=sample,
        seed=seed,
        text=answer.text,
        finish_reason=answer.finish_reason,
        value=grade.value,
        correct=grade.correct,
        reason=grade.reason,
        returned=answer.returned,
        decoded=answer.decoded,
        prefilled=answer.prefilled,
        depth=answer.depth,
        log_p=answer.log_p,
        entropy=answer.entropy,
        blocks=answer.blocks,
        seconds=answer.seconds,
        power=answer.report,
    )
