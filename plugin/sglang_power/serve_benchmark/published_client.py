"""Starts the published algorithm in a process of its own, and asks it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import IO, Any

from sglang_power.errors import HostError
from sglang_power.serve_benchmark.askers import Answer, NotServedError
from sglang_power.serve_benchmark.naive import ChainSettings

MODULE = "sglang_power.serve_benchmark.published"
QUIET = {"HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error"}
LONGEST_LINE = 1 << 24
STOP_S = 10.0


class PublishedAsker:
    """One sequence at a time: whoever asks meanwhile waits."""

    def __init__(self, process: asyncio.subprocess.Process, errors: IO[bytes]) -> None:
        self._process, self._errors = process, errors
        self._turn = asyncio.Lock()

    async def ask(self, text: str, seed: int, room: int) -> Answer:
        """Return the last state of a chain."""
        async with self._turn:
            return Answer(**await self.exchange({"text": text, "seed": seed, "room": room}))

    async def exchange(self, line: dict[str, Any]) -> dict[str, Any]:
        """Send a line, and return what the process says to it.

        Raises:
            HostError: it ended; with the end of what it printed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError, ConnectionResetError):
            self._process.stdin.write(json.dumps(line).encode() + b"\n")
            await self._process.stdin.drain()
        told = await self._process.stdout.readline()
        if not told:
            self._errors.seek(0)
            ended = self._errors.read()[-2000:].decode(errors="replace")
            raise HostError(f"the published algorithm's process ended: {ended}")
        answer: dict[str, Any] = json.loads(told)
        return answer


@asynccontextmanager
async def published(model: Path | None, chain: ChainSettings) -> AsyncIterator[PublishedAsker]:
    """The running process, once its model is loaded.

    Raises:
        NotServedError: no weights are at hand.  HostError: it does not start.
    """
    if model is None:
        raise NotServedError("the model's folder is not known: name it by --model-path")
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", MODULE],
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **QUIET},
            limit=LONGEST_LINE,
        )
        try:
            asker = PublishedAsker(process, errors)
            await asker.exchange({"model": str(model), "chain": chain.model_dump()})
            yield asker
        finally:
            await _ended(process)


async def _ended(process: asyncio.subprocess.Process) -> None:
    """End the process: by the end of its questions, then for certain."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), STOP_S)
    except TimeoutError:
        process.kill()
        await process.wait()
