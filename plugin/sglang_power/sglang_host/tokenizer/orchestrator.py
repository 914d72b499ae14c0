"""Serves one generate_request call in which some prompt asks for a sampler. Tokenizer process.

Each such prompt becomes a run: an AnswerRun for samplers of whole answers, a PolicyRun for per-step policies.
Prompts that ask for nothing go to SGLang. The generator that `serve` returns keeps SGLang's protocol: one
dictionary (or list) without streaming, dictionaries with an `index` with it. All bookkeeping is done before
the last one is yielded: callers drop the generator there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException

from sglang_power.errors import (
    HostError,
    KeyLimitError,
    OverloadedError,
    PowerError,
    RequestError,
    RewardError,
    WeightsChangedError,
)
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.sglang_host.tokenizer import fallback_log, plain_answers
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.answer_run import AnswerRun
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, Emit, empty_answer
from sglang_power.sglang_host.tokenizer.body import body_of
from sglang_power.sglang_host.tokenizer.clients import attended
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.keys import account_of
from sglang_power.sglang_host.tokenizer.ollama import OllamaChunks
from sglang_power.sglang_host.tokenizer.openai import StreamNotes, notes_of
from sglang_power.sglang_host.tokenizer.placeholder import Placeholder, part_of
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan, PolicyPlan
from sglang_power.sglang_host.tokenizer.policy_run import PolicyRun

logger = logging.getLogger("sglang_power")

STATUS: dict[type[PowerError], HTTPStatus] = {
    OverloadedError: HTTPStatus.SERVICE_UNAVAILABLE,
    KeyLimitError: HTTPStatus.TOO_MANY_REQUESTS,
    WeightsChangedError: HTTPStatus.SERVICE_UNAVAILABLE,
    RewardError: HTTPStatus.BAD_GATEWAY,
    HostError: HTTPStatus.INTERNAL_SERVER_ERROR,
}
"""HTTP status of errors that are not the caller's; RequestError is a ValueError, SGLang's 400."""


def respond(host: Host, plans: Sequence[Plan], *, watched: bool = False) -> AsyncIterator[Any]:
    """Answer a call by one plan per prompt; untouched by us where all of them are SGLang's.

    Args:
        host: the call.
        plans: one per prompt.
        watched: whether SGLang's own answers end with their client as soon as ours do, too.
    """
    fallbacks = [plan.fallback for plan in plans if isinstance(plan, PlainPlan) and plan.fallback]
    for each in fallbacks:
        fallback_log.count(each, host.manager.enable_metrics)
    plain_answers.mark(host.obj, plans)
    plain = [plan for plan in plans if isinstance(plan, PlainPlan)]
    if len(plain) < len(plans):
        return attended(host, serve(host, plans))
    responses: AsyncIterator[Any] = host.original(host.manager, host.obj, host.request)
    if any(plan.says_something for plan in plain):
        responses = plain_answers.annotated(responses, host, plain)
    return attended(host, responses) if watched else responses


def serve(host: Host, plans: Sequence[Plan]) -> AsyncIterator[Any]:
    """Answer a call in which at least one plan is an OwnPlan."""
    obj, rid = host.obj, host.obj.rid
    obj.normalize_batch_and_arguments()
    prompts = [obj] if obj.is_single else [obj[i] for i in range(obj.batch_size)]
    each = list(plans) if len(plans) == len(prompts) else [plans[0]] * len(prompts)
    if any(isinstance(plan, AnswerPlan) for plan in each):
        _check_key(host)
    if obj.stream:
        responses = _stream(host, prompts, each, notes_of(obj))
    else:
        responses = _collect(host, prompts, each, single=obj.is_single)
    if obj.is_single or not isinstance(rid, str):
        return responses
    return _known_as(host, rid, [prompt.rid for prompt in prompts], responses)


def _check_key(host: Host) -> None:
    """Raise HTTP 429 where the key has no tokens left and the status is not sent yet.

    OpenAI's streams send theirs with their first line; of the other ones AnswerRun asks, inside the stream.
    """
    account = account_of(host)
    if account is None or (host.obj.stream and notes_of(host.obj) is None):
        return
    try:
        account.check(enabled=host.manager.enable_metrics)
    except KeyLimitError as error:
        raise HTTPException(HTTPStatus.TOO_MANY_REQUESTS, str(error)) from error


async def _known_as(
    host: Host, rid: str, parts: Sequence[str], responses: AsyncIterator[Any]
) -> AsyncIterator[Any]:
    """The responses to a call, whose prompts SGLang named after the one id that the client gave."""
    with host.state.known_as(rid, parts):
        async with aclosing(responses) as source:  # type: ignore[type-var]  # an async generator in fact
            async for response in source:
                yield response


async def _answers(host: Host, obj: Any, plan: Plan, emit: Emit | None, first_index: int) -> list[Answer]:
    """All answers to one prompt, in order; chunks go to `emit` meanwhile."""
    prompt = host.of(obj)
    if isinstance(plan, AnswerPlan):
        return await AnswerRun(prompt, plan).answers(emit, first_index)
    if isinstance(plan, PolicyPlan):
        return await PolicyRun(prompt, plan).answers(emit, first_index)
    count = obj.sampling_params.get("n") or 1
    if count == 1:
        return [await plain_answers.one_answer(prompt, plan, obj.rid, emit, first_index)]
    with Placeholder(prompt):
        samples = [host.of(part_of(obj, number, n=1)) for number in range(count)]
        return await gather_or_cancel(
            [
                plain_answers.one_answer(sample, plan, obj.rid, emit, first_index + i)
                for i, sample in enumerate(samples)
            ]
        )


async def _collect(
    host: Host, prompts: Sequence[Any], plans: Sequence[Plan], *, single: bool
) -> AsyncIterator[Any]:
    try:
        groups = await gather_or_cancel(
            [_answers(host, obj, plan, None, 0) for obj, plan in zip(prompts, plans, strict=True)]
        )
    except PowerError as error:
        status = STATUS.get(type(error))
        if isinstance(error, RequestError) and body_of(host.request).is_ollamas:
            status = HTTPStatus.BAD_REQUEST  # SGLang's other routes make that of a ValueError
        if status is None or host.request is None:
            raise
        raise HTTPException(status, str(error)) from error
    answers = [answer for group in groups for answer in group]
    yield answers[0] if single else answers


async def _stream(
    host: Host, prompts: Sequence[Any], plans: Sequence[Plan], notes: StreamNotes | None
) -> AsyncIterator[Answer]:
    chunks: asyncio.Queue[Answer | None] = asyncio.Queue()
    is_ollamas = body_of(host.request).is_ollamas
    for_ollama = OllamaChunks(bool(host.manager.incremental_streaming_output))

    def emit(index: int, answer: Answer) -> None:
        if notes is not None:
            if not notes.takes(index, answer):
                return
            answer = notes.held(index, answer)
        for chunk in for_ollama(answer) if is_ollamas else [answer]:
            chunks.put_nowait({**chunk, "index": index})

    async def produce() -> None:
        firsts = _first_indices(prompts)
        await gather_or_cancel(
            [_answers(host, obj, plan, emit, i) for obj, plan, i in zip(prompts, plans, firsts, strict=True)]
        )

    producer = asyncio.create_task(produce())
    producer.add_done_callback(lambda _: chunks.put_nowait(None))
    try:
        while (chunk := await chunks.get()) is not None:
            yield chunk
        await producer
    except ValueError:
        raise  # SGLang's routes send its error event and end the stream
    except Exception as error:
        if is_ollamas or (host.request is None and type(error) not in STATUS):
            raise  # Ollama's chunks have no form of an error (see `ollama`); an Engine's caller sees defects
        yield _failed_chunk(host, prompts[0], error)
    finally:
        producer.cancel()
        await asyncio.gather(producer, return_exceptions=True)


def _first_indices(prompts: Sequence[Any]) -> list[int]:
    """Index of each prompt's first answer: prompts first, samples within."""
    firsts, at = [], 0
    for obj in prompts:
        firsts.append(at)
        at += obj.sampling_params.get("n") or 1
    return firsts


def _failed_chunk(host: Host, obj: Any, error: Exception) -> Answer:
    """A stream can no longer change its HTTP status: SGLang's own form of a server error inside it."""
    status = STATUS.get(type(error)) if isinstance(error, PowerError) else None
    message = str(error)
    if isinstance(error, HTTPException):
        status, message = HTTPStatus(error.status_code), str(error.detail)
    if status is None:
        logger.error("a stream of a sampler failed", exc_info=error)
        status = HTTPStatus.INTERNAL_SERVER_ERROR
    reason = {"type": "abort", "message": message, "status_code": status}
    return {**empty_answer(host.manager, obj.rid, reason), "index": 0}
