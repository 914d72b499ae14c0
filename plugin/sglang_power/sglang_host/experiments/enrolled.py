"""One enrolled request, from its enrolment line to its completion line. Tokenizer process.

The arm's answers pass through unchanged but for `exposure_id`, which the head of the response has, too. The
completion line is written before the last response is handed over: SGLang drops the generator there. Whether
the client is still there is asked in the same way for every arm, plain ones too: once a second, and once more
when the answer is whole.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import logging
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from fastapi import HTTPException

from sglang_power.errors import PowerError
from sglang_power.experiments.enrolling import Enrolled, Facts
from sglang_power.experiments.feedback import exposure_id
from sglang_power.experiments.records import Completion, RequestOutcome
from sglang_power.samplers.report import plain_report
from sglang_power.sglang_host.experiments.exposure_header import tell
from sglang_power.sglang_host.experiments.service import ExperimentService
from sglang_power.sglang_host.experiments.shadows import ServedAnswer
from sglang_power.sglang_host.tokenizer.answer_writer import Answer
from sglang_power.sglang_host.tokenizer.body import Body
from sglang_power.sglang_host.tokenizer.clients import GONE, has_left
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.meter import Meter
from sglang_power.sglang_host.tokenizer.openai import notes_of
from sglang_power.sglang_host.tokenizer.orchestrator import respond
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan

logger = logging.getLogger("sglang_power")


async def answers(
    service: ExperimentService, host: Host, facts: Facts, body: Body, plans: list[Plan]
) -> AsyncIterator[Any]:
    """A request's answers: of the arm that it is given, or, where it joins no experiment, by `plans`."""
    joined = await service.enrol(facts, host.obj, body)
    run = None if joined is None else _begun(service, host, facts, body, plans, *joined)
    if run is None:
        await tell(host.request, None)
    responses = respond(host, plans) if run is None else run.responses()
    async with aclosing(responses) as source:  # type: ignore[type-var]  # an async generator in fact
        async for response in source:
            yield response


def _begun(
    service: ExperimentService,
    host: Host,
    facts: Facts,
    body: Body,
    plans: list[Plan],
    place: Enrolled,
    plan: Plan,
) -> EnrolledRun | None:
    """The enrolled run; None where a defect keeps it from beginning, which must cost no client an answer."""
    try:
        return EnrolledRun(service, host, facts, body, plans, place, plan)
    except Exception:
        experiment = place.loaded.experiment
        logger.exception("experiment %s: a request is not enrolled", experiment.name)
        service.counters.not_enrolled(experiment, "internal")
        return None


