"""Arms that run after the response of another arm, and are never served: logged pairwise. Tokenizer process.

They run one after the other, behind all users, start only while their experiment's token budget of the hour
lasts, and only after answers that ended well. What waits is bounded; a request whose shadow finds no place
has none.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastapi import HTTPException

from sglang_power.errors import PowerError, RequestError
from sglang_power.experiments.enrolling import Enrolled
from sglang_power.experiments.model import Arm, Experiment
from sglang_power.experiments.records import RequestOutcome, ShadowRun
from sglang_power.experiments.sections import Shadow
from sglang_power.sglang_host.tokenizer.answer_writer import Answer
from sglang_power.sglang_host.tokenizer.body import Body
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.meter import Meter
from sglang_power.sglang_host.tokenizer.orchestrator import respond

if TYPE_CHECKING:
    from sglang_power.sglang_host.experiments.service import ExperimentService

logger = logging.getLogger("sglang_power")

HOUR_S = 3600.0
WAITING = 64
"""Shadow runs that may wait for their turn in one process."""


@dataclass(frozen=True)
class ServedAnswer:
    """What a shadow is compared with: the exposure, its place, and the text that was served, if known."""

    exposure_id: str
    place: Enrolled
    text: str | None


def check_shadow(arm: Arm, shadow: Shadow, server_args: Any) -> None:
    """Refuse a server on which a shadow could be in a user's way.

    Args:
        arm: a shadow.
        shadow: the experiment's section.
        server_args: SGLang's.

    Raises:
        RequestError: what is missing, and how to start the server.
    """
    if (found := _in_the_way(shadow, server_args)) is not None:
        raise RequestError("shadow", arm.name, *found)


def _in_the_way(shadow: Shadow, server_args: Any) -> tuple[str, str] | None:
    """Why a shadow might not wait for users, or give way to them, and what helps.

    SGLang puts requests without a priority behind all that have one, whatever it is, unless they get a
    default; a request preempts those that are behind it by more than a threshold.
    """
    low, users = "shadow arms run at low priority", server_args.default_priority_value
    if not server_args.enable_priority_scheduling:
        return f"{low}, which this server does not know", "Start it with --enable-priority-scheduling"
    if users is None:
        return f"{low}, but who names no priority is last here", "Start it with --default-priority-value 0"
    if server_args.disable_priority_preemption:
        return f"{low}, but none gives way once it runs", "Start it without --disable-priority-preemption"
    behind = 1 if server_args.schedule_low_priority_values_first else -1
    needed = max(0, server_args.priority_scheduling_preemption_threshold) + 1
    if behind * (shadow.priority - users) >= needed:
        return None
    problem = f"{low}, but shadow.priority={shadow.priority} does not give way to the users' {users}"
    return problem, f"Set it to {users + behind * needed}, or further from {users}"


class Shadows:
    """The shadow runs of one process.

    Args:
        clock: seconds; budgets are for each hour since the construction.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._began = clock, clock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._turn = asyncio.Lock()
        self._hour, self._spent = 0.0, Counter[str]()

    def start(self, service: ExperimentService, host: Host, body: Body, served: ServedAnswer) -> None:
        """Have every shadow arm of an experiment answer a request that was served.

        A turn of a session has none: the shadow's would become part of it.

        Args:
            service: of this process.
            host: the request as it came, before anybody served it.
            body: the client's.
            served: what the client got.
        """
        if host.obj.session_params is not None:
            return
        for arm in served.place.loaded.experiment.arms:
            if arm.shadow and len(self._tasks) < WAITING:
                task = asyncio.create_task(self._run(service, host, body, arm, served))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _run(
        self, service: ExperimentService, host: Host, body: Body, arm: Arm, served: ServedAnswer
    ) -> None:
        experiment = served.place.loaded.experiment
        async with self._turn:
            if not self._has_budget(experiment):
                return
            meter, began = Meter(), time.monotonic()
            copied, original = _copied(host.obj, experiment), meter.around(host.original)
            outcome, answers = await _answered(
                service, replace(host, obj=copied, original=original, request=None), body, arm
            )
            tokens = meter.tokens
            self._spent[experiment.name] += tokens.decoded
        text = "".join(answer.get("text") or "" for answer in answers) if outcome == "ok" else None
        line = ShadowRun(
            at=time.time(),
            exposure_id=served.exposure_id,
            experiment=experiment.name,
            arm=arm.name,
            served=served.place.arm.name,
            outcome=outcome,
            tokens=tokens,
            e2e_s=time.monotonic() - began,
            same_text=None if None in (text, served.text) else text == served.text,
        )
        service.shadow_ran(experiment, line)

    def _has_budget(self, experiment: Experiment) -> bool:
        assert experiment.shadow is not None
        hour = (self._clock() - self._began) // HOUR_S
        if hour != self._hour:
            self._hour, self._spent = hour, Counter()
        return self._spent[experiment.name] < experiment.shadow.tokens_per_hour


def _copied(obj: Any, experiment: Experiment) -> Any:
    """The request once more, for nobody: a name of its own, no stream, low priority."""
    assert experiment.shadow is not None
    copied = copy.copy(obj)
    copied.rid, copied.stream, copied.log_metrics = f"shadow-{uuid.uuid4().hex}", False, False
    copied.priority = experiment.shadow.priority
    return copied


async def _answered(
    service: ExperimentService, host: Host, body: Body, arm: Arm
) -> tuple[RequestOutcome, list[Answer]]:
    """How a shadow's run ended, and its answers."""
    try:
        plan = service.plan_of(arm, host.obj, body)
        async with aclosing(respond(host, [plan])) as source:  # type: ignore[type-var]
            response = await anext(source)
    except (PowerError, HTTPException, ValueError) as error:
        logger.warning("shadow arm %s failed: %s", arm.name, type(error).__name__)
        return "error", []
    return "ok", response if isinstance(response, list) else [response]
