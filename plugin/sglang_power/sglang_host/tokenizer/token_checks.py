"""Checks prompts, token ids and stops of a request that names a sampler, before any token is generated.

SGLang checks some of it while it takes a request, and the rest never: there an empty prompt, an id outside of
the vocabulary or a number that fits no tensor ends its scheduler, and with it every request (0.5.20 to
0.5.23). A default preset whose request fails here leaves it to SGLang as it is. Tokenizer process.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_power.errors import RequestError
from sglang_power.fields import MAX_COUNT, MAX_TEMPERATURE
from sglang_power.sglang_host.tokenizer.body import Body

MAX_BIAS = 1e18
"""Largest |logit_bias|: the square of a difference of two logits is finite in float32, as variances need."""

_BEGINNING = 64
"""Characters that show whether a long text has any token at all."""

_OTHER_PROMPTS = ("prompt", "messages", "input")
"""What routes call it whose bodies are not SGLang's own."""

_MEDIA = ("image_data", "video_data", "audio_data", "session_params")
"""What a prompt may consist of beside its own text and ids."""


@dataclass(frozen=True)
class NamedPrompt:
    """One prompt and what its client calls it: `text`, `prompt.2`, ..."""

    field: str
    value: object


def prompts_of(obj: Any, body: Body) -> list[NamedPrompt]:
    """Return the prompts of a GenerateReqInput that is not normalised yet; none where they are embeddings."""
    native = body.route.fields == "sampling_params"
    own = None if native else next((name for name in _OTHER_PROMPTS if name in body.values), None)
    for name in ("text", "input_ids"):
        value = getattr(obj, name)
        if value is None:
            continue
        field = own or name
        if isinstance(value, list) and value and not isinstance(value[0], int):
            return [NamedPrompt(f"{field}.{i}", prompt) for i, prompt in enumerate(value)]
        return [NamedPrompt(field, value)]
    return []


def check_rids(obj: Any, n: int) -> None:
    """Check that a request names one id, or one per prompt; SGLang fails on a list for one prompt and answer.

    Args:
        obj: a GenerateReqInput that is not normalised yet.
        n: answers per prompt.

    Raises:
        RequestError: it does not.
    """
    if not isinstance(obj.rid, list):
        return
    prompt = obj.text if obj.text is not None else obj.input_ids
    single = isinstance(prompt, str) or bool(prompt and isinstance(prompt[0], int))
    if single and n == 1:
        raise RequestError("rid", obj.rid, "a list of ids for a single prompt", "Write the id as a string")
    prompts = 1 if single else len(prompt or ())
    if len(obj.rid) != prompts or len(set(obj.rid)) != prompts:
        hint = "Give each prompt an id of its own, or all of them one string"
        raise RequestError("rid", obj.rid, f"not one id for each of {prompts} prompts", hint)


def check_prompts(manager: Any, obj: Any, prompts: Iterable[NamedPrompt]) -> None:
    """Check that every prompt has a token, and tokens of the served model only.

    Raises:
        RequestError: one has not.
    """
    alone = not any(getattr(obj, name, None) for name in _MEDIA)
    for prompt in prompts:
        if isinstance(prompt.value, list):
            check_ids(manager, prompt.field, prompt.value)
        if alone and not _has_tokens(manager.tokenizer, prompt.value):
            raise RequestError(prompt.field, prompt.value, "a prompt without a token", "Send at least one")


def _has_tokens(tokenizer: Any, prompt: object) -> bool:
    if not isinstance(prompt, str):
        return bool(prompt)
    return bool(tokenizer.encode(prompt[:_BEGINNING]) or tokenizer.encode(prompt))


def check_ids(manager: Any, field: str, ids: Iterable[object]) -> None:
    """Raise RequestError for an id that the served model does not have."""
    vocab, tokens = manager.model_config.vocab_size, list(ids)
    whole = [token for token in tokens if isinstance(token, int)]
    if len(whole) == len(tokens) and min(whole, default=0) >= 0 and max(whole, default=0) < vocab:
        return  # as almost always, and prompts are long
    for token in tokens:
        if not isinstance(token, int) or not 0 <= token < vocab:
            problem = f"outside of the vocabulary of {vocab}"
            raise RequestError(field, token, problem, "Use the served model's token ids")


