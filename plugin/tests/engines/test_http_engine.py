"""HttpEngine on recorded answers: retries, deadlines, aborts, stops among forced tokens, ranks, errors.

The transport plays answers of a real server, or failures; what a server does with the requests is tested on
real ones. No time is measured; what would wait for ever is given up after a minute. Error rate 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from remote_answers import FORCED, LETTER, PROMPT, RECORDED, STOP, Played, ok, recorded, scored, served
from sglang_power import clock
from sglang_power.algorithms.cuts import EntropyCut
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.http import HttpEngine, Remote, RemoteOptions
from sglang_power.engines.http.capabilities import BASE
from sglang_power.errors import (
    ChainAbortedError,
    HostError,
    OverloadedError,
    RequestError,
    UnsupportedError,
    WeightsChangedError,
)
from sglang_power.types import ProposalLaw

QUICK = RemoteOptions(retries=2, backoff_s=1e-6, max_backoff_s=1e-6)
CALL = ContinuationCall((), 48, BASE, 1)


@asynccontextmanager
async def engine_on(played: Played, **options: Any) -> AsyncIterator[HttpEngine]:
    async with Remote("http://played", QUICK, httpx.MockTransport(played)) as remote:
        yield await remote.engine(PROMPT, **options)


# --- retries ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(503, json={"error": {"message": "the queue is full"}}),
        httpx.Response(429),
        httpx.ConnectError("refused"),
        httpx.ReadError("lost"),
        httpx.RemoteProtocolError("closed"),
    ],
    ids=["503", "429", "connect", "read", "protocol"],
)
async def test_what_passes_is_tried_again_under_another_id(failure: httpx.Response | Exception) -> None:
    played = Played([failure, failure, recorded("drawn")])
    async with engine_on(played) as engine:
        drawn = await engine.generate(CALL)
    assert list(drawn.tokens.ids) == RECORDED["drawn"]["answer"]["output_ids"]
    assert len({body["rid"] for body in played.bodies}) == 3


@pytest.mark.parametrize(
    ("failure", "error", "message"),
    [
        (httpx.Response(503, json={"error": {"message": "queue full"}}), OverloadedError, "queue full"),
        (httpx.ConnectError("refused"), HostError, "gave no answer"),
    ],
)
async def test_retries_end(failure: httpx.Response | Exception, error: type[Exception], message: str) -> None:
    played = Played([failure])
    async with engine_on(played) as engine:
        with pytest.raises(error, match=message):
            await engine.generate(CALL)
    assert len(played.generations) == 1 + QUICK.retries


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (httpx.Response(400, json={"error": {"message": "too long"}}), RequestError),
        (httpx.Response(500, json={"message": "too long"}), HostError),
        (httpx.Response(404, text="too long"), RequestError),
        (httpx.ReadTimeout("too long"), HostError),
        (httpx.Response(200, text="too long"), HostError),
    ],
    ids=["400", "500", "404", "timeout", "not JSON"],
)
async def test_what_stays_is_not_tried_again(
    failure: httpx.Response | Exception, error: type[Exception]
) -> None:
    played = Played([failure])
    async with engine_on(played) as engine:
        with pytest.raises(error, match="too long"):
            await engine.generate(CALL)
    assert len(played.generations) == 1
    given_up = isinstance(failure, httpx.ReadTimeout)
    assert played.aborts == ([played.bodies[0]["rid"]] if given_up else [])


# --- deadlines and aborts -----------------------------------------------------------------------------


async def test_a_deadline_aborts_and_gives_what_there_is() -> None:
    played = Played([recorded("aborted")], hang=True)
    async with engine_on(played) as engine:
        late = await engine.generate(ContinuationCall((), 48, BASE, 1, deadline=clock.now()))
    assert (late.cut_short, late.finished) == (True, False)
    assert list(late.tokens.ids) == RECORDED["aborted"]["answer"]["output_ids"]
    assert set(played.aborts) == {played.bodies[0]["rid"]}


async def test_a_deadline_leaves_one_token_at_least() -> None:
    played = Played([recorded("aborted_at_once"), ok(scored(FORCED[:1]))], hang=True)
    call = ContinuationCall((), 48, BASE, 1, forced=(*FORCED, 53, 63), deadline=clock.now())
    async with engine_on(played) as engine:
        late = await engine.generate(call)
    assert (late.tokens.ids, late.finished, late.cut_short) == (FORCED[:1], False, True)
    assert played.bodies[-1]["input_ids"] == [*PROMPT, FORCED[0]]
    assert played.bodies[-1]["sampling_params"]["max_new_tokens"] == 0


async def test_an_abort_by_others_is_an_error() -> None:
    played = Played([recorded("aborted")])
    async with engine_on(played) as engine:
        with pytest.raises(ChainAbortedError) as aborted:
            await engine.generate(CALL)
    assert aborted.value.partial[0]["output_ids"] == RECORDED["aborted"]["answer"]["output_ids"]


async def test_cancelling_aborts_on_the_server() -> None:
    played = Played([recorded("drawn")], hang=True)
    async with engine_on(played) as engine:
        task = asyncio.create_task(engine.generate(CALL))
        while not played.generations:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert played.aborts == [played.bodies[0]["rid"]]


async def test_a_deadline_aborts_though_no_connection_is_free() -> None:
    played = Played([recorded("aborted")], hang=True)
    options = QUICK.model_copy(update={"max_connections": 1})
    async with served(played) as url, Remote(url, options) as remote, asyncio.timeout(60):
        engine = await remote.engine(PROMPT)
        late = await engine.generate(ContinuationCall((), 48, BASE, 1, deadline=clock.now()))
    assert late.cut_short


async def test_generations_wait_for_one_of_the_connections() -> None:
    played = Played([recorded("drawn")], hang=True)
    options = QUICK.model_copy(update={"max_connections": 2})
    async with Remote("http://played", options, httpx.MockTransport(played)) as remote:
        engine = await remote.engine(PROMPT)
        tasks = [asyncio.create_task(engine.generate(CALL)) for _ in range(3)]
        for _ in range(1000):
            await asyncio.sleep(0)
        at_once = len(played.generations)
        tasks[0].cancel()
        await asyncio.wait(tasks)
    assert (at_once, len(played.generations)) == (2, 3)


# --- stops --------------------------------------------------------------------------------------------


async def test_a_stop_among_forced_tokens_ends_the_sequence() -> None:
    played = Played([ok(scored((LETTER, STOP)))])
    async with engine_on(played) as engine:
        ended = await engine.generate(ContinuationCall((), 48, BASE, 1, forced=(LETTER, STOP, LETTER)))
    assert (ended.tokens.ids, ended.finished) == ((LETTER, STOP), True)
    assert played.probes == [[STOP, LETTER]]
    assert played.bodies[0]["input_ids"] == [*PROMPT, LETTER, STOP]
    assert played.bodies[0]["sampling_params"]["max_new_tokens"] == 0


async def test_forced_tokens_that_end_with_a_stop_are_finished_and_need_no_second_probe() -> None:
    own = FORCED[-1]
    played = Played([recorded("forced_only")])
    call = ContinuationCall((), 48, BASE, 1, forced=(*FORCED, LETTER))
    async with engine_on(played, stop_token_ids=[own]) as engine:
        first, second = await engine.generate(call), await engine.generate(call)
    assert (first.tokens.ids, first.finished, first.cut_short) == (FORCED, True, False)
    assert played.probes == [sorted(FORCED[:-1])]
    assert first.usage.decoded == first.usage.wasted == 2
    assert (second.usage.decoded, second.usage.children) == (0, 1)
    assert played.bodies[0]["sampling_params"]["stop_token_ids"] == [own]


async def test_forced_tokens_beyond_the_horizon_are_left_out() -> None:
    played = Played([recorded("forced_only")])
    async with engine_on(played) as engine:
        scored = await engine.generate(ContinuationCall((), 3, BASE, 1, forced=(*FORCED, LETTER)))
    assert (scored.tokens.ids, scored.finished, scored.cut_short) == (FORCED, False, False)


# --- answers that cannot be used ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("meta", "error"),
    [
        ({"finish_reason": {"type": "length", "length": 4}}, HostError),
        ({"finish_reason": {"type": "stop", "matched": "NaN happened"}}, HostError),
        ({"weight_version": "other"}, WeightsChangedError),
    ],
    ids=["too few", "not a token", "weights"],
)
async def test_answers_that_would_bend_the_law_are_errors(
    meta: dict[str, Any], error: type[Exception]
) -> None:
    async with engine_on(Played([recorded("drawn", **meta)])) as engine:
        with pytest.raises(error):
            await engine.generate(CALL)


# --- refusals, ranks ----------------------------------------------------------------------------------


async def test_refusals_come_before_any_token() -> None:
    played = Played()
    config = MHConfig(4.0, BASE, 48, 16, 2, EntropyCut(4.0, 0.1), early_rejection=False)
    async with engine_on(played) as engine:
        with pytest.raises(UnsupportedError):
            await engine.generate(ContinuationCall((), 48, ProposalLaw(4.0), 1))
    with pytest.raises(UnsupportedError):
        async with engine_on(played, config=config):
            pass
    assert not played.generations


@pytest.mark.parametrize("settings", [{"watermark_enforce_all": True}, None], ids=["law", "unknown"])
async def test_a_server_whose_law_is_not_known_is_refused(settings: dict[str, Any] | None) -> None:
    answer = httpx.Response(404) if settings is None else httpx.Response(200, json=settings)
    transport = httpx.MockTransport(Played(settings=answer))
    with pytest.raises(UnsupportedError):
        async with Remote("http://played", QUICK, transport):
            pass
    unchecked = QUICK.model_copy(update={"check_server": False})
    async with Remote("http://played", unchecked, transport):
        pass


async def test_an_empty_prompt_is_refused() -> None:
    async with Remote("http://played", QUICK, httpx.MockTransport(Played())) as remote:
        with pytest.raises(RequestError, match="empty"):
            await remote.engine("")


async def test_the_vocabulary_bounds_the_ranking() -> None:
    told = {"error": {"message": "logit_bias must has keys in [0, 257], got 299."}}
    async with engine_on(Played([httpx.Response(400, json=told)])) as engine:
        with pytest.raises(UnsupportedError, match="fewer") as refused:
            await engine.most_likely((), 300)
    assert refused.value.field == "count"


@pytest.mark.parametrize("rank", [None, 3])
async def test_requests_stay_on_their_rank(rank: int | None) -> None:
    played = Played([recorded("drawn")])
    async with engine_on(played, dp_rank=rank) as engine:
        await engine.generate(CALL)
    shown = None if rank is None else str(rank)
    assert played.bodies[0].get("routed_dp_rank") == rank
    assert played.generations[0].headers.get("X-Data-Parallel-Rank") == shown


# --- a default preset in between ------------------------------------------------------------------------


@pytest.mark.parametrize("report", [{"sampler": "power"}, {"sampler": "top_h", "law": "top_h"}])
async def test_tokens_of_a_default_preset_are_refused(report: dict[str, Any]) -> None:
    """SGLang's router drops the field by which every request opts out of it."""
    async with engine_on(Played([ok_with(report)])) as engine:
        with pytest.raises(HostError, match=f"default preset \\({report['sampler']}\\) drew the tokens"):
            await engine.generate(CALL)


@pytest.mark.parametrize("report", [None, {"sampler": "none", "fallback_reason": "too long"}])
async def test_plain_tokens_are_taken_whatever_is_said_of_them(report: dict[str, Any] | None) -> None:
    async with engine_on(Played([ok_with(report)])) as engine:
        drawn = await engine.generate(CALL)
    assert list(drawn.tokens.ids) == RECORDED["drawn"]["answer"]["output_ids"]


def ok_with(report: dict[str, Any] | None) -> httpx.Response:
    """The recorded draw with `meta_info.power`."""
    answer = RECORDED["drawn"]["answer"]
    return ok({**answer, "meta_info": {**answer["meta_info"], "power": report}})
