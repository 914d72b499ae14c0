"""The parts of an experiment's file, each valid in itself; `model` knows how they fit together."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from sglang_power.fields import METADATA_KEY, NonNegativeFloat, Positive, PositiveFloat, conflict

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
BasisPoints = Annotated[int, Field(ge=0, le=10_000)]
"""Hundredths of a percent."""

WHOLE = 10_000
Endpoint = Literal["generate", "completions", "chat"]


class Section(BaseModel):
    """A part of the file: unknown keys and other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InRequest(Section):
    """A part that says where in a request a name stands.

    Args:
        metadata: key of the body's `metadata`, OpenAI's; gateways pass it on that drop headers and `user`.
    """

    metadata: Annotated[str, Field(min_length=1, max_length=64)] | None = None

    @model_validator(mode="after")
    def _is_not_the_samplers(self) -> Self:
        if self.metadata == METADATA_KEY:
            raise conflict("metadata", "the key that holds a request's sampler", "Choose another key")
        return self

    @model_serializer(mode="wrap")
    def _without_an_absent_key(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Return the fields without a `metadata` of null: files that name no key keep the hash they had."""
        values: dict[str, Any] = handler(self)
        return {key: value for key, value in values.items() if key != "metadata" or value is not None}


class Unit(InRequest):
    """Whose requests stay together: exactly one of the three.

    Args:
        header: HTTP header that names the user or the session.
        field: body field that does; OpenAI's `user`.
        metadata: entry of the body's `metadata` that does.
    """

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    field: Literal["user"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        given = [place for place in (self.header, self.field, self.metadata) if place is not None]
        if len(given) != 1:
            problem = f"{'none' if not given else 'more than one'} of header, field and metadata"
            raise conflict("header", problem, "Give a header, field: user, or a key of metadata")
        return self


class Eligibility(Section):
    """Which requests may be enrolled at all.

    Args:
        models: served model names; all where empty.
        endpoints: routes.
        min_max_new_tokens: requests that may not generate as many run as without the experiment.
    """

    models: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ("generate", "completions", "chat")
    min_max_new_tokens: Positive = 2


class Namespace(Section):
    """A share of the units that no other experiment of the namespace may have.

    Args:
        name: the same in every experiment that excludes the others.
        first, last: units in [first, last) of 10,000, by a salt of the namespace's own.
    """

    name: Name
    first: BasisPoints
    last: BasisPoints

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first >= self.last:
            raise conflict("last", f"not above first={self.first}", "Give a range with units in it")
        return self


class Holdout(Section):
    """Units that are in no experiment which names this holdout.

    Args:
        name: its salt.
        share: of all units.
    """

    name: Name
    share: Annotated[int, Field(ge=1, le=5_000)]


class Arm(Section):
    """One way to sample.

    Args:
        name: in logs, metrics and reports.
        sampler: parameters as a client would write them (a preset among them); {"sampler": "none"} alone is
            SGLang's own sampling.
        weight: basis points of the enrolled units; ramps replace it.
        control: what the other arms are compared with: "plain", or "compute_matched" (the same tokens, spent
            without the idea under test).
        shadow: runs after the response of another arm, is logged and never served; its weight is 0.
    """

    name: Name
    sampler: dict[str, Any]
    weight: BasisPoints
    control: Literal["plain", "compute_matched"] | None = None
    shadow: bool = False

    @model_validator(mode="after")
    def _none_has_no_parameters(self) -> Self:
        ignored = sorted(self.sampler.keys() - {"sampler"})
        if ignored and self.sampler.get("sampler") == "none":
            raise conflict(f"sampler.{ignored[0]}", "means nothing without a sampler", "Leave it out")
        return self


class Primary(Section):
    """The one metric that decides.

    Args:
        metric: its name.
        min_effect: smallest improvement over a control that is worth shipping, in the metric's own unit.
    """

    metric: Name
    min_effect: NonNegativeFloat


class Guardrail(Section):
    """A metric that must not get worse.

    Args:
        metric: its name.
        margin: the loss that is still accepted, in the metric's own unit.
    """

    metric: Name
    margin: PositiveFloat


class MinimumRun(Section):
    """No verdict but "stop" before both are reached.

    Args:
        days: since the first enrolment of the phase.
        units: in the analysis, all arms together.
    """

    days: NonNegativeFloat = 7.0
    units: Positive = 1_000


class Phase(Section):
    """One step of a ramp.

    Args:
        weights: basis points of every arm that is served.
        min_hours, min_units: what it takes to go on to the next phase.
    """

    weights: dict[Name, BasisPoints]
    min_hours: NonNegativeFloat = 24.0
    min_units: Positive = 100


class Override(InRequest):
    """Lets named units choose their arm, for tests by hand; they are excluded from the analysis.

    Args:
        header: HTTP header that names the arm.
        metadata: entry of the body's `metadata` that names it where the header is absent.
        units: who may.
    """

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "x-sglang-power-arm"
    units: Annotated[tuple[str, ...], Field(min_length=1)]


class Shadow(Section):
    """What shadow arms may cost.

    Args:
        tokens_per_hour: decoded tokens of all shadow arms of the experiment, per tokenizer process.
        priority: of their requests. The server must run with --enable-priority-scheduling and
            --default-priority-value, and this must be so far behind that value that users preempt a shadow:
            below it by more than --priority-scheduling-preemption-threshold; above it with
            --schedule-low-priority-values-first.
    """

    tokens_per_hour: Positive
    priority: int = -100


class Switchback(Section):
    """Randomised time windows: every request of a window has the same arm, on all servers of the pool.

    Args:
        pool: name of the servers that share their load.
        window_s: length of a window.
        washout_s: its beginning, which is not analysed: what the window before left running.
        min_windows: no verdict below it.
    """

    pool: Name
    window_s: PositiveFloat
    washout_s: NonNegativeFloat = 60.0
    min_windows: Annotated[int, Field(ge=40)] = 40

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.washout_s >= self.window_s:
            raise conflict("washout_s", f"not below window_s={self.window_s}", "Leave time to measure")
        return self
