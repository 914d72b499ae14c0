"""What a record needs of `meta_info.power`: the parts of the report of a run, checked.

The report has more keys than these, and may get further ones. Knows neither HTTP nor the page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sglang_power.errors import RecordError
from sglang_power.viewer.record import Count, Number, Seed, Step

SAVED = "Save the whole response of a request that names a sampler, as the server sent it"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class ReportedPath(_Part):
    """One answer that might have been chosen; see `samplers.candidates.reported_path`."""

    text: str
    answer: str | None
    confidence: Number | None
    log_p: Number | None
    score: Number | None
    tokens: Count
    mean_entropy: Number | None = None
    first_log_p: Number | None = None
    note: str | None = None


class PathClass(_Part):
    """Paths whose answers mean the same, by their indices."""

    representative: str | None
    members: list[Count]
    weight: Number | None


class Chosen(_Part):
    """Which path won, and why."""

    index: Count
    reason: str


class Branch(_Part):
    """One node of a reported tree; see `samplers.tree`."""

    parent: Count | None
    span: tuple[Count, Count]
    text: str
    log_p: Number | None
    first_log_p: Number | None
    trigger: str | None
    entropy: Number | None
    score: Number | None
    fate: Literal["open", "forked", "pruned", "leaf", "chosen"]
    cap: str | None


class ReportedRefusals(_Part):
    """What a cap refused; see `samplers.firings`."""

    position: Count
    refused: Count


class BranchTree(_Part):
    """A reported tree; `leaves` names the node that each path ends with."""

    nodes: list[Branch]
    omitted: Count
    leaves: list[Count]


class SavedReport(_Part):
    """The report of a run that left a trace, a tree or paths."""

    version: str
    sampler: str
    params: dict[str, JsonValue]
    seed: Seed
    law: str
    stopped_by: str
    capped_by: dict[str, ReportedRefusals] = {}
    hint: str | None = None
    decoded_tokens: Count
    prefilled_tokens: Count
    wasted_tokens: Count
    depth: Count
    children: Count
    log_p: Number | None
    trace: list[Step] | None = None
    tree: BranchTree | None = None
    paths: Annotated[list[ReportedPath], Field(min_length=1)] | None = None
    classes: list[PathClass] = []
    chosen: Chosen | None = None

    @model_validator(mode="after")
    def _of_paths(self) -> Self:
        if self.paths is None:
            return self
        if self.chosen is None:
            raise PydanticCustomError("report", "paths, but none of them is chosen")
        named = [self.chosen.index, *(member for group in self.classes for member in group.members)]
        if max(named) >= len(self.paths):
            raise PydanticCustomError("report", "a path is named that there is not")
        return self

    @model_validator(mode="after")
    def _of_tree(self) -> Self:
        if self.tree is not None and (self.paths is None or len(self.tree.leaves) != len(self.paths)):
            raise PydanticCustomError("report", "the tree has not one leaf per path")
        return self


def checked(report: Any, where: str) -> SavedReport:
    """The report of one answer.

    Args:
        report: as the server sent it.
        where: its place in the response.

    Raises:
        RecordError: it tells of no run that can be drawn; says what to ask for.
    """
    if not isinstance(report, dict):
        raise RecordError(where, "there is none", SAVED)
    _refuse_without_trace(report, where)
    try:
        return SavedReport.model_validate(report)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise RecordError(".".join(map(str, (where, *first["loc"]))), first["msg"], SAVED) from None


def _refuse_without_trace(report: dict[str, Any], where: str) -> None:
    if report.keys() & {"trace", "tree"}:
        return
    if "proposals" in report:
        raise RecordError(where, "no trace in this response", "Ask with return_trace=true")
    if "forks" in report:
        raise RecordError(where, "no tree in this response", "Ask with return_tree=true")
    if "paths" not in report:
        problem = f"the sampler {report.get('sampler')!r} leaves no trace"
        raise RecordError(where, problem, "Chains (power) and choices (cot, vote, best_of, branch) leave one")
