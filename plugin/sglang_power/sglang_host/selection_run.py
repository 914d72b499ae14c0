"""Serves one prompt with a sampler that chooses among several answers: `cot`, `vote`, `best_of`.

Prepares what the drivers of `serving` need (engines, reader, laws, seeds) and writes their selections as
answers. Tokenizer process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_power.algorithms.cot import GREEDY, CotConfig
from sglang_power.answers import spelled
from sglang_power.errors import ChainAbortedError
from sglang_power.request import BestOfRequest, CotRequest, PowerRequest, VoteRequest
from sglang_power.rng import Key, Purpose, fresh_seed
from sglang_power.serving import report
from sglang_power.serving.config import ServerConfig
from sglang_power.serving.cot import Cot
from sglang_power.serving.samples import BestOf, Samples, Vote
from sglang_power.serving.selection import Selection
from sglang_power.serving.tasks import gather_or_cancel
from sglang_power.sglang_host import support
from sglang_power.sglang_host.answers import Answer, AnswerWriter, Emit
from sglang_power.sglang_host.child_params import law_of
from sglang_power.sglang_host.children import ChildEngine, Prompt, prepare_prompt
from sglang_power.sglang_host.judge import Judge, SelfEvaluation, relation_of
from sglang_power.sglang_host.parent import GenerateRequest, Parent
from sglang_power.sglang_host.plan import SelectionPlan
from sglang_power.sglang_host.prompt_run import aborted_before_any_answer, rank_of, slot
from sglang_power.sglang_host.reading import CONTINUATION_TOKENS, AskingReader, HostReader
from sglang_power.sglang_host.stopping import StopRule, TextRule
from sglang_power.types import ProposalLaw, Usage


class SelectionRun:
    """One parent request: n selections from one cached prompt.

    Args: as PromptRun.
    """

    def __init__(
        self,
        manager: Any,
        original: GenerateRequest,
        obj: Any,
        request: Any,
        plan: SelectionPlan,
        config: ServerConfig,
    ) -> None:
        self._manager, self._plan, self._config = manager, plan, config
        self._parent = Parent(manager, original, obj, request, config.limits)
        self._asked = plan.request
        self._seed = fresh_seed() if self._asked.seed is None else self._asked.seed
        params = self._parent.params
        self._stop, self._text = StopRule.of(manager, params), TextRule.of(manager, params)
        self._deadline = (
            None if self._asked.deadline_ms is None else time.time() + self._asked.deadline_ms / 1000
        )

    async def answers(self, emit: Emit | None, first_index: int) -> list[Answer]:
        """All answers; they also go to `emit`, numbered from `first_index`."""
        with self._parent as parent:
            try:
                async with slot(parent, self._config):
                    prompt = await prepare_prompt(parent)
                    return await gather_or_cancel(
                        [self._answer(prompt, i, emit, first_index) for i in range(self._plan.chains)]
                    )
            except ChainAbortedError as error:
                sampler, count = self._asked.sampler, self._plan.chains
                return aborted_before_any_answer(parent, sampler, count, str(error), emit, first_index)

    async def _answer(self, prompt: Prompt, number: int, emit: Emit | None, first_index: int) -> Answer:
        parent, rank = self._parent, rank_of(self._manager, self._parent.obj, prompt, number)
        engine = ChildEngine(parent, prompt, self._stop, rank)
        judge = None if self._plan.readout is None else Judge(parent, self._plan.readout, rank)
        selection = await self._select(engine, prompt, Key(self._seed, number), judge)
        writer = AnswerWriter(parent, prompt, self._stop, self._text, rank)
        power = report.selection_report(
            self._asked,
            selection,
            seed=self._seed,
            horizon=self._horizon(prompt),
            neutralised=self._plan.neutralised,
            prompt_usage=prompt.usage if number == 0 else Usage(),
            weight_version=prompt.meta_info.get("weight_version"),
        )
        best = selection.best
        if selection.stopped_by == "abort":
            answer = writer.aborted(best.tokens, f"request {parent.obj.rid} was aborted", power)
        else:
            answer = await writer.final(best.tokens, best.finished, power)
        writer.count(answer)
        if emit is not None:
            emit(first_index + number, answer)
        return answer

    async def _select(self, engine: ChildEngine, prompt: Prompt, key: Key, judge: Judge | None) -> Selection:
        asked, reader = self._asked, self._reader(engine, key)
        horizon = self._horizon(prompt)
        same = relation_of(asked.relation, judge)
        if isinstance(asked, CotRequest):
            return await Cot(
                engine,
                reader,
                same,
                CotConfig(asked.k, horizon, self._cot_law(asked), asked.min_first_p),
                key,
                aggregate=asked.select == "aggregate",
                forced_prefix=self._plan.fork_prefix,
                after=self._after_reasoning(asked),
                deadline=self._deadline,
            ).run()
        samples = self._samples(asked, horizon)
        if isinstance(asked, VoteRequest):
            return await Vote(engine, reader, samples, key).run(same, asked.weight, asked.alpha)
        question = self._manager.tokenizer.decode(prompt.ids, skip_special_tokens=True)
        evaluator = None if judge is None else SelfEvaluation(judge, question)
        return await BestOf(engine, reader, samples, key).run(asked.score, evaluator)

    def _reader(self, engine: ChildEngine, key: Key) -> HostReader:
        if self._asked.answer != "continuation":
            return HostReader(self._stop, self._text, self._plan.extractor)
        seed = key.child_seed(0, Purpose.READING)
        return AskingReader(self._stop, self._text, self._plan.extractor, engine, seed)

    def _samples(self, asked: VoteRequest | BestOfRequest, horizon: int) -> Samples:
        cap = support.total_tokens_of(
            asked.max_total_tokens, self._config.limits, horizon, self._plan.chains * asked.samples
        )
        base = asked.base
        law = (
            base.mh_config(horizon)
            if isinstance(base, PowerRequest)
            else law_of(SamplingParams(**self._parent.params), base)
        )
        each = cap // (self._plan.chains * asked.samples)
        return Samples(asked.samples, horizon, law, each, self._deadline)

    def _cot_law(self, asked: CotRequest) -> ProposalLaw:
        if asked.continuation_policy is None:
            return GREEDY
        return law_of(SamplingParams(**self._parent.params), asked.continuation_policy)

    def _after_reasoning(self, asked: CotRequest) -> Callable[[Sequence[int]], int | None] | None:
        """Index of the token behind the one that completes the end of the reasoning."""
        marker = self._plan.reasoning_end
        if asked.fork_at != "after_reasoning" or marker is None:
            return None

        def behind(ids: Sequence[int]) -> int | None:
            whole = spelled(self._manager.tokenizer.decode, ids)
            end = whole.text.find(marker) + len(marker)
            found = end >= len(marker)
            return next((i + 1 for i, (_, e) in enumerate(whole.offsets) if found and e >= end), None)

        return behind

    def _horizon(self, prompt: Prompt) -> int:
        reserved = CONTINUATION_TOKENS * 2 if self._asked.answer == "continuation" else 0
        room = self._manager.context_len - self._manager.num_reserved_tokens - len(prompt.ids) - reserved
        return support.horizon_of(self._parent.params, room, self._plan.max_horizon)
