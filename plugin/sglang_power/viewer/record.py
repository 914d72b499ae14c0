"""The record of one run: what the page is drawn from, and what `sglang-power trace` reads and writes.

A record is JSON: {"format": "sglang-power-trace", "version": 1, ..., "run": {"kind": ...}}. The kinds are
"chain" (Metropolis-Hastings) and "tree" (CoT-decoding, branching, votes); "particles" is reserved for
genealogies of particles. Numbers are finite, logarithms natural; unknown keys are errors. Every reference
inside of a record points at something in it, and parents stand before their children, so that whoever draws
a record need not check again. Knows no sampler, no server and no HTML.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from sglang_power.errors import RecordError

FORMAT: Final = "sglang-power-trace"
VERSION: Final = 1

Count = Annotated[int, Field(ge=0, lt=2**53)]
Seed = Annotated[int, Field(ge=0, lt=2**64)]
Number = Annotated[float, Field(allow_inf_nan=False)]
"""A logarithm that is infinite is absent."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Totals(_Model):
    """What the run cost, in tokens but for `children`; see `meta_info.power`.

    Args:
        decoded: tokens generated.  prefilled: prompt tokens computed.  wasted: generated and not used.
        depth: steps that followed one another.  children: engine calls.
        answer: tokens of the answer.
        log_p: of the answer, nats.
    """

    decoded: Count
    prefilled: Count
    wasted: Count
    depth: Count
    children: Count
    answer: Count | None = None
    log_p: Number | None = None


class Try(_Model):
    """One of several suffixes that competed to be a step's proposal, and its own log ratio."""

    proposal_length: Count
    log_ratio: Number | None


class Step(_Model):
    """One step of a chain: `cut` tokens were kept, a proposal competed with what followed them.

    Args:
        stage, step: numbers of the block (from 1) and of the step (from 0).
        cut, current_length, proposal_length: tokens.
        proposal_ids: maybe fewer than `proposal_length`.
        kept_text: the end of what was kept.  current_text, proposal_text: the two suffixes.
        log_w_proposal ... log_tilt_current: terms of the ratio, nats; None where infinite.
        log_ratio, log_u: accepted if and only if log_u < log_ratio.
        saved_tokens_max: tokens that stopping the proposal early saved at most.
        tries, picked: where several suffixes competed to be the proposal, and which one was picked.
    """

    stage: Annotated[int, Field(ge=1)]
    step: Count
    cut: Count
    current_length: Count
    proposal_ids: list[Count]
    proposal_length: Count
    proposal_finished: bool
    log_w_proposal: Number | None
    log_w_current: Number | None
    log_cut_proposal: Number | None
    log_cut_current: Number | None
    log_tilt_proposal: Number | None
    log_tilt_current: Number | None
    log_ratio: Number | None
    log_u: Number
    accepted: bool
    early_rejected: bool
    saved_tokens_max: Count | None = None
    tries: list[Try] | None = None
    picked: Count | None = None
    kept_text: str | None = None
    current_text: str | None = None
    proposal_text: str | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.cut > self.current_length:
            raise _mistake(f"cut={self.cut} lies behind the end of {self.current_length} tokens")
        if self.accepted and self.early_rejected:
            raise _mistake("a step is both accepted and rejected early")
        return self


class TraceChain(_Model):
    """The steps of a Metropolis-Hastings chain, in order.

    Args:
        horizon: the largest number of tokens that the answer could have.
        alpha: exponent of the target.
    """

    kind: Literal["chain"] = "chain"
    horizon: Annotated[int, Field(ge=1)]
    alpha: Number
    steps: list[Step]


