"""What a request for `perfect` may say."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, model_validator

from sglang_power.algorithms.perfect import PerfectConfig
from sglang_power.algorithms.tilt import Tilt
from sglang_power.fields import (
    TOP_K_ALL,
    UNTEMPERED,
    Exponent,
    Positive,
    RewardWeight,
    conflict,
)
from sglang_power.request.needs import Capped, Needs
from sglang_power.request.own_law import OwnLawRequest
from sglang_power.request.power import TRIAL_WIDTH, PowerRequest, check_trial_reward

TRUNCATION: Final = ("top_p", "top_k", "min_p")


class PerfectRequest(OwnLawRequest):
    """`sampler="perfect"`: an independent and exact draw of p(y)^alpha * exp(reward_weight * R(y)).

    By rejection sampling with q at temperature 1/alpha, whose trials end as soon as they are lost; after
    `max_trials` it goes on as `power` with its defaults.

    Args:
        alpha: exponent, 1 to 1,000.
        max_trials: trials, at most; fewer where `max_total_tokens` does not hold as many whole answers.
        width: trials side by side.
        reward: a reward of this server that declares its upper bound; without one the target is p(y)^alpha.
        reward_weight: lambda, 0 to 1e6; 1 where absent.
    """

    sampler: Literal["perfect"] = "perfect"
    alpha: Exponent = 4.0
    max_trials: Positive = 1024
    width: Positive = TRIAL_WIDTH
    reward: Annotated[str, Field(min_length=1)] | None = None
    reward_weight: RewardWeight | None = None

    @model_validator(mode="before")
    @classmethod
    def _untruncated(cls, values: Any) -> Any:
        """What keeps every token is dropped, since many clients name it with every request."""
        if not isinstance(values, dict):
            return values
        for name in TRUNCATION:
            if values.get(name) not in (None, UNTEMPERED[name], *([TOP_K_ALL] if name == "top_k" else [])):
                problem = "a truncated proposal misses answers, so that no draw of it is exact"
                raise conflict(name, problem, "Leave it out, or use power")
        return {name: value for name, value in values.items() if name not in TRUNCATION}

    @model_validator(mode="after")
    def _reward_of_a_trial(self) -> Self:
        check_trial_reward(self.reward, self.reward_weight)
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request; `power`, as which it may go on, is quadratic."""
        return Needs(
            quadratic=True,
            ignores_temperature=self.on_temperature == "ignore",
            reward=self.reward,
            bounded_reward=True,
            capped=(Capped("width", self.width, "max_width"),),
        )

    @property
    def chain(self) -> PowerRequest:
        """Return the request for `power` as which this one goes on."""
        return PowerRequest(alpha=self.alpha, reward=self.reward, reward_weight=self.reward_weight)

    def perfect_config(self, horizon: int, reward_bound: float | None = None) -> PerfectConfig:
        """The draw's configuration for L = horizon.

        Args:
            horizon: L.
            reward_bound: what the reward declares as its upper bound.
        """
        tilt = None if self.reward is None else Tilt(self.chain.weight, reward_bound)
        return PerfectConfig(self.alpha, horizon, self.max_trials, self.width, tilt)

    def echo(self, horizon: int) -> dict[str, Any]:
        """The parameters in force, for the response."""
        shown = self.model_dump(exclude={"sampler", "seed", "on_temperature"})
        shown["reward_weight"] = None if self.reward is None else self.chain.weight
        return {**shown, "max_new_tokens": horizon}
