"""Drives CoT-decoding over an Engine: fork, continue, read, choose."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from sglang_power.algorithms.cot import CotConfig, kept_first_tokens, path_call
from sglang_power.algorithms.engine import ContinuationCall, RankedToken, RankingEngine
from sglang_power.answers import Relation
from sglang_power.request import CotRequest
from sglang_power.rng import Key, Purpose
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Candidate, Reader, Selection, candidate, stopped_by
from sglang_power.samplers.choosing import by_confidence
from sglang_power.samplers.selecting import Selecting
from sglang_power.samplers.tasks import finished_of, gather_or_cancel, unless_aborted
from sglang_power.types import Continuation, Tokens, Usage, in_parallel

NO_PLACE: Final = {"fork": {"at": "first", "reason": "no token follows the end of the reasoning"}}
"""Of a report whose paths part at the first token, although they were asked to part later."""


@dataclass(frozen=True)
class Parting:
    """Where paths part.

    Args:
        prefix: tokens before the fork; every path begins with them.
        trunk: a path that was generated on the way there, from the fork on; None where there is none.
        notes: for the report, where paths do not part where they should have.
    """

    prefix: Tokens
    trunk: Continuation | None = None
    notes: dict[str, Any] = field(default_factory=dict)


class Cot:
    """One run of CoT-decoding.

    Args:
        engine: continues the prompt and ranks next tokens.
        reader: reads answers.
        relation: when two answers are the same.
        config: see CotConfig.
        key: of seeds.
        aggregate: sum confidences over equal answers; otherwise take the most confident path.
        forced_prefix: ids that every answer begins with.
        after: where in a whole answer to fork instead of at its first token: ids -> index, None if nowhere.
        deadline: seconds of `clock.now` after which paths are cut short.
    """

    def __init__(
        self,
        engine: RankingEngine,
        reader: Reader,
        relation: Relation,
        config: CotConfig,
        key: Key,
        *,
        aggregate: bool,
        forced_prefix: tuple[int, ...] = (),
        after: Callable[[Sequence[int]], int | None] | None = None,
        deadline: float | None = None,
    ) -> None:
        self._engine, self._reader, self._relation = engine, reader, relation
        self._config, self._key, self._aggregate = config, key, aggregate
        self._forced_prefix, self._after, self._deadline = forced_prefix, after, deadline
        self._usage = Usage()
        self._late = self._aborted = False

    async def run(self) -> Selection:
        """The whole run."""
        fork = await self._fork()
        ranked, usage = await self._engine.most_likely(fork.prefix.ids, self._config.k)
        self._usage += usage
        firsts = kept_first_tokens(self._config, ranked)
        results = await gather_or_cancel(
            [unless_aborted(self._path(fork, first, i)) for i, first in enumerate(firsts)]
        )
        parts = finished_of(results)
        self._usage += in_parallel(part.usage for part in parts.values())
        self._aborted = len(parts) < len(firsts)
        candidates = await self._read(fork, [firsts[i] for i in parts], list(parts.values()))
        return await self._choose(candidates, fork.notes)

    async def _fork(self) -> Parting:
        if self._forced_prefix:
            prefix = await self._generate(
                ContinuationCall(
                    (),
                    len(self._forced_prefix),
                    self._config.law,
                    self._seed(0),
                    forced=self._forced_prefix,
                )
            )
            return Parting(prefix.tokens)
        if self._after is None:
            return Parting(Tokens.EMPTY)
        whole = await self._generate(
            ContinuationCall(
                (), self._config.horizon, self._config.law, self._seed(0), deadline=self._deadline
            )
        )
        at = self._after(whole.tokens.ids)
        notes: dict[str, Any] = {}
        if at is None or at >= len(whole.tokens):
            at, notes = 0, NO_PLACE
        rest = Continuation(whole.tokens.after(at), whole.finished, whole.cut_short, Usage())
        return Parting(whole.tokens.first(at), rest, notes)

    async def _path(self, fork: Parting, first: RankedToken, number: int) -> Continuation:
        if fork.trunk is not None and fork.trunk.tokens.ids[:1] == (first.token,):
            return fork.trunk
        call = path_call(self._config, fork.prefix.ids, first, self._seed(number + 1), self._deadline)
        path = await self._engine.generate(call)
        self._late |= path.cut_short
        return path

    def _seed(self, number: int) -> int:
        return self._key.child_seed(number, Purpose.PROPOSAL)

    async def _generate(self, call: ContinuationCall) -> Continuation:
        continuation = await self._engine.generate(call)
        self._usage += continuation.usage
        self._late |= continuation.cut_short
        return continuation

    async def _read(
        self, fork: Parting, firsts: Sequence[RankedToken], parts: Sequence[Continuation]
    ) -> list[Candidate]:
        read = await gather_or_cancel(
            [
                candidate(self._reader, fork.prefix + part.tokens, part.finished, first.log_p)
                for first, part in zip(firsts, parts, strict=True)
            ]
        )
        self._usage += in_parallel(usage for _, usage in read)
        return [path for path, _ in read]

    async def _choose(self, candidates: list[Candidate], notes: dict[str, Any]) -> Selection:
        selection = await by_confidence(candidates, self._relation, self._key, aggregate=self._aggregate)
        return dataclasses.replace(
            selection,
            usage=self._usage + selection.usage,
            stopped_by=stopped_by(self._aborted, self._late, self._deadline),
            notes={**selection.notes, **notes},
        )


class CotSampler:
    """The sampler `cot`: CoT-decoding."""

    request = CotRequest

    async def run(self, asked: CotRequest, tools: Tools) -> Outcome:
        """Make one answer."""
        selecting = Selecting(asked, tools)
        law = selecting.continuation_law(asked.continuation_policy)
        cot = Cot(
            tools.engine,
            selecting.reader,
            selecting.relation,
            CotConfig(asked.k, tools.horizon, law, asked.min_first_p),
            tools.key,
            aggregate=asked.select == "aggregate",
            forced_prefix=tools.forced or (),
            after=tools.behind_reasoning if asked.needs.reasoning_end is not None else None,
            deadline=tools.budget.deadline,
        )
        return await selecting.outcome(selecting.with_star(await cot.run()))
