"""Serves one prompt whose tokens a per-step policy draws: n ordinary requests of SGLang, one row each.

The scheduler applies the policy; SGLang does everything else, streaming, stops, grammars, penalties and
log probabilities included. Tokenizer process.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import Any

from sglang_power.rng import Key, Purpose, fresh_seed
from sglang_power.samplers.report import policy_report
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.server import metrics
from sglang_power.server.metrics import Ending
from sglang_power.sglang_host.child_params import GREEDY_FIELD, POLICY, REPORTED_FIELD, flat_policy
from sglang_power.sglang_host.host_sampling import is_zero, with_preferred
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, Emit, empty_answer
from sglang_power.sglang_host.tokenizer.endings import endings_told
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.placeholder import Placeholder, part_of
from sglang_power.sglang_host.tokenizer.places import internal_of
from sglang_power.sglang_host.tokenizer.plain_answers import statistics_for
from sglang_power.sglang_host.tokenizer.plan import PolicyPlan


class PolicyRun:
    """One parent request: n samples, each with a seed of its own.

    Args:
        host: the call, for one prompt.
        plan: what was asked, validated.
    """

    def __init__(self, host: Host, plan: PolicyPlan) -> None:
        self._host, self._manager, self._obj, self._plan = host, host.manager, host.obj, plan
        self._seed = fresh_seed() if plan.policy.seed is None else plan.policy.seed
        self._answers = 0

    async def answers(self, emit: Emit | None, first_index: int) -> list[Answer]:
        """All answers; chunks and answers also go to `emit`, numbered from `first_index`."""
        count = self._plan.chains
        with endings_told(self._unanswered):
            if count == 1:
                return [await self._sample(self._obj, 0, emit, first_index)]
            with Placeholder(self._host) as whole:
                cached = await self._cache_prompt()
                if whole.aborted or not cached:
                    return [self._aborted(emit, first_index + number) for number in range(count)]
                samples = [part_of(self._obj, 1 + number, n=1) for number in range(count)]
                return await gather_or_cancel(
                    [self._sample(sample, i, emit, first_index + i) for i, sample in enumerate(samples)]
                )

    async def _cache_prompt(self) -> bool:
        """Prefill the prompt once, before samples fan out from it; return whether no abort has ended that."""
        warm = part_of(self._obj, 0, n=1, max_new_tokens=0, min_new_tokens=0, custom_params=None)
        warm.stream, warm.log_metrics, warm.return_logprob = False, False, False
        async with aclosing(self._host.responses(warm)) as responses:
            out = await anext(responses)
        return (out["meta_info"].get("finish_reason") or {}).get("type") != "abort"

    def _aborted(self, emit: Emit | None, index: int) -> Answer:
        """One sample of a request that was aborted before any of them began."""
        rid = self._obj.rid
        answer = empty_answer(self._manager, rid, {"type": "abort", "message": f"request {rid} was aborted"})
        answer["meta_info"]["power"] = policy_report(self._plan.policy, self._seed, None)
        self._count("abort", 1)
        if emit is not None:
            emit(index, answer)
        return answer

    async def _sample(self, obj: Any, number: int, emit: Emit | None, index: int) -> Answer:
        """One sample, in SGLang's own responses plus `meta_info.power`."""
        seed = Key(self._seed, number).child_seed(0, Purpose.POLICY)
        row = {"sampler": POLICY, "seed": seed, **flat_policy(self._plan.policy)}
        if is_zero(with_preferred(self._manager, obj.sampling_params).get("temperature")):
            row[GREEDY_FIELD] = True
        row |= internal_of(obj.sampling_params)
        statistics = None
        if self._plan.statistics:
            row[REPORTED_FIELD] = True
            statistics = statistics_for(self._host)
        obj.sampling_params = {**obj.sampling_params, "custom_params": row}
        answer: Answer = {}
        async with aclosing(self._host.responses(obj)) as responses:
            async for answer in responses:
                meta = answer["meta_info"]
                meta["id"] = self._obj.rid
                meta["power"] = policy_report(self._plan.policy, self._seed, meta.get("weight_version"))
                if statistics is not None:
                    meta["power"]["statistics"] = statistics.of(answer)
                if finish := meta.get("finish_reason"):  # counted first: who reads the last chunk may leave
                    self._count(finish["type"], 1)
                if emit is not None:
                    emit(index, answer)
        return answer

    def _unanswered(self, ending: Ending) -> None:
        self._count(ending, self._plan.chains - self._answers)

    def _count(self, finish: str, answers: int) -> None:
        self._answers += answers
        metrics.observe_policy(self._plan.policy.name(), finish, self._manager.enable_metrics, answers)
