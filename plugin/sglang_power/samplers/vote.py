"""The sampler `vote`: of several draws, the answer that most of them give.

Self-consistency (Wang et al., arXiv 2203.11171) over classes of equivalent answers, whose weight is a count,
a sum of confidences, or a sum of the weights that make draws of a known law draws of p^alpha.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

from sglang_power.answers import Relation, power_weights, uniform_weights
from sglang_power.errors import UnsupportedError
from sglang_power.request import VoteRequest
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Candidate, Selection
from sglang_power.samplers.choosing import by_confidence, by_vote
from sglang_power.samplers.samples import Sample, SampledSelection, samples_of
from sglang_power.samplers.selecting import Selecting
from sglang_power.types import FloatArray

Weight = Literal["count", "confidence", "power"]

UNWEIGHTED = "no power weight: {} ended it before its law was that of base"


class Vote(SampledSelection):
    """The class of equivalent answers of largest weight."""

    async def run(self, relation: Relation, weight: Weight, alpha: float) -> Selection:
        """Sample, compare and choose.

        Args:
            relation: says which answers are the same.
            weight: of a sample: 1, its Delta, which may be negative, or what makes it a draw of p^alpha.
            alpha: exponent of the power weights.
        """
        candidates = await self.candidates()
        if weight == "confidence":
            return self.with_cost(await by_confidence(candidates, relation, self._key))
        log_weights = uniform_weights(len(candidates))
        if weight == "power":
            log_weights = self._power_weights(candidates, alpha)
            candidates = [_noted(*each) for each in zip(candidates, self._draws, strict=True)]
        selection, choice = await by_vote(candidates, relation, log_weights, self._key)
        return self.with_cost(dataclasses.replace(selection, notes={"ess": choice.ess, **selection.notes}))

    def _power_weights(self, candidates: list[Candidate], alpha: float) -> FloatArray:
        """[samples] nats, that make draws of their law draws of p^alpha; -inf where that law is unknown.

        Raises:
            UnsupportedError: it is unknown for all of them, or the model's logits were not numbers.
        """
        unknown = [i for i, each in enumerate(self._draws) if each.log_q is None]
        if len(unknown) == len(self._draws):
            problem = f"{self.stopped_by} ended every sample before its law was that of base"
            raise UnsupportedError("weight", "power", problem, "Allow more, or weigh samples by count")
        log_q = [each.log_q or 0.0 for each in self._draws]
        log_weights = power_weights(alpha, [each.log_p for each in candidates], log_q)
        log_weights[unknown] = -math.inf
        return log_weights


def _noted(sample: Candidate, drawn: Sample) -> Candidate:
    """The sample; where it has no power weight, it says why."""
    if drawn.log_q is not None:
        return sample
    note = UNWEIGHTED.format(drawn.stopped_by)
    return dataclasses.replace(sample, note=note if sample.note is None else f"{sample.note}; {note}")


class VoteSampler:
    """See the module."""

    request = VoteRequest

    async def run(self, asked: VoteRequest, tools: Tools) -> Outcome:
        """Make one answer."""
        selecting = Selecting(asked, tools)
        vote = Vote(tools.engine, selecting.reader, samples_of(asked, tools), tools.key)
        selection = await vote.run(selecting.relation, asked.weight, asked.alpha)
        return await selecting.outcome(selecting.with_star(selection))
