"""The server-side configuration file: presets, a default sampler and parameters per served model, limits.

`SGLANG_POWER_CONFIG=configs/<file>.yaml`. A file that cannot be used is a ConfigError with the file, the
line and the field; `sglang_host` ends the process with it, since SGLang would swallow an exception.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_power.errors import ConfigError, RequestError
from sglang_power.experiments.settings import ExperimentSettings
from sglang_power.request import (
    NO_SAMPLER,
    Needs,
    SamplerRequest,
    WholeAnswerRequest,
    is_strict,
    parse_request,
    samplers,
)
from sglang_power.rewards import EndpointConfig, NamedReward, installed_rewards, reward
from sglang_power.yaml_files import YamlFile, loc_of, problem_of, read_yaml

ENVIRONMENT_VARIABLE = "SGLANG_POWER_CONFIG"

Positive = Annotated[int, Field(ge=1)]


class KeyLimit(BaseModel):
    """What one key may use, where several clients share a server.

    Args:
        tokens_per_minute: decoded tokens of samplers of whole answers, per tokenizer process. A request
            begins while its key has some left, and may overdraw; then the key's requests are answered 429
            until that is made up for.
        header: of the HTTP request; a hash of its value is the key. Requests without it are of one key.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    tokens_per_minute: Positive
    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+$")] = "authorization"


class Limits(BaseModel):
    """What one server allows.

    Args:
        max_horizon: largest max_new_tokens of a power request; the cost grows with its square.
        max_total_tokens: decoded tokens of one request, all chains together.
        max_chains: largest n.
        max_particles: most particles that grow in step, all runs and choices of a request together.
        max_width: largest number of trials, or of rollouts, that one answer runs side by side.
        max_prefetch: largest prefetch of a chain: proposals that it has in flight.
        max_tries: largest number of tries of a step.
        max_concurrent_requests: power requests at work at once, per tokenizer process; more wait.
        max_inflight_children: children of samplers of whole answers that run at once, per tokenizer process;
            more wait.
        busy_retries, busy_backoff_s: retries of a child that the scheduler's full queue refused.
        per_key: see KeyLimit; keys are not limited where absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    max_horizon: Positive = 3072
    max_total_tokens: Positive = 262_144
    max_chains: Positive = 64
    max_particles: Positive = 256
    max_width: Positive = 64
    max_prefetch: Positive = 64
    max_tries: Positive = 64
    max_concurrent_requests: Positive = 64
    max_inflight_children: Positive = 256
    busy_retries: Annotated[int, Field(ge=0)] = 8
    busy_backoff_s: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = 0.05
    per_key: KeyLimit | None = None


class Diagnostics(BaseModel):
    """Checks that cost tokens; off in production.

    Args:
        shadow_early_rejection: generate early-rejected proposals to their end and count wrong decisions.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    shadow_early_rejection: bool = False


class Kernels(BaseModel):
    """Which library samples, where more than one can.

    Args:
        sampling: "auto" draws by inverse CDF (Triton on CUDA, torch elsewhere), so that a seed repeats its
            draws in any batch; "flashinfer" draws with FlashInfer's samplers, which seed per batch slot.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sampling: Literal["auto", "triton", "flashinfer", "torch"] = "auto"


class ServerConfig(BaseModel):
    """One configuration file.

    Args:
        presets: name -> sampler parameters, as a client would write them.
        defaults: served model name (or "*") -> preset that requests get which name no sampler. Behind
            SGLang's router also those whose sampler it dropped; on /generate that is every one.
        parameters: served model name (or "*") -> sampler -> its parameters on this model, below what presets
            and requests say. Thresholds that hold for one model only belong here; `sglang-power tune
            thresholds` writes them.
        rewards: name -> the HTTP endpoint that scores answers under it.
        limits: see Limits.
        kernels: see Kernels.
        diagnostics: see Diagnostics.
        experiments: see ExperimentSettings; none where absent.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    presets: dict[str, dict[str, Any]] = {}
    defaults: dict[str, str] = {}
    parameters: dict[str, dict[str, dict[str, Any]]] = {}
    rewards: dict[str, EndpointConfig] = {}
    limits: Limits = Limits()
    kernels: Kernels = Kernels()
    diagnostics: Diagnostics = Diagnostics()
    experiments: ExperimentSettings | None = None

    def preset(self, name: object) -> dict[str, Any]:
        """A preset's parameters.

        Raises:
            RequestError: no such preset on this server.
        """
        if not isinstance(name, str) or name not in self.presets:
            known = ", ".join(sorted(self.presets)) or "none are configured"
            raise RequestError("preset", name, "unknown preset", f"Presets of this server: {known}")
        return dict(self.presets[name])

    def default_for(self, served_model: str) -> str | None:
        """The preset that requests to this model get by default."""
        return self.defaults.get(served_model, self.defaults.get("*"))

    def expanded(self, values: dict[str, Any], served_model: str) -> dict[str, Any]:
        """A request's parameters on top of the preset that it names and of the model's own.

        Raises:
            RequestError: no such preset on this server.
        """
        own = dict(values)
        preset = self.preset(own.pop("preset")) if "preset" in own else {}
        sampler = {**preset, **own}.get("sampler", "power")
        models = self.parameters.get("*", {}), self.parameters.get(served_model, {})
        defaults = [model.get(sampler, {}) for model in models if isinstance(sampler, str)]
        return _layered(sampler, [*defaults, preset, own])

    def is_strict(self, values: dict[str, Any], served_model: str) -> bool:
        """Return whether a request's parameters, or the preset that they name, are strict.

        Raises:
            RequestError: no such preset on this server, or `strict` is neither true nor false.
        """
        return is_strict(self.expanded(values, served_model))

    def resolve(self, values: dict[str, Any], served_model: str = "*") -> SamplerRequest:
        """Parse a request's parameters; see `expanded`."""
        return parse_request(self.expanded(values, served_model))

    def check_arm(self, sampler: Mapping[str, Any], served_model: str = "*") -> None:
        """Check the sampler of an experiment's arm.

        Raises:
            RequestError: this configuration cannot run it.
        """
        if sampler.get("sampler") != NO_SAMPLER:
            self.resolve(dict(sampler), served_model)

    def default_models(self, model: str) -> list[str]:
        """Return the models of this file that a key of `defaults` speaks for; "*" stands for all others."""
        if model != "*":
            return [model]
        return ["*", *(name for name in self.parameters if name not in {"*", *self.defaults})]

    def missing_secrets(self) -> list[str]:
        """Return the environment variables that this configuration needs and that are not set here."""
        named = [endpoint.headers_env for endpoint in self.rewards.values()]
        if self.experiments is not None:
            named.append(self.experiments.unit_key_env)
        return sorted({name for name in named if name is not None and not os.environ.get(name)})


