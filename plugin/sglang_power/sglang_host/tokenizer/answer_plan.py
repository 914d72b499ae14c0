"""A validated plan for one prompt that a sampler of whole answers serves. Tokenizer process.

Reads what the request needs (`request.needs`), never which sampler it is of.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sglang.srt.parser.reasoning_parser import ReasoningParser

from sglang_power.algorithms.penalties import Penalties
from sglang_power.answers import EXTRACTORS, LLM, Extractor, Regex, equivalence
from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.request.needs import ForcedTokens, Needs
from sglang_power.rewards import NamedReward
from sglang_power.samplers.base import Sampler
from sglang_power.samplers.registry import Served
from sglang_power.server.config import ServerConfig, reward_of
from sglang_power.sglang_host.host_sampling import TRUNCATION, sampling_of
from sglang_power.sglang_host.tokenizer import intake, support
from sglang_power.sglang_host.tokenizer.body import Fields
from sglang_power.sglang_host.tokenizer.judge import Readout
from sglang_power.sglang_host.tokenizer.stopping import StopRule
from sglang_power.sglang_host.tokenizer.token_checks import NamedPrompt, check_ids, check_prompts


@dataclass(frozen=True)
class AnswerPlan:
    """One prompt that a sampler of whole answers serves.

    Args:
        sampler: what serves it.
        request: what the sampler is asked; it alone knows the model.
        name: of the sampler or policy that the client asked for.
        needs: of the request.
        chains: n.
        forced: ids that answers begin with; None where there are none.
        extractor: finds the answer in a text; None where the model is asked for it, or none is read.
        reasoning_end: text that ends the reasoning; None where nobody asks.
        max_horizon: the server's limit, where the cost grows with the square.
        neutralised: sampling fields that are not applied.
        readout: of the judge; None where nothing is judged.
        reward: what scores; None where nothing does.
        penalties: of the base law; None where it has none.
        strict: what would fall back to another sampler is an error.
        calls_tools: the answer may call tools, which SGLang reads off the pieces of a stream.
    """

    sampler: Sampler[Any]
    request: Any
    name: str
    needs: Needs
    chains: int
    forced: tuple[int, ...] | None
    extractor: Extractor | None
    reasoning_end: str | None
    max_horizon: int | None
    neutralised: list[str]
    readout: Readout | None
    reward: NamedReward | None
    penalties: Penalties | None = None
    strict: bool = False
    calls_tools: bool = False

    @property
    def answers(self) -> int:
        """Sequences that all choices generate at least."""
        return self.chains * self.needs.answers

    @property
    def max_total_tokens(self) -> int | None:
        """The request's own cap on decoded tokens."""
        return getattr(self.request, "max_total_tokens", None)

    @property
    def deadline_ms(self) -> int | None:
        """From the request's arrival."""
        return getattr(self.request, "deadline_ms", None)


def answer_plan(
    manager: Any,
    obj: Any,
    params: Mapping[str, Any],
    named: Fields,
    config: ServerConfig,
    served: Served,
    strict: bool = False,
) -> AnswerPlan:
    """Return the plan of a request, checked against this server.

    Args:
        manager: SGLang's TokenizerManager.
        obj: the GenerateReqInput.
        params, named: SGLang's sampling parameters, and those that the client itself named.
        config: the server's configuration.
        served: the request, and what serves it.
        strict: whether the request says so.

    Raises:
        RequestError: it cannot be served.
    """
    needs, limits = served.needs, config.limits
    support.check_request(obj, params, named)
    support.check_grammar(params, needs)
    _check_truncation(needs, named)
    support.check_caps(limits, needs.capped)
    chains = support.chains_of(params)
    max_horizon = limits.max_horizon if needs.quadratic else None
    count = chains * needs.answers
    cap = getattr(served.request, "max_total_tokens", None)
    share = support.share_of(cap, limits, count)
    horizon = support.horizon_of(params, manager.context_len, max_horizon, share)
    support.total_tokens_of(params, cap, limits, horizon, chains, needs)
    if needs.equivalence not in (None, LLM):
        equivalence(needs.equivalence)
    if needs.second_prompt is not None:
        _check_second_prompt(manager, obj, params, *needs.second_prompt)
    return AnswerPlan(
        sampler=served.sampler,
        request=served.request,
        name=served.name,
        needs=needs,
        chains=chains,
        forced=None if needs.forced is None else _forced(manager, needs.forced, params, horizon),
        extractor=_extractor(needs),
        reasoning_end=_reasoning_end(manager, needs),
        max_horizon=max_horizon,
        neutralised=_neutralised(needs, params, named),
        readout=None
        if needs.judge is None
        else Readout.of(manager.tokenizer, needs.judge.field, needs.judge.value),
        reward=reward_of(needs, config.rewards),
        penalties=support.penalties_of(named, needs),
        strict=strict,
    )


