"""The lines of an experiment's log: JSON, one object per line, versioned.

Written by every process of every server (`log`), read by the analysis. No prompt, no answer and no unit's
name is in them: units are keyed hashes. Times are seconds since 1970 (UTC).
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic_core import PydanticCustomError

from sglang_power.fields import FiniteFloat

VERSION: Literal[1] = 1

RequestOutcome = Literal["ok", "error", "abort", "disconnect", "deadline", "fallback"]
"""How a request ended; "fallback": the arm failed and the server's default sampler answered."""

LARGEST_VALUE = 1e50
"""Of a metric: sums over units of its third power must stay numbers."""


def _computable(value: float) -> float:
    if abs(value) > LARGEST_VALUE:
        limits = f"{-LARGEST_VALUE:g} and {LARGEST_VALUE:g}"
        raise PydanticCustomError("too_large", "Input should be between {limits}", {"limits": limits})
    return value


Value = Annotated[FiniteFloat, AfterValidator(_computable)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]


def unit_hash(name: str, key: bytes) -> str:
    """Return what the log calls a unit: whoever has no key can neither read nor guess its name."""
    return hmac.new(key, name.encode(), hashlib.sha256).hexdigest()[:32]


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1] = VERSION
    at: Seconds


class Enrolment(_Line):
    """A request was given an arm; written before any token, for every arm at the same place.

    Args:
        exposure_id: names this request in completions, feedback and the response.
        experiment, phase, config: which experiment; `config` is the version of its file (`versions`).
        unit: keyed hash of the unit, or with switchback the window's number.
        arm: the assigned one.
        override: a tester chose it; excluded from the analysis.
        washout: within the washout of a switchback's window; excluded, too.
        model, endpoint, stream: of the request, known before the assignment.
        plugin, sglang: versions.
        text: the prompt, only where the server's configuration says so.
    """

    type: Literal["enrolment"] = "enrolment"
    exposure_id: str
    experiment: str
    phase: Count
    config: str
    unit: str
    arm: str
    override: bool = False
    washout: bool = False
    model: str
    endpoint: str
    stream: bool
    plugin: str
    sglang: str
    text: str | None = None


class TokenCounts(BaseModel):
    """Tokens of all that SGLang ran for one request: its children, and answers of SGLang's own.

    Args:
        decoded: generated, those that were thrown away included.
        prefilled: computed for prompts and prefixes, without what the cache held.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    decoded: Count
    prefilled: Count


class Completion(_Line):
    """An enrolled request ended.

    Args:
        exposure_id, experiment, arm: of its enrolment.
        outcome: see RequestOutcome.
        reason: of an outcome that is not "ok".
        sampler: what really ran; None where nothing did.
        tokens: see TokenCounts.
        e2e_s: from arrival to the end.
        ttft_s: from arrival to the first text, if any came.
        weight_version: of the served model.
        text: the answer, only where the server's configuration says so.
    """

    type: Literal["completion"] = "completion"
    exposure_id: str
    experiment: str
    arm: str
    outcome: RequestOutcome
    reason: str | None = None
    sampler: str | None = None
    tokens: TokenCounts
    e2e_s: Seconds
    ttft_s: Seconds | None = None
    weight_version: str | None = None
    text: str | None = None


class Feedback(_Line):
    """A value of a metric for one answer, as it was posted; the report says whether the exposure exists."""

    type: Literal["feedback"] = "feedback"
    exposure_id: str
    metric: str
    value: Value


class ShadowRun(_Line):
    """A shadow arm ran after a response.

    Args:
        exposure_id, experiment: of the served request.
        arm, served: the shadow arm and the one that was served.
        outcome, tokens, e2e_s: as in Completion.
        same_text: whether both answers are the same text; None where the shadow gave none.
    """

    type: Literal["shadow"] = "shadow"
    exposure_id: str
    experiment: str
    arm: str
    served: str
    outcome: RequestOutcome
    tokens: TokenCounts
    e2e_s: Seconds
    same_text: bool | None = None


class Change(_Line):
    """What a process knows of an experiment from this moment on: loaded, killed, another phase, gone.

    Args:
        experiment, phase, config: as in Enrolment.
        enrolling: whether requests may join it.
        why: "draining" is enrolling, too, but units that come from now on are not analysed.
        rules: hash of how its data are to be judged; None in lines of the first releases.
        legacy: what the first releases called the same file; None in their own lines.
    """

    type: Literal["change"] = "change"
    experiment: str
    config: str
    phase: Count
    enrolling: bool
    why: Literal["loaded", "killed", "draining", "removed"]
    rules: str | None = None
    legacy: str | None = None


Line: TypeAlias = Annotated[
    Enrolment | Completion | Feedback | ShadowRun | Change, Field(discriminator="type")
]
LINE: TypeAdapter[Line] = TypeAdapter(Line)
"""Parses one line of a log: `LINE.validate_json(text)`."""
