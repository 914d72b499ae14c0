"""Sends children that become ready at the same time to the scheduler in one message. Tokenizer process.

A message that arrives while a pass runs waits for its end; children in messages of their own would start in
passes of their own, each of which stalls every running row. So a child is held for a few turns of the event
loop, which take microseconds where nothing else is due: until all that one step of the scheduler has woken,
of whatever request, have asked for their next children. Order is kept: before anything else is sent (an
abort of one of them, say) the held ones are.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from typing import Any

from sglang.srt.managers.io_struct import BatchTokenizedGenerateReqInput

TURNS = 8
"""Turns of the event loop from the first held child to the message: what lies between the end of a child and
the next one that its sampler asks for (a task per child, one that gathers them, one for the sampler)."""


class Launches:
    """The children of one tokenizer process that wait to be sent."""

    def __init__(self) -> None:
        self._held: list[Any] = []
        self._send: Callable[[Any], None] = lambda _: None

    def hold(self, child: Any, send: Callable[[Any], None]) -> None:
        """Send a child together with those that follow at once.

        Args:
            child: SGLang's tokenized request, packed for the way.
            send: hands one message to the scheduler.
        """
        if not self._held:
            asyncio.get_running_loop().call_soon(self._wait, TURNS - 1)
        self._send = send
        self._held.append(copy.copy(child))  # SGLang unpacks its own one as soon as it believes it sent

    def flush(self) -> None:
        """Send what is held."""
        held, self._held = self._held, []
        if held:
            self._send(held[0] if len(held) == 1 else BatchTokenizedGenerateReqInput(batch=held))

    def _wait(self, turns: int) -> None:
        if turns and self._held:
            asyncio.get_running_loop().call_soon(self._wait, turns - 1)
        else:
            self.flush()
