"""The sampler `best_of`: of several draws, the one of highest score."""

from __future__ import annotations

from sglang_power.request import BestOfRequest
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.choosing import by_score
from sglang_power.samplers.samples import SampledSelection, dropping_of, samples_of
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.selecting import Selecting


class BestOf(SampledSelection):
    """The sample of highest score; the first one of several."""

    async def run(self, scores: Scores) -> Selection:
        """Draw, score and choose."""
        return self.with_cost(await by_score(await self.candidates(), scores))


class BestOfSampler:
    """See the module."""

    request = BestOfRequest

    async def run(self, asked: BestOfRequest, tools: Tools) -> Outcome:
        """Make one answer."""
        selecting = Selecting(asked, tools)
        samples = samples_of(asked, tools, dropping_of(asked, tools.horizon))
        best_of = BestOf(tools.engine, selecting.reader, samples, tools.key)
        selection = await best_of.run(selecting.scores(asked.score))
        return await selecting.outcome(selecting.with_star(selection))
