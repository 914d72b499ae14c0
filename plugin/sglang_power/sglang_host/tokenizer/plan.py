"""A validated plan for one prompt: everything that can be wrong is wrong here, before any token.

Used by the hook on generate_request and, for streaming /generate, by the contract hook, where an error
can still become an HTTP 400. Tokenizer process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_power.errors import RequestError
from sglang_power.policies import Policy
from sglang_power.request import NO_SAMPLER, BranchRequest, PowerRequest, SamplerRequest, SelectingRequest
from sglang_power.rewards import NamedReward, reward
from sglang_power.samplers.fallback import Fallback, fall_back
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import intake, support, token_checks
from sglang_power.sglang_host.tokenizer.body import Body, Fields
from sglang_power.sglang_host.tokenizer.intake import Asked
from sglang_power.sglang_host.tokenizer.places import Written, without_own, written
from sglang_power.sglang_host.tokenizer.selection_plan import SelectionPlan, selection_plan
from sglang_power.sglang_host.tokenizer.stopping import StopRule
from sglang_power.sglang_host.tokenizer.token_checks import NamedPrompt, check_ids


@dataclass(frozen=True)
class PowerPlan:
    """One prompt that power sampling serves.

    Args:
        request: validated parameters.
        chains: n.
        draft: initial token ids, if any.
        reward: what scores its answers, if anything.
        neutralised: model defaults that are not applied.
    """

    request: PowerRequest
    chains: int
    draft: tuple[int, ...] | None
    reward: NamedReward | None
    neutralised: list[str]


@dataclass(frozen=True)
class PolicyPlan:
    """One prompt that a per-step policy serves.

    Args:
        policy: validated parameters.
        chains: n.
    """

    policy: Policy
    chains: int


@dataclass(frozen=True)
class PlainPlan:
    """One prompt that SGLang serves; `fallback` is set where a default preset did not fit."""

    fallback: Fallback | None = None


OwnPlan = PowerPlan | PolicyPlan | SelectionPlan
Plan = OwnPlan | PlainPlan


def plan_request(manager: Any, obj: Any, body: Body, config: ServerConfig) -> list[Plan]:
    """One plan per prompt of a GenerateReqInput that is not normalised yet.

    Raises:
        RequestError: an explicit request that cannot be served.
    """
    params, named = obj.sampling_params, token_checks.prompts_of(obj, body)
    served = [named]
    if isinstance(params, list):
        served = [[prompt] for prompt in named] if obj.input_embeds is None else [[] for _ in params]
    if isinstance(params, list) and len(params) != len(served):
        raise RequestError("sampling_params", params, "not one per prompt", "Give one, or as many as prompts")
    default = _default_preset(manager, obj, config)
    plans = [
        _plan_prompt(manager, obj, request, config, default, own)
        for request, own in zip(written(obj, body), served, strict=True)
    ]
    plain = [isinstance(plan, PlainPlan) for plan in plans]
    if not all(plain):  # those beside ours would end the server, too
        beside = [prompt for is_plain, own in zip(plain, served, strict=True) if is_plain for prompt in own]
        token_checks.check_prompts(manager, obj, beside)
    return plans


def plan_arm(manager: Any, obj: Any, body: Body, config: ServerConfig, sampler: Fields) -> Plan:
    """The plan that an experiment's arm makes of a single prompt's request that names no sampler.

    Raises:
        RequestError: the arm cannot serve it.
    """
    if sampler.get("sampler") == NO_SAMPLER:
        return PlainPlan()
    (request,) = written(obj, body)
    prompts = token_checks.prompts_of(obj, body)
    return _own_plan(manager, obj, request, config, Asked(sampler, explicit=False), prompts)


def asks_for_power(manager: Any, obj: Any, body: Body, config: ServerConfig) -> bool:
    """Return whether a request names a sampler, or gets one by default; validates nothing.

    One that cannot be read counts, too: what is wrong with it is said where it is planned.
    """
    default = _default_preset(manager, obj, config)
    try:
        return any(intake.asked(request, default) is not None for request in written(obj, body))
    except RequestError:
        return True


def is_users(obj: Any) -> bool:
    """Whether a request is a user's: neither a health check, nor a child, nor input scoring."""
    return _is_clients(obj) and not _is_scoring(obj)


def _is_clients(obj: Any) -> bool:
    """Whether a client sent it: neither a health check nor a child."""
    rid = obj.rid[0] if isinstance(obj.rid, list) else obj.rid
    return bool(obj.log_metrics) and not (rid or "").startswith("HEALTH_CHECK")


def _is_scoring(obj: Any) -> bool:
    """Whether log probabilities of the prompt are asked for."""
    starts = obj.logprob_start_len if isinstance(obj.logprob_start_len, list) else [obj.logprob_start_len]
    asked = any(obj.return_logprob) if isinstance(obj.return_logprob, list) else bool(obj.return_logprob)
    return asked and any(start not in (None, -1) for start in starts)


def _default_preset(manager: Any, obj: Any, config: ServerConfig) -> str | None:
    """The served model's default, for requests of clients only."""
    return config.default_for(manager.served_model_name) if _is_clients(obj) else None


def _plan_prompt(
    manager: Any,
    obj: Any,
    request: Written,
    config: ServerConfig,
    default: str | None,
    prompts: Sequence[NamedPrompt],
) -> Plan:
    asked = intake.asked(request, default)
    if asked is None:
        return PlainPlan()
    if asked.explicit:
        return _own_plan(manager, obj, request, config, asked, prompts)
    if (never_meant := _never_meant(obj, request.params)) is not None:
        return PlainPlan(never_meant)
    try:
        return _own_plan(manager, obj, request, config, asked, prompts)
    except RequestError as error:
        strict = config.is_strict(asked.values, manager.served_model_name)
        return PlainPlan(fall_back(error, f"the default preset {default!r}", strict))


