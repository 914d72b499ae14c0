"""What the functions of this package take beside a program: one pydantic model each, the place of defaults.

Knows no program and no server. A mistake is a RequestError that names the argument.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from sglang_power.answers import EXTRACTORS, Extractor, Regex
from sglang_power.fields import MAX_ALPHA, Exponent, FiniteFloat, Positive, Seed, conflict, score_name
from sglang_power.request.mistakes import request_error
from sglang_power.request.selection import EQUIVALENCE_OF

Name = Annotated[str, Field(min_length=1)]

Criterion = Literal["mean_log_p", "confidence", "power", "vote", "self_evaluation"]

M = TypeVar("M", bound=BaseModel)


def parsed(model: type[M], values: dict[str, Any]) -> M:
    """Validate arguments; None counts as not given.

    Raises:
        RequestError: the first mistake.
    """
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise request_error(model, error, given) from None


class BranchSettings(BaseModel):
    """Where branches come from: exactly one of the four.

    Args:
        n: as many branches, named "0", "1", ...
        names: a branch of each name.
        first_tokens: one per most likely first token of what is generated next.
        trigger: generate until it fires, then one per likely token there; see `algorithms.triggers`.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    n: Positive | None = None
    names: Annotated[list[Name], Field(min_length=1)] | None = None
    first_tokens: Positive | None = None
    trigger: str | Annotated[list[str], Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            problem = "branches come from exactly one of n, names, first_tokens, trigger"
            raise conflict(given[-1] if given else "n", problem, "Name one of the four")
        if self.names is not None and len(set(self.names)) < len(self.names):
            raise conflict("names", "two branches have the same name", "Name every branch once")
        return self


class TriggerSettings(BaseModel):
    """How far to generate for a trigger, and what it forks into.

    Args:
        max_tokens: to generate; the program's default where absent.
        threshold, branch_k, continuation_policy, seed: of the sampler "branch", whose request validates them.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_tokens: Positive | None = None
    threshold: Any = None
    branch_k: Any = None
    continuation_policy: Any = None
    seed: Any = None

    @property
    def named(self) -> dict[str, Any]:
        """What the sampler is asked for."""
        return self.model_dump(exclude={"max_tokens"}, exclude_none=True)


class SelectSettings(BaseModel):
    """How a branch is chosen.

    Args:
        by: "mean_log_p" takes the largest mean log p, "confidence" the largest Delta of its answer tokens,
            "power" draws with weights p^alpha / q, "vote" takes the commonest answer, "self_evaluation" the
            branch that the served model most probably calls right.
        answer, answer_regex: which part of the text is the answer, as in requests.
        of: the variable that holds it; the branch's last generated segment where absent.
        equivalence: when two answers are the same; by the kind of answer where absent.
        alpha: exponent of by="power".
        seed: of draws and ties; a fresh one where absent.
        question: that by="self_evaluation" asks about; the text in front of the branches where absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    by: Criterion = "mean_log_p"
    answer: Literal["number", "choice", "boxed", "regex", "text"] = "number"
    answer_regex: Annotated[str, Field(min_length=1, max_length=1000)] | None = None
    of: Name | None = None
    equivalence: Name | None = None
    alpha: Exponent = 4.0
    seed: Seed | None = None
    question: Name | None = None

    _criterion_by_any_name = field_validator("by", mode="before")(score_name)

    @model_validator(mode="after")
    def _where_they_are_used(self) -> Self:
        if (self.answer == "regex") != (self.answer_regex is not None):
            raise conflict("answer_regex", "belongs to answer='regex'", "Name both, or neither of the two")
        used = {
            "alpha": ("power",),
            "question": ("self_evaluation",),
            "equivalence": ("vote",),
            "answer": ("confidence", "vote"),
            "of": ("confidence", "vote", "self_evaluation"),
        }
        for name, criteria in used.items():
            if name in self.model_fields_set and self.by not in criteria:
                raise conflict(name, f"not used with by={self.by!r}", f"Set by to {' or '.join(criteria)}")
        return self

    @property
    def extractor(self) -> Extractor:
        """What finds the answer in a text."""
        if self.answer_regex is not None:
            return Regex.of(self.answer_regex, "answer_regex")
        return EXTRACTORS[self.answer]

    @property
    def relation(self) -> str:
        """The equivalence in force."""
        return self.equivalence or EQUIVALENCE_OF.get(self.answer, "normalised")


class ChoiceSettings(BaseModel):
    """How `power_choices` draws.

    Args:
        alpha: exponent, 0 to 1,000.
        seed: of the draws; a fresh one where absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    alpha: Annotated[FiniteFloat, Field(ge=0.0, le=MAX_ALPHA)] = 4.0
    seed: Seed | None = None
