"""The experiments of one tokenizer process: opened at its start, watched, asked about every user request.

Joins the server's half of `experiments` (catalogue, assignment, log, counters) with SGLang: which facts a
request has, and whether an arm could serve it. What happens to an enrolled request is `enrolled.py`'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import weakref
from typing import Any

import sglang

import sglang_power
from sglang_power.errors import ConfigError
from sglang_power.experiments.assignment import assigner_of
from sglang_power.experiments.catalogue import Catalogue, Check
from sglang_power.experiments.counters import Counters
from sglang_power.experiments.enrolling import Enrolled, Enroller, Facts
from sglang_power.experiments.log import LineLog
from sglang_power.experiments.model import Arm, Experiment
from sglang_power.experiments.records import Change, Completion, Enrolment, ShadowRun
from sglang_power.experiments.rejected import RejectedEdits
from sglang_power.experiments.settings import EMBEDDED, ExperimentSettings
from sglang_power.experiments.telemetry import EvaluationEvents
from sglang_power.experiments.watching import watch
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.experiments.shadows import Shadows, check_shadow
from sglang_power.sglang_host.tokenizer import intake
from sglang_power.sglang_host.tokenizer.body import Body
from sglang_power.sglang_host.tokenizer.plan import Plan, plan_arm

logger = logging.getLogger("sglang_power")

MEBIBYTE = 2**20
WATCH_AGAIN_S = 1.0
"""After a watch that ended; a kill switch is promised within two seconds."""
_ENDPOINTS = {"/generate": "generate", "/v1/completions": "completions", "/v1/chat/completions": "chat"}

_services: weakref.WeakKeyDictionary[Any, ExperimentService] = weakref.WeakKeyDictionary()


def open_service(manager: Any, config: ServerConfig) -> None:
    """At the start of an HTTP server's process, where its configuration speaks of experiments.

    Raises:
        ConfigError: the experiments, their key or their log cannot be used on this server.
    """
    if config.experiments is not None:
        _services[manager] = ExperimentService(manager, config, config.experiments)


def service_of(manager: Any) -> ExperimentService | None:
    """The service of a TokenizerManager; an Engine has none, since its requests have no unit."""
    return _services.get(manager)


def check_experiments(config: ServerConfig, server_args: Any = None) -> None:
    """What can be known of the experiments before a service is opened.

    Args:
        config: the server's configuration.
        server_args: SGLang's, once they are known.

    Raises:
        ConfigError: see `open_service`.
    """
    if config.experiments is not None:
        _unit_key(config.experiments)
        catalogue = Catalogue(config.experiments.directory, _checked(config, server_args))
        if config.experiments.provider == EMBEDDED:  # another one is made where it is asked, in the service
            assigner_of(config.experiments).load(catalogue.experiments)


def _unit_key(settings: ExperimentSettings) -> bytes:
    key = os.environ.get(settings.unit_key_env)
    if not key:
        problem = f"experiments.unit_key_env={settings.unit_key_env!r}: not set in the environment"
        raise ConfigError(f"{problem}. Export a secret that stays the same; unit names are hashed with it")
    return key.encode()


def _checked(config: ServerConfig, server_args: Any) -> Check:
    """What the catalogue checks every arm with."""
    model = "*" if server_args is None else server_args.served_model_name

    def check(experiment: Experiment, arm: Arm) -> None:
        config.check_arm(arm.sampler, model)
        if arm.shadow and experiment.shadow is not None and server_args is not None:
            check_shadow(arm, experiment.shadow, server_args)

    return check


class ExperimentService:
    """The experiments of one tokenizer process.

    Args:
        manager: SGLang's TokenizerManager.
        config: the server's configuration.
        settings: its section `experiments`.

    Attributes:
        counters: Prometheus metrics.
        shadows: runs of arms that are not served.
    """

    def __init__(self, manager: Any, config: ServerConfig, settings: ExperimentSettings) -> None:
        self.manager, self.config, self.settings = manager, config, settings
        self.counters = Counters(manager.enable_metrics)
        self._log = LineLog(settings.log, settings.rotate_mb * MEBIBYTE, self.counters.log_trouble)
        self._events = EvaluationEvents(settings.provider) if settings.open_telemetry else None
        self._assigner = assigner_of(settings)
        self._catalogue = Catalogue(settings.directory, _checked(config, manager.server_args))
        self._enroller = Enroller(self._assigner, _unit_key(settings), self.counters.not_enrolled)
        self.shadows = Shadows()
        self._stop = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._rejected = RejectedEdits()
        self._take_over([])

    def report(self) -> dict[str, Any]:
        """Return whether each experiment in force here enrols, or drains, and the last edit not taken."""
        self._watch()  # as the first request would: edits since the start count
        enrolling = {each.experiment.name: each.enrolling for each in self._catalogue.experiments}
        draining = [
            each.experiment.name for each in self._catalogue.experiments if each.standing == "draining"
        ]
        return {"experiments": enrolling, "draining": draining, "rejected_edit": self._rejected.last}

    def may_enrol(self, path: str) -> bool:
        """Whether a request of a route could join an experiment."""
        return path in _ENDPOINTS and bool(self._catalogue.experiments)

    def facts_of(self, obj: Any, request: Any, body: Body) -> Facts | None:
        """What a user's request is to an experiment; None where nothing could ever enrol it."""
        self._watch()
        if request is None or not self._catalogue.experiments:
            return None
        params = obj.sampling_params or {}
        limit = params.get("max_new_tokens", 128) if isinstance(params, dict) else None
        user = body.values.get("user")
        return Facts(
            model=self.manager.served_model_name,
            endpoint=_ENDPOINTS.get(request.url.path, request.url.path),
            stream=bool(obj.stream),
            max_new_tokens=limit if isinstance(limit, int) else None,
            headers=request.headers,  # Starlette's, which looks names up in lower case
            user=user if isinstance(user, str) else None,
            metadata=body.metadata,
            excluded=intake.own_choice(obj, body),
        )

    async def enrol(self, facts: Facts, obj: Any, body: Body) -> tuple[Enrolled, Plan] | None:
        """The experiment that a request joins, with the plan that its arm makes of it.

        Raises:
            RequestError: a tester names an arm that is not served.
        """
        plans: dict[str, Plan] = {}

        def fits(arm: Arm) -> bool:
            try:
                plans[arm.name] = self.plan_of(arm, obj, body)
            except ValueError:  # a RequestError, or what SGLang says of its own sampling parameters
                return False
            return True

        place = await self._enroller.enrol(self._catalogue.experiments, facts, fits, time.time())
        return None if place is None else (place, plans[place.arm.name])

    def plan_of(self, arm: Arm, obj: Any, body: Body) -> Plan:
        """What an arm makes of a request.

        Raises:
            RequestError: it cannot serve it.
        """
        return plan_arm(self.manager, obj, body, self.config, arm.sampler)

    def enrolled(self, place: Enrolled, facts: Facts, exposure_id: str, text: object) -> None:
        """Write the enrolment line: here for every arm, controls included, before any token."""
        experiment = place.loaded.experiment
        line = Enrolment(
            at=time.time(),
            exposure_id=exposure_id,
            experiment=experiment.name,
            phase=place.loaded.phase,
            config=place.loaded.config,
            unit=place.unit,
            arm=place.arm.name,
            override=place.override,
            washout=place.washout,
            model=facts.model,
            endpoint=facts.endpoint,
            stream=facts.stream,
            plugin=sglang_power.__version__,
            sglang=sglang.__version__,
            text=text if self.settings.log_text and isinstance(text, str) else None,
        )
        self._log.write(line)
        self.counters.enrolled(experiment, line)
        if self._events is not None:
            self._events.emit(line)

    def completed(self, experiment: Experiment, line: Completion) -> None:
        """Write the completion line."""
        self._log.write(line)
        self.counters.completed(experiment, line)

    def shadow_ran(self, experiment: Experiment, line: ShadowRun) -> None:
        """Write the line of a shadow arm."""
        self._log.write(line)
        self.counters.shadow_ran(experiment, line)

    def write(self, line: Any) -> None:
        """Write a line that is nobody's completion: feedback."""
        self._log.write(line)

    def _watch(self) -> None:
        """Start the watch with the first request, when there is an event loop; look at once what changed."""
        if self._watching is None:
            self._begin_watch()
            self._take_over(self._catalogue.reload())

    def _begin_watch(self) -> None:
        self._watching = asyncio.create_task(watch(self._catalogue, self._take_over, self._stop))
        self._watching.add_done_callback(self._watch_ended)

    def _watch_ended(self, watching: asyncio.Task[None]) -> None:
        """A defect ended it: say so and begin again, or nobody would hear of a kill switch any more."""
        if watching.cancelled() or (error := watching.exception()) is None:
            return
        logger.error("experiments: the watch ended, another one begins", exc_info=error)
        self.counters.reload_problems(1)
        asyncio.get_running_loop().call_later(WATCH_AGAIN_S, self._begin_watch)

    def _take_over(self, problems: list[str]) -> None:
        """After every reading of the directory: flags, log and counters follow the catalogue."""
        for problem in problems:
            logger.error("experiments: %s; what was in force stays", problem)
        self.counters.reload_problems(len(problems))
        self._rejected.read(problems, time.time())
        self._assigner.load(self._catalogue.experiments)
        known = {each.experiment.name: each.experiment for each in self._catalogue.experiments}
        for name in self._catalogue.begun_anew:
            logger.warning(
                "experiment %s: a new version of its file; what was logged so far does not count any more "
                "(sglang-power ab check FILE --log DIR)",
                name,
            )
        for change in self._catalogue.changes:
            self._tell(change, known.get(change.experiment))

    def _tell(self, change: Change, experiment: Experiment | None) -> None:
        logger.info("experiment %s: %s, phase %d", change.experiment, change.why, change.phase)
        self._log.write(change)
        if experiment is None:
            self.counters.removed(change.experiment)
        else:
            self.counters.changed(experiment, change.phase, change.enrolling)