def _never_meant(obj: Any, params: Mapping[str, Any]) -> Fallback | None:
    """Return why no default is for a prompt, whatever it is; None where one may be."""
    if _is_scoring(obj):
        problem = "log probabilities of a prompt are not what a default is for"
        return Fallback("scoring", f"logprob_start_len={obj.logprob_start_len!r}: {problem}")
    limit = params.get("max_new_tokens", 128)
    if isinstance(limit, int) and limit <= 1:
        problem = "an answer of at most one token is not what a default is for"
        return Fallback("short", f"max_new_tokens={limit!r}: {problem}")
    return None


def _own_plan(
    manager: Any,
    obj: Any,
    written_by_client: Written,
    config: ServerConfig,
    asked: Asked,
    prompts: Sequence[NamedPrompt],
) -> OwnPlan:
    params, named = without_own(written_by_client.params), written_by_client.named
    request = intake.resolve(asked, config, named, manager.served_model_name)
    support.check_server(manager.server_args)
    token_checks.check_prompts(manager, obj, prompts)
    token_checks.check_sampling(manager, obj, params)
    _check_policy_ids(manager, request)
    if isinstance(request, PowerRequest):
        return _power_plan(manager, obj, params, named, config, request)
    if isinstance(request, SelectingRequest):
        return selection_plan(manager, obj, params, named, config, request)
    if request.branching is not None:
        branch = BranchRequest(**request.branching)
        return selection_plan(manager, obj, params, named, config, branch, name=request.name())
    return _policy_plan(manager, obj, params, named, config, request)


def _check_policy_ids(manager: Any, request: SamplerRequest) -> None:
    """Check the token ids of a policy, and of the policies inside another sampler's parameters."""
    inside = {f"{name}.": getattr(request, name) for name in type(request).model_fields}
    for prefix, policy in {"": request, **inside}.items():
        for field, ids in policy.token_ids.items() if isinstance(policy, Policy) else ():
            check_ids(manager, f"{prefix}{field}", ids)


def _policy_plan(
    manager: Any,
    obj: Any,
    params: Mapping[str, Any],
    named: Fields,
    config: ServerConfig,
    policy: Policy,
) -> PolicyPlan:
    support.check_policy_request(obj, params, named)
    chains = support.chains_of(params)
    support.check_chains(config.limits, chains)
    if "twin" in policy.needs:
        _check_twin(manager, obj, params, named, policy)
    return PolicyPlan(policy, chains)


def _check_twin(manager: Any, obj: Any, params: Mapping[str, Any], named: Fields, policy: Policy) -> None:
    """A policy with a twin runs as two children: theirs are its limits, and SGLang sees only them."""
    support.check_request(obj, params, named)
    horizon = support.horizon_of(params, manager.context_len)
    assert policy.twin_prompt is not None
    field, prompt = policy.twin_prompt
    token_checks.check_prompts(manager, obj, [NamedPrompt(field, prompt)])
    length = len(manager.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    room = manager.context_len - length
    if params.get("max_new_tokens", 128) is None:
        horizon = 1
    if horizon > room:
        problem = f"{length} tokens leave room for {max(room, 0)} in the context of {manager.context_len}"
        raise RequestError(field, prompt, problem, "Shorten it, or ask for fewer max_new_tokens")


def _power_plan(
    manager: Any,
    obj: Any,
    params: Mapping[str, Any],
    named: Fields,
    config: ServerConfig,
    request: PowerRequest,
) -> PowerPlan:
    support.check_request(obj, params, named)
    chains = support.chains_of(params)
    horizon = support.horizon_of(params, manager.context_len, config.limits.max_horizon)
    if params.get("max_new_tokens", 128) is not None:
        support.total_tokens_of(params, request.max_total_tokens, config.limits, horizon, chains)
    return PowerPlan(
        request=request,
        chains=chains,
        draft=_draft(manager, request, params, horizon),
        reward=None if request.reward is None else reward(request.reward, config.rewards),
        neutralised=intake.neutralised(params, named, request),
    )


def _draft(
    manager: Any, request: PowerRequest, params: Mapping[str, Any], horizon: int
) -> tuple[int, ...] | None:
    """The draft's ids, checked against the vocabulary, the horizon and stops inside."""
    field = "initial_ids" if request.initial_ids is not None else "initial_text"
    shown: object = request.initial_ids or request.initial_text
    if request.initial_ids is not None:
        ids = tuple(request.initial_ids)
    elif request.initial_text is not None:
        ids = tuple(manager.tokenizer.encode(request.initial_text, add_special_tokens=False))
    else:
        return None
    check_ids(manager, field, ids)
    if not ids:
        raise RequestError(field, shown, "a draft without a token", "Leave it out")
    if len(ids) > horizon:
        problem = f"{len(ids)} tokens, more than the {horizon} that an answer may have"
        raise RequestError(field, shown, problem, "Shorten the draft, or raise max_new_tokens")
    stop = StopRule.of(manager, params).first_stop(ids, 0)
    if stop is not None and stop < len(ids):
        raise RequestError(
            field, shown, f"a stop at token {stop} of {len(ids)}", "End the draft at its first stop"
        )
    return ids
