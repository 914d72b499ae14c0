"""What is refused, and why: by this server's configuration, and by fields of one request.

Every cell of the support matrix that does not work is refused here, before any token is generated.
Tokenizer process. Attribute names hold for SGLang 0.5.20 to 0.5.23; a missing attribute means the feature
does not exist there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang_power.algorithms.penalties import Penalties
from sglang_power.errors import LimitError, RequestError, ServerSettingsError, UnsupportedError
from sglang_power.request import STATISTICS, Capped, Needs
from sglang_power.server.config import Limits
from sglang_power.sglang_host.child_params import GRAMMARS
from sglang_power.sglang_host.tokenizer.body import Body, Fields


@dataclass(frozen=True)
class Refusal:
    """One feature of the server that power sampling does not work with."""

    flag: str
    value: object
    reason: str

    def __str__(self) -> str:
        return f"{self.flag}={self.value!r}: {self.reason}"


_SERVER = (
    ("speculative_algorithm", None, "speculative decoding does not call the sampler for verified tokens"),
    ("disaggregation_mode", "null", "prefill/decode disaggregation is not supported"),
    ("pp_size", 1, "pipeline parallelism does not carry row statistics"),
    ("dllm_algorithm", None, "diffusion language models have no token-by-token law"),
    ("tp_size", 1, "tensor parallelism is not supported yet"),
    ("enable_deterministic_inference", False, "deterministic mode is not supported yet"),
    ("skip_tokenizer_init", False, "answers are decoded in the server"),
)


_REPORTED_SERVER = (
    *_SERVER,
    ("watermark_default_enabled", False, "watermarks take the place of the model's logits"),
    ("watermark_enforce_all", False, "watermarks take the place of the model's logits"),
)
"""The same for the statistics of rows that SGLang draws."""


def server_refusals(server_args: Any, features: Sequence[tuple[str, object, str]] = _SERVER) -> list[Refusal]:
    """Return why this server cannot run power sampling at all; empty when it can.

    Args:
        server_args: SGLang's.
        features: what it must not have: name of an argument, neutral value, reason.
    """
    return [
        Refusal("--" + flag.replace("_", "-"), getattr(server_args, flag), reason)
        for flag, neutral, reason in features
        if getattr(server_args, flag, neutral) not in (neutral, None, False)
    ]


# What the client wrote comes before what SGLang made of it.
_SAMPLING: dict[str, tuple[tuple[object, ...], str]] = {
    "stop_regex": (("", []), "stop patterns are not supported, stop strings are"),
    "beam_width": ((1,), "beam search is another sampler"),
    "best_of": ((1,), "it is another sampler"),
    "watermark": ((), "watermarks change the law"),
}

_REQUEST: dict[str, str] = {
    "lora_path": "LoRA adapters are not supported yet",
    "session_params": "sessions are not supported yet",
    "image_data": "multimodal prompts are not supported yet",
    "video_data": "multimodal prompts are not supported yet",
    "audio_data": "multimodal prompts are not supported yet",
    "input_embeds": "prompts must be text or token ids",
    "custom_logit_processor": "custom logit processors are not supported",
    "return_hidden_states": "hidden states of a chain are not defined",
    "return_routed_experts": "expert routes of a chain are not defined",
    "return_indexer_topk": "indexer output of a chain is not defined",
    "return_sampling_mask": "sampling masks of a chain are not defined",
    "return_entropy": "entropies of a chain are not returned yet",
    "return_flat_raw_top_logprobs": "flat log probabilities are not supported",
    "return_flat_raw_output_top_logprobs": "flat log probabilities are not supported",
    "positional_embed_overrides": "embedding overrides are not supported",
    "max_thinking_tokens": "thinking budgets restart at every cut",
    "bootstrap_room": "prefill/decode disaggregation is not supported",
}


def check_server(server_args: Any) -> None:
    """Raises ServerSettingsError when the server's configuration rules power sampling out."""
    for refusal in server_refusals(server_args):
        raise ServerSettingsError(
            refusal.flag, refusal.value, refusal.reason, "Send the request without a sampler"
        )


