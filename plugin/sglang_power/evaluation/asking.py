"""Asks for one answer over OpenAI's API, and reads what it took and what the model thought of it."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import openai
from pydantic import BaseModel

from sglang_power.errors import ConfigError, HostError, PowerError, message_of
from sglang_power.evaluation.arms import Arm, sampling_of
from sglang_power.evaluation.catalogue import Api
from sglang_power.fields import UNTEMPERED
from sglang_power.reports import report_of
from sglang_power.types import LAUNCH_STEPS

Json: TypeAlias = dict[str, Any]

ALTERNATIVES: Final = 20
"""Likely tokens that an answer shows at each of its own, for the entropy; OpenAI allows no more in a chat."""

RETRIES: Final = 3
"""Of a request that a busy server, or one that is not there for a moment, did not answer."""

HEAVY: Final = ("trace", "statistics", "tree")
"""Entries of a report that are read here and not kept."""


class RefusedError(PowerError):
    """The server will not serve this request, whenever it is asked: HTTP 400 or 422."""


class UnansweredError(PowerError):
    """There is no answer to this request, and there might be one at another time: a time-out, HTTP 5xx."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer and what it took.

    Args:
        text: of the answer.  finish_reason: as OpenAI names it.
        returned: its tokens.
        decoded, prefilled: tokens that were decoded, and prefilled without what the cache held.
        depth: steps that followed one another.
        log_p: of the whole answer at temperature 1, nats; None where it is not known.
        entropy: mean over its tokens, nats, from below; None where it is not known.
        blocks: steps and accepted ones of each stage of a chain.
        report: `metadata.power`, without what is HEAVY.
        seconds: until the answer was there.
    """

    text: str
    finish_reason: str | None
    returned: int
    decoded: int
    prefilled: int
    depth: int
    log_p: float | None
    entropy: float | None
    blocks: tuple[tuple[int, int], ...]
    report: Json | None
    seconds: float


@dataclass(frozen=True)
class Route:
    """How a server is asked.

    Args:
        model: its name there.
        api: chat or completions.
        max_tokens: of an answer.
        stop: strings that end it.
        has_plugin: whether samplers may be named; without it baselines are SGLang's own.
        alternatives: likely tokens to ask for; 0 for none, and no entropies.
    """

    model: str
    api: Api
    max_tokens: int
    stop: Sequence[str] = ()
    has_plugin: bool = True
    alternatives: int = ALTERNATIVES


class Asker:
    """Asks one server."""

    def __init__(self, client: openai.AsyncOpenAI, route: Route) -> None:
        self._client, self._route = client, route

    async def ask(self, prompt: str, arm: Arm, seed: int) -> Answer:
        """Return an answer.

        Raises:
            RefusedError: the server does not serve this.
            UnansweredError: no answer to this request.
            ConfigError: it wants another key.
            HostError: nobody answers, or another sampler did.
        """
        began = time.perf_counter()
        try:
            response = await self._send(prompt, arm, seed)
        except openai.APITimeoutError as error:
            raise UnansweredError(f"no answer in time: {error}") from error
        except openai.APIConnectionError as error:
            raise HostError(f"the server does not answer any more: {error.__cause__ or error}") from error
        except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
            raise ConfigError("the server wants its key: --api-key, or SGLANG_API_KEY") from error
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            raise RefusedError(message_of(error.response.text)) from error
        except openai.APIStatusError as error:
            told = message_of(error.response.text)
            raise UnansweredError(f"HTTP {error.status_code}: {told}") from error
        return read(response.model_dump(), arm, self._route, time.perf_counter() - began)

    async def _send(self, prompt: str, arm: Arm, seed: int) -> BaseModel:
        route = self._route
        fields: Json = {"model": route.model, "max_tokens": route.max_tokens, **self._sampling(arm, seed)}
        if route.stop:
            fields["stop"] = list(route.stop)
        if route.api == "completions":
            shown: Json = {"logprobs": route.alternatives} if route.alternatives else {}
            text: BaseModel = await self._client.completions.create(prompt=prompt, **fields, **shown)
            return text
        shown = {"logprobs": True, "top_logprobs": route.alternatives} if route.alternatives else {}
        messages = [{"role": "user", "content": prompt}]
        chat: Any = self._client.chat.completions
        answered: BaseModel = await chat.create(messages=messages, **fields, **shown)
        return answered

    def _sampling(self, arm: Arm, seed: int) -> Json:
        own = UNTEMPERED if self._route.has_plugin else sampling_of(arm)
        standard = {name: own[name] for name in ("temperature", "top_p")}
        body: Json = {name: value for name, value in own.items() if name not in standard}
        if not self._route.has_plugin:
            return {**standard, "seed": seed, "extra_body": body}
        custom: Json = {**arm.params, "seed": seed, "strict": True}
        if arm.is_baseline:
            custom["return_statistics"] = True
        if arm.sampler == "power":
            custom.setdefault("return_trace", True)
        return {**standard, "extra_body": {**body, "custom_params": custom}}


def read(response: Json, arm: Arm, route: Route, seconds: float) -> Answer:
    """Return what a response says.

    Args:
        response: of either route, as a dictionary.
        arm: that was asked for.
        route: how.
        seconds: that it took.

    Raises:
        HostError: another sampler answered.
    """
    choice, usage = response["choices"][0], response["usage"]
    text = choice["text"] if route.api == "completions" else choice["message"]["content"] or ""
    rows = _rows(choice.get("logprobs"), route.api)
    returned = int(usage["completion_tokens"])
    report = _report(response, arm) if route.has_plugin else None
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    plain = {
        "decoded_tokens": returned,
        "prefilled_tokens": int(usage["prompt_tokens"]) - int(cached),
        "depth": LAUNCH_STEPS + returned,
    }
    cost = {name: int((report or {}).get(name, value)) for name, value in plain.items()}
    return Answer(
        text=text,
        finish_reason=choice.get("finish_reason"),
        returned=returned,
        decoded=cost["decoded_tokens"],
        prefilled=cost["prefilled_tokens"],
        depth=cost["depth"],
        log_p=_log_p(report, rows, arm),
        entropy=_mean_entropy(rows),
        blocks=_blocks((report or {}).get("trace") or ()),
        report=None if report is None else {k: v for k, v in report.items() if k not in HEAVY},
        seconds=seconds,
    )


def _report(response: Json, arm: Arm) -> Mapping[str, Any]:
    reports = (response.get("metadata") or {}).get("power") or [None]
    return report_of(reports[0], arm.params["sampler"])


Row: TypeAlias = tuple[float, list[float]]
"""The log probability of an answer's token, and those of the likely ones at its place."""


