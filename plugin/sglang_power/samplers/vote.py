"""The sampler `vote`: of several draws, the answer that most of them give.

Self-consistency (Wang et al., arXiv 2203.11171) over classes of equivalent answers, whose weight is a count,
a sum of confidences, or a sum of the weights that make draws of a known law draws of p^alpha.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

import numpy as np

from sglang_power.algorithms.votes import StoppingRule, UntilCertain, UntilDecided
from sglang_power.answers import GrowingClasses, Relation, power_weights
from sglang_power.errors import UnsupportedError
from sglang_power.request import PowerRequest, VoteRequest
from sglang_power.samplers.adaptive import AdaptiveVote
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Candidate, Selection
from sglang_power.samplers.choosing import by_confidence, by_vote, voted
from sglang_power.samplers.samples import Sample, SampledSelection, dropping_of, samples_of
from sglang_power.samplers.selecting import Selecting
from sglang_power.types import FloatArray

Weight = Literal["count", "confidence", "power"]

UNWEIGHTED = "no power weight: {} ended it before its law was that of base"


class Vote(SampledSelection):
    """The class of equivalent answers of largest weight."""

    async def run(
        self, relation: Relation, weight: Weight, alpha: float, rule: StoppingRule | None = None
    ) -> Selection:
        """Sample, compare and choose.

        Args:
            relation: says which answers are the same.
            weight: of a sample: 1, its Delta, which may be negative, or what makes it a draw of p^alpha.
            alpha: exponent of the power weights.
            rule: when the rest of the samples is not drawn; needs weights that are counts.
        """
        if weight == "confidence":
            candidates = await self.candidates()
            return self._told(await by_confidence(candidates, relation, self._key))
        if weight == "count":
            return await self._by_count(relation, rule or StoppingRule(self._samples.count))
        candidates = await self.candidates()
        log_weights = self._power_weights(candidates, alpha)
        noted = [_noted(*each) for each in zip(candidates, self._draws, strict=True)]
        selection, choice = await by_vote(noted, relation, log_weights, self._key)
        return self._told(selection, ess=choice.ess)

    async def _by_count(self, relation: Relation, rule: StoppingRule) -> Selection:
        """Draw, read and compare round by round, in the order of the samples, until the rule ends that."""
        growing = GrowingClasses(relation)
        while size := rule.next_round():
            if isinstance(rule, UntilDecided):  # its winner does not depend on the rounds
                size = self._engine.share(size)
            new = await self.more(size)
            for label in await growing.add([each.value for each in new]):
                rule.see(label)
            if len(new) < size:
                break
        voters = [not each.dropped for each in self.drawn]
        log_weights = np.where(voters, 0.0, -math.inf)
        selection, choice = voted(self.drawn, growing.classes, log_weights, self._key)
        return self._told(selection, rule.reason, ess=choice.ess)

    def _told(self, selection: Selection, reason: str | None = None, **notes: Any) -> Selection:
        """The selection, with what drawing cost, how many samples were drawn, and why no more."""
        limit = self.stopped_by if self.is_cut_off else None
        drawn = {"samples_drawn": len(self.drawn), "rounds": self.rounds}
        notes |= {**drawn, "stopped": limit or reason or "all_drawn", **selection.notes}
        return self.with_cost(dataclasses.replace(selection, notes=notes))

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
        samples = samples_of(asked, tools, dropping_of(asked, tools.horizon))
        parts = (tools.engine, selecting.reader, samples, tools.key)
        if isinstance(asked.base, PowerRequest) and asked.adaptive:
            adaptive = AdaptiveVote(*parts)
            selection = await adaptive.run(selecting.relation, asked.base, asked.window)
        else:
            rule = rule_of(asked)
            selection = await Vote(*parts).run(selecting.relation, asked.weight, asked.exponent, rule)
        return await selecting.outcome(selecting.with_star(selection))


def rule_of(asked: VoteRequest) -> StoppingRule:
    """Return when the rest of a request's samples is not drawn."""
    if asked.rule == "decided":
        return UntilDecided(asked.samples, asked.window)
    if asked.rule == "certain":
        return UntilCertain(asked.samples, asked.window, asked.error)
    return StoppingRule(asked.samples)