def check_reporting_server(server_args: Any) -> None:
    """Raises ServerSettingsError when the server's configuration rules statistics of rows out."""
    for refusal in server_refusals(server_args, _REPORTED_SERVER):
        raise ServerSettingsError(
            refusal.flag, refusal.value, refusal.reason, f"Send the request without {STATISTICS}"
        )


_POLICY_SAMPLING = ("beam_width", "watermark")
_POLICY_REQUEST = ("custom_logit_processor", "return_sampling_mask", "return_entropy", "bootstrap_room")
"""What a per-step policy cannot work with; everything else is SGLang's own and passes through."""


_REPORTED_SAMPLING = ("beam_width", "watermark")
_REPORTED_REQUEST = ("custom_logit_processor", "bootstrap_room")
"""What has no statistics of rows that SGLang draws: its parameters, or its logits, are not the row's own."""


def check_reported_request(obj: Any, params: Mapping[str, Any], named: Fields) -> None:
    """Raises UnsupportedError for a field of a prompt that SGLang serves and that has no statistics."""
    _check_fields(obj, params, named, _REPORTED_SAMPLING, _REPORTED_REQUEST, STATISTICS)


def check_policy_request(obj: Any, params: Mapping[str, Any], named: Fields) -> None:
    """Raises UnsupportedError for a field of this prompt that per-step policies do not support."""
    _check_fields(obj, params, named, _POLICY_SAMPLING, _POLICY_REQUEST)


def check_request(obj: Any, params: Mapping[str, Any], named: Fields) -> None:
    """Raises UnsupportedError for a field of this prompt that power sampling does not support."""
    _check_fields(obj, params, named, _SAMPLING, _REQUEST)


def check_tools(body: Body) -> None:
    """Raise UnsupportedError for tools on a route that does not read their calls off our answers."""
    if body.tools and not body.route.calls_tools:
        problem = "this route does not read calls of tools off an answer that is there at once"
        raise UnsupportedError(
            "tools", body.tools, problem, "Ask /v1/chat/completions, or leave the sampler out"
        )


def check_grammar(params: Mapping[str, Any], needs: Needs) -> None:
    """Check what an answer with a grammar may be asked beside it.

    Raises:
        UnsupportedError: something that the grammar cannot follow.
    """
    constrained = next((name for name in GRAMMARS if params.get(name)), None)
    if constrained is None:
        return
    beside = None
    if needs.forced is not None:
        beside = needs.forced.field, "its tokens may be none that the grammar allows"
    elif needs.second_prompt is not None:
        beside = needs.second_prompt[0], "the rows of a second prompt have no grammar"
    if beside is not None:
        problem = f"it does not go together with {beside[0]}: {beside[1]}"
        raise UnsupportedError(
            constrained, params[constrained], problem, f"Leave {beside[0]} or the grammar out"
        )


def penalties_of(named: Fields, needs: Needs) -> Penalties | None:
    """Return the penalties that a client named, which are part of the base law; None where there are none.

    Those of the model's generation config or of the server are not applied, as its other defaults.

    Raises:
        UnsupportedError: the sampler cannot follow them.
    """
    penalties = Penalties.of(named)
    if penalties is not None and needs.second_prompt is not None:
        field, value = next(iter(penalties.acting().items()))
        beside = needs.second_prompt[0]
        problem = f"it does not go together with {beside}: the rows of a second prompt have no penalties"
        raise UnsupportedError(field, value, problem, f"Leave {beside} or the penalty out")
    return penalties


def _check_fields(
    obj: Any,
    params: Mapping[str, Any],
    named: Fields,
    sampling_fields: Iterable[str],
    request_fields: Iterable[str],
    beside: str = "the sampler",
) -> None:
    for field in sampling_fields:
        neutral, reason = _SAMPLING[field]
        value = named.get(field, params.get(field))  # constraints may also come from the host (tool parsers)
        if value is not None and value not in neutral:
            raise UnsupportedError(field, value, reason, f"Leave {field} out, or {beside}")
    for field in request_fields:
        value = getattr(obj, field, None)
        if value not in (None, False, [], [None]):
            raise UnsupportedError(field, value, _REQUEST[field], f"Leave {field} out, or {beside}")


