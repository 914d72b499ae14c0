"""What the client asked, whichever way it was written. Tokenizer process.

A sampler can be named in `custom_params`, in `metadata.sglang_power` (which gateways pass on that drop
fields they do not know), in `sampling_params.sampler`, at the top level of the body (`places_of` lists
them), or by the server's default for the model. SGLang fills sampling parameters from the model's generation
config, so what counts is what the client's body *named*; everything else is neutralised.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_power.errors import RequestError
from sglang_power.fields import METADATA_KEY
from sglang_power.request import NO_SAMPLER, SamplerRequest
from sglang_power.server.config import ServerConfig

Fields = dict[str, Any]

PLUGIN_KEYS = frozenset({"sampler", "preset"})
TRUNCATION = ("top_p", "top_k", "min_p")
_NEUTRAL: Fields = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
}
_GREEDY_BELOW = 1e-6
"""SGLang decodes greedily at lower temperatures."""
_TOP_K_ALL = 1 << 30
"""SGLang writes "whole vocabulary" as -1 or as this number."""


@dataclass(frozen=True)
class Asked:
    """One prompt's sampler as asked.

    Args:
        values: flat parameters, preset not yet resolved.
        explicit: named by the client, not by the server's default.
        origins: parameter -> the field that the client wrote it in.
    """

    values: Fields
    explicit: bool
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """One place of a request where the client named a sampler or parameters of one.

    Args:
        name: as messages call it; empty for the top level of the body.
        values: the parameters that stand there.
    """

    name: str
    values: Fields

    def field_of(self, key: str) -> str:
        """Return what messages call a parameter that stands here."""
        return f"{self.name}.{key}" if self.name else key


def body_of(request: Any) -> Fields | None:
    """The JSON body of a Starlette request that the host has already read, without awaiting."""
    body = getattr(request, "_json", None)
    if body is None and getattr(request, "_body", None):
        try:
            body = json.loads(request._body)
        except ValueError:
            return None
    return body if isinstance(body, dict) else None


def is_openai(body: Fields | None) -> bool:
    """True where sampling fields stand at the top level of the body (OpenAI's shape)."""
    return body is not None and not ({"sampling_params", "text", "input_ids", "input_embeds"} & body.keys())


def named_by_client(params: Mapping[str, Any], body: Fields | None) -> Fields:
    """The sampling fields that the client wrote; None counts as not written."""
    source = body if body is not None and is_openai(body) else params
    return {key: value for key, value in source.items() if value is not None}


def metadata_of(body: Fields | None) -> Fields:
    """Return OpenAI's `metadata` of a body; empty where there is none, or no object."""
    metadata = (body or {}).get("metadata")
    return metadata if isinstance(metadata, dict) else {}


def _in_metadata(body: Fields | None) -> Fields:
    """Return what `metadata.sglang_power` holds: JSON in a string, as OpenAI's API has it, or an object.

    Raises:
        RequestError: neither of both.
    """
    value, name = metadata_of(body).get(METADATA_KEY), f"metadata.{METADATA_KEY}"
    hint = 'Write what custom_params would hold as JSON in a string: "{\\"sampler\\": \\"power\\"}"'
    values = {} if value is None else value
    if isinstance(value, str):
        try:
            values = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RequestError(name, value, f"not valid JSON ({error})", hint) from error
    if not isinstance(values, dict):
        raise RequestError(name, value, "not a JSON object", hint)
    return values


def places_of(params: Mapping[str, Any], body: Fields | None) -> list[Place]:
    """Return every place in which one prompt's request names a sampler, in the order of SGLang's own.

    A key that is null counts as absent. `custom_params` without a key of ours may be somebody else's.

    Raises:
        RequestError: a place that is ours by name holds something else.
    """
    custom = _without_nulls(params.get("custom_params"))
    places = [
        Place("custom_params", custom if PLUGIN_KEYS & custom.keys() else {}),
        Place(f"metadata.{METADATA_KEY}", _without_nulls(_in_metadata(body))),
        Place("sampling_params", _plugin_keys(params)),
        Place("", _plugin_keys(body or {})),
    ]
    return [place for place in places if place.values]


def _without_nulls(values: object) -> Fields:
    """Return a place's parameters, without those of our keys that are null; empty for anything else."""
    each = values.items() if isinstance(values, dict) else ()
    return {key: value for key, value in each if key not in PLUGIN_KEYS or value is not None}


def _plugin_keys(values: Mapping[str, Any]) -> Fields:
    return {key: values[key] for key in sorted(PLUGIN_KEYS) if values.get(key) is not None}


def asked(params: Mapping[str, Any], body: Fields | None, default_preset: str | None) -> Asked | None:
    """The sampler that one prompt asks for; None means SGLang's own.

    Raises:
        RequestError: two places contradict each other, or one that is ours cannot be read.
    """
    values: Fields = {}
    origins: dict[str, str] = {}
    places = places_of(params, body)
    for place in places:
        for key, value in place.values.items():
            _lift(values, key, value, place.field_of(key), origins)
            origins.setdefault(key, place.field_of(key))
    if not values:
        return None if default_preset is None else Asked({"preset": default_preset}, explicit=False)
    if not PLUGIN_KEYS & values.keys():
        raise RequestError(places[0].name, values, "names no sampler", "Add sampler or preset to it")
    return None if values.get("sampler") == NO_SAMPLER else Asked(values, explicit=True, origins=origins)


def own_choice(obj: Any, body: Fields | None) -> Literal["own_sampler", "seed", "greedy", "batch"] | None:
    """How a client chose to sample, so that no experiment may choose for it.

    Args:
        obj: a GenerateReqInput that is not normalised yet.
        body: the client's.
    """
    params, prompt = obj.sampling_params or {}, obj.text if obj.text is not None else obj.input_ids
    if isinstance(params, list) or not isinstance(prompt, str | list) or _is_batch(prompt):
        return "batch"
    if places_of(params, body):
        return "own_sampler"
    custom = params.get("custom_params")
    seeded = (named_by_client(params, body), custom if isinstance(custom, dict) else {})
    if any(place.get(key) is not None for place in seeded for key in ("seed", "sampling_seed")):
        return "seed"
    return "greedy" if _is_zero(params.get("temperature")) or params.get("top_k") == 1 else None


def _is_zero(temperature: object) -> bool:
    """As SGLang's SamplingParams takes it, which decodes greedily there."""
    return isinstance(temperature, int | float) and 0 <= temperature < _GREEDY_BELOW


def _is_batch(prompt: str | list[Any]) -> bool:
    return isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))


