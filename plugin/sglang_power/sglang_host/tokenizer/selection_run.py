"""Serves one prompt with a sampler that chooses among several answers: `cot`, `branch`, `vote`, `best_of`.

Keeps the life of the request and writes its selections as answers; `selecting` makes them. Tokenizer process.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key, fresh_seed
from sglang_power.samplers import report
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.host_sampling import sampling_of
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, AnswerWriter, Emit, Outlet
from sglang_power.sglang_host.tokenizer.children import Prompt, prepare_prompt
from sglang_power.sglang_host.tokenizer.endings import endings_counted
from sglang_power.sglang_host.tokenizer.parent import GenerateRequest, Parent
from sglang_power.sglang_host.tokenizer.prompt_run import aborted_before_any_answer, rank_of, slot, unanswered
from sglang_power.sglang_host.tokenizer.reading import CONTINUATION_TOKENS
from sglang_power.sglang_host.tokenizer.selecting import Selector
from sglang_power.sglang_host.tokenizer.selection_plan import SelectionPlan
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import Tokens, Usage


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
        asked = self._plan.name, self._plan.chains
        with self._parent as parent, endings_counted(parent, *asked):
            try:
                async with slot(parent, self._config):
                    return await self._answers(await prepare_prompt(parent), emit, first_index)
            except ChainAbortedError as error:
                return aborted_before_any_answer(parent, *asked, str(error), emit, first_index)

    async def _answers(self, prompt: Prompt, emit: Emit | None, first_index: int) -> list[Answer]:
        """Every choice by a run of its own; by one run for all where no seed has a part in it."""
        outlets = [
            Outlet(emit, first_index + i, bool(self._manager.incremental_streaming_output))
            for i in range(self._plan.chains)
        ]
        if self._asked.draws:
            alone = [self._run(prompt, i, [outlet]) for i, outlet in enumerate(outlets)]
            return [answer for answers in await gather_or_cancel(alone) for answer in answers]
        answers = await self._run(prompt, 0, outlets)
        rest = list(enumerate(outlets))[len(answers) :]
        drawn = await gather_or_cancel([self._run(prompt, i, [outlet]) for i, outlet in rest])
        return [*answers, *(answer for one in drawn for answer in one)]

    async def _run(self, prompt: Prompt, number: int, outlets: Sequence[Outlet]) -> list[Answer]:
        """One run and the choices that it answers; an abort leaves them what they had.

        Args:
            prompt: the cached prompt.
            number: the first choice.
            outlets: of the choices that take this run's answer, `number` first. Where a seed drew the answer
                among classes of equal weight, the first one alone has it, and the others need runs of theirs,
                unless an abort or the deadline ended this one.
        """
        rank = rank_of(self._manager, self._parent.obj, prompt, number)
        writer = AnswerWriter(self._parent, prompt, self._stop, self._text, rank)
        certain = Tokens.EMPTY

        def observe(tokens: Tokens) -> None:
            nonlocal certain
            certain = tokens
            for outlet in outlets:
                if outlet.open:
                    power = {"sampler": self._plan.name, "progress": {"tokens": len(tokens)}}
                    outlet.send(writer.partial(tokens, power))

        answers: list[Answer] = []
        try:
            selection = await self._selector(prompt, number, rank).run(observe)
        except ChainAbortedError as error:
            answers += [writer.aborted(certain, str(error), unanswered(self._plan.name)) for _ in outlets]
        else:
            answers.append(self._written(writer, selection, prompt, first=number == 0))
            if not selection.tied or selection.ended_early:
                copied = selection.copied
                answers += [self._written(writer, copied, prompt, copy_of=number) for _ in outlets[1:]]
        for answer, outlet in zip(answers, outlets, strict=False):
            writer.count(answer)
            outlet.send(answer)
        return answers

    def _selector(self, prompt: Prompt, number: int, dp_rank: int | None) -> Selector:
        return Selector(
            plan=self._plan,
            parent=self._parent,
            prompt=prompt,
            stop=self._stop,
            text=self._text,
            key=Key(self._seed, number),
            dp_rank=dp_rank,
            horizon=self._horizon(prompt),
            limits=self._config.limits,
            deadline=self._deadline,
        )

    def _written(
        self,
        writer: AnswerWriter,
        selection: Selection,
        prompt: Prompt,
        *,
        first: bool = False,
        copy_of: int | None = None,
    ) -> Answer:
        """The chosen answer with its report; the first one's bears the cost of the prompt."""
        power = report.selection_report(
            self._asked,
            selection,
            name=self._plan.name,
            seed=self._seed,
            horizon=self._horizon(prompt),
            sampling=sampling_of(self._parent.params),
            neutralised=self._plan.neutralised,
            prompt_usage=prompt.usage if first else Usage(),
            weight_version=prompt.meta_info.get("weight_version"),
            copy_of=copy_of,
        )
        best = selection.best
        if selection.stopped_by != "abort":
            return writer.final(best.tokens, best.finished, power)
        return writer.aborted(best.tokens, f"request {self._parent.obj.rid} was aborted", power)

    def _horizon(self, prompt: Prompt) -> int:
        reserved = CONTINUATION_TOKENS * 2 if self._asked.answer == "continuation" else 0
        count = self._plan.chains * self._asked.answers
        share = support.share_of(self._asked.max_total_tokens, self._config.limits, count)
        return support.horizon_behind(
            self._manager, self._parent.params, len(prompt.ids), self._plan.max_horizon, share, reserved
        )