def chains_of(params: Mapping[str, Any]) -> int:
    """n, checked: how many answers the client wants."""
    n = params.get("n")
    if n is None:
        return 1
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise RequestError("n", n, "not a positive integer", "Ask for at least 1 answer")
    return n


SGLANG_MAX_NEW_TOKENS = 128
"""SGLang's default where a request has no max_new_tokens; null means as many as there is room for."""


def horizon_of(
    params: Mapping[str, Any], room: int, max_horizon: int | None = None, share: int | None = None
) -> int:
    """L = max_new_tokens, checked; where the client leaves it open, what the context and the server allow.

    Args:
        params: SGLang's sampling parameters; an absent key means SGLang's default of 128.
        room: tokens that the model's context has left behind the prompt.
        max_horizon: the server's limit on requests whose cost grows with its square.
        share: what an answer may take of the request's tokens; it shortens an open horizon only.

    Raises:
        LimitError: not an integer in 1..max_horizon, or more than the context has room for.
    """
    sent, asked = params.get("max_new_tokens"), params.get("max_new_tokens", SGLANG_MAX_NEW_TOKENS)
    default = (
        f"SGLang's {SGLANG_MAX_NEW_TOKENS} where it is absent: " if "max_new_tokens" not in params else ""
    )
    if room < 1:
        problem = "the prompt leaves no room for an answer in the model's context"
        raise LimitError("max_new_tokens", sent, problem, "Shorten the prompt")
    if asked is None:
        asked = min(limit for limit in (room, max_horizon, share) if limit is not None)
    if not isinstance(asked, int) or isinstance(asked, bool) or asked < 1:
        raise LimitError("max_new_tokens", sent, "not a positive integer", "Ask for at least 1 token")
    if max_horizon is not None and asked > max_horizon:
        raise LimitError(
            "max_new_tokens",
            sent,
            f"{default}above this server's max_horizon of {max_horizon} (the cost grows with its square)",
            "Ask for fewer tokens, or raise limits.max_horizon in SGLANG_POWER_CONFIG",
        )
    if asked > room:
        problem = f"{default}the context has room for {room} tokens"
        raise LimitError("max_new_tokens", sent, problem, "Shorten the prompt or ask less")
    least = params.get("min_new_tokens") or 0
    if least > asked:
        problem = f"more than the {asked} tokens that an answer may have"
        raise LimitError("min_new_tokens", least, problem, "Lower it")
    return asked


REQUEST_OVER_INPUT = 5
"""By how many tokens SGLang lets a whole request be longer than the longest prompt (0.5.20 to 0.5.23)."""


def room_behind(manager: Any, prompt: int) -> int:
    """Return how many tokens SGLang lets an answer have behind a prompt of so many tokens.

    It caps answers so, without a word, by the context or by its pool of KV slots, whichever is smaller.
    """
    longest: int = manager.max_req_input_len + REQUEST_OVER_INPUT
    return longest - prompt - 1


