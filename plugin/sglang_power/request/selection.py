"""What requests may say that choose among several answers, and `cot`; `vote` and `best_of`: `voting`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, InstanceOf, StrictBool, field_validator, model_validator

from sglang_power.answers.judging import LLM
from sglang_power.fields import FiniteFloat, Positive, conflict
from sglang_power.policies import Policy
from sglang_power.request.bases import base_echo, perfect_base, power_base
from sglang_power.request.needs import SAMPLING, AnswerKind, ForcedTokens, Needs, Wanted
from sglang_power.request.nested import row_law_policy
from sglang_power.request.own_law import OwnLawRequest
from sglang_power.request.perfect import PerfectRequest
from sglang_power.request.power import PowerRequest
from sglang_power.request.whole import WholeAnswerRequest

SELF_EVALUATION: Final = "self_evaluation"
"""The score that the served model gives its own answers."""

EQUIVALENCE_OF: dict[str, str] = {"number": "number", "choice": "choice"}
"""How answers of a kind are compared where the request does not say; others by their normalised text."""

RewardName = Annotated[str, Field(min_length=1)]


def check_reward(score: str, reward: str | None) -> None:
    """Raises a conflict unless a reward is named exactly where the score is one."""
    if score == "reward" and reward is None:
        raise conflict("reward", "required with score='reward'", "Name a reward of this server")
    if score != "reward" and reward is not None:
        raise conflict("reward", f"not used with score={score!r}", "Set score to 'reward'")


def with_judge(needs: Needs, score: str) -> Needs:
    """Return needs to which a score adds the served model's judgement, where it is one."""
    return replace(needs, judge=Wanted("score", score)) if score == SELF_EVALUATION else needs


class SelectionRequest(WholeAnswerRequest):
    """What these samplers share.

    Args:
        answer: which part of the text is the answer: the last "number", the last "choice" letter, what the
            last "boxed" holds, the last match of a "regex", what follows "So the answer is"
            ("continuation"), or all of it ("text").
        answer_regex: with answer="regex"; one group or none.
        equivalence: when two answers are the same; by the kind of answer where absent. With "llm" the
            served model is asked, both ways.
        return_tree: add the whole tree of answers to the response.
        return_rows: add to every path the statistics of the rows that its tokens were drawn from (entropy,
            varentropy and the others of `types.ROW_FIELDS`).
    """

    answer: AnswerKind = "number"
    answer_regex: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    equivalence: Annotated[str, Field(min_length=1)] | None = None
    return_tree: StrictBool = False
    return_rows: StrictBool = False

    @model_validator(mode="after")
    def _regex_where_it_is_used(self) -> Self:
        if self.answer == "regex" and self.answer_regex is None:
            raise conflict("answer_regex", "required with answer='regex'", "Name a pattern")
        if self.answer != "regex" and self.answer_regex is not None:
            raise conflict("answer_regex", f"not used with answer={self.answer!r}", "Set answer to 'regex'")
        return self

    @property
    def relation(self) -> str:
        """The equivalence in force."""
        return self.equivalence or EQUIVALENCE_OF.get(self.answer, "normalised")

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        return Needs(
            answer=self.answer,
            answer_regex=self.answer_regex,
            equivalence=self.relation,
            judge=Wanted("equivalence", LLM) if self.relation == LLM else None,
        )

    @property
    def sampling_fields(self) -> tuple[str, ...]:
        """SGLang's own sampling parameters that the response echoes beside this sampler's."""
        return ()

    def echo(self) -> dict[str, Any]:
        """The parameters in force, for the response."""
        own = self.model_dump(exclude={"sampler", "seed", "base", "continuation_policy"})
        return {**own, "equivalence": self.relation}


