"""What is measured per unit, by where the numbers come from.

Every metric has one value per unit and outcome window. `bounds` decides which confidence sequence applies:
values within known bounds get one that holds for any law, others an asymptotic one.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sglang_power.experiments.records import RequestOutcome, Value
from sglang_power.fields import NonNegativeFloat, PositiveFloat, conflict

Direction = Literal["higher", "lower"]


class _Metric(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @property
    def interferes(self) -> bool:
        """Return whether one arm's value depends on the load that another arm puts on the same workers."""
        return False

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return the bounds of every unit's value; None where there are none."""
        return 0.0, 1.0

    @property
    def is_ratio(self) -> bool:
        """Return whether it is a sum over a count, to be linearised by the ratio of past units."""
        return False

    @property
    def measured_in(self) -> str:
        """Return the unit of a value, for people; empty for shares and for what people said."""
        return ""

    @property
    def meaning(self) -> str:
        """Say what a unit's value is, for people."""
        raise NotImplementedError


class FeedbackMetric(_Metric):
    """What clients, or people, said about answers (POST /sglang_power/feedback).

    Args:
        low, high: bounds of one value, if any; values outside are refused, and counted in the report.
        absent: a unit's value where it said nothing within the window: intention to treat keeps it in.
        per: "unit" is the mean of a unit's values, "request" their sum over the unit's requests.
        direction: which way is better.
    """

    source: Literal["feedback"] = "feedback"
    low: Value | None = None
    high: Value | None = None
    absent: Value
    per: Literal["unit", "request"] = "unit"
    direction: Direction = "higher"

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return the bounds of a unit's value, absent ones included; None where there are none."""
        if self.low is None or self.high is None or self.is_ratio:
            return None
        return min(self.low, self.absent), max(self.high, self.absent)

    @property
    def is_ratio(self) -> bool:
        """Return whether values are summed over requests."""
        return self.per == "request"

    @property
    def meaning(self) -> str:
        """Say what a unit's value is: a sum over its requests, or the mean of what was said."""
        if self.is_ratio:
            return (
                f"sum of what was said of the answers, {self.absent:g} for each of which nothing was said, "
                "over the requests"
            )
        return (
            "mean over units; a unit's value is the mean of what was said of its answers, each answer once "
            f"(the last value), and {self.absent:g} where nothing was said: all units weigh the same"
        )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if (self.low is None) != (self.high is None) or (
            self.low is not None and self.high is not None and self.low >= self.high
        ):
            raise conflict("high", f"no bound above low={self.low}", "Give both bounds, or neither")
        return self


class OutcomeMetric(_Metric):
    """Share of a unit's requests that ended in one of some ways.

    Args:
        outcomes: which ways; "lost" are requests without a completion line.
    """

    source: Literal["outcome"] = "outcome"
    outcomes: Annotated[tuple[RequestOutcome | Literal["lost"], ...], Field(min_length=1)]
    direction: Direction = "lower"

    @property
    def meaning(self) -> str:
        """Say what a unit's value is: a share of its requests, by how they ended."""
        return f"mean over units of the share of a unit's requests that ended as {', '.join(self.outcomes)}"


class LatencyMetric(_Metric):
    """Share of a unit's requests over a limit; those that ended badly, or never, are over it.

    Args:
        over_ms: the limit.
        of: "e2e", or "ttft" (to the first text).
    """

    source: Literal["latency"] = "latency"
    over_ms: PositiveFloat
    of: Literal["e2e", "ttft"] = "e2e"
    direction: Literal["lower"] = "lower"

    @property
    def meaning(self) -> str:
        """Say what a unit's value is: the share of its requests that were late."""
        until = "end" if self.of == "e2e" else "first text"
        late = f"took over {self.over_ms:,g} ms to the {until}, or had no answer"
        return f"mean over units of the share of a unit's requests that {late}"

    @property
    def interferes(self) -> bool:
        """Return True: requests of one arm wait for those of another."""
        return True


class TokensMetric(_Metric):
    """Tokens per request, summed over child requests.

    Args:
        kinds: which tokens.
        gpu_seconds_per_token: kind -> measured price; the metric is then seconds, and called estimated.
    """

    source: Literal["tokens"] = "tokens"
    kinds: Annotated[tuple[Literal["decoded", "prefilled"], ...], Field(min_length=1)] = (
        "decoded",
        "prefilled",
    )
    gpu_seconds_per_token: dict[Literal["decoded", "prefilled"], NonNegativeFloat] | None = None
    direction: Literal["lower"] = "lower"

    @property
    def interferes(self) -> bool:
        """Return True: what the cache still holds depends on the requests of other arms."""
        return True

    @property
    def bounds(self) -> tuple[float, float] | None:
        """Return None: a request may cost any number of tokens."""
        return None

    @property
    def is_ratio(self) -> bool:
        """Return True: tokens are summed over requests."""
        return True

    @property
    def meaning(self) -> str:
        """Say what a unit's value is: tokens per request, or their price."""
        what = f"{' and '.join(self.kinds)} tokens"
        if self.gpu_seconds_per_token is not None:
            what = f"estimated GPU seconds of {what}"
        return (
            f"{what} of all that ran for a request, what was thrown away included, prompts without what the "
            "cache held; sum over all completed requests, divided by their number"
        )

    @property
    def measured_in(self) -> str:
        """Return the unit of a value: tokens, or the seconds that they are priced at."""
        if self.gpu_seconds_per_token is None:
            return "tokens per request"
        return "GPU seconds per request (estimated)"

    @model_validator(mode="after")
    def _every_kind_has_a_price(self) -> Self:
        prices = self.gpu_seconds_per_token
        if prices is not None and (missing := sorted(set(self.kinds) - prices.keys())):
            raise conflict(
                "gpu_seconds_per_token", f"no price for {missing[0]} tokens", "Measure it, or drop the kind"
            )
        return self


Metric: TypeAlias = Annotated[
    FeedbackMetric | OutcomeMetric | LatencyMetric | TokensMetric, Field(discriminator="source")
]
