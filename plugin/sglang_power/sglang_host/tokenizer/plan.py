"""A validated plan for one prompt: everything that can be wrong is wrong here, before any token.

Used by the hook on generate_request and, for streaming /generate, by the contract hook, where an error
can still become an HTTP 400. Tokenizer process.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.policies import Policy
from sglang_power.request import NO_SAMPLER, SamplerRequest, WholeAnswerRequest
from sglang_power.samplers.fallback import Fallback, fall_back
from sglang_power.samplers.registry import served
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import intake, support, token_checks
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan, answer_plan
from sglang_power.sglang_host.tokenizer.body import Body, Fields, Route
from sglang_power.sglang_host.tokenizer.intake import Asked
from sglang_power.sglang_host.tokenizer.places import Written, without_own, written
from sglang_power.sglang_host.tokenizer.token_checks import NamedPrompt, check_ids


@dataclass(frozen=True)
class PolicyPlan:
    """One prompt that a per-step policy serves.

    Args:
        policy: validated parameters.
        chains: n.
        statistics: answers bring the statistics of their rows.
    """

    policy: Policy
    chains: int
    statistics: bool = False


@dataclass(frozen=True)
class PlainPlan:
    """One prompt that SGLang serves.

    Args:
        fallback: why a default preset did not fit; None where there was none.
        statistics: answers bring the statistics of their rows.
    """

    fallback: Fallback | None = None
    statistics: bool = False

    @property
    def says_something(self) -> bool:
        """Return whether answers have a `meta_info.power`."""
        return self.fallback is not None or self.statistics


OwnPlan = AnswerPlan | PolicyPlan
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
    """Return whether a request names a sampler, gets one by default, or wants statistics; validates nothing.

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
    if asked.is_plain:
        return _reported_plan(manager, obj, request, asked)
    if asked.explicit:
        return _own_plan(manager, obj, request, config, asked, prompts)
    if (never_meant := _never_meant(obj, request.params)) is not None:
        return PlainPlan(never_meant)
    try:
        return _own_plan(manager, obj, request, config, asked, prompts)
    except RequestError as error:
        strict = config.is_strict(asked.values, manager.served_model_name)
        return PlainPlan(fall_back(error, f"the default preset {default!r}", strict))


def _reported_plan(manager: Any, obj: Any, request: Written, asked: Asked) -> PlainPlan:
    """Return the plan of a prompt that SGLang serves as ever, with statistics beside.

    Raises:
        RequestError: this server, or the request's route or one of its fields, has no statistics.
    """
    assert asked.statistics is not None
    _check_statistics(manager, asked.statistics, request.body.route)
    support.check_reported_request(obj, without_own(request.params), request.named)
    return PlainPlan(statistics=True)


def _check_statistics(manager: Any, field: str, route: Route) -> None:
    """Check that this server, and the answers of a route, can bring the statistics of rows.

    Args:
        manager: SGLang's TokenizerManager.
        field: that asks for them.
        route: of the request.

    Raises:
        UnsupportedError: they cannot.
    """
    support.check_reporting_server(manager.server_args)
    if not route.shows_reports:
        hint = "Ask /generate, /v1/completions or /v1/chat/completions"
        raise UnsupportedError(field, True, "this route's answers have no room for them", hint)


def _many_rows(field: str, model: type[SamplerRequest]) -> UnsupportedError:
    """Return the refusal of statistics beside a sampler that makes an answer of many rows."""
    hint = 'Leave it out, or leave the tokens to SGLang: {"sampler": "none"}'
    if "return_rows" in model.model_fields:
        hint = "Ask for return_rows, which brings the statistics of every path"
    return UnsupportedError(field, True, f"{model.name()} makes an answer of many rows", hint)


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
    if asked.statistics is not None:
        _check_statistics(manager, asked.statistics, written_by_client.body.route)
        model = intake.model_of(asked, config, manager.served_model_name)
        if model is not None and issubclass(model, WholeAnswerRequest):
            raise _many_rows(asked.statistics, model)
    request = intake.resolve(asked, config, named, manager.served_model_name)
    if asked.statistics is not None and served(request) is not None:
        raise _many_rows(asked.statistics, type(request))
    support.check_server(manager.server_args)
    token_checks.check_rids(obj, support.chains_of(params))
    token_checks.check_prompts(manager, obj, prompts)
    token_checks.check_sampling(manager, obj, params)
    _check_policy_ids(manager, request)
    if (answered := served(request)) is not None:
        strict = config.is_strict(asked.values, manager.served_model_name)
        body = written_by_client.body
        support.check_tools(body)
        plan = answer_plan(manager, obj, params, named, config, answered, strict)
        return replace(plan, calls_tools=bool(body.tools))
    assert isinstance(request, Policy)
    return _policy_plan(obj, params, named, config, request, statistics=asked.statistics is not None)


def _check_policy_ids(manager: Any, request: SamplerRequest) -> None:
    """Check the token ids of a policy, and of the policies inside another sampler's parameters."""
    inside = {f"{name}.": getattr(request, name) for name in type(request).model_fields}
    for prefix, policy in {"": request, **inside}.items():
        for field, ids in policy.token_ids.items() if isinstance(policy, Policy) else ():
            check_ids(manager, f"{prefix}{field}", ids)


def _policy_plan(
    obj: Any,
    params: Mapping[str, Any],
    named: Fields,
    config: ServerConfig,
    policy: Policy,
    *,
    statistics: bool,
) -> PolicyPlan:
    support.check_policy_request(obj, params, named)
    chains = support.chains_of(params)
    support.check_chains(config.limits, chains)
    return PolicyPlan(policy, chains, statistics)
