"""Gets one answer from a server: by SGLang's own sampling, or by a sampler of the plugin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, Protocol

from sglang_power.errors import HostError, PowerError
from sglang_power.fields import UNTEMPERED
from sglang_power.reports import report_of
from sglang_power.serve_benchmark.connection import Connection
from sglang_power.types import LAUNCH_STEPS

Json = dict[str, Any]

NEVER_BY_DEFAULT: Final = {"custom_params": {"sampler": "none"}}
"""Keeps a server's default preset away from requests that are to be plain."""


class NotServedError(PowerError):
    """This server, or this machine, cannot serve a row: it is left out, and the results say so."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it took.

    Args:
        text: of the answer.
        returned: its tokens.
        decoded, prefilled: tokens that the server decoded, and prefilled without what its cache held.
        depth: steps that followed one another: decoded tokens, and launches.
    """

    text: str
    returned: int
    decoded: int
    prefilled: int
    depth: int


class Asker(Protocol):
    """One way to an answer."""

    async def ask(self, text: str, seed: int, room: int) -> Answer:
        """Return an answer of at most `room` tokens.

        Raises:
            NotServedError: the server knows no such sampler or parameter.
            HostError: no answer, or one of another sampler.
        """
        ...


class PlainAsker:
    """SGLang's own sampling."""

    def __init__(self, connection: Connection, params: Mapping[str, Any]) -> None:
        self._connection, self._params = connection, params

    async def ask(self, text: str, seed: int, room: int) -> Answer:  # noqa: ARG002  (takes no seed)
        """Return one draw."""
        sampling = {**UNTEMPERED, **NEVER_BY_DEFAULT, **self._params, "max_new_tokens": room}
        answer = await generate(self._connection, {"text": text, "sampling_params": sampling})
        meta, returned = answer["meta_info"], len(answer["output_ids"])
        return Answer(answer["text"], returned, returned, uncached(meta), LAUNCH_STEPS + returned)


class PluginAsker:
    """A sampler of the plugin, by its name or by a preset."""

    def __init__(self, connection: Connection, params: Mapping[str, Any], sampler: str | None) -> None:
        self._connection, self._params, self._sampler = connection, params, sampler

    async def ask(self, text: str, seed: int, room: int) -> Answer:
        """Return one answer, and what the server reports of it."""
        custom = {**self._params, "seed": seed}
        body = {"text": text, "sampling_params": {"max_new_tokens": room, "custom_params": custom}}
        answer = await generate(self._connection, body)
        report = answer["meta_info"].get("power")
        if self._sampler is not None:
            report_of(report, self._sampler)
        elif not report or report["sampler"] == "none":
            raise HostError(f"the preset {self._params['preset']!r} was asked for, and the answer is plain")
        return Answer(
            text=answer["text"],
            returned=len(answer["output_ids"]),
            decoded=report["decoded_tokens"],
            prefilled=report["prefilled_tokens"],
            depth=report["depth"],
        )


async def generate(connection: Connection, body: Json) -> Json:
    """Return SGLang's answer to one request of /generate.

    Raises:
        NotServedError: HTTP 400.  HostError: no answer, or another status.
    """
    reply = await connection.post("/generate", body)
    if reply.status == HTTPStatus.BAD_REQUEST:
        raise NotServedError(reply.message)
    answer: Json = reply.json()
    return answer


def uncached(meta: Mapping[str, Any]) -> int:
    """Return the prompt tokens that were computed."""
    return int(meta["prompt_tokens"]) - int(meta.get("cached_tokens") or 0)
