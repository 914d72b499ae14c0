"""The Engine protocol over child requests of a running server. Tokenizer process.

A call becomes one child: prompt + kept tokens as ids, so that the radix cache serves the prefix. Stops
are decided here on the whole sequence (`stopping`), since a child sees its prefix as prompt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.algorithms.penalties import Penalties
from sglang_power.errors import HostError
from sglang_power.sglang_host.child_params import (
    APART,
    GRAMMARS,
    META_KEY,
    NOT_NUMBERS,
    ChildParams,
    Coupling,
)
from sglang_power.sglang_host.tokenizer.alternatives import AlternativesRequest
from sglang_power.sglang_host.tokenizer.parent import Parent, RecalledError
from sglang_power.sglang_host.tokenizer.places import internal_of
from sglang_power.sglang_host.tokenizer.stopping import StopRule
from sglang_power.sglang_host.tokenizer.support import room_behind
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage

NEVER = -1e30
"""Nats. At or below it lies what a grammar rules out: SGLang makes -inf the smallest number of its type."""


@dataclass(frozen=True)
class Prompt:
    """The prompt as the server tokenised it, with the answer to the request that cached it.

    Args:
        ids: prompt token ids.
        meta_info: of the caching request: cached_tokens, dp_rank, input log probabilities.
        usage: what caching it cost.
    """

    ids: list[int]
    meta_info: dict[str, Any]
    usage: Usage


async def prepare_prompt(parent: Parent) -> Prompt:
    """Tokenise and cache the prompt, before chains fan out from it."""
    obj = parent.obj
    logprob_fields = {
        "return_logprob": obj.return_logprob,
        "logprob_start_len": obj.logprob_start_len,
        "top_logprobs_num": obj.top_logprobs_num,
        "token_ids_logprob": obj.token_ids_logprob,
    }
    asked = logprob_fields if obj.return_logprob and obj.logprob_start_len >= 0 else {}
    child = parent.child(None, 0, return_prompt_token_ids=True, **asked)
    child.sampling_params |= grammar_of(parent)  # compiled here, so that a bad one fails before any token
    return await _cached(parent, child)


async def prepare_other_prompt(parent: Parent, prompt: str | list[int]) -> Prompt:
    """The same for another prompt of the request, as text or as token ids."""
    child = parent.child(None, 0, return_prompt_token_ids=True)
    child.text, child.input_ids = (prompt, None) if isinstance(prompt, str) else (None, prompt)
    return await _cached(parent, child)


def grammar_of(parent: Parent) -> dict[str, Any]:
    """Return what constrains the answers of a request, as sampling parameters of a child.

    What SGLang has put into `custom_params` says where in an answer with reasoning a grammar begins.
    """
    grammar = {name: parent.params[name] for name in GRAMMARS if parent.params.get(name)}
    internal = internal_of(parent.params)
    return {**grammar, "custom_params": internal} if grammar and internal else grammar


async def _cached(parent: Parent, child: Any) -> Prompt:
    out = await parent.run(child)
    ids = [int(token) for token in out["prompt_token_ids"]]
    return Prompt(ids, out["meta_info"], Usage.of_call(0, prefilled=prefilled_of(out["meta_info"])))


class ChildEngine:
    """Continues sequences of one prompt by child requests, pinned to one data-parallel rank.

    Args:
        parent: the request.
        prompt: its cached prompt.
        stop: when sequences end.
        dp_rank: the rank whose cache holds the prompt; None with a single rank.
        min_new_tokens: before which nothing stops; None: the request's own.
        asked: what the client asks of the rows; None: nothing.
        grammar: what constrains the answer, as sampling parameters; it has seen none of the prompt.
        penalties: of the base law, by the tokens of the answer alone; None where it has none.
    """

    def __init__(
        self,
        parent: Parent,
        prompt: Prompt,
        stop: StopRule,
        dp_rank: int | None,
        min_new_tokens: int | None = None,
        asked: AlternativesRequest | None = None,
        grammar: Mapping[str, Any] = MappingProxyType({}),
        penalties: Penalties | None = None,
    ) -> None:
        self._parent, self._prompt, self._stop, self._dp_rank = parent, prompt, stop, dp_rank
        self._asked, self._grammar, self._penalties = asked, grammar, penalties
        own: int = parent.params.get("min_new_tokens") or 0
        self._min_new_tokens = own if min_new_tokens is None else min_new_tokens

    def behind(self, ids: Sequence[int]) -> ChildEngine:
        """Return an engine for what follows more tokens, all of them prompt: nothing in these is a stop."""
        prompt = dataclasses.replace(self._prompt, ids=[*self._prompt.ids, *ids])
        return ChildEngine(self._parent, prompt, self._stop, self._dp_rank, min_new_tokens=0)

    @property
    def room(self) -> int:
        """How many tokens the context has left behind the prompt; none where it is too long for a child."""
        length, manager = len(self._prompt.ids), self._parent.manager
        return room_behind(manager, length) if length < manager.max_req_input_len else 0

    def share(self, wanted: int) -> int:
        """How many calls may run side by side so that other requests' children need not wait."""
        return self._parent.share(wanted)

    async def generate(self, call: ContinuationCall) -> Continuation:
        """One call; a child that SGLang stopped although the whole sequence has not is resumed.

        Behind its deadline a call still gives one token: no driver has to do without any. A call that was
        recalled may give none.

        Raises:
            HostError: SGLang ends the call's children without a token, although the context has room.
        """
        whole = await self._generate_once(call)
        while not (whole.finished or whole.cut_short or reaches_horizon(call, whole)):
            part = await self._generate_once(resumed(call, whole))
            if not len(part.tokens) and not part.cut_short:
                length = len(call.prefix) + len(whole.tokens)
                raise HostError(f"the server ends answers of {call.horizon} tokens after {length}")
            whole = joined(whole, part)
        return whole

    async def most_likely(self, prefix: tuple[int, ...], count: int) -> tuple[list[RankedToken], Usage]:
        """The most likely tokens after `prefix`, by a child of one token that is thrown away.

        Fewer than `count` where the vocabulary, or what the grammar allows, has no more.
        """
        vocab = self._parent.manager.model_config.vocab_size
        call = ContinuationCall(prefix, len(prefix) + 1, ProposalLaw(1.0), seed=0)
        known = self.overhang(call)
        child = self.child(call, known=known)
        child.return_logprob, child.top_logprobs_num = True, min(count, vocab)
        meta = (await self._parent.run(child))["meta_info"]
        row = meta["output_top_logprobs"][known]
        ranked = [RankedToken(int(token), float(log_p)) for log_p, token, _ in row if log_p > NEVER]
        decoded = known + 1
        return ranked, Usage.of_call(decoded, wasted=decoded, prefilled=prefilled_of(meta))

    async def _generate_once(self, call: ContinuationCall) -> Continuation:
        late = Continuation(Tokens.EMPTY, finished=False, cut_short=True, usage=Usage())
        if call.recalled:
            return late
        if call.deadline is None or call.deadline > clock.now():
            try:
                part = await self._one_child(call, call.deadline)
            except RecalledError:
                return late
            if len(part.tokens) or not part.cut_short or call.recalled:
                return part
            late = part  # the deadline passed before the first token
        part = await self._one_child(dataclasses.replace(call, horizon=len(call.prefix) + 1))
        return dataclasses.replace(
            joined(late, part), cut_short=not (part.finished or reaches_horizon(call, part))
        )

    async def _one_child(self, call: ContinuationCall, deadline: float | None = None) -> Continuation:
        known = self.overhang(call)
        child = self.child(call, known=known)
        return self.read(call, await self._parent.run(child, deadline, call.recall), known)

    def overhang(self, call: ContinuationCall) -> int:
        """Return how many kept tokens a child has to emit again, since SGLang takes no prompt that long."""
        longest: int = self._parent.manager.max_req_input_len - 1
        return min(max(0, self.length(call) - longest), len(call.prefix))

    def last_token(self, call: ContinuationCall) -> int:
        """The last token before the first new one."""
        return call.prefix[-1] if call.prefix else self._prompt.ids[-1]

    def length(self, call: ContinuationCall) -> int:
        """Tokens before the first new one."""
        return len(self._prompt.ids) + len(call.prefix)

    def child(
        self,
        call: ContinuationCall,
        coupling: Coupling | None = None,
        known: int = 0,
        **params: Any,
    ) -> Any:
        """The child request of a call.

        Args:
            call: what to generate.
            coupling: see ChildParams.
            known: how many tokens before the first new one the child emits as its own first ones.
            params: replace the parent's sampling parameters.
        """
        whole = [*self._prompt.ids, *call.prefix]
        input_ids, emitted = whole[: len(whole) - known], tuple(whole[len(whole) - known :])
        new_tokens = call.horizon - len(call.prefix)
        unstoppable = self._unstoppable(call)
        forced = (*emitted, *(call.forced or ()))
        child: Any = self._parent.child(
            input_ids,
            new_tokens + known,
            # 0 where the client names none: SGLang's mask indexes the stop ids of the whole batch unchecked.
            min_new_tokens=known + unstoppable if unstoppable else 0,
            routed_dp_rank=self._dp_rank,
            custom_params=ChildParams(
                law=call.law,
                seed=call.seed,
                origin=len(input_ids) - 1,
                forced=forced or None,
                known=known,
                kept=len(call.prefix) - known if self._grammar or self._penalties else 0,
                penalties=self._penalties,
                rules=call.rules,
                coupling=coupling,
            ).to_custom_params(),
        )
        custom = {**self._grammar.get("custom_params", {}), **child.sampling_params["custom_params"]}
        child.sampling_params |= {**self._grammar, "custom_params": custom, **params}
        if self._asked is not None:
            self._asked.ask(child)
        return child

    def _unstoppable(self, call: ContinuationCall) -> int:
        """Return how many of a call's first tokens the client's min_new_tokens keeps from being stops."""
        behind_prefix = max(0, self._min_new_tokens - len(call.prefix))
        return min(behind_prefix, call.horizon - len(call.prefix))

    def read(self, call: ContinuationCall, out: dict[str, Any], known: int = 0) -> Continuation:
        """A child's answer, without what lies behind a stop, an early end or the loss of a partner.

        It is cut short where a rule, or its deadline, ended it. A child that the server ended for a reason of
        its own is not: it is resumed.

        Args:
            call, known: as the child was made with.
            out: what SGLang answered.
        """
        meta = out["meta_info"]
        ids = [int(token) for token in out["output_ids"]]
        reason = meta["finish_reason"]
        aborted = reason["type"] == "abort"
        alternatives = None if self._asked is None else self._asked.read(meta, 0)
        if aborted:  # the last token's statistics may not have arrived
            ids = ids[: len(meta.get(META_KEY) or [])]
            ids = ids if alternatives is None else ids[: len(alternatives)]
            meta = {**meta, META_KEY: (meta.get(META_KEY) or [])[: len(ids)]}
        decoded, rows = len(ids), _rows(meta, ids)[known:]
        ids, asked = ids[known:], call.horizon - len(call.prefix)
        ended = reason["type"] == "length" and reason["length"] < asked + known
        kept = min(max(reason["length"] - known, 0), len(ids)) if ended else len(ids)
        cut_short = (ended and bool(call.rules)) or (aborted and len(ids) < asked)
        kept = next((i for i, row in enumerate(rows[:kept]) if row[1] == APART), kept)
        unstoppable = self._unstoppable(call)
        if unstoppable and meta.get("num_retractions") and kept > unstoppable:
            # SGLang's mask of stops counts from each prefill: behind a retraction it lay on later tokens.
            kept, cut_short = unstoppable, False
        stop = self._stop.first_stop([*call.prefix, *ids[:kept]], len(call.prefix))
        if stop is not None:
            kept, cut_short = stop - len(call.prefix), False
        usage = Usage.of_call(decoded, prefilled=prefilled_of(meta), wasted=decoded - kept)
        finished = stop is not None or (kept == len(ids) and isinstance(reason.get("matched"), int))
        beside = None if alternatives is None else alternatives.rows(known, known + kept)
        return Continuation(Tokens.of(ids[:kept], rows[:kept], beside), finished, cut_short, usage)


