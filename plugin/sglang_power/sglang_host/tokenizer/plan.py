"""A validated plan for one prompt: everything that can be wrong is wrong here, before any token.

Used by the hook on generate_request and, for streaming /generate, by the contract hook, where an error
can still become an HTTP 400. Tokenizer process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_power.errors import RequestError
from sglang_power.policies import Policy
from sglang_power.request import NO_SAMPLER, BranchRequest, PowerRequest, SelectingRequest
from sglang_power.rewards import NamedReward, reward
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import intake, support
from sglang_power.sglang_host.tokenizer.intake import Asked, Fields
from sglang_power.sglang_host.tokenizer.selection_plan import SelectionPlan, selection_plan
from sglang_power.sglang_host.tokenizer.stopping import StopRule


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
    """One prompt that SGLang serves; `fallback_reason` is set where a default preset did not fit."""

    fallback_reason: str | None = None


OwnPlan = PowerPlan | PolicyPlan | SelectionPlan
Plan = OwnPlan | PlainPlan


def plan_request(manager: Any, obj: Any, body: Fields | None, config: ServerConfig) -> list[Plan]:
    """One plan per prompt of a GenerateReqInput that is not normalised yet.

    Raises:
        RequestError: an explicit request that cannot be served.
    """
    params = obj.sampling_params
    each = params if isinstance(params, list) else [params or {}]
    prompts = obj.text if obj.text is not None else obj.input_ids
    if isinstance(params, list) and (not isinstance(prompts, list) or len(params) != len(prompts)):
        raise RequestError("sampling_params", params, "not one per prompt", "Give one, or as many as prompts")
    default = _default_preset(manager, obj, config)
    return [_plan_prompt(manager, obj, one, body, config, default) for one in each]


def plan_arm(manager: Any, obj: Any, body: Fields | None, config: ServerConfig, sampler: Fields) -> Plan:
    """The plan that an experiment's arm makes of a single prompt's request that names no sampler.

    Raises:
        RequestError: the arm cannot serve it.
    """
    if sampler.get("sampler") == NO_SAMPLER:
        return PlainPlan()
    return _own_plan(manager, obj, obj.sampling_params or {}, body, config, Asked(sampler, explicit=False))


def asks_for_power(manager: Any, obj: Any, body: Fields | None, config: ServerConfig) -> bool:
    """Whether a single prompt's request names a sampler, or gets one by default; validates nothing."""
    default = _default_preset(manager, obj, config)
    return intake.asked(obj.sampling_params or {}, body, default) is not None


def is_users(obj: Any) -> bool:
    """Whether a request is a user's: neither a health check, nor a child, nor input scoring."""
    rid = obj.rid[0] if isinstance(obj.rid, list) else obj.rid
    if not obj.log_metrics or (rid or "").startswith("HEALTH_CHECK"):
        return False
    return not obj.return_logprob or obj.logprob_start_len in (None, -1)


def _default_preset(manager: Any, obj: Any, config: ServerConfig) -> str | None:
    """The served model's default, for user requests only."""
    return config.default_for(manager.served_model_name) if is_users(obj) else None


def _plan_prompt(
    manager: Any,
    obj: Any,
    params: Mapping[str, Any],
    body: Fields | None,
    config: ServerConfig,
    default: str | None,
) -> Plan:
    limit = params.get("max_new_tokens", 128)
    scoring = isinstance(limit, int) and limit <= 1
    asked = intake.asked(params, body, None if scoring else default)
    if asked is None:
        return PlainPlan()
    try:
        return _own_plan(manager, obj, params, body, config, asked)
    except RequestError as error:
        if asked.explicit:
            raise
        return PlainPlan(fallback_reason=str(error))


def _own_plan(
    manager: Any,
    obj: Any,
    params: Mapping[str, Any],
    body: Fields | None,
    config: ServerConfig,
    asked: Asked,
) -> OwnPlan:
    named = intake.named_by_client(params, body)
    request = intake.resolve(asked, config, named, manager.served_model_name)
    support.check_server(manager.server_args)
    if isinstance(request, PowerRequest):
        return _power_plan(manager, obj, params, named, config, request)
    if isinstance(request, SelectingRequest):
        return selection_plan(manager, obj, params, named, config, request)
    if request.branching is not None:
        branch = BranchRequest(**request.branching)
        return selection_plan(manager, obj, params, named, config, branch, name=request.name())
    return _policy_plan(manager, obj, params, named, request)


def _policy_plan(
    manager: Any, obj: Any, params: Mapping[str, Any], named: Fields, policy: Policy
) -> PolicyPlan:
    support.check_policy_request(obj, params, named)
    for field, ids in policy.token_ids.items():
        check_ids(manager, field, ids)
    if "twin" in policy.needs:
        _check_twin(manager, obj, params, named, policy)
    return PolicyPlan(policy, support.chains_of(params))


def _check_twin(manager: Any, obj: Any, params: Mapping[str, Any], named: Fields, policy: Policy) -> None:
    """A policy with a twin runs as two children: theirs are its limits, and SGLang sees only them."""
    support.check_request(obj, params, named)
    SamplingParams(**intake.without_plugin_keys(params)).verify(manager.model_config.vocab_size)
    horizon = support.horizon_of(params, manager.context_len)
    assert policy.twin_prompt is not None
    field, prompt = policy.twin_prompt
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
        support.total_tokens_of(request.max_total_tokens, config.limits, horizon, chains)
    return PowerPlan(
        request=request,
        chains=chains,
        draft=_draft(manager, request, params, horizon),
        reward=None if request.reward is None else reward(request.reward, config.rewards),
        neutralised=intake.neutralised(params, named),
    )


def check_ids(manager: Any, field: str, ids: Sequence[int]) -> None:
    """Raises RequestError for an id that the served model does not have."""
    vocab = manager.model_config.vocab_size
    if outside := [token for token in ids if token >= vocab]:
        raise RequestError(
            field, outside[0], f"outside of the vocabulary of {vocab}", "Use the served model's token ids"
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
    if len(ids) > horizon:
        raise RequestError(
            field, shown, f"{len(ids)} tokens, more than max_new_tokens={horizon}", "Shorten the draft"
        )
    stop = StopRule.of(manager, params).first_stop(ids, 0)
    if stop is not None and stop < len(ids):
        raise RequestError(
            field, shown, f"a stop at token {stop} of {len(ids)}", "End the draft at its first stop"
        )
    return ids
