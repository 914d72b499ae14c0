"""What Ollama's routes need of a stream: text before its last chunk, whole texts, errors as lines.

SGLang (0.5.20 to 0.5.23) cuts what is new off the text of each chunk as if all of them were cumulative, drops
the text of the last one, and has no form for an error behind the first. Tokenizer process.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException

from sglang_power.errors import RequestError
from sglang_power.server.config import server_config
from sglang_power.sglang_host.tokenizer.body import body_of
from sglang_power.sglang_host.tokenizer.plan import plan_request

logger = logging.getLogger("sglang_power")

Answer = dict[str, Any]


class OllamaChunks:
    """The chunks of one answer in the form that these routes read.

    Args:
        incremental: the server streams deltas.
    """

    def __init__(self, incremental: bool) -> None:
        self._incremental, self._text = incremental, ""

    def __call__(self, chunk: Answer) -> list[Answer]:
        """Return a chunk with the whole text so far; the last one behind another that has its text."""
        text = self._text + chunk["text"] if self._incremental else chunk["text"]
        is_new, self._text = len(text) > len(self._text), text
        whole = {**chunk, "text": text}
        if not is_new or chunk["meta_info"]["finish_reason"] is None:
            return [whole]
        return [{**whole, "meta_info": {**whole["meta_info"], "finish_reason": None}}, whole]


async def stream(
    original: Callable[..., Coroutine[Any, Any, Any]],
    serving: Any,
    gen_request: Any,
    raw_request: Any,
    *args: Any,
) -> Any:
    """Around the makers of streams: what can be known before one is a 400, a later error is its last line.

    Ollama's own protocol has such lines.
    """
    try:
        plan_request(serving.tokenizer_manager, gen_request, body_of(raw_request), server_config())
    except RequestError as error:
        raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from error
    response = await original(serving, gen_request, raw_request, *args)
    response.body_iterator = _with_error_line(response.body_iterator)
    return response


async def _with_error_line(lines: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The lines; the status has been sent before the first of them."""
    try:
        async for line in lines:
            yield line
    except Exception as error:
        if not isinstance(error, ValueError | HTTPException):
            logger.exception("a stream of Ollama's routes failed")
        message = error.detail if isinstance(error, HTTPException) else str(error)
        yield json.dumps({"error": message}).encode() + b"\n"