def reaches_horizon(call: ContinuationCall, so_far: Continuation) -> bool:
    """Whether a call has all the tokens that it asked for."""
    return len(call.prefix) + len(so_far.tokens) >= call.horizon


def joined(first: Continuation, rest: Continuation) -> Continuation:
    """Two answers in a row as one."""
    return dataclasses.replace(rest, tokens=first.tokens + rest.tokens, usage=first.usage + rest.usage)


def resumed(call: ContinuationCall, so_far: Continuation) -> ContinuationCall:
    """The rest of a call."""
    done = len(so_far.tokens)
    return dataclasses.replace(
        call,
        prefix=call.prefix + so_far.tokens.ids,
        forced=None if call.forced is None else call.forced[done:],
        rules=tuple(
            rule for rule in (rule.behind(so_far.tokens.rows) for rule in call.rules) if rule is not None
        ),
    )


def prefilled_of(meta: dict[str, Any]) -> int:
    """Prompt tokens computed, not taken from the cache."""
    return int(meta.get("prompt_tokens") or 0) - int(meta.get("cached_tokens") or 0)


def _rows(meta: dict[str, Any], ids: list[int]) -> list[list[float]]:
    rows: list[list[float]] = meta.get(META_KEY) or []
    if len(rows) != len(ids):
        raise HostError(
            f"the scheduler returned statistics for {len(rows)} of {len(ids)} tokens: the plugin's sampler "
            "is not live there. Run 'sglang-power check --url ...'"
        )
    if any(math.isnan(row[0]) or math.isnan(row[1]) for row in rows):
        raise HostError(NOT_NUMBERS)
    return rows
