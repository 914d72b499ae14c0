"""The life of one prompt that a sampler of whole answers serves, the same for all of them. Tokenizer process.

The parent's placeholder, a place among the requests at work, the cached prompt, one run of the sampler per
choice (or one for all where no seed has a part in it), streaming, aborts, the written answers.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from sglang_power import clock
from sglang_power.algorithms.engine import RankingEngine
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key, fresh_seed
from sglang_power.samplers.base import Observer, Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.report import answer_report, unanswered_report
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.alternatives import AlternativesRequest
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.answer_writer import (
    Answer,
    AnswerWriter,
    ChoiceStream,
    Emit,
    weight_version_of,
)
from sglang_power.sglang_host.tokenizer.children import (
    ChildEngine,
    Prompt,
    grammar_of,
    prepare_other_prompt,
    prepare_prompt,
)
from sglang_power.sglang_host.tokenizer.endings import endings_counted
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.reading import CONTINUATION_TOKENS
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.sglang_host.tokenizer.tools import HostTools
from sglang_power.sglang_host.tokenizer.twin import TwinEngine
from sglang_power.types import Tokens, Usage

PROGRESS_EVERY_S = 0.2
"""A chunk that carries no new text is sent at most this often."""


@dataclass(frozen=True)
class Prompts:
    """The prompts of a request, cached.

    Args:
        main: the client's.
        second: that of the twin, where there is one.
        horizon: L behind the longer of them.
        budget: of one choice.
    """

    main: Prompt
    second: Prompt | None
    horizon: int
    budget: Budget

    @property
    def usage(self) -> Usage:
        """What caching them cost."""
        return self.main.usage + (Usage() if self.second is None else self.second.usage)


class AnswerRun:
    """One parent request and its n answers.

    Args:
        host: the call, for one prompt.
        plan: what was asked, validated.
    """

    def __init__(self, host: Host, plan: AnswerPlan) -> None:
        self._host, self._plan, self._manager = host, plan, host.manager
        self._parent = Parent(host)
        self._seed = fresh_seed() if plan.request.seed is None else plan.request.seed
        self._deadline = None if plan.deadline_ms is None else clock.now() + plan.deadline_ms / 1000
        params = self._parent.params
        self._stop, self._text = StopRule.of(self._manager, params), TextRule.of(self._manager, params)

    async def answers(self, emit: Emit | None, first_index: int) -> list[Answer]:
        """Return all answers; chunks and answers also go to `emit`, numbered from `first_index`."""
        chains = self._plan.chains
        if (account := self._parent.account) is not None:
            account.check(enabled=self._manager.enable_metrics)
        incremental = bool(self._manager.incremental_streaming_output)
        streams = [ChoiceStream(emit, first_index + number, incremental) for number in range(chains)]
        pair = self._plan.needs.second_prompt is not None
        with self._parent as parent, endings_counted(parent, self._plan.name, chains, of_policy=pair):
            try:
                async with self._place():
                    return await self._choices(await self._prompts(), streams)
            except ChainAbortedError as error:
                return self._aborted_before_any_answer(str(error), streams)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        """A place among the requests at work, for the time of a with-block."""
        slots = self._host.state.slots
        await self._parent.wait_for_slot(slots)
        try:
            yield
        finally:
            slots.release()

    async def _prompts(self) -> Prompts:
        """Cache what there is to continue, before choices fan out from it."""
        plan, parent = self._plan, self._parent
        main = await prepare_prompt(parent)
        second = None
        if plan.needs.second_prompt is not None:
            second = await prepare_other_prompt(parent, plan.needs.second_prompt[1])
        longest = max(len(main.ids), 0 if second is None else len(second.ids))
        horizon = self._horizon(longest)
        limits = self._host.config.limits
        cap = support.total_tokens_of(
            parent.params, plan.max_total_tokens, limits, horizon, plan.chains, plan.needs
        )
        return Prompts(main, second, horizon, Budget(cap // plan.chains, None, self._deadline))

    def _horizon(self, prompt: int) -> int:
        """L behind a prompt of so many tokens."""
        plan = self._plan
        share = support.share_of(plan.max_total_tokens, self._host.config.limits, plan.answers)
        reserved = CONTINUATION_TOKENS * 2 if plan.needs.answer == "continuation" else 0
        return support.horizon_behind(
            self._manager, self._parent.params, prompt, plan.max_horizon, share, reserved
        )

    async def _choices(self, prompts: Prompts, streams: Sequence[ChoiceStream]) -> list[Answer]:
        """Every choice by a run of its own; by one run for all where no seed has a part in it."""
        first: list[Answer] = []
        if self._plan.needs.deterministic:
            first = await self._run(prompts, 0, streams)
        rest = list(enumerate(streams))[len(first) :]
        alone = await gather_or_cancel([self._run(prompts, number, [stream]) for number, stream in rest])
        return [*first, *(answer for answers in alone for answer in answers)]

    async def _run(self, prompts: Prompts, number: int, streams: Sequence[ChoiceStream]) -> list[Answer]:
        """One run of the sampler and the choices that it answers; an abort leaves them what they had.

        Args:
            prompts: cached.
            number: the first choice.
            streams: of the choices that take this run's answer, `number` first. Where a seed drew the answer
                among classes of equal weight, the first one alone has it, and the others need runs of theirs,
                unless an abort or the deadline ended this one.
        """
        rank = self._rank(prompts, number)
        writer = AnswerWriter(self._parent, prompts.main, self._stop, self._text, rank)
        progress = _Progress(writer, streams, self._plan)
        tools = self._tools(prompts, Key(self._seed, number), rank, progress)
        answers: list[Answer] = []
        whole = Tokens.EMPTY
        try:
            outcome = await self._plan.sampler.run(self._plan.request, tools)
        except ChainAbortedError as error:
            report = unanswered_report(self._plan.name)
            answers += [writer.aborted(progress.certain, str(error), dict(report)) for _ in streams]
        else:
            whole = outcome.tokens
            usage = prompts.usage if number == 0 else Usage()
            answers.append(self._written(writer, outcome, prompts, usage))
            if not outcome.tied or outcome.ended_early:
                copy = outcome.copied(number)
                answers += [self._written(writer, copy, prompts, Usage()) for _ in streams[1:]]
        for answer, stream in zip(answers, streams, strict=False):
            writer.count(answer)
            if self._plan.calls_tools:
                progress.send_pieces(stream, whole)
            stream.send(answer)
        return answers

    def _tools(self, prompts: Prompts, key: Key, rank: int | None, observer: Observer) -> HostTools:
        return HostTools(
            plan=self._plan,
            parent=self._parent,
            prompt=prompts.main,
            stop=self._stop,
            text=self._text,
            engine=self._engine(prompts, key.chain, rank),
            dp_rank=rank,
            key=key,
            horizon=prompts.horizon,
            budget=prompts.budget,
            observer=observer,
            checks_rejections=self._host.config.diagnostics.shadow_early_rejection,
        )

    def _engine(self, prompts: Prompts, number: int, rank: int | None) -> RankingEngine:
        asked = AlternativesRequest.of(self._manager, self._parent.obj)
        grammar = grammar_of(self._parent)
        main = ChildEngine(
            self._parent,
            prompts.main,
            self._stop,
            rank,
            asked=asked,
            grammar=grammar,
            penalties=self._plan.penalties,
        )
        if prompts.second is None:
            return main
        # The twin repeats the main prompt's tokens, whatever they spell behind its own.
        unstopped = StopRule(self._stop.tokenizer, (), self._stop.tokens, 1)
        twin = ChildEngine(self._parent, prompts.second, unstopped, rank)
        return TwinEngine(self._parent, main, twin, self._stop, f"{self._parent.obj.rid}.{number}")

    def _rank(self, prompts: Prompts, number: int) -> int | None:
        """A choice stays on one data-parallel rank, whose cache holds its trunk; choices spread over ranks.

        Twins stay where the prompts are.
        """
        ranks: int = self._manager.server_args.dp_size
        asked: int | None = self._parent.obj.routed_dp_rank
        if ranks <= 1 or asked is not None:
            return asked
        home = int(prompts.main.meta_info.get("dp_rank") or 0)
        return home if prompts.second is not None else (home + number) % ranks

    def _written(
        self, writer: AnswerWriter, outcome: Outcome, prompts: Prompts, prompt_usage: Usage
    ) -> Answer:
        """One answer with its report."""
        power = answer_report(
            self._plan.name,
            outcome,
            seed=self._seed,
            neutralised=self._plan.neutralised,
            prompt_usage=prompt_usage,
            weight_version=prompts.main.meta_info.get("weight_version"),
        )
        if outcome.stopped_by != "abort":
            return writer.final(outcome.tokens, outcome.finished, power)
        return writer.aborted(outcome.tokens, f"request {self._parent.obj.rid} was aborted", power)

    def _aborted_before_any_answer(self, message: str, streams: Sequence[ChoiceStream]) -> list[Answer]:
        told = {"cached_tokens": 0, "weight_version": weight_version_of(self._manager)}
        nothing = Prompt([], told, Usage())
        writer = AnswerWriter(self._parent, nothing, self._stop, self._text)
        answers = []
        for stream in streams:
            answer = writer.aborted(Tokens.EMPTY, message, unanswered_report(self._plan.name))
            writer.count(answer)
            stream.send(answer)
            answers.append(answer)
        return answers


class _Progress:
    """Streams how a run goes, and text once nothing to come can change it.

    Attributes:
        certain: the tokens that nothing can change any more.
    """

    def __init__(self, writer: AnswerWriter, streams: Sequence[ChoiceStream], plan: AnswerPlan) -> None:
        self._writer, self._streams, self._plan = writer, streams, plan
        self._last = 0.0
        self.certain = Tokens.EMPTY

    def __call__(self, certain: Tokens, progress: Mapping[str, Any]) -> None:
        now, grown = time.perf_counter(), len(certain) > len(self.certain)
        self.certain = certain
        if not grown and now - self._last < PROGRESS_EVERY_S:
            return
        self._last = now
        for stream in filter(lambda stream: stream.open, self._streams):
            if self._plan.calls_tools:
                self.send_pieces(stream, certain)
            self._send(stream, certain, progress)

    def send_pieces(self, stream: ChoiceStream, certain: Tokens) -> None:
        """Stream all tokens but the last, one by one: SGLang's parsers of calls lose what comes at once."""
        for count in range(stream.tokens + 1, len(certain)) if stream.open else ():
            self._send(stream, certain.first(count), {})

    def _send(self, stream: ChoiceStream, certain: Tokens, progress: Mapping[str, Any]) -> None:
        power = {"sampler": self._plan.name, "progress": dict(progress)}
        stream.send(self._writer.partial(certain, power))
