"""What a client may ask: one pydantic model per sampler, the only place of defaults.

Unknown keys, wrong types and wrong ranges end here, as one RequestError that names the field, the value
and what to do. Models know nothing of the server; `sglang_host.intake` fills in what SGLang's own
sampling parameters say.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, ValidationError, model_validator

from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.early_rejection import is_exact
from sglang_power.algorithms.mh import MHConfig
from sglang_power.errors import RequestError
from sglang_power.types import ProposalLaw

Positive = Annotated[int, Field(ge=1)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]

NO_SAMPLER = "none"
"""`sampler: "none"` opts out of a server-side default."""


class PowerRequest(BaseModel):
    """`sampler="power"`: one answer from p(y)^alpha by Metropolis-Hastings.

    Karan & Du, arXiv 2510.14901 (defaults of the paper); entropy cuts: arXiv 2605.30327.

    Args:
        alpha: exponent, >= 1.
        proposal_temperature: tau; 1/alpha where absent.
        block_size: B, tokens per stage.  steps: N, steps per stage.
        cut: where proposals cut; cut_beta, cut_epsilon: parameters of the entropy cut.
        schedule: "exact" or "paper".  early_rejection: stop lost proposals where that is exact.
        seed: of cuts, acceptance and token draws; below 2^64.
        initial_text, initial_ids: a draft to start from.
        max_steps, max_total_tokens, deadline_ms: budgets (per chain; per request; milliseconds).
        lookback_blocks: freeze what lies further back, and stream it; the law becomes approximate.
        top_p, top_k, min_p: truncation of the proposal, after the proposal temperature, joint order.
        return_trace: add every step to the response.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sampler: Literal["power"] = "power"
    alpha: Annotated[FiniteFloat, Field(ge=1.0)] = 4.0
    proposal_temperature: Annotated[FiniteFloat, Field(gt=0.0)] | None = None
    block_size: Positive = 192
    steps: Positive = 10
    cut: Literal["uniform", "entropy"] = "uniform"
    cut_beta: Annotated[FiniteFloat, Field(gt=0.0, le=64.0)] = 4.0
    cut_epsilon: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)] = 0.1
    schedule: Literal["exact", "paper"] = "exact"
    early_rejection: StrictBool = True
    seed: Annotated[int, Field(ge=0, lt=2**64)] | None = None
    initial_text: Annotated[str, Field(min_length=1)] | None = None
    initial_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    max_steps: Positive | None = None
    max_total_tokens: Positive | None = None
    deadline_ms: Positive | None = None
    lookback_blocks: Positive | None = None
    top_p: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] | None = None
    return_trace: StrictBool = False

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.initial_text is not None and self.initial_ids is not None:
            raise ValueError("initial_text and initial_ids exclude each other")
        if self.top_k == 0:
            raise ValueError("top_k must be -1 (off) or at least 1")
        if self.lookback_blocks is not None and self.schedule == "paper":
            raise ValueError("lookback_blocks and schedule='paper' exclude each other")
        if self.lookback_blocks is not None and (self.initial_ids or self.initial_text):
            raise ValueError("lookback_blocks and a draft exclude each other")
        return self

    @property
    def tau(self) -> float:
        """The proposal temperature in force."""
        return 1.0 / self.alpha if self.proposal_temperature is None else self.proposal_temperature

    @property
    def law(self) -> ProposalLaw:
        """The proposal law; a truncation that keeps everything is none."""
        kappa = self.alpha if self.proposal_temperature is None else 1.0 / self.proposal_temperature
        return ProposalLaw(
            kappa=kappa,
            top_k=self.top_k if self.top_k not in (None, -1) else None,
            top_p=self.top_p if self.top_p not in (None, 1.0) else None,
            min_p=self.min_p if self.min_p not in (None, 0.0) else None,
        )

    @property
    def cut_law(self) -> CutLaw:
        """The cut law."""
        return UniformCut() if self.cut == "uniform" else EntropyCut(self.cut_beta, self.cut_epsilon)

    def mh_config(self, horizon: int) -> MHConfig:
        """The chain's configuration for L = horizon."""
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
        )

    def echo(self, horizon: int) -> dict[str, Any]:
        """The parameters in force, for the response; a draft is shown by its length only."""
        shown = self.model_dump(exclude={"sampler", "seed", "initial_text", "initial_ids", "return_trace"})
        shown["proposal_temperature"] = self.tau
        shown["early_rejection"] = self.early_rejection and is_exact(self.alpha, self.law)
        shown["max_new_tokens"] = horizon
        shown["draft"] = self.initial_ids is not None or self.initial_text is not None
        return shown


SAMPLERS: dict[str, type[PowerRequest]] = {"power": PowerRequest}
"""Every sampler that a request may name. The next one is added here, as a model of its own."""


def parse_request(values: dict[str, Any]) -> PowerRequest:
    """Validate flat parameters.

    Raises:
        RequestError: unknown sampler, unknown key, wrong type or range.
    """
    name = values.get("sampler", "power")
    if not isinstance(name, str) or name not in SAMPLERS:
        known = ", ".join([*SAMPLERS, NO_SAMPLER])
        raise RequestError("sampler", name, "unknown sampler", f"Use one of: {known}")
    model = SAMPLERS[name]
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _request_error(model, error) from None


_REMEDIES = {
    "initial_text and initial_ids exclude each other": ("initial_ids", "Name one of the two"),
    "top_k must be -1 (off) or at least 1": ("top_k", "Use -1 to switch it off"),
    "lookback_blocks and a draft exclude each other": (
        "lookback_blocks",
        "A draft is revised as a whole; leave lookback_blocks out",
    ),
    "lookback_blocks and schedule='paper' exclude each other": (
        "lookback_blocks",
        "Leave schedule at 'exact', or leave lookback_blocks out",
    ),
}


def _request_error(model: type[PowerRequest], error: ValidationError) -> RequestError:
    first = error.errors(include_url=False)[0]
    problem = first["msg"].removeprefix("Value error, ")
    if not first["loc"]:
        field, hint = _REMEDIES[problem]
        return RequestError(field, first["input"].get(field), problem, hint)
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = ", ".join(sorted(model.model_fields))
        return RequestError(field, first["input"], "unknown parameter", f"Known parameters: {names}")
    name = str(first["loc"][0])
    default = "1/alpha" if name == "proposal_temperature" else model.model_fields[name].default
    remedy = "Leave it out" if default is None else f"Leave it out for the default of {default}"
    return RequestError(field, first["input"], problem, remedy)
