"""One prompt's power request, from the parent's placeholder to its n answers. Tokenizer process."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key, fresh_seed
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.alternatives import Asked
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, AnswerWriter, Emit, Outlet
from sglang_power.sglang_host.tokenizer.chain_run import ChainRun
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt, prepare_prompt
from sglang_power.sglang_host.tokenizer.endings import endings_counted
from sglang_power.sglang_host.tokenizer.parent import GenerateRequest, Parent
from sglang_power.sglang_host.tokenizer.plan import PowerPlan
from sglang_power.sglang_host.tokenizer.scoring import AnswerScorer
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import Tokens, Usage

_slots: weakref.WeakKeyDictionary[Any, asyncio.Semaphore] = weakref.WeakKeyDictionary()


def slots_of(manager: Any, config: ServerConfig) -> asyncio.Semaphore:
    """The concurrency limit of one TokenizerManager."""
    if manager not in _slots:
        _slots[manager] = asyncio.Semaphore(config.limits.max_concurrent_requests)
    return _slots[manager]


@asynccontextmanager
async def slot(parent: Parent, config: ServerConfig) -> AsyncIterator[None]:
    """A place among the concurrent requests, for the time of a with-block."""
    slots = slots_of(parent.manager, config)
    await parent.wait_for_slot(slots)
    try:
        yield
    finally:
        slots.release()


def aborted_before_any_answer(
    parent: Parent, sampler: str, count: int, message: str, emit: Emit | None, first_index: int
) -> list[Answer]:
    """The answers of a request that was aborted before its first child had ended."""
    prompt = Prompt([], {"cached_tokens": 0}, Usage())
    stop, text = StopRule.of(parent.manager, parent.params), TextRule.of(parent.manager, parent.params)
    writer = AnswerWriter(parent, prompt, stop, text)
    answers = []
    for number in range(count):
        answer = writer.aborted(Tokens.EMPTY, message, unanswered(sampler))
        writer.count(answer)
        answers.append(answer)
        if emit is not None:
            emit(first_index + number, answer)
    return answers


def unanswered(sampler: str) -> dict[str, Any]:
    """`meta_info.power` where an abort came before there was an answer."""
    return {"sampler": sampler, "stopped_by": "abort"}


def rank_of(manager: Any, obj: Any, prompt: Prompt, chain: int) -> int | None:
    """A chain stays on one data-parallel rank, whose cache holds its trunk; chains spread over ranks."""
    ranks: int = manager.server_args.dp_size
    asked: int | None = obj.routed_dp_rank
    if ranks <= 1 or asked is not None:
        return asked
    return (int(prompt.meta_info.get("dp_rank") or 0) + chain) % ranks


class PromptRun:
    """One parent request: caches the prompt, runs n chains from it, writes n answers.

    Args:
        manager, original: SGLang's TokenizerManager and its own generate_request.
        obj: the request of one prompt.
        request: the HTTP request, None in an Engine.
        plan: what was asked, validated.
        config: the server's configuration.
    """

    def __init__(
        self,
        manager: Any,
        original: GenerateRequest,
        obj: Any,
        request: Any,
        plan: PowerPlan,
        config: ServerConfig,
    ) -> None:
        self._manager, self._plan, self._config = manager, plan, config
        self._parent = Parent(manager, original, obj, request, config.limits)
        self._seed = fresh_seed() if plan.request.seed is None else plan.request.seed
        self._arrived = time.time()

    async def answers(self, emit: Emit | None, first_index: int) -> list[Answer]:
        """All answers; chunks and answers also go to `emit`, numbered from `first_index`."""
        asked = self._plan.request.sampler, self._plan.chains
        with self._parent as parent, endings_counted(parent, *asked):
            try:
                async with slot(parent, self._config):
                    prompt = await prepare_prompt(parent)
                    runs = self._chain_runs(prompt, emit, first_index)
                    return await gather_or_cancel([run.answer() for run in runs])
            except ChainAbortedError as error:
                return aborted_before_any_answer(parent, *asked, str(error), emit, first_index)

    def _chain_runs(self, prompt: Prompt, emit: Emit | None, first_index: int) -> list[ChainRun]:
        parent, asked, limits, count = (
            self._parent,
            self._plan.request,
            self._config.limits,
            self._plan.chains,
        )
        horizon = support.horizon_behind(self._manager, parent.params, len(prompt.ids), limits.max_horizon)
        cap = support.total_tokens_of(parent.params, asked.max_total_tokens, limits, horizon, count)
        deadline = None if asked.deadline_ms is None else self._arrived + asked.deadline_ms / 1000
        stop = StopRule.of(self._manager, parent.params)
        text = TextRule.of(self._manager, parent.params)
        reward = self._plan.reward
        bound = None if reward is None else reward.upper_bound
        ranks = [rank_of(self._manager, parent.obj, prompt, chain) for chain in range(count)]
        beside = Asked.of(self._manager, parent.obj)
        writers = [AnswerWriter(parent, prompt, stop, text, rank) for rank in ranks]
        return [
            ChainRun(
                plan=self._plan,
                config=asked.mh_config(horizon, bound),
                engine=ChildEngine(parent, prompt, stop, rank, asked=beside),
                key=Key(self._seed, chain),
                budget=Budget(cap // count, asked.max_steps, deadline),
                writer=writers[chain],
                prompt=prompt,
                scorer=None if reward is None else AnswerScorer(parent, prompt, stop, text, reward),
                outlet=Outlet(emit, first_index + chain, writers[chain].incremental),
                shadow=self._config.diagnostics.shadow_early_rejection,
            )
            for chain, rank in enumerate(ranks)
        ]
