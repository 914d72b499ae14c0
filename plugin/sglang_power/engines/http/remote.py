"""The RankingEngine protocol over a remote SGLang, with or without the plugin.

`Remote` is the server, `HttpEngine` one prompt on it; `capabilities` says what is refused, `wire` what is
sent and how answers are read, `connection` how. Knows no driver of `samplers`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

import httpx

from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.http import capabilities, wire
from sglang_power.engines.http.connection import Connection, RemoteOptions
from sglang_power.engines.http.wire import Generation, Json
from sglang_power.errors import (
    ChainAbortedError,
    HostError,
    PowerError,
    RequestError,
    UnsupportedError,
    WeightsChangedError,
)
from sglang_power.types import Continuation, Usage, in_parallel


class Remote:
    """A running server; use it as an asynchronous context manager.

    Args:
        url: its base URL, as SGLang prints it.
        options: how it is asked.
        transport: of the HTTP client, for tests.
    """

    def __init__(
        self,
        url: str,
        options: RemoteOptions | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._options = options or RemoteOptions()
        self.connection = Connection(url, self._options, transport)
        self._stops: dict[int, bool] = {}

    async def __aenter__(self) -> Self:
        try:
            if self._options.check_server:
                await self._check_server()
        except PowerError:
            await self.connection.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.connection.aclose()

    async def engine(
        self,
        prompt: str | Sequence[int],
        *,
        config: MHConfig | None = None,
        stop_token_ids: Sequence[int] = (),
        dp_rank: int | None = None,
    ) -> HttpEngine:
        """Tokenise and cache a prompt, for chains and selections that start from it.

        Args:
            prompt: text, or token ids.
            config: of the chain that will run on the engine, to refuse it before any token.
            stop_token_ids: stops beside the model's own end-of-sequence ids.
            dp_rank: data-parallel rank that serves the prompt; otherwise the one that the server chose.

        Raises:
            UnsupportedError: the chain reads what the server cannot say.
            RequestError: the prompt is empty, or the server refused it.
        """
        if config is not None:
            capabilities.check_chain(config)
        if len(prompt) == 0:
            raise RequestError("prompt", prompt, "is empty", "Give a text or at least one token id")
        answer = await self.connection.generate(wire.prompt_body(prompt), dp_rank=dp_rank)
        return HttpEngine(self, answer, tuple(stop_token_ids), dp_rank)

    async def first_stop(self, ids: Sequence[int]) -> tuple[int | None, Usage]:
        """The smallest length at which `ids` has stopped, and what finding out cost.

        Which ids the server stops at is not told anywhere, so it decodes each unknown one once.
        """
        unknown = sorted(set(ids) - self._stops.keys())
        usage = Usage()
        if unknown:
            answers: list[Json] = await self.connection.post("/generate", wire.stops_body(unknown))
            self._stops |= wire.read_stops(unknown, answers)
            usage = in_parallel(wire.usage_of(answer["meta_info"]) for answer in answers)
            usage = dataclasses.replace(usage, wasted=usage.decoded)
        return next((i + 1 for i, token in enumerate(ids) if self._stops[token]), None), usage

    async def _check_server(self) -> None:
        try:
            settings: dict[str, Any] = await self.connection.get("/server_info")
        except RequestError as error:
            problem = f"the server's settings cannot be read ({error.problem})"
            hint = "Name SGLang itself, or set check_server=False once you know them"
            raise UnsupportedError("check_server", True, problem, hint) from error
        capabilities.check_server(settings)


class HttpEngine:
    """Continues token sequences of one prompt; made by `Remote.engine`.

    A lost proposal runs to its end: early rejection only saves tokens. So does a path whose trigger fires.

    Args:
        remote: the server.
        cached: its answer to the request that cached the prompt.
        stop_token_ids, dp_rank: see `Remote.engine`.

    Attributes:
        prompt: its token ids.
        prompt_usage: what caching it cost.
    """

    def __init__(
        self, remote: Remote, cached: Json, stop_token_ids: tuple[int, ...], dp_rank: int | None
    ) -> None:
        meta = cached["meta_info"]
        self._remote, self._stop_token_ids = remote, stop_token_ids
        self._dp_rank: int | None = meta.get("dp_rank") if dp_rank is None else dp_rank
        self._weight_version: str | None = meta.get("weight_version")
        self.prompt: tuple[int, ...] = tuple(cached["prompt_token_ids"])
        self.prompt_usage = wire.usage_of(meta)

    def share(self, wanted: int) -> int:
        """Return `wanted`: only the server knows who else waits, and its queue is fair."""
        return wanted

    async def generate(self, call: ContinuationCall) -> Continuation:
        """Run one call; see ContinuationCall.

        A call that its deadline ends before it has a token gives one token all the same.

        Raises:
            UnsupportedError: the call reads what the server cannot say.
            ChainAbortedError: the server was told to end it.
            WeightsChangedError: the weights are others than those that the prompt was cached with.
        """
        capabilities.check_call(call)
        whole = await self._generate(call)
        if len(whole.tokens):
            return whole
        one_token = dataclasses.replace(call, horizon=len(call.prefix) + 1, deadline=None)
        first = await self._generate(one_token)
        cut_short = not first.finished and one_token.horizon < call.horizon
        return dataclasses.replace(first, cut_short=cut_short, usage=whole.usage + first.usage)

    async def most_likely(self, prefix: tuple[int, ...], count: int) -> tuple[list[RankedToken], Usage]:
        """The most likely tokens after `prefix`, best first, by a token that is thrown away.

        Raises:
            UnsupportedError: the vocabulary holds fewer.
        """
        try:
            answer = await self._ask(wire.ranking_body([*self.prompt, *prefix], count))
        except RequestError as error:
            if "logit_bias" not in error.problem:
                raise
            problem = "the vocabulary holds fewer tokens"
            raise UnsupportedError("count", count, problem, "Ask for fewer") from error
        usage = wire.usage_of(answer["meta_info"])
        return wire.read_ranking(answer), dataclasses.replace(usage, wasted=usage.decoded)

    async def _generate(self, call: ContinuationCall) -> Continuation:
        room = call.horizon - len(call.prefix)
        forced, stopped, usage = await self._forced(call, room)
        generation = Generation(
            before=(*self.prompt, *call.prefix),
            forced=forced,
            fresh=0 if stopped else room - len(forced),
            law=call.law,
            seed=call.seed,
            stop_token_ids=self._stop_token_ids,
        )
        answer = await self._ask(generation.body(), call.deadline)
        tokens = generation.read(answer)
        finished, cut_short = ending(answer, generation.fresh, call.deadline)
        return Continuation(
            tokens,
            finished=finished or (stopped and len(tokens) > 0),
            cut_short=cut_short,
            usage=usage + wire.usage_of(answer["meta_info"]),
        )

    async def _forced(self, call: ContinuationCall, room: int) -> tuple[tuple[int, ...], bool, Usage]:
        """The forced ids up to their first stop, whether there is one, and what finding it cost."""
        ids = (call.forced or ())[:room]
        own = next((i for i, token in enumerate(ids) if token in self._stop_token_ids), len(ids))
        at, usage = await self._remote.first_stop(ids[:own])
        if at is not None:
            return ids[:at], True, usage
        return ids[: own + 1], own < len(ids), usage

    async def _ask(self, body: Json, deadline: float | None = None) -> Json:
        answer = await self._remote.connection.generate(body, dp_rank=self._dp_rank, deadline=deadline)
        version = answer["meta_info"].get("weight_version", self._weight_version)
        if version != self._weight_version:
            raise WeightsChangedError(
                f"the weights changed from {self._weight_version} to {version}; cache the prompt again"
            )
        _check_plain(answer)
        return answer


def _check_plain(answer: Json) -> None:
    """Refuse tokens that a default preset of the plugin drew.

    Raises:
        HostError: the requests opt out in `custom_params`, and it did not arrive, as behind SGLang's router.
    """
    sampler = (answer["meta_info"].get("power") or {}).get("sampler", "none")
    if sampler != "none":
        told = f"the server's default preset ({sampler}) drew the tokens, although the request opts out"
        raise HostError(
            f"{told}: something on the way drops custom_params. Name SGLang itself, not its router"
        )


def ending(answer: Json, asked: int, deadline: float | None) -> tuple[bool, bool]:
    """Whether an answer ends with a stop, and whether its deadline cut it short.

    Args:
        answer: of the server.
        asked: tokens at most.
        deadline: seconds of `clock.now`.

    Raises:
        ChainAbortedError: it was aborted, and not by its deadline.
        HostError: it ended for a reason that nobody asked for.
    """
    reason, count = answer["meta_info"]["finish_reason"], len(answer["output_ids"])
    if reason["type"] == "abort":
        if deadline is None or clock.now() < deadline:
            raise ChainAbortedError(f"the server gave up: {reason.get('message')}", [answer])
        return False, True
    finished = reason["type"] == "stop"
    if finished and not isinstance(matched := reason.get("matched"), int):
        raise HostError(f"the server stopped at {matched!r}, which is no stop token")
    if not finished and count < asked:
        raise HostError(f"the server ended after {count} of {asked} tokens")
    return finished, False
