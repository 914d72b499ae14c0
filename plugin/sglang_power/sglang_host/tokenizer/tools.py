"""The tools of one answer on this server: `samplers.base.Tools` over child requests. Tokenizer process."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from sglang_power.algorithms.engine import RankingEngine
from sglang_power.answers import Relation, spelled
from sglang_power.errors import HostError
from sglang_power.policies import Policy
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.base import Observer
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Reader
from sglang_power.sglang_host.host_sampling import law_asked, sampling_of, with_preferred
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt
from sglang_power.sglang_host.tokenizer.judge import Judge, SelfEvaluation, relation_of
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.reading import AskingReader, HostReader
from sglang_power.sglang_host.tokenizer.scoring import AnswerScorer
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import ProposalLaw

T = TypeVar("T")


@dataclass
class HostTools:
    """What the run of one answer may use; see `samplers.base.Tools`.

    Args:
        plan: what was asked, validated.
        parent, prompt: the request and its cached prompt.
        stop, text: when sequences end and how they are decoded.
        engine: continues the prompt, or both prompts.
        dp_rank: where the judge's children run.
        key, horizon, budget, observer, checks_rejections: see Tools.
    """

    plan: AnswerPlan
    parent: Parent
    prompt: Prompt
    stop: StopRule
    text: TextRule
    engine: RankingEngine
    dp_rank: int | None
    key: Key
    horizon: int
    budget: Budget
    observer: Observer | None
    checks_rejections: bool

    @property
    def sampling(self) -> Mapping[str, Any]:
        """SGLang's own sampling parameters of the request."""
        return sampling_of(with_preferred(self.parent.manager, self.parent.params))

    @property
    def strict(self) -> bool:
        """Whether what would fall back is an error."""
        return self.plan.strict

    @property
    def forced(self) -> tuple[int, ...] | None:
        """What answers begin with."""
        return self.plan.forced

    @property
    def reward_bound(self) -> float | None:
        """What the reward declares that none is above."""
        return None if self.plan.reward is None else self.plan.reward.upper_bound

    @cached_property
    def reward(self) -> AnswerScorer | None:
        """The reward of whole answers."""
        if self.plan.reward is None:
            return None
        return AnswerScorer(self.parent, self.prompt, self.stop, self.text, self.plan.reward)

    @cached_property
    def evaluator(self) -> SelfEvaluation | None:
        """The served model's judgement of an answer."""
        if self._judge is None:
            return None
        question = str(self.parent.manager.tokenizer.decode(self.prompt.ids, skip_special_tokens=True))
        return SelfEvaluation(self._judge, question)

    @cached_property
    def reader(self) -> Reader:
        """What reads answers: the host, or the served model itself."""
        if self.plan.extractor is not None:
            return HostReader(self.stop, self.text, self.plan.extractor)
        self._check_needed("answer")
        assert isinstance(self.engine, ChildEngine)
        seed = self.key.child_seed(0, Purpose.READING)
        return AskingReader(self.stop, self.text, self.engine.behind, seed)

    @cached_property
    def relation(self) -> Relation:
        """When two answers are the same."""
        self._check_needed("equivalence")
        return relation_of(str(self.plan.needs.equivalence), self._judge)

    @cached_property
    def _judge(self) -> Judge | None:
        readout = self.plan.readout
        return None if readout is None else Judge(self.parent, readout, self.dp_rank)

    def request_law(self, policy: Policy | None = None) -> ProposalLaw:
        """Return the law of the request's own temperature and truncation, around a policy."""
        return law_asked(self.parent.manager, self.parent.params, policy)

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, with its stop."""
        return self.text.decode(ids)

    def behind_reasoning(self, ids: Sequence[int]) -> int | None:
        """Return the index of the token behind the one that completes the end of the reasoning."""
        self._check_needed("reasoning_end")
        marker = str(self.plan.reasoning_end)
        whole = spelled(self.parent.manager.tokenizer.decode, ids)
        end = whole.text.find(marker) + len(marker)
        found = end >= len(marker)
        return next((i + 1 for i, (_, e) in enumerate(whole.offsets) if found and e >= end), None)

    def _check_needed(self, need: str) -> None:
        """Check that the request has asked for what its sampler uses.

        Raises:
            HostError: it has not, so nobody has checked whether this server has it.
        """
        if getattr(self.plan.needs, need) is None:
            raise HostError(f"the sampler {self.plan.name!r} uses what its request does not need: {need}")

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something that is no child; an abort or a lost client ends it."""
        return await self.parent.watched(work)
