"""A validated plan for one prompt whose answer is chosen among several. Tokenizer process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.srt.parser.reasoning_parser import ReasoningParser

from sglang_power.answers import EXTRACTORS, LLM, Extractor, Regex, equivalence
from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.request import (
    BestOfRequest,
    BranchRequest,
    CotRequest,
    PowerRequest,
    SamplesRequest,
    SelectingRequest,
)
from sglang_power.rewards import NamedReward, reward
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.host_sampling import TRUNCATION, sampling_of
from sglang_power.sglang_host.tokenizer import intake, support
from sglang_power.sglang_host.tokenizer.body import Fields
from sglang_power.sglang_host.tokenizer.judge import Readout, readout_of
from sglang_power.sglang_host.tokenizer.stopping import StopRule


@dataclass(frozen=True)
class SelectionPlan:
    """One prompt whose answer is chosen among several.

    Args:
        request: validated parameters.
        name: of the sampler that was asked for.
        chains: n.
        extractor: finds the answer in a text; None where the model is asked for it.
        fork_prefix: ids that every answer of `cot` begins with.
        reasoning_end: text that ends the reasoning, with fork_at="after_reasoning".
        max_horizon: the server's limit, where a base chain makes the cost grow with the square.
        neutralised: model defaults that are not applied.
        readout: of the judge; None where nothing is judged.
        reward: what scores; None where nothing does.
    """

    request: SelectingRequest
    name: str
    chains: int
    extractor: Extractor | None
    fork_prefix: tuple[int, ...]
    reasoning_end: str | None
    max_horizon: int | None
    neutralised: list[str]
    readout: Readout | None
    reward: NamedReward | None


def selection_plan(
    manager: Any,
    obj: Any,
    params: Mapping[str, Any],
    named: Fields,
    config: ServerConfig,
    request: SelectingRequest,
    name: str | None = None,
) -> SelectionPlan:
    """The plan of a request, checked against this server.

    Args:
        manager, obj, params, named, config: as `plan` has them.
        request: what is served.
        name: of the sampler that was asked for, where `request` stands for another.

    Raises:
        RequestError: it cannot be served.
    """
    support.check_request(obj, params, named)
    _check_sampling(request, named)
    chains, limits = support.chains_of(params), config.limits
    max_horizon = limits.max_horizon if _is_over_chains(request) else None
    count = chains * request.answers
    share = support.share_of(request.max_total_tokens, limits, count)
    horizon = support.horizon_of(params, manager.context_len, max_horizon, share)
    support.total_tokens_of(
        params, request.max_total_tokens, limits, horizon, chains, request.answers, request.answers_field
    )
    if request.relation != LLM:
        equivalence(request.relation)
    return SelectionPlan(
        request=request,
        name=request.sampler if name is None else name,
        chains=chains,
        extractor=_extractor(request),
        fork_prefix=_fork_prefix(manager, request, params, horizon),
        reasoning_end=_reasoning_end(manager, request),
        max_horizon=max_horizon,
        neutralised=_neutralised(request, params, named),
        readout=readout_of(manager.tokenizer, request),
        reward=_reward(request, config),
    )


def _is_over_chains(request: SelectingRequest) -> bool:
    return isinstance(request, SamplesRequest) and isinstance(request.base, PowerRequest)


def _check_sampling(request: SelectingRequest, named: Fields) -> None:
    """Chains draw by the parameters of `base`: what the client names beside them would touch nothing."""
    if not _is_over_chains(request):
        return
    neutral, asked = sampling_of({}), sampling_of(named)
    for field in TRUNCATION:  # of a temperature `base.on_temperature` has said what it means
        if asked[field] != neutral[field]:
            problem = "the samples are chains of base='power', which draw by their own parameters"
            raise RequestError(field, asked[field], problem, f"Leave it out, or set base.{field}")


def _neutralised(request: SelectingRequest, params: Mapping[str, Any], named: Fields) -> list[str]:
    """Model defaults that touch no draw; plain draws and policies' samples take all of them."""
    if isinstance(request, SamplesRequest) and not _is_over_chains(request):
        return []
    greedy = isinstance(request, CotRequest | BranchRequest) and request.continuation_policy is None
    acting = () if greedy else request.sampling_fields
    base = request.base if isinstance(request, SamplesRequest) else None
    own_law = base if isinstance(base, PowerRequest) else None
    return [field for field in intake.neutralised(params, named, own_law) if field not in acting]


def _reward(request: SelectingRequest, config: ServerConfig) -> NamedReward | None:
    named = request.reward if isinstance(request, BestOfRequest | BranchRequest) else None
    return None if named is None else reward(named, config.rewards)


def _extractor(request: SelectingRequest) -> Extractor | None:
    if request.answer == "continuation":
        return None
    if request.answer == "regex":
        return Regex.of(request.answer_regex or "", "answer_regex")
    return EXTRACTORS[request.answer]


def _fork_prefix(
    manager: Any, request: SelectingRequest, params: Mapping[str, Any], horizon: int
) -> tuple[int, ...]:
    """Its ids, checked against the horizon and against stops, behind which nothing could fork."""
    if not isinstance(request, CotRequest) or request.fork_prefix is None:
        return ()
    ids = tuple(manager.tokenizer.encode(request.fork_prefix, add_special_tokens=False))
    if not ids:
        raise RequestError("fork_prefix", request.fork_prefix, "no token", "Correct it, or leave it out")
    if len(ids) >= horizon:
        problem = f"{len(ids)} tokens leave no room in an answer of up to {horizon}"
        raise RequestError("fork_prefix", request.fork_prefix, problem, "Shorten it, or ask for more tokens")
    if (stop := StopRule.of(manager, params).first_stop(ids, 0)) is not None:
        problem = f"a stop at token {stop} of {len(ids)}, behind which nothing can fork"
        raise RequestError("fork_prefix", request.fork_prefix, problem, "End it before its first stop")
    return ids


def _reasoning_end(manager: Any, request: SelectingRequest) -> str | None:
    """The text that ends the reasoning of the served model."""
    if not isinstance(request, CotRequest) or request.fork_at != "after_reasoning":
        return None
    name = manager.server_args.reasoning_parser
    if name is None:
        raise UnsupportedError(
            "fork_at",
            request.fork_at,
            "this server has no --reasoning-parser, so the end of the reasoning is unknown",
            'Use "first", or "after_prefix" with fork_prefix',
        )
    return str(ReasoningParser(name).detector.think_end_token)