class EnrolledRun:
    """One enrolled request, whose enrolment line is written when it is made.

    Args:
        service: of this process.
        host: the request, and what serves it.
        facts, body: of the request.
        plans: how it would run without the experiment.
        place: the arm that it was given.
        plan: what that arm makes of it.
    """

    def __init__(
        self,
        service: ExperimentService,
        host: Host,
        facts: Facts,
        body: Body,
        plans: list[Plan],
        place: Enrolled,
        plan: Plan,
    ) -> None:
        self._service, self._facts, self._body = service, facts, body
        self._meter = Meter()
        self._host = dataclasses.replace(host, original=self._meter.around(host.original))
        self._pristine = dataclasses.replace(host, obj=copy.copy(host.obj))
        self._plans, self._place, self._plan = plans, place, plan
        self._id, self._arrived = exposure_id(), time.monotonic()
        self._expected = (host.obj.sampling_params or {}).get("n") or 1
        self._last: dict[int, Answer] = {}
        self._first_text: float | None = None
        self._fallback: str | None = None
        self._done = False
        service.enrolled(place, facts, self._id, host.obj.text)

    async def responses(self) -> AsyncIterator[Any]:
        """The arm's responses; what the client gets."""
        try:
            await tell(self._host.request, self._id)
            async with aclosing(self._served()) as source:  # type: ignore[type-var]
                async for response in source:
                    if ends := self._see(response):
                        await self._answered(ends)
                    yield response
        except (GeneratorExit, asyncio.CancelledError):
            self._complete("disconnect", None)
            raise
        except Exception as error:
            self._complete("disconnect" if GONE in str(error) else "error", type(error).__name__)
            raise
        else:
            self._complete("error", "no answer was finished")

    async def _served(self) -> AsyncIterator[Any]:
        """The arm's own responses; those of the server's default where it fails before the first of them.

        Its refusals are failures, too, since the client named no sampler: what is the client's own fault, the
        default refuses as well.
        """
        started = False
        try:
            async with aclosing(respond(self._host, [self._plan], watched=True)) as source:  # type: ignore[type-var]
                async for response in source:
                    if not started and self._may_fall_back and (failure := _failure(response)):
                        raise HTTPException(failure["status_code"], failure["message"])
                    started = started or _says_something(response)
                    yield response
                return
        except (PowerError, HTTPException, ValueError) as error:
            if started or GONE in str(error) or not self._may_fall_back:
                raise
            self._fallback = type(error).__name__
        self._restore()
        async with aclosing(respond(self._host, self._plans, watched=True)) as source:  # type: ignore[type-var]
            async for response in source:
                yield response

    def _restore(self) -> None:
        """Make the request what it was: whoever serves it rewrites its fields (lists for n > 1)."""
        fields = vars(self._host.obj)
        fields.clear()
        fields.update(vars(self._pristine.obj))

    @property
    def _may_fall_back(self) -> bool:
        """Whether the default sampler may answer for the arm; it cannot answer for itself."""
        if self._place.loaded.experiment.on_error != "default_sampler" or self._plans == [self._plan]:
            return False
        model = self._host.manager.served_model_name
        return not self._host.config.is_strict(self._place.arm.sampler, model)

    @property
    def _runs_plain(self) -> bool:
        """Whether SGLang itself answers."""
        plan = self._plan if self._fallback is None else self._plans[0]
        return isinstance(plan, PlainPlan)

    def _see(self, response: Any) -> list[Any]:
        """Note the answers of one response, and name the exposure in them; return how all of them ended.

        Returns:
            The finish reasons; none while an answer is not whole.
        """
        notes = notes_of(self._host.obj)
        for number, answer in enumerate(response if isinstance(response, list) else [response]):
            index = answer.get("index", number)
            power = answer["meta_info"].setdefault("power", plain_report() if self._runs_plain else {})
            power["exposure_id"] = self._id
            if notes is not None and self._runs_plain:
                notes.takes(index, answer)
            if self._first_text is None and answer.get("text"):
                self._first_text = time.monotonic()
            self._last[index] = answer
        ends = [answer["meta_info"].get("finish_reason") for answer in self._last.values()]
        return ends if len(ends) == self._expected and all(ends) else []

    async def _answered(self, ends: list[Any]) -> None:
        """Complete a request with all its answers, which a client that has gone does not get."""
        outcome, reason = self._ending(ends)
        if outcome in ("ok", "fallback", "deadline") and await has_left(self._host):
            outcome, reason = "disconnect", None
        self._complete(outcome, reason)

    def _ending(self, ends: list[Any]) -> tuple[RequestOutcome, str | None]:
        """How a request with all its answers ended."""
        reports = [answer["meta_info"]["power"] for answer in self._last.values()]
        if broken := [end for end in ends if end.get("type") == "abort"]:
            code = broken[0].get("status_code")
            return ("abort", None) if code is None or code < 500 else ("error", f"status {int(code)}")
        if self._fallback is not None:
            return "fallback", self._fallback
        if any(report.get("stopped_by") == "deadline_ms" for report in reports):
            return "deadline", None
        return "ok", None

    def _complete(self, outcome: RequestOutcome, reason: str | None) -> None:
        if self._done:
            return
        self._done = True
        experiment, now = self._place.loaded.experiment, time.monotonic()
        final = [self._last[index] for index in sorted(self._last)]
        meta = final[0]["meta_info"] if final else {}
        text = self._text(final)
        line = Completion(
            at=time.time(),
            exposure_id=self._id,
            experiment=experiment.name,
            arm=self._place.arm.name,
            outcome=outcome,
            reason=reason,
            sampler=meta.get("power", {}).get("sampler"),
            tokens=self._meter.tokens,
            e2e_s=now - self._arrived,
            ttft_s=None if self._first_text is None else self._first_text - self._arrived,
            weight_version=meta.get("weight_version"),
            text=text if self._service.settings.log_text else None,
        )
        self._service.completed(experiment, line)
        if outcome == "ok":
            served = ServedAnswer(self._id, self._place, text)
            self._service.shadows.start(self._service, self._pristine, self._body, served)

    def _text(self, final: list[Answer]) -> str | None:
        """All that was answered; None where the server streams pieces that nobody put together."""
        if self._facts.stream and self._host.manager.server_args.incremental_streaming_output:
            return None
        return "".join(answer.get("text") or "" for answer in final)


def _says_something(response: Any) -> bool:
    """Whether it has a part of an answer; streams may begin with chunks that only tell progress."""
    answers = response if isinstance(response, list) else [response]
    return any(answer.get("text") or answer["meta_info"].get("finish_reason") for answer in answers)


def _failure(response: Any) -> dict[str, Any] | None:
    """The finish reason of a server error that a stream carries, since its status was sent before."""
    reason = None if isinstance(response, list) else response["meta_info"].get("finish_reason")
    failed = (
        reason is not None and reason.get("type") == "abort" and int(reason.get("status_code") or 0) >= 500
    )
    return reason if failed else None