def _check_truncation(needs: Needs, named: Fields) -> None:
    """Where a parameter's own parameters draw, what the client names beside them would touch nothing."""
    if needs.drawn_by is None:
        return
    neutral, asked = sampling_of({}), sampling_of(named)
    for field in TRUNCATION:  # of a temperature `on_temperature` has said what it means
        if asked[field] != neutral[field]:
            problem = f"the samples are drawn by {needs.drawn_by}, with its own parameters"
            hint = f"Leave it out, or set {needs.drawn_by}.{field}"
            raise RequestError(field, asked[field], problem, hint)


def _neutralised(needs: Needs, params: Mapping[str, Any], named: Fields) -> list[str]:
    fields = intake.neutralised(params, named, needs.ignores_temperature)
    return [field for field in fields if field not in needs.acting]


def _extractor(needs: Needs) -> Extractor | None:
    if needs.answer is None or needs.answer == "continuation":
        return None
    if needs.answer == "regex":
        return Regex.of(needs.answer_regex or "", "answer_regex")
    return EXTRACTORS[needs.answer]


def _forced(manager: Any, forced: ForcedTokens, params: Mapping[str, Any], horizon: int) -> tuple[int, ...]:
    """The ids, checked against the vocabulary, the horizon and stops inside."""
    field = forced.field
    shown = forced.tokens if isinstance(forced.tokens, str) else list(forced.tokens)
    if isinstance(forced.tokens, str):
        ids = tuple(manager.tokenizer.encode(shown, add_special_tokens=False))
    else:
        ids = forced.tokens
        check_ids(manager, field, ids)
    if not ids:
        raise RequestError(field, shown, "no token", "Correct it, or leave it out")
    stop = StopRule.of(manager, params).first_stop(ids, 0)
    if forced.whole:
        if len(ids) > horizon:
            problem = f"{len(ids)} tokens, more than the {horizon} that an answer may have"
            raise RequestError(field, shown, problem, "Shorten the draft, or raise max_new_tokens")
        if stop is not None and stop < len(ids):
            problem = f"a stop at token {stop} of {len(ids)}"
            raise RequestError(field, shown, problem, "End the draft at its first stop")
        return ids
    if len(ids) >= horizon:
        problem = f"{len(ids)} tokens leave no room in an answer of up to {horizon}"
        raise RequestError(field, shown, problem, "Shorten it, or ask for more tokens")
    if stop is not None:
        problem = f"a stop at token {stop} of {len(ids)}, behind which nothing can follow"
        raise RequestError(field, shown, problem, "End it before its first stop")
    return ids


def _reasoning_end(manager: Any, needs: Needs) -> str | None:
    """The text that ends the reasoning of the served model."""
    if needs.reasoning_end is None:
        return None
    name = manager.server_args.reasoning_parser
    if name is None:
        raise UnsupportedError(
            needs.reasoning_end.field,
            needs.reasoning_end.value,
            "this server has no --reasoning-parser, so the end of the reasoning is unknown",
            'Use "first", or "after_prefix" with fork_prefix',
        )
    return str(ReasoningParser(name).detector.think_end_token)


def _check_second_prompt(
    manager: Any, obj: Any, params: Mapping[str, Any], field: str, prompt: str | list[int]
) -> None:
    """Raises RequestError where a twin's prompt is none, or the context has no room behind it."""
    check_prompts(manager, obj, [NamedPrompt(field, prompt)])
    length = len(manager.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt)
    room = manager.context_len - length
    horizon = (
        1 if params.get("max_new_tokens", 128) is None else support.horizon_of(params, manager.context_len)
    )
    if horizon > room:
        problem = f"{length} tokens leave room for {max(room, 0)} in the context of {manager.context_len}"
        raise RequestError(field, prompt, problem, "Shorten it, or ask for fewer max_new_tokens")
