"""Makes one choice among several answers: gives the drivers of `samplers` what they need of the server.

One Selector per answer: an engine and a judge on one data-parallel rank, a reader, laws, seeds, budgets.
Tokenizer process.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sglang_power.algorithms.cot import GREEDY, CotConfig
from sglang_power.answers import Relation, spelled
from sglang_power.policies import Policy
from sglang_power.request import BestOfRequest, BranchRequest, CotRequest, PowerRequest, VoteRequest
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Reader, Selection, stopped_by
from sglang_power.samplers.choosing import with_classes
from sglang_power.samplers.cot import Cot
from sglang_power.samplers.leaves import LeafChoice
from sglang_power.samplers.samples import BestOf, Samples, Vote
from sglang_power.samplers.scores import Score, Scores
from sglang_power.samplers.search import BranchSearch, Observer
from sglang_power.samplers.tree import reported_tree, star
from sglang_power.server.config import Limits
from sglang_power.sglang_host.host_sampling import law_asked
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.alternatives import Asked
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt
from sglang_power.sglang_host.tokenizer.deadlines import (
    Patience,
    PatientEvaluator,
    PatientReader,
    PatientReward,
    patient,
)
from sglang_power.sglang_host.tokenizer.judge import Judge, SelfEvaluation, relation_of
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.reading import AskingReader, HostReader
from sglang_power.sglang_host.tokenizer.scoring import AnswerScorer
from sglang_power.sglang_host.tokenizer.selection_plan import SelectionPlan
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import ProposalLaw


@dataclass
class Selector:
    """One selection of one request.

    Args:
        plan: what was asked, validated.
        parent, prompt: the request and its cached prompt.
        stop, text: when sequences end and how they are decoded.
        key: of this answer.
        dp_rank: where its children run.
        horizon: L.
        limits: the server's.
        deadline: unix time in seconds.
    """

    plan: SelectionPlan
    parent: Parent
    prompt: Prompt
    stop: StopRule
    text: TextRule
    key: Key
    dp_rank: int | None
    horizon: int
    limits: Limits
    deadline: float | None

    async def run(self, observer: Observer | None) -> Selection:
        """The whole selection; `observer` is told of tokens that are certain before its end.

        Raises:
            ChainAbortedError: aborted before there was an answer to choose.
        """
        selection = await self._selected(observer)
        if not selection.classes:  # chosen by score
            selection = await with_classes(selection, self._relation)
        ended = stopped_by(self._patience.aborted, self._patience.late)
        if ended == "abort" or (ended != "completed" and selection.stopped_by != "abort"):
            return dataclasses.replace(selection, stopped_by=ended)
        return selection

    async def _selected(self, observer: Observer | None) -> Selection:
        asked = self.plan.request
        if isinstance(asked, BranchRequest):
            return await self._branch(asked, observer)
        selection = await self._flat(asked)
        if not asked.return_tree:
            return selection
        paths = [one.tokens for one in selection.candidates]
        tree = reported_tree(*star(paths, selection.scores, selection.chosen), self._reader)
        return dataclasses.replace(selection, notes={**selection.notes, "tree": tree})

    async def _flat(self, asked: CotRequest | VoteRequest | BestOfRequest) -> Selection:
        """Of answers that part at one place."""
        if isinstance(asked, CotRequest):
            return await self._cot(asked).run()
        samples = self._samples(asked)
        if isinstance(asked, VoteRequest):
            vote = Vote(self._engine, self._reader, samples, self.key)
            return await vote.run(self._relation, asked.weight, asked.alpha)
        best_of = BestOf(self._engine, self._reader, samples, self.key)
        return await best_of.run(self._scores(asked.score))

    def _cot(self, asked: CotRequest) -> Cot:
        return Cot(
            self._engine,
            self._reader,
            self._relation,
            CotConfig(asked.k, self.horizon, self._law(asked.continuation_policy), asked.min_first_p),
            self.key,
            aggregate=asked.select == "aggregate",
            forced_prefix=self.plan.fork_prefix,
            after=self._after_reasoning(),
            deadline=self.deadline,
        )

    async def _branch(self, asked: BranchRequest, observer: Observer | None) -> Selection:
        budget = Budget(self._tokens_of_one(asked.max_total_tokens, 1), None, self.deadline)
        name: Score = "mean_log_p" if asked.score == "vote" else asked.score
        scores = self._scores(name, asked.alpha)
        config = asked.branch_config(self.horizon, self._law(asked.continuation_policy))
        refined = asked.refine is not None
        search = BranchSearch(self._engine, config, self.key, scores, budget, None if refined else observer)
        choice = LeafChoice(
            engine=self._engine,
            reader=self._reader,
            scores=scores,
            budget=budget,
            vote=self._relation if asked.score == "vote" else None,
            refine=None if asked.refine is None else asked.refine.mh_config(self.horizon),
            refine_steps=None if asked.refine is None else asked.refine.max_steps,
            return_tree=asked.return_tree,
        )
        return await choice.run(search, self.key)

    def _samples(self, asked: VoteRequest | BestOfRequest) -> Samples:
        each = self._tokens_of_one(asked.max_total_tokens, asked.samples)
        base = asked.base
        if isinstance(base, PowerRequest):
            chain = base.mh_config(self.horizon)
            return Samples(asked.samples, self.horizon, chain, each, base.max_steps, self.deadline)
        law = law_asked(self.parent.manager, self.parent.params, base)
        return Samples(asked.samples, self.horizon, law, each, deadline=self.deadline)

    def _tokens_of_one(self, max_total_tokens: int | None, answers: int) -> int:
        """Decoded tokens that one of a choice's answers may take."""
        n, field = self.plan.chains, self.plan.request.answers_field
        cap = support.total_tokens_of(
            self.parent.params, max_total_tokens, self.limits, self.horizon, n, answers, field
        )
        return cap // (n * answers)

    def _law(self, policy: Policy | None) -> ProposalLaw:
        """Of continuations: greedy, or the policy at the request's temperature."""
        return GREEDY if policy is None else law_asked(self.parent.manager, self.parent.params, policy)

    @cached_property
    def _engine(self) -> ChildEngine:
        asked = Asked.of(self.parent.manager, self.parent.obj)
        return ChildEngine(self.parent, self.prompt, self.stop, self.dp_rank, asked=asked)

    @cached_property
    def _judge(self) -> Judge | None:
        readout = self.plan.readout
        return None if readout is None else Judge(self.parent, readout, self.dp_rank)

    @cached_property
    def _patience(self) -> Patience:
        return Patience(self.parent, self.deadline)

    @cached_property
    def _relation(self) -> Relation:
        return patient(relation_of(self.plan.request.relation, self._judge), self._patience)

    @cached_property
    def _reader(self) -> Reader:
        if self.plan.extractor is not None:
            return HostReader(self.stop, self.text, self.plan.extractor)
        seed = self.key.child_seed(0, Purpose.READING)
        asking = AskingReader(self.stop, self.text, self._engine.behind, seed)
        return PatientReader(asking, self._patience)

    def _scores(self, name: Score, alpha: float = 1.0) -> Scores:
        evaluator = scorer = None
        if name == "self_evaluation":
            assert self._judge is not None
            evaluator = PatientEvaluator(SelfEvaluation(self._judge, self.question), self._patience)
        if name == "reward":
            assert self.plan.reward is not None
            rewarded = AnswerScorer(self.parent, self.prompt, self.stop, self.text, self.plan.reward)
            scorer = PatientReward(rewarded, self._patience)
        return Scores(name, self._reader, alpha=alpha, evaluator=evaluator, reward=scorer)

    @property
    def question(self) -> str:
        """The prompt's text, as the judge is shown it."""
        return str(self.parent.manager.tokenizer.decode(self.prompt.ids, skip_special_tokens=True))

    def _after_reasoning(self) -> Callable[[Sequence[int]], int | None] | None:
        """Index of the token behind the one that completes the end of the reasoning."""
        marker: str | None = self.plan.reasoning_end
        decode: Any = self.parent.manager.tokenizer.decode
        if marker is None:
            return None

        def behind(ids: Sequence[int]) -> int | None:
            whole = spelled(decode, ids)
            end = whole.text.find(marker) + len(marker)
            found = end >= len(marker)
            return next((i + 1 for i, (_, e) in enumerate(whole.offsets) if found and e >= end), None)

        return behind
