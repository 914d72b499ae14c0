"""OpenTelemetry's log event of an enrolment, beside its line in the log; off unless it is switched on.

Only OpenTelemetry's API is used: where events go is decided by the LoggerProvider that the operator sets
(`opentelemetry-instrument`, or code). Without one they go nowhere, which is said once. An event that cannot
be emitted is lost, and costs the request nothing.
"""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from sglang_power import __version__
from sglang_power.errors import ConfigError
from sglang_power.experiments.records import Enrolment
from sglang_power.extensions import install_extra

logger = logging.getLogger("sglang_power")

EVENT = "feature_flag.evaluation"


class EvaluationEvents:
    """Emits `feature_flag.evaluation` for every enrolment.

    Names follow OpenTelemetry's semantic conventions 1.44 for feature flags in events; those of
    `openfeature.telemetry` 0.10 are older.

    Args:
        provider: who assigned: "embedded", or the external provider's name.

    Raises:
        ConfigError: OpenTelemetry's API is not installed, or too old.
    """

    def __init__(self, provider: str) -> None:
        self._api = _api()
        self._provider = provider
        self._logger = self._api.get_logger("sglang_power", __version__)
        self._told = False

    def emit(self, line: Enrolment) -> None:
        """Emit the event of one enrolment, in the trace context of the caller."""
        try:
            self._emit(line)
        except Exception:  # of a provider's processors and exporters
            logger.exception("experiments.open_telemetry: an event is lost")

    def _emit(self, line: Enrolment) -> None:
        severity = self._api.SeverityNumber.INFO
        if not self._told and not self._logger.enabled(severity_number=severity, event_name=EVENT):
            self._told = True
            logger.warning("experiments.open_telemetry: no LoggerProvider takes events, they go nowhere")
        record = self._api.LogRecord(
            timestamp=round(line.at * 1e9),
            severity_number=severity,
            event_name=EVENT,
            attributes=attributes(line, self._provider),
        )
        self._logger.emit(record)


def _api() -> Any:
    try:
        api = import_module("opentelemetry._logs")
    except ImportError as error:
        raise _unusable("opentelemetry-api is not installed") from error
    if not hasattr(api.Logger, "enabled"):
        raise _unusable("opentelemetry-api is too old, its loggers have no `enabled`")
    return api


def _unusable(problem: str) -> ConfigError:
    fix = f"Run {install_extra('otel')}, or switch it off"
    return ConfigError(f"experiments.open_telemetry=True: {problem}. {fix}")


def attributes(line: Enrolment, provider: str) -> dict[str, str | int]:
    """Attributes of the event: those of the conventions, and three of ours that join it with the log."""
    return {
        "feature_flag.key": line.experiment,
        "feature_flag.result.variant": line.arm,
        "feature_flag.result.reason": "targeting_match" if line.override else "split",
        "feature_flag.context.id": line.unit,
        "feature_flag.provider.name": provider,
        "feature_flag.version": line.config,
        "sglang_power.exposure_id": line.exposure_id,
        "sglang_power.phase": line.phase,
        "sglang_power.model": line.model,
    }
