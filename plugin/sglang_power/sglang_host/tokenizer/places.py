"""The places of a request in which a client may name a sampler, and what is the plugin's in each of them.

In `custom_params`, in `metadata.sglang_power` and in any nested object `sglang_power` everything is ours; but
`custom_params` that accompany a custom logit processor are that processor's, but for such an object. Among
SGLang's own fields (`sampling_params`, Ollama's `options`, the top level of the body) ours are the
parameters of samplers whose names SGLang does not use; they count where a sampler is named, and the few that
nobody else could mean always. null is absent everywhere. Tokenizer process.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest, ResponsesRequest
from sglang.srt.managers.io_struct import GenerateReqInput
from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_power.errors import RequestError
from sglang_power.request import STATISTICS, STRICT, samplers
from sglang_power.sglang_host.tokenizer.body import NO_BODY, Body, Fields

PLUGIN_KEYS = frozenset({"sampler", "preset"})
"""What names a sampler."""

NESTED = "sglang_power"
"""The object, or in `metadata` the JSON in a string, that holds what `custom_params` would hold."""

UNMISTAKABLE = frozenset({STATISTICS, STRICT, "on_temperature", "proposal_temperature", "proposal_policy"})
"""Parameters that are ours among SGLang's fields even where no sampler is named."""

ELSEWHERE = frozenset({"seed", "top_p", "top_k", "min_p"})
"""Names that SGLang uses, too, and means what we mean; at the top level it reads them on some routes only."""

_INTERNAL = "__sglang"
"""Prefix of what SGLang itself puts into `custom_params` (reasoning models)."""


@dataclass(frozen=True)
class Written:
    """What a client wrote for one prompt.

    Args:
        params: SGLang's sampling parameters, completed by SGLang.
        body: all of the request.
        processor: whether a custom logit processor comes with it.
    """

    params: Mapping[str, Any]
    body: Body = NO_BODY
    processor: bool = False

    @property
    def named(self) -> Fields:
        """Return the sampling fields that the client wrote, under SGLang's names."""
        return self.body.named(self.params)


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


def written(obj: Any, body: Body) -> list[Written]:
    """Return what a GenerateReqInput, not normalised yet, says for each of its sampling parameters."""
    params = obj.sampling_params
    each = params if isinstance(params, list) else [params or {}]
    processors = obj.custom_logit_processor
    many = isinstance(processors, list)
    if many and len(processors) == len(each):
        return [
            Written(prompt_params, body, bool(own))
            for prompt_params, own in zip(each, processors, strict=True)
        ]
    processor = any(processors) if many else bool(processors)
    return [Written(prompt_params, body, processor) for prompt_params in each]


@functools.cache
def host_names() -> frozenset[str]:
    """Return every field of SGLang's own requests; those keep their meaning wherever they stand."""
    models = (CompletionRequest, ChatCompletionRequest, ResponsesRequest)
    openai = {name for model in models for name in model.model_fields}
    native = {*inspect.signature(SamplingParams).parameters, *inspect.signature(GenerateReqInput).parameters}
    return frozenset(openai | native)


@functools.cache
def own_names() -> frozenset[str]:
    """Return what names a sampler and the parameters of all samplers, without the names that SGLang uses."""
    ours = {name for model in samplers().values() for name in model.model_fields}
    return frozenset(({*ours, *UNMISTAKABLE} - host_names()) | PLUGIN_KEYS)


def places_of(request: Written) -> list[Place]:
    """Return every place in which one prompt's request names a sampler or parameters of one.

    Raises:
        RequestError: a place that is ours by name holds something else.
    """
    whole = [place for place in _whole(request) if place.values]
    loose = dict(_loose(request))
    everywhere = [*(place.values for place in whole), *loose.values()]
    named = any(values.get(key) is not None for values in everywhere for key in PLUGIN_KEYS)
    keys = own_names() if named else UNMISTAKABLE
    found = [Place(name, _present(values, keys)) for name, values in loose.items()]
    if named and request.body.route.fields != "top_level":
        found.append(Place("", _present(request.body.values, ELSEWHERE)))
    return whole + [place for place in found if place.values]


def _whole(request: Written) -> Iterator[Place]:
    """Yield the places in which everything is ours, in the order of SGLang's own."""
    body = request.body
    yield from _in_custom_params(request.params.get("custom_params"), request.processor)
    if not body.route.takes_custom_params:
        for holder in (body.values, body.options):
            yield from _in_custom_params(holder.get("custom_params"), request.processor)
    yield _nested(f"metadata.{NESTED}", body.metadata.get(NESTED))
    yield _nested(NESTED, body.values.get(NESTED))


def _loose(request: Written) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the places that we share with SGLang's own fields."""
    if request.body.route.fields == "sampling_params":
        yield "sampling_params", request.params
    elif request.body.route.fields == "options":
        yield "options", request.body.options
    yield "", request.body.values


def _in_custom_params(custom: object, processor: bool) -> Iterator[Place]:
    if not isinstance(custom, dict):
        return
    yield _nested(f"custom_params.{NESTED}", custom.get(NESTED))
    if processor:
        return
    values = {key: value for key, value in _without_nulls(custom).items() if not key.startswith(_INTERNAL)}
    values.pop(NESTED, None)
    if own_names() & values.keys():
        yield Place("custom_params", values)
    elif "seed" in values:
        yield Place("custom_params", {"seed": values["seed"]})


def _nested(name: str, value: object) -> Place:
    """Return what a place that is ours by name holds: an object, or JSON in a string.

    Raises:
        RequestError: neither of both.
    """
    hint = 'Write what custom_params would hold, as JSON in a string: "{\\"sampler\\": \\"power\\"}"'
    values = {} if value is None else value
    if isinstance(values, str):
        try:
            values = json.loads(values)
        except (ValueError, RecursionError) as error:
            raise RequestError(name, value, f"not valid JSON ({error})", hint) from error
    if not isinstance(values, dict):
        raise RequestError(name, value, "not a JSON object", hint)
    return Place(name, _without_nulls(values))


def _without_nulls(values: Mapping[str, Any]) -> Fields:
    return {key: value for key, value in values.items() if value is not None}


def _present(values: Mapping[str, Any], keys: frozenset[str]) -> Fields:
    return {key: values[key] for key in sorted(keys) if values.get(key) is not None}


def without_own(params: Mapping[str, Any], *, nulls_only: bool = False) -> Fields:
    """Return the sampling parameters of a request as SGLang knows them.

    Args:
        params: as they were sent. `seed` is what Ollama's route hands on, and SGLang's own do not take it.
        nulls_only: the request names no sampler: of our names only those that are null, so absent, go.
    """
    own = own_names() if nulls_only else own_names() | {"seed"}
    gone = {key for key, value in params.items() if key in own and not (nulls_only and value is not None)}
    return {key: value for key, value in params.items() if key not in gone}


def internal_of(params: Mapping[str, Any]) -> Fields:
    """Return what SGLang itself put into `custom_params`, which a request's own row has to keep."""
    custom = params.get("custom_params")
    each = custom.items() if isinstance(custom, dict) else ()
    return {key: value for key, value in each if key.startswith(_INTERNAL)}