class TraceNode(_Model):
    """One branch of a tree: the tokens from its fork to the next one or to its end.

    Args:
        parent: index of its parent, which stands before it; None for the root, which is the prompt.
        start, end: positions of its tokens in the answer.
        text: of its own tokens; maybe shortened.
        log_p: of its own tokens.  first_log_p: of the first one.
        trigger, entropy: what made the text fork here, and the entropy of that row, nats; without a trigger,
            the mean entropy of the branch's rows.
        score: what it was compared by.  confidence: how decided its answer tokens are, 0 to 1.
        fate: what became of it.  cap: the limit that kept it from forking again.
        answer: the answer found in the text that ends here.  note: why there is none.
    """

    parent: Count | None
    start: Count
    end: Count
    text: str
    log_p: Number | None
    first_log_p: Number | None = None
    trigger: str | None = None
    entropy: Annotated[Number, Field(ge=0.0)] | None = None
    score: Number | None = None
    confidence: Number | None = None
    fate: Literal["open", "forked", "pruned", "leaf", "chosen"]
    cap: str | None = None
    answer: str | None = None
    note: str | None = None

    @model_validator(mode="after")
    def _forwards(self) -> Self:
        if self.start > self.end:
            raise _mistake(f"ends at {self.end}, before it starts at {self.start}")
        return self


class TraceClass(_Model):
    """Answers that mean the same.

    Args:
        representative: one of them; None for what had no answer.
        members: nodes that end with such an answer, without those that the record omits.
        weight: what classes were compared by.
    """

    representative: str | None
    members: list[Count]
    weight: Number | None


class Firing(_Model):
    """What makes a text fork: a trigger and its thresholds."""

    name: str
    thresholds: list[Number]


class Capped(_Model):
    """A limit that refused forks: how many, and where in the answer the first one."""

    name: str
    position: Count
    refused: Count


class TraceTree(_Model):
    """Branches, in the order in which they were opened; the first one is the root.

    Args:
        nodes: at least the root.  omitted: further ones that the record does not hold.
        chosen: the node that the answer ends with; None where it was omitted.  reason: why it won.
        triggers: of forks; empty where all paths part at one place.
        capped: limits that refused forks, in the order of their first refusals.  hint: what to do about a
            trigger that fires nearly everywhere.
    """

    kind: Literal["tree"] = "tree"
    nodes: Annotated[list[TraceNode], Field(min_length=1)]
    omitted: Count = 0
    classes: list[TraceClass] = []
    chosen: Count | None
    reason: str
    triggers: list[Firing] = []
    capped: list[Capped] = []
    hint: str | None = None

    @model_validator(mode="after")
    def _references(self) -> Self:
        for number, node in enumerate(self.nodes):
            if (node.parent is None) != (number == 0):
                raise _mistake(f"node {number}: the root, node 0, has no parent, all others have one")
            if node.parent is not None and node.parent >= number:
                raise _mistake(f"node {number}: its parent {node.parent} does not stand before it")
        named = [member for group in self.classes for member in group.members]
        for number in named if self.chosen is None else [*named, self.chosen]:
            if number >= len(self.nodes):
                raise _mistake(f"node {number} is named, but there is none")
        return self


class TraceRecord(_Model):
    """One run.

    Args:
        sampler, params, seed: what was asked, after defaults.
        prompt: its text, where it is known.  answer: the text that was returned.
        law: what the answer is a draw of.  stopped_by: what ended the run.
        producer: version of the package that wrote the report.
    """

    format: Literal["sglang-power-trace"] = FORMAT
    version: Literal[1] = VERSION
    producer: str
    sampler: str
    params: dict[str, JsonValue]
    seed: Seed | None = None
    prompt: str | None = None
    answer: str
    law: str
    stopped_by: str
    totals: Totals
    run: Annotated[TraceChain | TraceTree, Field(discriminator="kind")]


def validated(data: Any) -> TraceRecord:
    """The record in `data`, as `json.loads` gives it.

    Raises:
        RecordError: it is none, or none of this version.
    """
    try:
        return TraceRecord.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"]) or "record"
        raise RecordError(field, first["msg"], _hint(field, first["type"])) from None


def _hint(field: str, kind: str) -> str:
    if field in ("version", "run") and kind in ("literal_error", "union_tag_invalid"):
        return f"This package reads version {VERSION} with the kinds chain and tree; use a newer one"
    return "Give a record that sglang-power wrote, or the response that it was made from"


def _mistake(problem: str) -> PydanticCustomError:
    return PydanticCustomError("record", "{problem}", {"problem": problem})
