"""The sampler `branch`: fork where the model is uncertain, keep the best branches, choose a leaf.

`search` grows the tree, `leaves` refines its leaves and chooses among them.
"""

from __future__ import annotations

from sglang_power.request import BranchRequest
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.leaves import LeafChoice
from sglang_power.samplers.scores import ScoreName
from sglang_power.samplers.search import BranchSearch, SearchObserver
from sglang_power.samplers.selecting import Selecting
from sglang_power.types import Tokens


class BranchSampler:
    """Grow a tree of answers that forks where the model is uncertain, and choose a leaf."""

    request = BranchRequest

    async def run(self, asked: BranchRequest, tools: Tools) -> Outcome:
        """Make one answer."""
        selecting, refine = Selecting(asked, tools), asked.refine
        name: ScoreName = "mean_log_p" if asked.score == "vote" else asked.score
        scores = selecting.scores(name, asked.alpha)
        config = asked.branch_config(tools.horizon, selecting.continuation_law(asked.continuation_policy))
        observer = None if refine is not None else _told(tools)
        search = BranchSearch(tools.engine, config, tools.key, scores, tools.budget, observer)
        choice = LeafChoice(
            engine=tools.engine,
            reader=selecting.reader,
            scores=scores,
            budget=tools.budget,
            vote=selecting.relation if asked.score == "vote" else None,
            refine=None if refine is None else refine.mh_config(tools.horizon),
            refine_steps=None if refine is None else refine.max_steps,
            return_tree=asked.return_tree,
        )
        return await selecting.outcome(await choice.run(search, tools.key))


def _told(tools: Tools) -> SearchObserver | None:
    """What tells the observer of a run how much of its answer is certain."""
    observer = tools.observer
    if observer is None:
        return None

    def tell(certain: Tokens) -> None:
        observer(certain, {"tokens": len(certain)})

    return tell
