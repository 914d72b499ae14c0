"""What requests may say that draw several samples and choose one of them: `vote`, `best_of`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar, Final, Literal, Self

from pydantic import ConfigDict, TypeAdapter, ValidationError, field_validator, model_validator

from sglang_power.algorithms.adaptive_alpha import HIGHEST, LOWEST
from sglang_power.algorithms.votes import samples_needed
from sglang_power.fields import Exponent, Fraction, Positive, conflict, score_name
from sglang_power.policies import Policy
from sglang_power.request.needs import Needs
from sglang_power.request.power import PowerRequest
from sglang_power.request.selection import RewardName, SamplesRequest, check_reward, with_judge

ADAPTIVE: Final = "adaptive"

Stopping = Literal["decided", "certain", "never"]

_EXPONENT = TypeAdapter(Exponent, config=ConfigDict(strict=True))


class StoppableRequest(SamplesRequest):
    """What `vote` and `best_of` say of samples that need not be drawn, or not to their end.

    Args:
        stopping: when the rest of the samples is not drawn.
        window: samples that are drawn at a time, at most, where they may stop.
        error: with stopping="certain", the chance that another class is more common.
        drop_below: end a sample once a group of its tokens is less confident than this quantile of the least
            confident groups of the first samples, e.g. 0.1 (DeepConf, arXiv 2508.15260; a heuristic).
        warmup: with drop_below, how many these first samples are; they run to their end.
    """

    speaks_of: ClassVar[dict[str, str]] = {
        "window": "stopping",
        "error": "stopping",
        "warmup": "drop_below",
    }
    """They are dropped where a later layer (a preset, a request) asks for another stopping."""

    stopping: Stopping | None = None
    window: Positive = 8
    error: Fraction = 0.05
    drop_below: Fraction | None = None
    warmup: Positive = 16

    @property
    def rule(self) -> Stopping:
        """When the rest of the samples is not drawn, after defaults."""
        return self.stopping or "never"

    @property
    def idle(self) -> set[str]:
        """Parameters that do nothing in this request."""
        confidence = set() if self.drop_below is not None else {"drop_below", "warmup"}
        certainty = set() if self.rule == "certain" else {"error"}
        return confidence | certainty | (set() if self.rule != "never" else {"window"})

    @model_validator(mode="after")
    def _dropping_where_it_acts(self) -> Self:
        if self.drop_below is None:
            return self
        if self.base is not None and not isinstance(self.base, Policy):
            problem = "a chain replaces its tokens, so their confidence ends nothing"
            raise conflict("drop_below", problem, "Leave it out, or draw without such a base")
        if self.warmup >= self.samples:
            problem = f"the first {self.warmup} samples run to their end, which are all {self.samples}"
            raise conflict("drop_below", problem, "Raise samples, or lower warmup")
        return self

    def _check_idle(self) -> None:
        """Raises a conflict where a parameter is named that does nothing."""
        belongs_to = {"warmup": "drop_below", "error": "stopping='certain'", "window": "a stopping rule"}
        for name, other in belongs_to.items():
            if name in self.idle & self.model_fields_set:
                raise conflict(name, f"belongs to {other}, which is not asked for", "Leave it out")

    def echo(self) -> dict[str, Any]:
        """The parameters in force, for the response; they can be sent again."""
        told = {**super().echo(), "stopping": self.rule}
        return {name: value for name, value in told.items() if name not in self.idle}


class VoteRequest(StoppableRequest):
    """`sampler="vote"`: self-consistency (Wang et al., arXiv 2203.11171) over equivalent answers.

    Args:
        weight: what a sample adds to its class: "count" 1, "confidence" its Delta, "power" the weight that
            makes draws of their law draws of p^alpha. That law has to be known: samples that a limit ended
            weigh nothing, which favours short answers.
        alpha: exponent of the power weights; "adaptive": samples are chains of `base`, whose exponent moves
            from round to round towards the one at which likelier answers agree no more than others (Adaptive
            Power Sampling), and those of the last round vote. Then `samples` (12) are all rounds together and
            `window` (4) is one of them.
        stopping: "decided" once no sample to come can change the winner (the default where samples count 1
            each), "certain" once it is the commonest class of the law but for a chance of `error`, "never".
    """

    sampler: Literal["vote"] = "vote"
    weight: Literal["count", "confidence", "power"] = "count"
    alpha: float | Literal["adaptive"] = 4.0

    @model_validator(mode="before")
    @classmethod
    def _published_defaults(cls, values: Any) -> Any:
        adaptive = isinstance(values, dict) and values.get("alpha") == ADAPTIVE
        return {"samples": 12, "window": 4, **values} if adaptive else values

    @field_validator("alpha", mode="before")
    @classmethod
    def _exponent(cls, value: object) -> object:
        if value == ADAPTIVE:
            return value
        try:
            return _EXPONENT.validate_python(value)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]["msg"]
            raise conflict("alpha", problem, 'Name a number, or "adaptive"') from None

    @property
    def adaptive(self) -> bool:
        """Whether the exponent moves."""
        return self.alpha == ADAPTIVE

    @property
    def exponent(self) -> float:
        """The exponent of power weights; 1 where it moves, since then samples count."""
        return 1.0 if isinstance(self.alpha, str) else self.alpha

    @property
    def rule(self) -> Stopping:
        """When the rest of the samples is not drawn, after defaults."""
        counts = self.weight == "count" and not self.adaptive
        return self.stopping or ("decided" if counts else "never")

    @property
    def idle(self) -> set[str]:
        """Parameters that do nothing in this request."""
        alpha = set() if self.weight == "power" or self.adaptive else {"alpha"}
        return alpha | super().idle - ({"window"} if self.adaptive else set())

    @model_validator(mode="after")
    def _weights_that_are_known(self) -> Self:
        if self.weight != "power":
            if "alpha" in self.idle & self.model_fields_set:
                raise conflict("alpha", f"not used with weight={self.weight!r}", "Set weight to 'power'")
        elif isinstance(self.base, PowerRequest) and (field := self.base.off_target) is not None:
            problem = (
                "it takes the chains off p^alpha, so the law that weight='power' corrects for is unknown"
            )
            raise conflict(f"base.{field}", problem, "Leave it out, or weigh samples by count")
        return self

    @model_validator(mode="after")
    def _stopping_where_it_can(self) -> Self:
        if self.adaptive:
            self._check_adaptive()
        elif self.rule != "never" and self.weight != "count":
            problem = f"with weight={self.weight!r} there is no useful bound on what later samples weigh"
            raise conflict("stopping", problem, "Set weight to 'count', or stopping to 'never'")
        if self.rule == "certain":
            self._check_certain()
        if self.drop_below is not None and self.weight == "power":
            problem = "samples that are left out make the law unknown that weight='power' corrects for"
            raise conflict("drop_below", problem, "Leave it out, or weigh samples otherwise")
        self._check_idle()
        return self

    def _check_certain(self) -> None:
        """Raises a conflict where no vote of so many samples can be certain, or no law is behind them."""
        if self.drop_below is not None:
            problem = "samples that are left out have no law whose commonest class there could be"
            raise conflict("drop_below", problem, "Leave it out, or set stopping to 'decided'")
        if (needed := samples_needed(self.error)) > self.samples:
            problem = f"with error={self.error} it takes {needed} samples at least, of {self.samples}"
            raise conflict("stopping", problem, "Raise samples or error, or set stopping to 'decided'")

    def _check_adaptive(self) -> None:
        """Raises a conflict where an exponent cannot move."""
        if self.weight != "count":
            raise conflict("alpha", "'adaptive' is not used with other weights", "Set weight to 'count'")
        if not isinstance(self.base, PowerRequest):
            problem = "'adaptive' moves the exponent of chains, and base is none"
            raise conflict("alpha", problem, 'Set base to {"sampler": "power", ...}')
        if self.base.alpha > HIGHEST:
            problem = f"'adaptive' moves the exponent of base within {LOWEST:g} and {HIGHEST:g}"
            raise conflict("base.alpha", problem, "Lower it")
        if not 2 <= self.window <= self.samples:
            problem = f"a round has at least 2 samples and at most all {self.samples}"
            raise conflict("window", problem, "Change it, or samples")
        for name in ("stopping", "drop_below"):
            if name in self.model_fields_set and getattr(self, name) not in (None, "never"):
                raise conflict(name, "alpha='adaptive' has its own end", "Leave it out")


class BestOfRequest(StoppableRequest):
    """`sampler="best_of"`: the sample of highest score.

    Args:
        score: "mean_log_p" per token, "log_p" of the whole answer, "confidence" of its answer tokens,
            "self_evaluation": the probability that the served model calls it right, a "reward".
        reward: which one, with score="reward".
        stopping: "never": a sample to come may always be the best.
    """

    sampler: Literal["best_of"] = "best_of"
    score: Literal["mean_log_p", "log_p", "confidence", "self_evaluation", "reward"] = "mean_log_p"
    reward: RewardName | None = None

    _score_by_any_name = field_validator("score", mode="before")(score_name)

    @model_validator(mode="after")
    def _reward_where_it_scores(self) -> Self:
        check_reward(self.score, self.reward)
        return self

    @model_validator(mode="after")
    def _never_stopping(self) -> Self:
        if self.rule != "never":
            problem = "a maximum has no bound: any sample to come may be the best"
            raise conflict("stopping", problem, "Leave it out; drop_below ends samples early")
        self._check_idle()
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        needs = replace(super().needs, reward=self.reward)
        return with_judge(needs, self.score)