class CotRequest(SelectionRequest):
    """`sampler="cot"`: CoT-decoding (Wang & Zhou, arXiv 2402.10200).

    Args:
        k: paths; one per most likely first token.
        select: "aggregate" sums the confidence of paths with the same answer, "max" takes the best path.
        min_first_p: first tokens below this probability are not tried.
        fork_at: the "first" token, the first one "after_reasoning", or "after_prefix".
        fork_prefix: text that every answer begins with, with fork_at="after_prefix".
        continuation_policy: a per-step policy for what follows the fork, at the request's temperature;
            greedy where absent.
    """

    sampler: Literal["cot"] = "cot"
    k: Positive = 10
    select: Literal["max", "aggregate"] = "aggregate"
    min_first_p: Annotated[FiniteFloat, Field(ge=0.0, lt=1.0)] = 0.0
    fork_at: Literal["first", "after_reasoning", "after_prefix"] = "first"
    fork_prefix: Annotated[str, Field(min_length=1)] | None = None
    continuation_policy: InstanceOf[Policy] | None = None

    @field_validator("continuation_policy", mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        return row_law_policy("continuation_policy", value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _prefix_where_it_is_used(self) -> Self:
        if (self.fork_at == "after_prefix") != (self.fork_prefix is not None):
            raise conflict(
                "fork_prefix", "belongs to fork_at='after_prefix'", "Name both, or neither of the two"
            )
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        prefix, after = self.fork_prefix, "after_reasoning"
        return replace(
            super().needs,
            answers=self.k,
            answers_field="k",
            acting=() if self.continuation_policy is None else SAMPLING,
            deterministic=self.continuation_policy is None,
            forced=None if prefix is None else ForcedTokens("fork_prefix", prefix, whole=False),
            reasoning_end=Wanted("fork_at", after) if self.fork_at == after else None,
        )

    @property
    def sampling_fields(self) -> tuple[str, ...]:
        """The temperature always; all of them where a policy continues, since they act around it only."""
        return SAMPLING[:1] if self.continuation_policy is None else SAMPLING

    def echo(self) -> dict[str, Any]:
        """The parameters in force, for the response."""
        policy = self.continuation_policy
        shown = None if policy is None else {"sampler": policy.name(), **policy.parameters}
        return {**super().echo(), "continuation_policy": shown}


class SamplesRequest(SelectionRequest):
    """What `vote` and `best_of` share.

    Args:
        samples: how many answers are drawn.
        base: the sampler that draws them, as a request would write it: {"sampler": "power", ...},
            {"sampler": "perfect", ...} or a per-step policy; the request's own temperature and truncation
            where absent.
    """

    samples: Annotated[int, Field(ge=1, le=1024)] = 8
    base: InstanceOf[Policy] | InstanceOf[PowerRequest] | InstanceOf[PerfectRequest] | None = None

    @field_validator("base", mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        return _base_sampler(value) if isinstance(value, dict) else value

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        own = self.base if isinstance(self.base, OwnLawRequest) else None
        inside = Needs() if own is None else own.needs
        return replace(
            super().needs,
            answers=self.samples,
            answers_field="samples",
            quadratic=inside.quadratic,
            acting=SAMPLING if own is None else (),
            drawn_by=None if own is None else "base",
            ignores_temperature=inside.ignores_temperature,
            capped=tuple(each.inside("base") for each in inside.capped),
        )

    @property
    def sampling_fields(self) -> tuple[str, ...]:
        """All of them; none where a base with a law of its own draws."""
        return () if isinstance(self.base, OwnLawRequest) else SAMPLING

    def echo(self) -> dict[str, Any]:
        """The parameters in force, for the response."""
        base: dict[str, Any] | None = None
        if isinstance(self.base, PowerRequest | PerfectRequest):
            base = base_echo(self.base)
        elif self.base is not None:
            base = {"sampler": self.base.name(), **self.base.parameters}
        return {**super().echo(), "base": base}


def _base_sampler(values: dict[str, Any]) -> Policy | PowerRequest | PerfectRequest:
    if values.get("sampler") == "perfect":
        return perfect_base("base", values)
    return power_base("base", values) if values.get("sampler") == "power" else row_law_policy("base", values)
