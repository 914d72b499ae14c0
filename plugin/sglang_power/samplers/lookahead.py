"""The sampler `lookahead`: an answer near p(y)^alpha, block by block, each weighed by what may follow it.

All candidates of a block start at once, and so do all rollouts of all of them. A block that has been chosen
stands. What a budget or a deadline leaves open is drawn from the proposal, without looking ahead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from sglang_power.algorithms import lookahead
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.lookahead import BlockWeights, LookaheadConfig
from sglang_power.errors import ChainAbortedError, ParticlesDiedError
from sglang_power.request import LookaheadRequest
from sglang_power.rng import Key
from sglang_power.samplers.base import Observer, Outcome, Tools
from sglang_power.samplers.budgets import Budget, StoppedBy, late
from sglang_power.samplers.report import finite
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.types import Continuation, Tokens, Usage, in_parallel


class LookaheadSampler:
    """Draws an answer block by block."""

    request = LookaheadRequest

    async def run(self, asked: LookaheadRequest, tools: Tools) -> Outcome:
        """Make one answer, or as much of it as an abort leaves."""
        config = asked.lookahead_config(tools.horizon)
        growth = Growth(tools.engine, config, tools.key, tools.budget, tools.observer)
        stopped_by = await growth.run()
        log_target = finite(asked.alpha * float(growth.tokens.log_p.sum()))
        return Outcome(
            tokens=growth.tokens,
            finished=growth.finished,
            usage=growth.usage,
            law="approximate",
            params=asked.in_force(tools.horizon),
            stopped_by=stopped_by,
            report={**growth.report(), "log_target": log_target},
        )


class Growth:
    """One answer in the making; `run` is the whole life of it.

    Args:
        engine: continues sequences of the request's prompt.
        config: the algorithm.
        key: of the answer.
        budget: when to stop looking ahead; tokens that bring the answer to its end are kept back.
        observer: told of the blocks that have been chosen.

    Attributes:
        tokens, finished: what is settled.
        usage: what it has cost so far.
    """

    def __init__(
        self,
        engine: Engine,
        config: LookaheadConfig,
        key: Key,
        budget: Budget,
        observer: Observer | None = None,
    ) -> None:
        self._engine, self._config, self._key, self._budget = engine, config, key, budget
        self._observer = observer
        self._weights: list[BlockWeights] = []
        self._candidates = self._rollouts = 0
        self.tokens, self.finished, self.usage = Tokens.EMPTY, False, Usage()

    async def run(self) -> StoppedBy:
        """Grow the answer to its end, and return what kept it from looking ahead all the way.

        Raises:
            ChainAbortedError: aborted before a block was chosen.
            ParticlesDiedError: no candidate of a block has a weight that is a number.
        """
        limit: StoppedBy | None = None
        try:
            while limit is None and not self._whole():
                limit = self._limit() or await self._block()
            if not self._whole():
                call = lookahead.ending_call(self._config, self._key, self.tokens)
                (rest,) = await self._together([call], None)
                self._settle(rest.tokens, rest.finished)
        except ChainAbortedError:
            if not len(self.tokens):
                raise
            return "abort"
        return "completed" if limit is None else limit

    def report(self) -> dict[str, Any]:
        """Return the entries of `meta_info.power` that only this sampler has."""
        report: dict[str, Any] = {
            "blocks": len(self._weights),
            "candidates": self._candidates,
            "rollouts": self._rollouts,
            "ess": [weights.ess for weights in self._weights],
            "jackknife_clips": sum(weights.clipped for weights in self._weights),
        }
        if broken := sum(weights.broken for weights in self._weights):
            report["not_a_number"] = broken
        return report

    def _whole(self) -> bool:
        return self.finished or len(self.tokens) == self._config.horizon

    def _limit(self) -> StoppedBy | None:
        """The limit that forbids the next block; an answer at the horizon stays affordable after it."""
        length = len(self.tokens)
        kept_back = self._config.horizon - self._config.block_end(length)
        tokens = self.usage.decoded + kept_back
        return self._budget.spent_by(steps=0, tokens=tokens, next_tokens=self._config.most_tokens(length))

    async def _block(self) -> StoppedBy | None:
        """Choose the next block; "deadline_ms" where the deadline was faster."""
        config, key, number = self._config, self._key, len(self._weights)
        decoded, deadline = self.usage.decoded, self._budget.deadline
        calls_of_block = lookahead.candidate_calls(config, key, number, self.tokens)
        candidates = await self._together(calls_of_block, deadline)
        rollouts: dict[int, list[Continuation]] = {}
        if not _cut_short(candidates):
            calls = lookahead.rollout_calls(config, key, number, self.tokens, candidates)
            flat = [call for each in calls.values() for call in each]
            answers = iter(await self._together(flat, deadline))
            rollouts = {k: [next(answers) for _ in each] for k, each in calls.items()}
        self._candidates += len(candidates)
        self._rollouts += sum(map(len, rollouts.values()))
        if _cut_short([*candidates, *(rollout for each in rollouts.values() for rollout in each)]):
            self._take_first(candidates[0], rollouts.get(0, []), decoded)
            return late(deadline)
        self._choose(candidates, lookahead.weighed(config, candidates, rollouts))
        return None

    def _choose(self, candidates: Sequence[Continuation], weights: BlockWeights) -> None:
        if weights.dead:
            raise self._died(candidates)
        choice = candidates[lookahead.chosen(self._key, len(self._weights), weights)]
        self._weights.append(weights)
        self._settle(choice.tokens, choice.finished)
        if self._observer is not None:
            self._observer(self.tokens, {"block": len(self._weights), "tokens": len(self.tokens)})

    def _take_first(self, candidate: Continuation, rollouts: Sequence[Continuation], before: int) -> None:
        """Go on behind the first candidate and its first rollout: a draw of the proposal, as far as it came.

        Args:
            candidate, rollouts: of a block that cannot be decided.
            before: tokens that had been decoded when the block began.
        """
        parts = [candidate, *rollouts[:1]]
        for part in parts:
            self._settle(part.tokens, part.finished)
        used = sum(len(part.tokens) for part in parts)
        self.usage += Usage(wasted=self.usage.decoded - before - used)

    def _settle(self, tokens: Tokens, finished: bool) -> None:
        self.tokens, self.finished = self.tokens + tokens, finished

    async def _together(
        self, calls: Sequence[ContinuationCall], deadline: float | None
    ) -> list[Continuation]:
        timed = [dataclasses.replace(call, deadline=deadline) for call in calls]
        answers = await gather_or_cancel([self._engine.generate(call) for call in timed])
        self.usage += in_parallel(answer.usage for answer in answers)
        return answers

    def _died(self, candidates: Sequence[Continuation]) -> ParticlesDiedError:
        partial = [self.tokens.ids + candidate.tokens.ids for candidate in candidates]
        return ParticlesDiedError(
            f"all {len(partial)} candidates of block {len(self._weights)} have weights that are no numbers, "
            f"behind {len(self.tokens)} token(s): the model's logits are none",
            partial,
        )


def _cut_short(answers: Iterable[Continuation]) -> bool:
    """Whether the deadline ended one of them."""
    return any(answer.cut_short for answer in answers)