def _lift(values: Fields, key: str, value: object, name: str, origins: Mapping[str, str]) -> None:
    if values.setdefault(key, value) != value:
        other = origins.get(key, f"custom_params.{key}")
        raise RequestError(name, value, f"contradicts {other}={values[key]!r}", "Name it in one place")


def without_plugin_keys(params: Mapping[str, Any]) -> Fields:
    """Parameters, or a body, as SGLang knows them."""
    return {key: value for key, value in params.items() if key not in PLUGIN_KEYS}


def resolve(asked_for: Asked, config: ServerConfig, named: Fields, served_model: str) -> SamplerRequest:
    """Validate the parameters, with the client's own seed and, for `power`, truncation lifted in.

    A policy works on top of the request's own temperature and truncation, which keep SGLang's meaning.

    Raises:
        RequestError: anything in them is wrong, or two places contradict each other.
    """
    values = dict(asked_for.values)
    if config.expanded(values, served_model).get("sampler", "power") == "power":
        _lift_truncation(values, named, asked_for.origins)
    seed = named.get("seed", named.get("sampling_seed"))
    if seed is not None:
        values.setdefault("seed", seed)
    return config.resolve(values, served_model)


def _lift_truncation(values: Fields, named: Fields, origins: Mapping[str, str]) -> None:
    """What the client wrote as SGLang's own parameters truncates the proposal."""
    if named.get("temperature", 1.0) != 1.0:
        raise RequestError(
            "temperature",
            named["temperature"],
            "the power distribution has no token temperature",
            "Leave it out, or set proposal_temperature",
        )
    for key in TRUNCATION:
        if key in named:
            value = -1 if key == "top_k" and named[key] == _TOP_K_ALL else named[key]
            _lift(values, key, value, key, origins)


def sampling_of(params: Mapping[str, Any]) -> Fields:
    """SGLang's own temperature and truncation of a request, with the values of those that are absent."""
    named = {key: params.get(key) for key in ("temperature", *TRUNCATION)}
    return {key: _NEUTRAL[key] if value in (None, _TOP_K_ALL) else value for key, value in named.items()}


def neutralised(params: Mapping[str, Any], named: Fields) -> list[str]:
    """Sampling fields that the model's generation config set and the client did not name."""
    return sorted(
        key
        for key, neutral in _NEUTRAL.items()
        if key not in named and params.get(key) not in (None, neutral, _TOP_K_ALL)
    )