def horizon_behind(
    manager: Any,
    params: Mapping[str, Any],
    prompt: int,
    max_horizon: int | None = None,
    share: int | None = None,
    reserved: int = 0,
) -> int:
    """Return L of an answer behind a prompt: what was asked for, as far as SGLang lets an answer go.

    Args:
        manager: SGLang's TokenizerManager.
        params, max_horizon, share: as `horizon_of` takes them.
        prompt: its tokens.
        reserved: tokens behind the answer that somebody else needs; they shorten an open horizon, by half of
            the room at most.

    Raises:
        UnsupportedError: more than the context can hold, which SGLang refuses as well.
    """
    window = manager.context_len - manager.num_reserved_tokens
    asked, room = params.get("max_new_tokens", SGLANG_MAX_NEW_TOKENS), room_behind(manager, prompt)
    if isinstance(asked, int) and prompt + asked > window:
        raise UnsupportedError(
            "max_new_tokens",
            params.get("max_new_tokens"),
            f"a prompt of {prompt} tokens leaves room for {max(room, 0)} in the context of {window}",
            "Shorten the prompt or ask for fewer tokens",
        )
    if asked is None:
        room -= min(reserved, room // 2)
    return max(1, min(horizon_of(params, window, max_horizon, share), room))


def share_of(max_total_tokens: int | None, limits: Limits, answers: int) -> int:
    """Tokens of the request's cap, or else the server's, for each of its answers."""
    return max(1, (max_total_tokens or limits.max_total_tokens) // answers)


SINGLE = Needs()
"""Of a request that generates one answer for each that the client gets."""


def check_chains(limits: Limits, n: int, needs: Needs = SINGLE) -> None:
    """Check how many answers a request makes the server generate.

    Args:
        limits: the server's.
        n: answers that the client gets.
        needs: how many are generated for each of them, and what the client says their number by.

    Raises:
        LimitError: more than the server's limit.
    """
    if needs.in_step:
        check_chains(limits, n)
        _check_particles(limits, n, needs)
        return
    most, answers = limits.max_chains, needs.answers
    if n * answers <= most:
        return
    name, sent = ("n", n) if answers == 1 or n > most else (needs.answers_field, answers)
    each = f"for each of n={n} answers, {n * answers} in all: " if name != "n" and n > 1 else ""
    problem = f"{each}above this server's limit of {most} answers"
    raise LimitError(name, sent, problem, "Ask for fewer, or raise limits.max_chains of the server")


def _check_particles(limits: Limits, n: int, needs: Needs) -> None:
    most, each = limits.max_particles, needs.least or needs.answers
    if n * needs.answers <= most:
        return
    runs = f"{needs.answers // each} runs of " if each != needs.answers else ""
    choices = f", {n} times" if n > 1 else ""
    problem = (
        f"{runs}{each}{choices} are {n * needs.answers}, above this server's limits.max_particles of {most}"
    )
    raise LimitError(needs.answers_field, each, problem, "Ask for fewer, or raise that limit of the server")


def check_caps(limits: Limits, capped: Sequence[Capped]) -> None:
    """Check parameters that the server limits, each by a limit of its own.

    Raises:
        LimitError: above it.
    """
    for each in capped:
        most: int = getattr(limits, each.limit)
        if (each.value if each.count is None else each.count) > most:
            counted = "" if each.count is None else f"{each.count} calls at once, "
            problem = f"{counted}above this server's limit of {most}"
            hint = f"Lower it, or raise limits.{each.limit} of the server"
            raise LimitError(each.field, each.value, problem, hint)


def total_tokens_of(
    params: Mapping[str, Any],
    max_total_tokens: int | None,
    limits: Limits,
    horizon: int,
    n: int,
    needs: Needs = SINGLE,
) -> int:
    """The request's cap on decoded tokens, checked against the server's and against one answer per chain.

    Args:
        params: SGLang's sampling parameters.
        max_total_tokens: the request's own cap.
        limits, n, needs: as `check_chains`.
        horizon: tokens of one answer.

    Raises:
        LimitError: above the server's cap, or too small for the answers asked for.
    """
    check_chains(limits, n, needs)
    answers, field = needs.least or needs.answers, needs.answers_field
    if max_total_tokens is not None and max_total_tokens > limits.max_total_tokens:
        problem = f"above this server's cap of {limits.max_total_tokens}"
        raise LimitError("max_total_tokens", max_total_tokens, problem, "Lower it")
    cap = limits.max_total_tokens if max_total_tokens is None else max_total_tokens
    needed = horizon * n * answers
    if cap >= needed:
        return cap
    problem = f"{n * answers} answer(s) of up to {horizon} tokens need at least {needed}"
    if max_total_tokens is not None:
        hint = f"Raise it, or lower max_new_tokens or {field}"
        raise LimitError("max_total_tokens", max_total_tokens, problem, hint)
    sent = params.get("max_new_tokens")
    problem = f"{problem}, above this server's cap of {cap}"
    hint = f"Lower it or {field}, or raise limits.max_total_tokens in SGLANG_POWER_CONFIG"
    raise LimitError("max_new_tokens", sent, problem, hint)
