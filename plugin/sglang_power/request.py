"""What a client may ask: one pydantic model per sampler, the only place of defaults.

`power` is here; every per-step policy is a model of its own in `policies`. Unknown keys, wrong types and
wrong ranges end here, as one RequestError that names the field, the value and what to do. Models know
nothing of the server; `sglang_host.intake` fills in what SGLang's own sampling parameters say.
"""

from __future__ import annotations

import functools
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    InstanceOf,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.early_rejection import is_exact
from sglang_power.algorithms.mh import MHConfig
from sglang_power.errors import RequestError
from sglang_power.fields import CONFLICT, FiniteFloat, Positive, PositiveFloat, Probability, Seed, conflict
from sglang_power.policies import Policy, policies
from sglang_power.types import ProposalLaw

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
        proposal_policy: a per-step policy for proposals, as a request would write it, e.g. {"sampler":
            "top_n_sigma", "n": 1.5}; it measures the law at the proposal temperature.
        top_p, top_k, min_p: truncation of the proposal, after temperature and policy, joint order.
        return_trace: add every step to the response.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sampler: Literal["power"] = "power"
    alpha: Annotated[FiniteFloat, Field(ge=1.0)] = 4.0
    proposal_temperature: PositiveFloat | None = None
    proposal_policy: InstanceOf[Policy] | None = None
    block_size: Positive = 192
    steps: Positive = 10
    cut: Literal["uniform", "entropy"] = "uniform"
    cut_beta: Annotated[FiniteFloat, Field(gt=0.0, le=64.0)] = 4.0
    cut_epsilon: Annotated[FiniteFloat, Field(gt=0.0, le=1.0)] = 0.1
    schedule: Literal["exact", "paper"] = "exact"
    early_rejection: StrictBool = True
    seed: Seed | None = None
    initial_text: Annotated[str, Field(min_length=1)] | None = None
    initial_ids: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    max_steps: Positive | None = None
    max_total_tokens: Positive | None = None
    deadline_ms: Positive | None = None
    lookback_blocks: Positive | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[FiniteFloat, Field(ge=0.0, le=1.0)] | None = None
    return_trace: StrictBool = False

    @field_validator("proposal_policy", mode="before")
    @classmethod
    def _parsed(cls, value: object) -> object:
        return _proposal_policy(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.initial_text is not None and self.initial_ids is not None:
            raise conflict(
                "initial_ids", "initial_text and initial_ids exclude each other", "Name one of the two"
            )
        if self.top_k == 0:
            raise conflict("top_k", "top_k must be -1 (off) or at least 1", "Use -1 to switch it off")
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
            policy=self.proposal_policy,
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
        if self.proposal_policy is not None:
            policy = self.proposal_policy
            shown["proposal_policy"] = {"sampler": policy.name(), **policy.parameters}
        shown["early_rejection"] = self.early_rejection and is_exact(self.alpha, self.law)
        shown["max_new_tokens"] = horizon
        shown["draft"] = self.initial_ids is not None or self.initial_text is not None
        return shown


SamplerRequest = PowerRequest | Policy


@functools.cache
def samplers() -> dict[str, type[SamplerRequest]]:
    """Every sampler that a request may name."""
    return {"power": PowerRequest, **policies()}


def parse_request(values: dict[str, Any]) -> SamplerRequest:
    """Validate flat parameters; `sampler` names the model, "power" where it is absent.

    Raises:
        RequestError: unknown sampler, unknown key, wrong type or range.
    """
    name = values.get("sampler", "power")
    known = samplers()
    if not isinstance(name, str) or name not in known:
        names = ", ".join([*known, NO_SAMPLER])
        raise RequestError("sampler", name, "unknown sampler", f"Use one of: {names}")
    try:
        return known[name].model_validate(values)
    except ValidationError as error:
        raise _request_error(known[name], error, values) from None


def parse_power(values: dict[str, Any]) -> PowerRequest:
    """`parse_request` of parameters that are known to be of `power`."""
    request = parse_request({"sampler": "power", **values})
    assert isinstance(request, PowerRequest)
    return request


def _proposal_policy(values: dict[str, Any]) -> Policy:
    """A policy inside a power request; its errors name the field behind a dot."""
    known = policies()
    name = values.get("sampler")
    if not isinstance(name, str) or name not in known:
        raise conflict("proposal_policy.sampler", "unknown policy", f"Use one of: {', '.join(known)}")
    try:
        policy = known[name].model_validate(values)
    except ValidationError as error:
        wrong = _request_error(known[name], error, values)
        raise conflict(f"proposal_policy.{wrong.field}", wrong.problem, wrong.hint) from None
    if not policy.in_proposals:
        raise conflict(
            "proposal_policy.sampler", f"{name} is no law of one row alone", "Use it as a sampler of its own"
        )
    if policy.seed is not None:
        raise conflict("proposal_policy.seed", "the request has one seed", "Set seed beside proposal_policy")
    return policy


def _request_error(model: type[BaseModel], error: ValidationError, values: dict[str, Any]) -> RequestError:
    first = error.errors(include_url=False)[0]
    if first["type"] == CONFLICT:
        detail = first["ctx"]
        value = _value_at(values, detail["field"])
        return RequestError(detail["field"], value, detail["problem"], detail["hint"])
    problem, field = first["msg"], ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        names = ", ".join(sorted(model.model_fields))
        return RequestError(field, first["input"], "unknown parameter", f"Known parameters: {names}")
    if first["type"] == "missing":
        return RequestError(
            field, None, "required", "Name it, or set it for the model in SGLANG_POWER_CONFIG"
        )
    name = str(first["loc"][0])
    return RequestError(field, first["input"], problem, _remedy(model, name))


def _remedy(model: type[BaseModel], name: str) -> str:
    field = model.model_fields[name]
    if field.is_required():
        return f"Correct it; {name} has no default"
    default = "1/alpha" if name == "proposal_temperature" else field.default
    return "Leave it out" if default is None else f"Leave it out for the default of {default}"


def _value_at(values: dict[str, Any], path: str) -> object:
    """What a request holds at a dotted path; None where it holds nothing."""
    found: object = values
    for part in path.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
