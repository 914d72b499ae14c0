"""The section `experiments` of the server's configuration file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from sglang_power.fields import Positive, PositiveFloat

EMBEDDED = "embedded"
"""The provider that evaluates flags in the server's own process."""


class Breaker(BaseModel):
    """When an external provider is no longer asked.

    Args:
        failures: in a row, deadlines included.
        reset_s: until it is tried again.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    failures: Positive = 5
    reset_s: PositiveFloat = 30.0


class ExperimentSettings(BaseModel):
    """Where experiments are, and where their log goes.

    Args:
        directory: of experiment files; watched, a change takes effect within two seconds.
        log: directory of the JSONL files, one per process.
        unit_key_env: environment variable with the key that unit names are hashed with.
        rotate_mb: size at which a process goes on in a new file.
        log_text: write prompts and answers into the log.
        open_telemetry: also emit each enrolment as an OpenTelemetry log event `feature_flag.evaluation`;
            needs the extra `[otel]`.
        provider: "embedded", or the name of an entry point of `sglang_power.flag_providers` that makes an
            OpenFeature provider.
        deadline_ms: for an external provider's answer.
        breaker: see Breaker.
        max_feedback_bytes: a larger body of feedback is refused.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    directory: Annotated[Path, Field(strict=False)]
    log: Annotated[Path, Field(strict=False)]
    unit_key_env: Annotated[str, Field(min_length=1)] = "SGLANG_POWER_UNIT_KEY"
    rotate_mb: Positive = 64
    log_text: bool = False
    open_telemetry: bool = False
    provider: Annotated[str, Field(min_length=1)] = EMBEDDED
    deadline_ms: PositiveFloat = 20.0
    breaker: Breaker = Breaker()
    max_feedback_bytes: Positive = 4096