def check_sampling(manager: Any, obj: Any, params: Mapping[str, Any]) -> None:
    """Check SGLang's own sampling parameters of one prompt, by its rules and where it has none by ours.

    Raises:
        RequestError: a stop, an id or a number that no row of a sampler can have.
        ValueError: what SGLang says of the others.
    """
    _check_stops(params.get("stop"))
    ids = params.get("stop_token_ids") or ()
    if not isinstance(ids, list | tuple | set | frozenset):
        raise RequestError("stop_token_ids", ids, "not a list of token ids", "Send a list, or leave it out")
    check_ids(manager, "stop_token_ids", [token for token in ids if token is not None])
    _check_bias(manager, params.get("logit_bias"))
    _check_count("min_new_tokens", params.get("min_new_tokens"), MAX_COUNT)
    _check_count("top_logprobs_num", getattr(obj, "top_logprobs_num", None), manager.model_config.vocab_size)
    check_ids(manager, "token_ids_logprob", _flat(getattr(obj, "token_ids_logprob", None)))
    for field, largest in (("temperature", MAX_TEMPERATURE), ("top_k", MAX_COUNT)):
        value = params.get(field)
        if isinstance(value, int | float) and value > largest:
            raise RequestError(field, value, f"above {largest:g}", "Lower it, or leave it out")
    _check_as_sglang(manager, params)


def _check_as_sglang(manager: Any, params: Mapping[str, Any]) -> None:
    """Have SGLang check its own parameters; of values of a wrong type it says nothing, and fails with a 500.

    On /generate it has refused names that it does not know; on /vertex_generate nobody has.
    """
    known = inspect.signature(SamplingParams).parameters
    for name, value in params.items():
        if name not in known:
            raise RequestError(name, value, "unknown sampling parameter", "Leave it out, or correct its name")
    try:
        own = SamplingParams(**params)
        own.normalize(manager.tokenizer)
        own.verify(manager.model_config.vocab_size)
    except (TypeError, AttributeError) as error:
        problem = f"a value of a type that SGLang does not take ({error})"
        raise RequestError("sampling_params", dict(params), problem, "Correct it, or leave it out") from error


def _check_stops(stop: object) -> None:
    """SGLang ends an answer whose text contains a stop string, and every text contains the empty one."""
    if stop is None:
        return
    strings = [stop] if isinstance(stop, str) else stop
    if not isinstance(strings, list | tuple) or not all(isinstance(string, str) for string in strings):
        raise RequestError("stop", stop, "neither a string nor a list of strings", "Correct it")
    if "" in strings:
        problem = "an empty stop string, which every text contains: no answer could begin"
        raise RequestError("stop", stop, problem, "Leave it out")


def _check_bias(manager: Any, bias: object) -> None:
    if bias is None:
        return
    hint = 'Send an object of token ids and numbers, such as {"105": -100}'
    if not isinstance(bias, dict):
        raise RequestError("logit_bias", bias, "not an object", hint)
    for key, value in bias.items():
        digits = str(key)
        if not digits.isdecimal() or not digits.isascii():
            raise RequestError("logit_bias", key, "not a token id", hint)
        check_ids(manager, "logit_bias", [int(digits)])
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not (abs(value) <= MAX_BIAS or value == -float("inf")):
            problem = f"not a number between {-MAX_BIAS:g} and {MAX_BIAS:g}"
            raise RequestError(f"logit_bias.{key}", value, problem, hint)


def _check_count(field: str, value: object, largest: int) -> None:
    for count in value if isinstance(value, list) else [value]:
        if count is None:
            continue
        if not isinstance(count, int) or isinstance(count, bool) or not 0 <= count <= largest:
            raise RequestError(field, count, f"not an integer from 0 to {largest}", "Leave it out")


def _flat(ids: object) -> Sequence[object]:
    """Return the ids of a list, or of a list of lists, of which some may be None."""
    each = ids if isinstance(ids, list) else []
    return [
        token for part in each for token in (part if isinstance(part, list) else [part]) if token is not None
    ]
