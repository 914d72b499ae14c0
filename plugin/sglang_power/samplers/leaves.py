"""From the leaves of a tree to one answer: refine them, read them, choose.

Leaves may be refined by power steps: each becomes the draft of a Metropolis-Hastings chain at the last
stage, which moves it towards p(y)^alpha. Knows neither SGLang nor HTTP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field

from sglang_power.algorithms.branching import Path
from sglang_power.algorithms.engine import Engine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import Info
from sglang_power.answers import Relation, uniform_weights
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import (
    Candidate,
    Reader,
    Selection,
    candidate,
    stopped_by,
)
from sglang_power.samplers.chain import Chain
from sglang_power.samplers.choosing import by_score, by_vote
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.search import BranchSearch
from sglang_power.samplers.tasks import gather_or_cancel, unless_aborted
from sglang_power.samplers.tree import reported_tree
from sglang_power.types import Usage, in_parallel


@dataclass(frozen=True, slots=True)
class Refined:
    """Leaves after their chains.

    Args:
        leaves: in their order.
        usage: what the chains cost.
        infos: all their steps.
        late, aborted: what ended a chain early, if anything did.
    """

    leaves: Sequence[Path]
    usage: Usage = field(default_factory=Usage)
    infos: tuple[Info, ...] = ()
    late: bool = False
    aborted: bool = False


@dataclass(frozen=True)
class LeafChoice:
    """How one leaf is chosen.

    Args:
        engine: refines leaves.
        reader: reads them.
        scores: compares them.
        vote: the relation of a vote over their answers, which replaces the comparison; None: no vote.
        refine: the chain that refines each leaf; None: none.  refine_steps: cap on its steps.
        budget: of the whole run.
        return_tree: report the tree.
    """

    engine: Engine
    reader: Reader
    scores: Scores
    budget: Budget
    vote: Relation | None = None
    refine: MHConfig | None = None
    refine_steps: int | None = None
    return_tree: bool = False

    async def run(self, search: BranchSearch, key: Key) -> Selection:
        """The whole run, the search included."""
        refined = Refined(await search.run())
        if self.refine is not None and not (search.aborted or search.late):
            refined = await self._refined(self.refine, refined.leaves, key, search.usage.decoded)
        leaves = refined.leaves
        read = await gather_or_cancel([candidate(self.reader, leaf.tokens, leaf.finished) for leaf in leaves])
        candidates = [found for found, _ in read]
        usage = search.usage + refined.usage + in_parallel(cost for _, cost in read)
        selection = await self._chosen(candidates, key)
        search.tree[leaves[selection.chosen].node].fate = "chosen"
        found = search.firings
        aborted, cut_short = search.aborted or refined.aborted, search.late or refined.late
        ended = stopped_by(aborted, cut_short, self.budget.deadline)
        return dataclasses.replace(
            selection,
            usage=usage + selection.usage,
            stopped_by=next(iter(found.capped_by), ended) if ended == "completed" else ended,
            headline=found.reported(),
            notes={**selection.notes, **self.scores.notes, **self._notes(search, refined)},
        )

    async def _refined(self, config: MHConfig, leaves: Sequence[Path], key: Key, spent: int) -> Refined:
        """Every leaf after its chain; the budget that is left is shared among them."""
        each = (self.budget.max_total_tokens - spent) // len(leaves)
        if each < max(len(leaf.tokens) for leaf in leaves):
            return Refined(leaves)  # no room even for scoring the drafts
        budget = Budget(each, self.refine_steps, self.budget.deadline)
        chains = [Chain(self.engine, config, _key_of(key, i), budget) for i in range(len(leaves))]
        results = await gather_or_cancel(
            [unless_aborted(chain.run(leaf.tokens.ids)) for chain, leaf in zip(chains, leaves, strict=True)]
        )
        ends = ["abort" if isinstance(result, ChainAbortedError) else result.stopped_by for result in results]
        return Refined(
            leaves=[_left_by(chain, leaf) for chain, leaf in zip(chains, leaves, strict=True)],
            usage=in_parallel(chain.usage for chain in chains),
            infos=tuple(info for chain in chains for info in chain.infos),
            late="deadline_ms" in ends,
            aborted="abort" in ends,
        )

    async def _chosen(self, candidates: Sequence[Candidate], key: Key) -> Selection:
        if self.vote is None:
            return await by_score(candidates, self.scores)
        weights = uniform_weights(len(candidates))
        selection, _ = await by_vote(candidates, self.vote, weights, key)
        return dataclasses.replace(selection, scores=(1.0,) * len(candidates))  # votes

    def _notes(self, search: BranchSearch, refined: Refined) -> dict[str, object]:
        forks = sum(node.fate == "forked" for node in search.tree.nodes)
        notes: dict[str, object] = {"forks": forks, "branches": len(search.tree.nodes) - 1}
        if self.refine is not None:
            accepted = sum(info.accepted for info in refined.infos)
            notes["refinement"] = {"steps": len(refined.infos), "accepted": accepted}
        if self.return_tree:
            leaves = [leaf.node for leaf in search.leaves]
            notes["tree"] = reported_tree(search.tree, leaves, self.reader)
        return notes


def _left_by(chain: Chain, leaf: Path) -> Path:
    """A leaf as its chain left it; as it was where the chain was aborted before the first state."""
    state = chain.state
    return dataclasses.replace(leaf, tokens=state.tokens, finished=state.finished) if state.tokens else leaf


MAX_LEAVES = 1_000_000
"""Of one run: what tells the keys of its leaves apart."""


def _key_of(key: Key, leaf: int) -> Key:
    """Chains of leaves share no random numbers with the search or with each other."""
    return Key(key.seed, key.chain + 1).split(leaf, MAX_LEAVES)
