"""Clients that hang up before their answer is whole. Tokenizer process.

SGLang looks for the client of a child every four seconds, and a fan-out, a reward or a judge may take longer.
So one look a second is taken around all that serves a call, whatever its sampler is and whatever it awaits.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from sglang_power.sglang_host.tokenizer.host import Host

GONE = "is disconnected from the client side"
"""What SGLang says of a client that has gone, and we do."""

CLIENT_CHECK_S = 1.0
"""How often a call looks whether its client is still there."""


async def has_left(host: Host) -> bool:
    """Return whether the client of a call has gone; an Engine has none, a background request needs none."""
    if host.request is None or host.obj.background:
        return False
    return bool(await host.request.is_disconnected())


def attended(host: Host, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Return the responses to a call, which end within a second once its client has gone.

    All that works on them is cancelled then: SGLang aborts the children that run, places are free again.

    Args:
        host: the call.
        responses: what serves it, an async generator.
    """
    return responses if host.request is None or host.obj.background else _attended(host, responses)


async def _attended(host: Host, responses: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """Raises ValueError, as SGLang does, once the client has gone."""
    looked = time.monotonic()
    async with aclosing(responses) as source:  # type: ignore[type-var]  # an async generator in fact
        while True:
            if time.monotonic() - looked >= CLIENT_CHECK_S:
                looked = time.monotonic()
                await _check(host)
            step = asyncio.ensure_future(anext(source))
            try:
                await asyncio.wait([step], timeout=looked + CLIENT_CHECK_S - time.monotonic())
                while not step.done():
                    looked = time.monotonic()
                    await _check(host)
                    await asyncio.wait([step], timeout=CLIENT_CHECK_S)
            finally:
                if not step.done():
                    step.cancel()
                    await asyncio.gather(step, return_exceptions=True)
            try:
                response = step.result()
            except StopAsyncIteration:
                return
            yield response


async def _check(host: Host) -> None:
    if await has_left(host):
        raise ValueError(f"Request {host.obj.rid} {GONE}")