def _layered(sampler: object, layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The parameters of all layers, the last one on top.

    A parameter that speaks of another one (`threshold` of `trigger`) is dropped where a later layer names
    another value of that one, and not the parameter itself.
    """
    model = samplers().get(sampler) if isinstance(sampler, str) else None
    speaks_of: Mapping[str, str] = getattr(model, "speaks_of", {})
    merged: dict[str, Any] = {}
    for layer in layers:
        for field, subject in speaks_of.items():
            assert model is not None
            before = merged.get(subject, model.model_fields[subject].default)
            if field not in layer and layer.get(subject, before) != before:
                merged.pop(field, None)
        merged |= layer
    return merged


@functools.cache
def server_config() -> ServerConfig:
    """This process's configuration, from the environment; defaults where none is named."""
    path = os.environ.get(ENVIRONMENT_VARIABLE)
    return load_config(Path(path)) if path else ServerConfig()


def load_config(path: Path, *, secrets: bool = True) -> ServerConfig:
    """Read and validate one file.

    Args:
        path: of the file.
        secrets: whether the environment must hold the tokens that it names, as it must in a server.

    Raises:
        ConfigError: unreadable, not YAML, or a field that does not validate; with its line.
    """
    file = read_yaml(path)
    try:
        config = ServerConfig.model_validate(file.values)
    except ValidationError as error:
        raise file.refused(error) from error
    _check_references(file, config, secrets)
    return config


def _check_references(file: YamlFile, config: ServerConfig, secrets: bool) -> None:
    _check_parameters(file, config)
    _check_rewards(file, config, secrets)
    for name, values in config.presets.items():
        try:
            request = _parse_anywhere(config, values, ["*", *config.parameters])
            if isinstance(request, WholeAnswerRequest):
                reward_of(request.needs, config.rewards)
        except RequestError as error:
            raise file.at(("presets", name, *loc_of(error.field)), str(error)) from error
    for model, preset in config.defaults.items():
        if preset not in config.presets:
            raise file.at(("defaults", model), f"preset {preset!r} is not defined in this file")
        try:
            _parse_anywhere(config, {"preset": preset}, config.default_models(model))
        except RequestError as error:
            raise file.at(("defaults", model), f"preset {preset!r} cannot run there: {error}") from error


def _check_parameters(file: YamlFile, config: ServerConfig) -> None:
    """Each parameter is one that its sampler knows and takes; what is missing may come with a request."""
    for model, each in config.parameters.items():
        for sampler, values in each.items():
            if sampler not in samplers():
                raise file.at(("parameters", model, sampler), f"{sampler!r} is no sampler")
            try:
                samplers()[sampler].model_validate(values)
            except ValidationError as error:
                wrong = [
                    mistake for mistake in error.errors(include_url=False) if mistake["type"] != "missing"
                ]
                if wrong:
                    loc = ("parameters", model, sampler, *wrong[0]["loc"])
                    raise file.at(loc, problem_of(wrong[0])) from error


def _check_rewards(file: YamlFile, config: ServerConfig, secrets: bool) -> None:
    for name, endpoint in config.rewards.items():
        if name in installed_rewards():
            raise file.at(("rewards", name), f"an installed reward is called {name!r}; choose another")
        if not secrets:
            continue
        try:
            endpoint.headers()
        except ConfigError as error:
            raise file.at(("rewards", name, "headers_env"), str(error)) from error


def reward_of(needs: Needs, rewards: Mapping[str, EndpointConfig]) -> NamedReward | None:
    """Return the reward that a request needs; None where it needs none.

    Raises:
        RequestError: there is none of that name, or it declares no upper bound, which the request needs.
    """
    if needs.reward is None:
        return None
    found = reward(needs.reward, rewards)
    if needs.bounded_reward and found.upper_bound is None:
        problem = "declares no upper_bound, by which trials are accepted"
        hint = "Declare one in SGLANG_POWER_CONFIG, or use a chain (power, method='chain')"
        raise RequestError("reward", needs.reward, problem, hint)
    return found


def _parse_anywhere(config: ServerConfig, values: dict[str, Any], models: Sequence[str]) -> SamplerRequest:
    """Return what parameters are a request for, on the first of some models on which they are right.

    Raises:
        RequestError: there is none.
    """
    for model in models[:-1]:
        with contextlib.suppress(RequestError):
            return config.resolve(values, model)
    return config.resolve(values, models[-1])
