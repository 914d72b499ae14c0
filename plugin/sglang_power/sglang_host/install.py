"""Installs every hook in this process. Called by SGLang's plugin loader, which swallows exceptions.

So whatever goes wrong here ends the process: a server that was started with the plugin must not run
without it. Nothing is imported that SGLang's main process has not prepared for (prometheus_client).
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import sglang
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import sglang_power
from sglang_power.errors import ConfigError, HostError, PowerError
from sglang_power.policies import policies
from sglang_power.rewards import installed_rewards
from sglang_power.samplers.registry import samplers_of_whole_answers
from sglang_power.server.config import ENVIRONMENT_VARIABLE, server_config
from sglang_power.sglang_host import sources
from sglang_power.sglang_host.experiments.service import check_experiments
from sglang_power.sglang_host.hooks import HOOKS, Hook

logger = logging.getLogger("sglang_power")

SUPPORTED = SpecifierSet(">=0.5.20,<0.6", prereleases=True)
APP_PATH_VARIABLE = "SGLANG_HTTP_SERVER_APP_PATH"
APP_PATH = "sglang_power.sglang_host.asgi:app"


def install() -> None:
    """Register the sampler and all hooks, or end the process."""
    try:
        _check_version(sglang.__version__)
        _check_extensions()
        config = server_config()
        check_experiments(config)
        _register_sampler()
        _review_sources(sglang.__version__)
        for hook in HOOKS:
            _register_hook(hook)
    except ConfigError as error:
        raise SystemExit(f"sglang-power: {ENVIRONMENT_VARIABLE}: {error}") from error
    except (PowerError, ImportError, AttributeError) as error:
        raise SystemExit(f"sglang-power cannot be installed: {error}") from error
    os.environ.setdefault(APP_PATH_VARIABLE, APP_PATH)
    logger.info(
        "sglang-power %s registered in process %d on SGLang %s: %d hooks, presets %s, defaults %s",
        sglang_power.__version__,
        os.getpid(),
        sglang.__version__,
        len(HOOKS),
        sorted(config.presets),
        config.defaults,
    )


def _check_extensions() -> None:
    """Check what other distributions bring.

    Raises:
        HostError: a sampler, a policy or a reward that cannot be used, or takes a name that is in use.
    """
    try:
        samplers_of_whole_answers()
        policies()
        installed_rewards()
    except ConfigError as error:
        raise HostError(str(error)) from error


def _check_version(version: str) -> None:
    if Version(version) not in SUPPORTED:
        raise HostError(f"SGLang {version} is not supported, {SUPPORTED} is; install a matching release")


def _review_sources(version: str) -> None:
    """On a version that nobody reviewed, say which hooks stand on other code than they were written for."""
    if version in sources.recorded():
        return
    found = sources.digests([hook.target for hook in HOOKS], Path(sglang.__file__).parents[1])
    review = sources.reviewed(found, version, sources.recorded())
    logger.warning("sglang-power was not tried with this version. %s", "\n".join(review.lines()))


def _register_sampler() -> None:
    """Under its own name and under the built-in ones: no server flag is needed."""
    from sglang.srt.layers.sampler import register_sampler_backend

    for backend in ("power", "flashinfer", "pytorch"):
        register_sampler_backend(backend, _make_sampler)


def _make_sampler() -> Any:
    from sglang_power.sglang_host import probe
    from sglang_power.sglang_host.scheduler.sampler import RowSampler

    sampler = RowSampler()
    logger.info("sglang-power is live in scheduler process: %s", probe.scheduler_report()["hooks"])
    return sampler


def _register_hook(hook: Hook) -> None:
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if not hook.exists():
        if hook.optional:
            return
        raise HostError(f"SGLang has no {hook.target}, without which {hook.purpose} does not hold")
    if (why := hook.misfit()) is not None:
        raise HostError(
            f"SGLang {sglang.__version__} has changed {hook.target} ({why}), without which {hook.purpose} "
            "does not hold; run 'sglang-power hooks', and use a version of SGLang that it names as recorded"
        )
    HookRegistry.register(hook.target, hook.load(), HookType(hook.kind))
