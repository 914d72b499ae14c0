"""What a request for `power` may say."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, StrictBool, model_validator

from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.perfect import AFFORDABLE, PerfectConfig
from sglang_power.algorithms.smc import SMCConfig
from sglang_power.algorithms.tilt import Tilt
from sglang_power.fields import (
    MAX_COUNT,
    MIN_CUT_EPSILON,
    FiniteFloat,
    Positive,
    RewardWeight,
    conflict,
)
from sglang_power.request.needs import Capped, Needs
from sglang_power.request.proposals import DraftedRequest

TRIAL_WIDTH: Final = 16
"""Trials side by side, of `perfect` and of method="auto"."""


def check_trial_reward(reward: str | None, weight: float | None) -> None:
    """Raises a conflict unless a reward's share of a trial's acceptance may be bounded from above."""
    if reward is None and weight is not None:
        raise conflict("reward_weight", "belongs to a reward", "Name a reward, or leave it out")
    if weight is not None and weight < 0.0:
        problem = "with a weight below 0 a trial needs a lower bound of the reward, which none declares"
        raise conflict("reward_weight", problem, "Use a weight of at least 0, or a chain (power)")


class PowerRequest(DraftedRequest):
    """`sampler="power"`: one answer from p(y)^alpha * exp(reward_weight * R(y)) by Metropolis-Hastings.

    Karan & Du, arXiv 2510.14901 (defaults of the paper); entropy cuts: arXiv 2605.30327.

    Args:
        alpha: exponent, 1 to 1,000.
        proposal_temperature: tau, 1e-6 to 1e6; 1/alpha where absent.
        block_size: B, tokens per stage.  steps: N, steps per stage.
        cut: where proposals cut; cut_beta (up to 64), cut_epsilon (1e-6 to 1): parameters of the
            entropy cut.
        method: "chain", or "auto": a few trials of a `perfect` draw first, which short answers end with.
        schedule: "exact" or "paper".  early_rejection: stop lost proposals where that is exact.
        seed: of cuts, acceptance and token draws; below 2^64.
        initial_text, initial_ids: a draft to start from.
        max_steps, max_total_tokens, deadline_ms: budgets (per chain; per request; milliseconds).
        lookback_blocks: freeze what lies further back, and stream it; the law becomes approximate.
        proposal_policy: a per-step policy for proposals, as a request would write it, e.g. {"sampler":
            "top_n_sigma", "n": 1.5}; it measures the law at the proposal temperature.
        top_p, top_k, min_p: truncation of the proposal, after temperature and policy, joint order.
        reward: a reward R of this server; without one the target is p(y)^alpha. It acts in the last stage.
        reward_weight: lambda, of any sign, up to 1e6; 1 where absent.
        return_trace: add every step to the response.
        prefetch: proposals that are generated at once; the chain is the same for any number.
        tries: proposals of one step, of which at most one is accepted (multiple-try Metropolis).
        start: where the last stage starts from: "stages", or the answer of one run of `particles` (`smc`),
            resampled every block_size tokens. The law does not depend on it, how soon it is reached does.
        particles: with start="particles".
    """

    sampler: Literal["power"] = "power"
    block_size: Positive = 192
    steps: Positive = 10
    cut: Literal["uniform", "entropy"] = "uniform"
    cut_beta: Annotated[FiniteFloat, Field(gt=0.0, le=64.0)] = 4.0
    cut_epsilon: Annotated[FiniteFloat, Field(ge=MIN_CUT_EPSILON, le=1.0)] = 0.1
    method: Literal["chain", "auto"] = "chain"
    schedule: Literal["exact", "paper"] = "exact"
    early_rejection: StrictBool = True
    max_steps: Positive | None = None
    lookback_blocks: Positive | None = None
    reward: Annotated[str, Field(min_length=1)] | None = None
    reward_weight: RewardWeight | None = None
    return_trace: StrictBool = False
    prefetch: Positive = 1
    tries: Positive = 1
    start: Literal["stages", "particles"] = "stages"
    particles: Annotated[int, Field(ge=2, le=MAX_COUNT)] = 16

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.lookback_blocks is not None and self.schedule == "paper":
            raise conflict(
                "lookback_blocks",
                "lookback_blocks and schedule='paper' exclude each other",
                "Leave schedule at 'exact', or leave lookback_blocks out",
            )
        if self.lookback_blocks is not None and (self.initial_ids or self.initial_text):
            raise conflict(
                "lookback_blocks",
                "lookback_blocks and a draft exclude each other",
                "A draft is revised as a whole; leave lookback_blocks out",
            )
        return self

    @model_validator(mode="after")
    def _start_where_it_acts(self) -> Self:
        if self.start == "stages":
            if "particles" in self.model_fields_set:
                raise conflict("particles", "not used with start='stages'", "Set start to 'particles'")
            return self
        given = [name for name in ("initial_text", "initial_ids", "lookback_blocks") if getattr(self, name)]
        if self.schedule == "paper":
            given.append("schedule")
        if given:
            problem = "not used with start='particles', which takes the place of the stages before the last"
            raise conflict(given[0], problem, "Leave it out, or leave start at 'stages'")
        return self

    @model_validator(mode="after")
    def _reward_where_it_acts(self) -> Self:
        if self.reward is None and self.reward_weight is not None:
            raise conflict("reward_weight", "belongs to a reward", "Name a reward, or leave it out")
        if self.reward is not None and self.schedule == "paper":
            raise conflict(
                "reward",
                "acts in the last stage, before which schedule='paper' may return",
                "Leave schedule at 'exact', or leave reward out",
            )
        return self

    @model_validator(mode="after")
    def _trials_of_the_target(self) -> Self:
        """With method="auto" trials come before the chain, so the target has to be the trials', too."""
        if self.method == "chain":
            return self
        check_trial_reward(self.reward, self.reward_weight)
        given = [name for name in ("initial_text", "initial_ids") if getattr(self, name) is not None]
        if (field := self.off_target or next(iter(given), None)) is not None:
            problem = "not used with method='auto', whose trials are whole draws of p^alpha"
            raise conflict(field, problem, "Leave it out, or leave method at 'chain'")
        if self.proposal_policy is not None or abs(self.law.kappa - self.alpha) > 1e-9 * self.alpha:
            field = "proposal_temperature" if self.proposal_policy is None else "proposal_policy"
            problem = "trials of method='auto' are drawn at temperature 1/alpha, without a policy"
            raise conflict(field, problem, "Leave it out, or leave method at 'chain'")
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        starts = self.start == "particles"
        return Needs(
            answers=self.particles if starts else 1,
            answers_field="particles" if starts else "n",
            in_step=starts,
            quadratic=True,
            ignores_temperature=self.on_temperature == "ignore",
            reward=self.reward,
            bounded_reward=self.method == "auto",
            forced=self.draft,
            capped=(
                Capped("prefetch", self.prefetch, "max_prefetch"),
                Capped("tries", self.tries, "max_tries"),
                *(() if self.method == "chain" else [Capped("method", TRIAL_WIDTH, "max_width")]),
            ),
        )

    @property
    def idle(self) -> frozenset[str]:
        """Return the parameters that do not act beside the others, and are refused where they are named."""
        return frozenset({"particles"} if self.start == "stages" else ())

    @property
    def weight(self) -> float:
        """The reward's weight in force."""
        return 1.0 if self.reward_weight is None else self.reward_weight

    @property
    def off_target(self) -> str | None:
        """The parameter that takes the limit of the chain off its target, if one does."""
        if self.schedule != "exact":
            return "schedule"
        if self.lookback_blocks is not None:
            return "lookback_blocks"
        limits = [name for name in ("top_k", "top_p", "min_p") if getattr(self.law, name) is not None]
        return next(iter(limits), "proposal_policy") if self.law.truncated else None

    @property
    def cut_law(self) -> CutLaw:
        """The cut law."""
        return UniformCut() if self.cut == "uniform" else EntropyCut(self.cut_beta, self.cut_epsilon)

    def mh_config(self, horizon: int, reward_bound: float | None = None) -> MHConfig:
        """The chain's configuration for L = horizon.

        Args:
            horizon: L.
            reward_bound: what the reward declares as its upper bound.
        """
        return MHConfig(
            alpha=self.alpha,
            law=self.law,
            horizon=horizon,
            block_size=min(self.block_size, horizon),
            steps=self.steps,
            cut=self.cut_law,
            schedule=self.schedule,
            early_rejection=self.early_rejection,
            lookback_blocks=self.lookback_blocks,
            tilt=None if self.reward is None else Tilt(self.weight, reward_bound),
            prefetch=self.prefetch,
            tries=self.tries,
            start=None if self.start == "stages" else self._particle_run(horizon),
        )

    def _particle_run(self, horizon: int) -> SMCConfig:
        """The run that the last stage starts from; it has the chain's proposal law and its blocks."""
        block_size = min(self.block_size, horizon)
        return SMCConfig(self.alpha, self.law, horizon, self.particles, block_size)

    def trial_config(self, horizon: int, reward_bound: float | None = None) -> PerfectConfig:
        """The configuration of the trials of method="auto"; args as `mh_config`."""
        tilt = self.mh_config(horizon, reward_bound).tilt
        trials = (1 + AFFORDABLE) * TRIAL_WIDTH
        return PerfectConfig(self.alpha, horizon, trials, TRIAL_WIDTH, tilt, weighs=True)

    def echo(self, horizon: int, reward_bound: float | None = None) -> dict[str, Any]:
        """The parameters in force, for the response; of a draft, only whether there is one.

        Args: as `mh_config`.
        """
        shown = self.shown({"sampler", "seed", "return_trace", "on_temperature", *self.idle})
        shown["reward_weight"] = None if self.reward is None else self.weight
        shown["early_rejection"] = self.mh_config(horizon, reward_bound).rejects_early
        shown["max_new_tokens"] = horizon
        return shown
