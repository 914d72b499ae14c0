"""What the client asked, whichever way it was written. Tokenizer process.

`places` finds what is ours in a request, `body` what the client named of SGLang's own sampling fields. Here
they become one sampler's parameters, or none. SGLang fills sampling parameters from the model's generation
config, so what counts is what the client's body *named*; everything else is neutralised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sglang_power.errors import GreedyError, RequestError, TemperatureError
from sglang_power.fields import TOP_K_ALL
from sglang_power.request import (
    NO_SAMPLER,
    STATISTICS,
    OwnLawRequest,
    PowerRequest,
    SamplerRequest,
    samplers,
    switch,
)
from sglang_power.request.own_law import at_temperature
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.host_sampling import NEUTRAL, TRUNCATION, is_zero
from sglang_power.sglang_host.tokenizer.body import Body, Fields
from sglang_power.sglang_host.tokenizer.places import (
    PLUGIN_KEYS,
    Place,
    Written,
    own_names,
    places_of,
    written,
)

OwnChoice = Literal["own_sampler", "seed", "greedy", "batch"]


@dataclass(frozen=True)
class Asked:
    """One prompt's sampler as asked.

    Args:
        values: flat parameters, preset not yet resolved.
        explicit: named by the client, not by the server's default or an experiment's arm.
        origins: parameter -> the field that the client wrote it in.
        statistics: the field that asks for the statistics of its answers' rows; None where none does.
    """

    values: Fields
    explicit: bool
    origins: Mapping[str, str] = field(default_factory=dict)
    statistics: str | None = None

    @property
    def is_plain(self) -> bool:
        """Return whether SGLang's own sampler is to draw the tokens."""
        return self.values.get("sampler") == NO_SAMPLER


def asked(request: Written, default_preset: str | None) -> Asked | None:
    """Return what one prompt asks for; None means SGLang's own answer, as it is.

    Parameters without a sampler act on the server's default.

    Raises:
        RequestError: two places contradict each other, one that is ours cannot be read, or there are
            parameters and neither a sampler nor a default that they could belong to.
    """
    values, origins = _collected(places_of(request))
    statistics = None
    if STATISTICS in values and switch(origins[STATISTICS], values.pop(STATISTICS)):
        statistics = origins[STATISTICS]
    if values.get("sampler") != NO_SAMPLER:
        if PLUGIN_KEYS & values.keys():
            return Asked(values, True, origins, statistics)
        if default_preset is not None:
            explicit = bool(values) or statistics is not None
            return Asked({"preset": default_preset, **values}, explicit, origins, statistics)
        _check_nothing_lost(values, origins)
    return None if statistics is None else Asked({"sampler": NO_SAMPLER}, True, origins, statistics)


def _check_nothing_lost(values: Fields, origins: Mapping[str, str]) -> None:
    """Check that a request without a sampler has no parameters of one.

    Raises:
        RequestError: it has. Beside `return_statistics`, `custom_params` may hold what others read.
    """
    for key, value in values.items():
        foreign = key not in own_names() and origins[key] == f"custom_params.{key}"
        if key == "seed" or foreign:
            continue
        problem = "a parameter of a sampler, but none is named, and this server has no default for the model"
        raise RequestError(origins[key], value, problem, 'Add a sampler, as in {"sampler": "power"}')


def _collected(places: list[Place]) -> tuple[Fields, dict[str, str]]:
    """Return all that the client named, and where."""
    values: Fields = {}
    origins: dict[str, str] = {}
    for place in places:
        for key, value in place.values.items():
            _lift(values, key, value, place.field_of(key), origins)
            origins.setdefault(key, place.field_of(key))
    return values, origins


def own_choice(obj: Any, body: Body) -> OwnChoice | None:
    """Return how a client chose to sample, so that no experiment may choose for it.

    Args:
        obj: a GenerateReqInput that is not normalised yet.
        body: the client's.
    """
    prompt = obj.text if obj.text is not None else obj.input_ids
    if isinstance(obj.sampling_params, list) or not isinstance(prompt, str | list) or _is_batch(prompt):
        return "batch"
    (request,) = written(obj, body)
    places = places_of(request)
    if any(place.values.keys() - {"seed"} for place in places):
        return "own_sampler"
    if places or {"seed", "sampling_seed"} & request.named.keys():
        return "seed"
    return "greedy" if is_greedy(request.named) else None


def is_greedy(named: Fields) -> bool:
    """Return whether the sampling fields that a client named ask for greedy decoding."""
    return is_zero(named.get("temperature")) or named.get("top_k") == 1


def _is_batch(prompt: str | list[Any]) -> bool:
    return isinstance(prompt, list) and (not prompt or not isinstance(prompt[0], int))


