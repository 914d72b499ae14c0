"""`vote` with alpha="adaptive": rounds of chains whose exponent moves, the last of which votes.

The rule is `algorithms.adaptive_alpha`. Knows neither SGLang nor HTTP.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from sglang_power.algorithms.adaptive_alpha import Round, finished_round
from sglang_power.answers import GrowingClasses, Relation
from sglang_power.request import PowerRequest
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.choosing import voted
from sglang_power.samplers.report import finite
from sglang_power.samplers.samples import SampledSelection


class AdaptiveVote(SampledSelection):
    """The commonest answer at the exponent that the rounds came to."""

    async def run(self, relation: Relation, base: PowerRequest, size: int) -> Selection:
        """Draw rounds, and let the last one vote.

        Args:
            relation: says which answers are the same.
            base: the chains; its alpha is that of the first round.
            size: samples of a round.
        """
        growing = GrowingClasses(relation)
        alpha, labels, rounds, end = base.alpha, list[int | None](), list[Round](), None
        while end is None:
            config = base.model_copy(update={"alpha": alpha}).mh_config(self._samples.horizon)
            self._samples = dataclasses.replace(self._samples, base=config)
            if not (new := await self.more(size)):
                break
            labels = await growing.add([each.value for each in new])
            rounds.append(self._round_of(alpha, labels))
            alpha = rounds[-1].next_alpha
            end = rounds[-1].end(self._samples.count - len(self.drawn)) if len(new) == size else "abort"
        last = len(self.drawn) - len(labels)
        voters = [i >= last or not any(label is not None for label in labels) for i in range(len(self.drawn))]
        weights = np.where(voters, 0.0, -math.inf)
        selection, choice = voted(self.drawn, growing.classes, weights, self._key, voters=voters)
        notes = {**selection.notes, "ess": choice.ess, **self._trace(rounds, end or self.stopped_by)}
        return self.with_cost(dataclasses.replace(selection, notes=notes))

    def _round_of(self, alpha: float, labels: list[int | None]) -> Round:
        draws, read = self._draws[-len(labels) :], self.drawn[-len(labels) :]
        steps, accepted = sum(each.steps for each in draws), sum(each.accepted for each in draws)
        return finished_round(alpha, labels, np.array([each.log_p for each in read]), accepted, steps)

    def _trace(self, rounds: list[Round], stopped: str) -> dict[str, Any]:
        """What the report says of the rounds."""
        told = [
            {
                "alpha": each.alpha,
                "agreement": list(each.agreement),
                "gradient": finite(each.gradient),
                "acceptance_rate": each.acceptance_rate,
                "next_alpha": finite(each.next_alpha),
            }
            for each in rounds
        ]
        return {
            "samples_drawn": len(self.drawn),
            "rounds": len(rounds),
            "stopped": stopped,
            "final_alpha": rounds[-1].alpha,
            "adaptation": told,
        }
