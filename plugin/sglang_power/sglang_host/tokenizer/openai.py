"""What OpenAI clients see: metadata.power on answers, progress as SSE comments on streams.

Comment lines are the one thing that every SSE client skips; named events or chunks without choices break
the stock `openai` client. Hooks on SGLang's response builders and stream generators, 0.5.20 to 0.5.23.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from sglang_power.server.config import server_config
from sglang_power.sglang_host.tokenizer.body import body_of
from sglang_power.sglang_host.tokenizer.held_logprobs import ChatLogprobs, HeldLogprobs
from sglang_power.sglang_host.tokenizer.plan import asks_for_power, is_users

logger = logging.getLogger("sglang_power")

_NOTES = "_sglang_power_notes"

PowerReport = dict[str, Any]


class StreamNotes:
    """What the orchestrator tells the stream that carries its answers: progress, and final reports.

    Args:
        incremental: the server streams deltas.
    """

    def __init__(self, incremental: bool = False) -> None:
        self.progress: asyncio.Queue[PowerReport] = asyncio.Queue()
        self._incremental = incremental
        self.logprobs: dict[int, HeldLogprobs] = {}
        self.reports: dict[int, PowerReport] = {}
        self._tokens: dict[int, int] = {}

    def takes(self, index: int, answer: dict[str, Any]) -> bool:
        """Note a chunk of choice `index`; True where the stream itself must carry it (it has new text)."""
        power = answer["meta_info"].get("power") or {}
        tokens = int(answer["meta_info"].get("completion_tokens", 0))
        new_tokens = tokens > self._tokens.get(index, 0)
        self._tokens[index] = tokens
        if "progress" not in power:
            if power:
                self.reports[index] = self._whole(index, power)
            return True
        if not new_tokens:
            self.progress.put_nowait({"index": index, **power["progress"]})
        return new_tokens

    def _whole(self, index: int, power: PowerReport) -> PowerReport:
        """Return a report with the statistics of all rows so far, of which a chunk may bring its own only."""
        before = self.reports.get(index, {}).get("statistics")
        if not self._incremental or before is None or "statistics" not in power:
            return power
        whole = {name: [*values, *power["statistics"][name]] for name, values in before.items()}
        return {**power, "statistics": whole}

    def held(self, index: int, answer: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk that the stream carries, without log probabilities that SGLang would drop now."""
        return self.logprobs.setdefault(index, HeldLogprobs(self._incremental))(answer)


def notes_of(obj: Any) -> StreamNotes | None:
    """The notes of an OpenAI stream; None on other routes."""
    notes: StreamNotes | None = getattr(obj, _NOTES, None)
    return notes


def build_response(
    original: Callable[..., Any],
    serving: Any,
    request: Any,
    ret: list[dict[str, Any]],
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Around the response builders: `metadata.power`, a list with one report per choice."""
    response = original(serving, request, ret, *args, **kwargs)
    reports = [answer["meta_info"].get("power") for answer in ret]
    if any(reports) and hasattr(response, "metadata"):
        response.metadata = {**(response.metadata or {}), "power": reports}
    return response


def stream(
    original: Callable[..., AsyncGenerator[str, None]],
    serving: Any,
    adapted_request: Any,
    request: Any,
    raw_request: Any,
) -> AsyncGenerator[str, None]:
    """Around the stream generators; streams that ask for no sampler pass untouched."""
    lines = original(serving, adapted_request, request, raw_request)
    body, config = body_of(raw_request), server_config()
    may_be_enrolled = config.experiments is not None and is_users(adapted_request)
    if not may_be_enrolled and not asks_for_power(serving.tokenizer_manager, adapted_request, body, config):
        return lines
    notes = StreamNotes(bool(serving.tokenizer_manager.incremental_streaming_output))
    setattr(adapted_request, _NOTES, notes)
    return _never_torn(_noted(lines, notes, serving), serving)


async def _never_torn(lines: AsyncGenerator[str, None], serving: Any) -> AsyncGenerator[str, None]:
    """The lines; an error behind the first of them becomes SGLang's error event and the end of the stream.

    SGLang raises errors before its own first line, so that they become a status; a comment may have been sent
    by then, and with it the status.
    """
    started = False
    try:
        async with aclosing(lines):
            async for line in lines:
                yield line
                started = True
    except Exception as error:
        if not started:
            raise
        if not isinstance(error, ValueError):
            logger.exception("a stream of a sampler failed")
        kind = ("BadRequestError", 400) if isinstance(error, ValueError) else ("InternalServerError", 500)
        yield f"data: {serving.create_streaming_error_response(str(error), *kind)}\n\n"
        yield "data: [DONE]\n\n"


async def _noted(
    lines: AsyncGenerator[str, None], notes: StreamNotes, serving: Any
) -> AsyncGenerator[str, None]:
    """Progress comments between the lines, and metadata.power on the last chunk that carries choices."""
    held: str | None = None
    logprobs = ChatLogprobs(serving, notes.logprobs)
    async with aclosing(_with_comments(lines, notes)) as noted:
        async for line in noted:
            if line.startswith(":"):
                yield line
                continue
            chunk = _chunk_of(line)
            choices: list[dict[str, Any]] = chunk.get("choices") or []
            text = _line_of(chunk) if logprobs.complete(choices) else line
            if held is not None:
                yield held if choices else _with_reports(held, notes)
                held = None
            if any(choice.get("finish_reason") for choice in choices):
                held = text
            else:
                yield text
    if held is not None:
        yield _with_reports(held, notes)


async def _with_comments(lines: AsyncGenerator[str, None], notes: StreamNotes) -> AsyncGenerator[str, None]:
    """SGLang's lines, with a comment line for every progress note that arrives meanwhile."""
    async with aclosing(lines):
        line = asyncio.ensure_future(anext(lines))
        note = asyncio.ensure_future(notes.progress.get())
        try:
            while True:
                await asyncio.wait({line, note}, return_when=asyncio.FIRST_COMPLETED)
                if note.done():
                    yield f": sglang-power {json.dumps(note.result())}\n\n"
                    note = asyncio.ensure_future(notes.progress.get())
                if line.done():
                    try:
                        text = line.result()
                    except StopAsyncIteration:
                        return
                    yield text
                    line = asyncio.ensure_future(anext(lines))
        finally:
            line.cancel()
            note.cancel()
            await asyncio.gather(line, note, return_exceptions=True)


def _chunk_of(line: str) -> dict[str, Any]:
    payload = line.removeprefix("data: ").strip()
    chunk: dict[str, Any] = json.loads(payload) if payload.startswith("{") else {}
    return chunk


def _line_of(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


def _with_reports(line: str, notes: StreamNotes) -> str:
    if not notes.reports:
        return line
    chunk = _chunk_of(line)
    reports = [notes.reports[index] for index in sorted(notes.reports)]
    chunk["metadata"] = {**(chunk.get("metadata") or {}), "power": reports}
    return _line_of(chunk)