def _lift(values: Fields, key: str, value: object, name: str, origins: Mapping[str, str]) -> None:
    if key in values and values[key] != value:
        other = origins.get(key, f"custom_params.{key}")
        raise RequestError(name, value, f"contradicts {other}={values[key]!r}", "Name it in one place")
    values.setdefault(key, value)


def resolve(asked_for: Asked, config: ServerConfig, named: Fields, served_model: str) -> SamplerRequest:
    """Validate the parameters, with what the client named of SGLang's own sampling fields lifted in.

    Samplers that draw by a law of their own take truncation from there, and say what a temperature means. A
    policy works on top of the request's own temperature and truncation, which keep SGLang's meaning.

    Raises:
        RequestError: anything in them is wrong, or two places contradict each other.
    """
    values = dict(asked_for.values)
    whole = config.expanded(values, served_model)
    base = whole.get("base")
    if _has_own_law(whole):
        values |= _at_temperature(asked_for, whole, named)
        _lift_truncation(values, named, asked_for.origins)
    elif isinstance(base, dict) and "sampler" in base and _has_own_law(base):
        values["base"] = {**base, **_at_temperature(asked_for, base, named, "base")}
    seed = named.get("seed", named.get("sampling_seed"))
    if seed is not None:
        values.setdefault("seed", seed)
    try:
        return config.resolve(values, served_model)
    except RequestError as error:
        raise _about_temperature(error, whole, named) from error


def model_of(asked_for: Asked, config: ServerConfig, served_model: str) -> type[SamplerRequest] | None:
    """Return the request model that validates what a prompt asks for; None where there is none.

    Raises:
        RequestError: no such preset on this server.
    """
    return _named_model(config.expanded(dict(asked_for.values), served_model))


def _named_model(values: Fields) -> type[SamplerRequest] | None:
    name = values.get("sampler", PowerRequest.model_fields["sampler"].default)
    return samplers().get(name) if isinstance(name, str) else None


def _has_own_law(values: Fields) -> bool:
    """Return whether parameters name a sampler that draws by a law of its own."""
    model = _named_model(values)
    return model is not None and issubclass(model, OwnLawRequest)


def _at_temperature(asked_for: Asked, values: Fields, named: Fields, field: str = "") -> Fields:
    """Return the parameters of such a sampler that the client's temperature changes.

    Args:
        asked_for: the request.
        values: of the sampler, as they are in force.
        named: what the client named of SGLang's own sampling fields.
        field: see `at_temperature`.

    Raises:
        TemperatureError: the sampler refuses it; a GreedyError where the client did not ask for the sampler.
    """
    if not asked_for.explicit and is_greedy(named):
        key = "temperature" if is_zero(named.get("temperature")) else "top_k"
        problem = "asks for greedy decoding, which a default sampler leaves to SGLang"
        raise GreedyError(key, named[key], problem, "Name the sampler in the request to get it all the same")
    if "temperature" not in named:
        return {}
    own = asked_for.values.get(field, {}) if field else asked_for.values
    alpha = own.get("alpha") if asked_for.explicit and isinstance(own, dict) else None
    return at_temperature(values, named["temperature"], alpha, field)


def _about_temperature(error: RequestError, values: Fields, named: Fields) -> RequestError:
    """Return an error of parameters, which speaks of the temperature where that is what became an alpha."""
    holder = values.get("base", {}) if error.field == "base.alpha" else values
    if error.field not in ("alpha", "base.alpha") or holder.get("on_temperature") != "alpha":
        return error
    problem = f"makes alpha 1/temperature, of which holds: {error.problem}"
    return TemperatureError("temperature", named.get("temperature"), problem, "Raise the temperature")


def _lift_truncation(values: Fields, named: Fields, origins: Mapping[str, str]) -> None:
    """What the client wrote as SGLang's own parameters truncates the proposal."""
    for key in TRUNCATION:
        if key in named:
            value = -1 if key == "top_k" and named[key] == TOP_K_ALL else named[key]
            _lift(values, key, value, key, origins)


def neutralised(params: Mapping[str, Any], named: Fields, ignores_temperature: bool = False) -> list[str]:
    """Return the sampling fields that are not applied.

    Those that the model's generation config set and the client did not name; and the client's temperature
    beside a sampler with a law of its own that ignores it.
    """
    fields = {
        key
        for key, neutral in NEUTRAL.items()
        if key not in named and params.get(key) not in (None, neutral, TOP_K_ALL)
    }
    if ignores_temperature and named.get("temperature", 1) != 1:
        fields.add("temperature")
    return sorted(fields)
