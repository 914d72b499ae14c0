"""What samplers that choose among answers make of a run's tools, and the outcome of a choice.

Everything that asks somebody (the served model, a reward, another process) does so within the deadline of
the request. Knows neither SGLang nor HTTP.
"""

from __future__ import annotations

import dataclasses
from functools import cached_property

from sglang_power.algorithms.cot import GREEDY
from sglang_power.answers import Relation
from sglang_power.policies import Policy
from sglang_power.request.selection import SelectionRequest
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Reader, Selection, reported_path, stopped_by
from sglang_power.samplers.choosing import with_classes
from sglang_power.samplers.deadlines import (
    BoundedEvaluator,
    BoundedReader,
    BoundedReward,
    Deadline,
    bounded,
)
from sglang_power.samplers.scores import ScoreName, Scores
from sglang_power.samplers.tree import reported_tree, star
from sglang_power.types import ProposalLaw


class Selecting:
    """One choice among answers.

    Args:
        asked: the request.
        tools: of its run.
    """

    def __init__(self, asked: SelectionRequest, tools: Tools) -> None:
        self._asked, self._tools = asked, tools
        self._deadline = Deadline(tools.watched, tools.budget.deadline)

    @cached_property
    def reader(self) -> Reader:
        """What reads the answers; where that means to ask the model, within the deadline."""
        reader = self._tools.reader
        return BoundedReader(reader, self._deadline) if self._asked.answer == "continuation" else reader

    @cached_property
    def relation(self) -> Relation:
        """When two answers are the same."""
        return bounded(self._tools.relation, self._deadline)

    def scores(self, name: ScoreName, alpha: float = 1.0) -> Scores:
        """Return what compares answers and branches by one score."""
        evaluator, reward = self._tools.evaluator, self._tools.reward
        return Scores(
            name,
            self.reader,
            alpha=alpha,
            evaluator=None
            if evaluator is None or name != "self_evaluation"
            else BoundedEvaluator(evaluator, self._deadline),
            reward=None if reward is None or name != "reward" else BoundedReward(reward, self._deadline),
        )

    def continuation_law(self, policy: Policy | None) -> ProposalLaw:
        """Return the law of what follows a fork: greedy, or the policy at the request's temperature."""
        return GREEDY if policy is None else self._tools.request_law(policy)

    def with_star(self, selection: Selection) -> Selection:
        """Return a selection among answers that part at one place, with their tree where it is asked for."""
        if not self._asked.return_tree:
            return selection
        paths = [path.tokens for path in selection.candidates]
        tree = reported_tree(*star(paths, selection.scores, selection.chosen), self.reader)
        return dataclasses.replace(selection, notes={**selection.notes, "tree": tree})

    async def finished(self, selection: Selection) -> Selection:
        """Return a selection with its classes of equal answers, and with what ended it or its comparisons."""
        if not selection.classes:  # chosen by score
            selection = await with_classes(selection, self.relation)
        ended = stopped_by(self._deadline.aborted, self._deadline.late, self._deadline.at)
        if ended == "abort" or (ended != "completed" and selection.stopped_by != "abort"):
            return dataclasses.replace(selection, stopped_by=ended)
        return selection

    async def outcome(self, selection: Selection) -> Outcome:
        """Return the chosen answer, with every candidate in its report."""
        return self.told(await self.finished(selection))

    def told(self, selection: Selection) -> Outcome:
        """Return the outcome that a finished selection is."""
        sampling = {field: self._tools.sampling[field] for field in self._asked.sampling_fields}
        scored = zip(selection.candidates, selection.scores, strict=True)
        return Outcome(
            tokens=selection.best.tokens,
            finished=selection.best.finished,
            usage=selection.usage,
            law="selection",
            params={**self._asked.echo(), **sampling, "max_new_tokens": self._tools.horizon},
            stopped_by=selection.stopped_by,
            tied=selection.tied,
            headline=selection.headline,
            report={
                "paths": [reported_path(each, score, rows=self._asked.return_rows) for each, score in scored],
                "classes": list(selection.classes),
                "chosen": {"index": selection.chosen, "reason": selection.reason},
                "comparisons": selection.comparisons,
                **selection.notes,
            },
        )