def _rows(logprobs: Any, api: Api) -> list[Row]:
    """What each token of an answer shows of its row; nothing where it was not asked for."""
    if not logprobs:
        return []
    if api == "completions":
        tops = logprobs.get("top_logprobs") or [{}] * len(logprobs["token_logprobs"])
        own = logprobs["token_logprobs"]
        return [(value, list((top or {}).values())) for value, top in zip(own, tops, strict=True)]
    return [
        (entry["logprob"], [top["logprob"] for top in entry.get("top_logprobs") or ()])
        for entry in logprobs["content"] or ()
    ]


def _log_p(report: Mapping[str, Any] | None, rows: Sequence[Row], arm: Arm) -> float | None:
    """Log p of the answer at temperature 1: as the plugin reports it, else as SGLang does where it can.

    SGLang's own log probabilities are taken at the request's temperature, at temperature 0 at that of 1.
    """
    values: list[float | None]
    if report is not None:
        columns = report.get("statistics")
        values = [report.get("log_p")] if columns is None else columns["log_p"]
    else:
        tempered = arm.sampler == "lowtemp" or not rows
        values = [None] if tempered else [value for value, _ in rows]
    known = [float(value) for value in values if value is not None]
    return math.fsum(known) if known and len(known) == len(values) else None


def _mean_entropy(rows: Sequence[Row]) -> float | None:
    """Mean entropy of an answer's rows, from below; None where no row shows alternatives."""
    found = [entropy(top) for _, top in rows if top]
    return math.fsum(found) / len(found) if found else None


def entropy(log_p: Sequence[float]) -> float:
    """Return H of a row of which the likeliest tokens are known; all others count as one token.

    That is a lower bound, H or less, since putting outcomes together never adds entropy.

    Args:
        log_p: of the likeliest tokens, nats.
    """
    p = [math.exp(value) for value in log_p]
    rest = max(0.0, 1.0 - math.fsum(p))
    shares = [*p, rest]
    return -math.fsum(share * math.log(share) for share in shares if share > 0.0)


def _blocks(trace: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int], ...]:
    """Steps and accepted ones, stage by stage."""
    stages = sorted({int(step["stage"]) for step in trace})
    by_stage = {stage: [step for step in trace if step["stage"] == stage] for stage in stages}
    return tuple((len(steps), sum(bool(step["accepted"]) for step in steps)) for steps in by_stage.values())
