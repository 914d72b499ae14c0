"""What a request for `branch` may say."""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, InstanceOf, field_validator, model_validator

from sglang_power.algorithms.branching import BranchConfig, BranchPolicy
from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.triggers import DEFAULT_THRESHOLDS, RULES, THRESHOLDS, Trigger
from sglang_power.fields import Exponent, NonNegativeFloat, Positive, conflict, score_name
from sglang_power.policies import Policy
from sglang_power.request.bases import base_echo, power_base
from sglang_power.request.needs import SAMPLING, Needs
from sglang_power.request.nested import row_law_policy
from sglang_power.request.power import PowerRequest
from sglang_power.request.selection import RewardName, SelectionRequest, check_reward, with_judge
from sglang_power.types import ProposalLaw

Threshold = NonNegativeFloat | list[NonNegativeFloat]

BranchScore = Literal["mean_log_p", "power", "confidence", "self_evaluation", "reward", "vote"]

OWN_OF_POLICY: dict[str, BranchPolicy] = {"lookahead_tokens": "lookahead", "beam": "beam"}
"""Parameters that only one policy has."""

WHOLE_ANSWERS = ("confidence", "vote")
"""Scores that only a whole answer has."""


class BranchRequest(SelectionRequest):
    """`sampler="branch"`: fork where the model is uncertain, keep the best branches, choose a leaf.

    Args:
        trigger: what forks, or a list, any of which does; see `algorithms.triggers`.
        threshold: of the trigger (a number; two, of entropy and varentropy, for a quadrant), or one entry per
            trigger; where absent, the trigger's entry in `thresholds`, or else its default.
        thresholds: trigger -> its threshold on this model, for the `parameters` of a server's configuration:
            whatever trigger a request names gets its own.
        branch_k: branches of a fork.  branch_tokens: they begin with the "top" ones, the most likely tokens,
            or with as many that are "drawn" from p, equal ones once.
        policy: "tree" keeps all, "lookahead" rolls each out and keeps the best, "beam" keeps the best `beam`.
        lookahead_tokens: of a rollout, from the fork on.  beam: paths that are kept.
        max_branches: that all forks may open together.  max_depth: forks on one path.
        min_gap: tokens between two forks of a path.
        score: what branches and leaves are compared by. "confidence" and "vote" speak of whole answers: with
            policy="beam" branches are then kept by mean_log_p, with "lookahead" they are refused.
        alpha: exponent of score="power".  reward: which one, with score="reward".
        continuation_policy: a per-step policy for what follows a fork, at the request's temperature; greedy
            where absent.
        refine: power steps on every leaf, as a request would write them: {"sampler": "power", "steps": 4}.
    """

    speaks_of: ClassVar[dict[str, str]] = {"threshold": "trigger"}
    """A threshold is dropped where a later layer (a preset, a request) names another trigger."""

    sampler: Literal["branch"] = "branch"
    trigger: str | Annotated[list[str], Field(min_length=1)] = "entropy"
    threshold: Threshold | list[Threshold | None] | None = None
    thresholds: dict[str, Threshold] = {}  # noqa: RUF012  (pydantic copies it)
    branch_k: Annotated[int, Field(ge=2, le=1024)] = 2
    branch_tokens: Literal["top", "drawn"] = "top"
    policy: BranchPolicy = "lookahead"
    lookahead_tokens: Positive = 16
    beam: Positive = 4
    max_branches: Positive = 32
    max_depth: Positive = 32
    min_gap: Positive = 1
    score: BranchScore = "mean_log_p"
    alpha: Exponent = 4.0
    reward: RewardName | None = None
    continuation_policy: InstanceOf[Policy] | None = None
    refine: InstanceOf[PowerRequest] | None = None

    _score_by_any_name = field_validator("score", mode="before")(score_name)

    @field_validator("trigger", mode="before")
    @classmethod
    def _known(cls, value: object) -> object:
        for name in value if isinstance(value, list) and value else [value]:
            if not isinstance(name, str) or name not in RULES:
                raise conflict("trigger", f"unknown trigger {name!r}", f"Use one of: {', '.join(RULES)}")
        return value

    @field_validator("threshold", mode="before")
    @classmethod
    def _numbers(cls, value: object) -> object:
        """One message for a union of types, whose own would name pydantic's branches."""
        entries = value if isinstance(value, list) else [value]
        numbers = [number for entry in entries for number in (entry if isinstance(entry, list) else [entry])]
        if not all(number is None or _is_threshold(number) for number in numbers):
            problem = "thresholds are finite numbers of at least 0"
            raise conflict("threshold", problem, "Give one number, two for a quadrant, or a list per trigger")
        return value

    @field_validator("thresholds", mode="before")
    @classmethod
    def _of_known_triggers(cls, value: object) -> object:
        """Every entry is checked as if a request named its trigger."""
        if not isinstance(value, dict):
            raise conflict("thresholds", "not a table", "Give trigger -> threshold")
        for name, threshold in value.items():
            field = f"thresholds.{name}"
            if name not in RULES:
                problem = f"unknown trigger {name!r}"
                raise conflict(field, problem, f"Use one of: {', '.join(RULES)}")
            given = threshold if isinstance(threshold, list) else [threshold]
            if not all(map(_is_threshold, given)):
                raise conflict(field, "thresholds are finite numbers of at least 0", "Give one or two")
            _trigger(name, given, field)
        return value

    @field_validator("continuation_policy", mode="before")
    @classmethod
    def _parsed_policy(cls, value: object) -> object:
        return row_law_policy("continuation_policy", value) if isinstance(value, dict) else value

    @field_validator("refine", mode="before")
    @classmethod
    def _parsed_refinement(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        refine = power_base("refine", value)
        if "on_temperature" in value:
            problem = "the request's temperature is that of continuation_policy, and no leaf's"
            raise conflict("refine.on_temperature", problem, "Leave it out")
        if refine.lookback_blocks is not None:
            problem = "a leaf is a draft, which is revised as a whole"
            raise conflict("refine.lookback_blocks", problem, "Leave it out")
        if refine.method != "chain":
            raise conflict("refine.method", "a leaf is a draft, from which a chain starts", "Leave it out")
        if refine.start != "stages":
            raise conflict("refine.start", "a leaf is a draft, from which a chain starts", "Leave it out")
        return refine

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _ = self.triggers
        if self.max_branches < self.branch_k:
            problem = f"less than branch_k={self.branch_k}: nothing could ever fork"
            raise conflict("max_branches", problem, "Raise it, or lower branch_k")
        for field, policy in OWN_OF_POLICY.items():
            if field in self.model_fields_set and self.policy != policy:
                raise conflict(field, f"not used with policy={self.policy!r}", f"Set policy to {policy!r}")
        if self.policy == "lookahead" and self.score in WHOLE_ANSWERS:
            problem = "a rollout is no whole answer, so it cannot be compared by that"
            raise conflict("score", problem, "Use policy='tree' or 'beam', or another score")
        check_reward(self.score, self.reward)
        if "alpha" in self.model_fields_set and self.score != "power":
            raise conflict("alpha", f"not used with score={self.score!r}", "Set score to 'power'")
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        acting = () if self.continuation_policy is None else SAMPLING
        drawn = self.continuation_policy is not None or self.branch_tokens == "drawn"
        needs = replace(
            super().needs,
            acting=acting,
            reward=self.reward,
            deterministic=not drawn and self.refine is None,
            capped=()
            if self.refine is None
            else tuple(each.inside("refine") for each in self.refine.needs.capped),
        )
        return with_judge(needs, self.score)

    @property
    def triggers(self) -> tuple[Trigger, ...]:
        """What forks, with the thresholds in force."""
        names = [self.trigger] if isinstance(self.trigger, str) else self.trigger
        asked = self.threshold
        each: list[Any] = [asked] if isinstance(self.trigger, str) else [None] * len(names)
        if not isinstance(self.trigger, str) and asked is not None:
            if not isinstance(asked, list) or len(asked) != len(names):
                raise conflict("threshold", "not one entry per trigger", f"Give a list of {len(names)}")
            each = list(asked)
        return tuple(
            _trigger(name, self.thresholds.get(name) if value is None else value)
            for name, value in zip(names, each, strict=True)
        )

    def branch_config(self, horizon: int, law: ProposalLaw = GREEDY) -> BranchConfig:
        """The search's configuration for L = horizon."""
        return BranchConfig(
            triggers=self.triggers,
            horizon=horizon,
            k=self.branch_k,
            drawn=self.branch_tokens == "drawn",
            policy=self.policy,
            lookahead=self.lookahead_tokens,
            beam=self.beam,
            max_branches=self.max_branches,
            max_depth=self.max_depth,
            min_gap=self.min_gap,
            law=law,
        )

    @property
    def sampling_fields(self) -> tuple[str, ...]:
        """Return which of SGLang's own sampling parameters act on how its tokens are drawn."""
        return SAMPLING[:1] if self.continuation_policy is None else SAMPLING

    def echo(self) -> dict[str, Any]:
        """The parameters in force, for the response; they can be sent again."""
        policy = self.continuation_policy
        shown = None if policy is None else {"sampler": policy.name(), **policy.parameters}
        thresholds = [list(trigger.thresholds) for trigger in self.triggers]
        idle = {field for field, user in OWN_OF_POLICY.items() if user != self.policy}
        idle |= {"thresholds"}  # those in force are told by `threshold`
        idle |= {"alpha"} if self.score != "power" else set()
        return {
            **{name: value for name, value in super().echo().items() if name not in idle},
            "threshold": thresholds[0] if isinstance(self.trigger, str) else thresholds,
            "continuation_policy": shown,
            "refine": base_echo(self.refine),
        }


def _is_threshold(value: object) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and 0.0 <= value <= sys.float_info.max
    )


def _trigger(name: str, asked: Any, field: str = "threshold") -> Trigger:
    if asked is None:
        if name not in DEFAULT_THRESHOLDS:
            problem = f"{name} needs the thresholds of entropy and varentropy, which depend on the model"
            raise conflict(field, problem, "Give two numbers, nats and nats^2")
        return Trigger(name, DEFAULT_THRESHOLDS[name])
    given = asked if isinstance(asked, list) else [asked]
    if any(isinstance(value, list) or value is None for value in given):
        raise conflict(field, f"not the thresholds of {name} alone", "Name as many triggers in a list")
    values = tuple(map(float, given))
    if len(values) != THRESHOLDS[name]:
        problem = f"{name} takes {THRESHOLDS[name]} number(s), not {len(values)}"
        raise conflict(field, problem, "Give as many as the trigger takes")
    if name in ("ratio", "quantile") and values[0] >= 1.0:
        raise conflict(field, f"{name} never fires at 1 or more", "Use a number in [0, 1)")
    return Trigger(name, values)
