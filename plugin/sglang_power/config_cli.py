"""The command `sglang-power config check`: validates a server's configuration file without a server.

Reads what a server would read, the files of its experiments included, and says what each default would do.
Needs neither SGLang nor a GPU. Secrets need not be set here: they are named.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from sglang_power.errors import ConfigError, RequestError
from sglang_power.gateways import ROUTED_DEFAULT

if TYPE_CHECKING:
    from sglang_power.server.config import ServerConfig

RUNS_PLAIN = "runs plain, with its reason in power.fallback_reason and in sglang_power_fallbacks_total"
STRICT_ERROR = "is an error (strict)"

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_config(commands: Commands) -> None:
    """Add the options of `config check`."""
    config = commands.add_parser("config", help="a server's configuration file")
    check = config.add_subparsers(dest="config_command", required=True).add_parser(
        "check", help="validate it without a server, and say what each default would do"
    )
    check.add_argument("file", type=Path, metavar="FILE", help="what SGLANG_POWER_CONFIG would name")


def run_config(options: argparse.Namespace) -> int:
    """Print what a file says; 2 where a server would refuse it, with file, line and field."""
    from sglang_power.server.config import load_config  # Imports torch, which other commands do without.

    try:
        config = load_config(options.file, secrets=False)
        lines = [f"{options.file}: valid", *described(config)]
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def described(config: ServerConfig) -> Iterator[str]:
    """Yield what a configuration means, line by line.

    Raises:
        ConfigError: its experiments cannot be used.
    """
    yield f"limits: {_named(config.limits.model_dump())}"
    for name in config.presets:
        yield f"preset {name}: {_sampler(config, name, ['*', *config.parameters])}"
    yield from _defaults(config)
    for name, endpoint in config.rewards.items():
        yield f"reward {name}: {endpoint.url.host}, on_error {endpoint.on_error}"
    yield from _experiments(config)
    for variable in config.missing_secrets():
        yield f"not set here, and a server needs it: {variable}"


def _defaults(config: ServerConfig) -> Iterator[str]:
    """Yield what happens to requests that name no sampler, per model."""
    others = "other models" if config.defaults.keys() - {"*"} else "every model"
    for model, preset in config.defaults.items():
        for each in config.default_models(model):
            whom = others if each == "*" else f"model {each}"
            yield f"default of {whom}: preset {preset}, {_sampler(config, preset, [each])}"
            strict = config.is_strict({"preset": preset}, each)
            yield f"  what it does not fit {STRICT_ERROR if strict else RUNS_PLAIN}"
    if config.defaults:
        yield '  "sampler": "none" opts out of a default'
        yield f"  {ROUTED_DEFAULT}"
    if "*" not in config.defaults:
        yield f"default of {others}: none; requests that name no sampler are SGLang's own"


def _sampler(config: ServerConfig, preset: str, models: list[str]) -> str:
    """Return what a preset runs on the first of some models that can run it, or why none can."""
    wrong = ""
    for model in models:
        try:
            request = config.resolve({"preset": preset}, model)
        except RequestError as error:
            wrong = f"cannot run: {error}"
            continue
        where = f" (on model {model})" if wrong else ""
        return f"{request.name()}{where}: {_named(request.model_dump(mode='json', exclude={'sampler'}))}"
    return wrong


def _named(values: dict[str, Any]) -> str:
    """Return what is set of some fields, as `name value` pairs."""
    return ", ".join(
        f"{name} {json.dumps(value)}" for name, value in values.items() if value not in (None, False)
    )


def _experiments(config: ServerConfig) -> Iterator[str]:
    """Yield the state of each experiment; read and checked as a server does at its start."""
    from sglang_power.experiments.assignment import assigner_of
    from sglang_power.experiments.catalogue import Catalogue
    from sglang_power.experiments.settings import EMBEDDED

    if (settings := config.experiments) is None:
        return
    catalogue = Catalogue(settings.directory, lambda _, arm: config.check_arm(arm.sampler))
    if settings.provider == EMBEDDED:
        assigner_of(settings).load(catalogue.experiments)
    if not catalogue.experiments:
        yield f"experiments: there is no *.yaml in {settings.directory}"
    for loaded in catalogue.experiments:
        arms = ", ".join(
            f"{arm.name} ({arm.sampler.get('preset') or arm.sampler.get('sampler', 'power')})"
            for arm in loaded.experiment.arms
        )
        state = "enrolling" if loaded.enrolling else "not enrolling"
        state += ", draining" if loaded.standing == "draining" else ""
        yield f"experiment {loaded.experiment.name}: {state}, phase {loaded.phase}, arms {arms}"
