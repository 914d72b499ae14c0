"""What the plugin does when an HTTP process of SGLang has started: its routes, and its experiments.

It runs after `http_server.set_global_state`, in single-tokenizer mode and in each tokenizer worker: the
application exists, and the TokenizerManager, too.
"""

from __future__ import annotations

from typing import Any, get_args

from sglang_power.errors import ConfigError
from sglang_power.samplers.fallback import FallbackReason
from sglang_power.server.config import ENVIRONMENT_VARIABLE, server_config
from sglang_power.server.metrics import declare_fallbacks
from sglang_power.sglang_host.experiments.exposure_header import add_exposure_header
from sglang_power.sglang_host.experiments.feedback_route import add_feedback_route
from sglang_power.sglang_host.experiments.service import check_experiments, open_service, service_of
from sglang_power.sglang_host.status import add_status_route, server_info

INFO_KEY = "sglang_power"
"""Of the plugin in SGLang's /server_info and /get_server_info."""


def started(result: None, global_state: Any) -> None:  # noqa: ARG001  (SGLang's hook signature)
    """After http_server.set_global_state; a server whose experiments cannot run does not start."""
    from sglang.srt.entrypoints.http_server import app
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

    manager, config = global_state.tokenizer_manager, server_config()
    add_status_route(app, manager)
    try:
        if not isinstance(manager, TokenizerManager):  # the main process of several tokenizer workers
            check_experiments(config, manager.server_args)
            return
        if config.defaults:
            declare_fallbacks(get_args(FallbackReason), manager.enable_metrics)
        global_state.scheduler_info[INFO_KEY] = server_info(manager)  # /server_info shows all of it
        open_service(manager, config)
    except ConfigError as error:
        raise SystemExit(f"sglang-power: {ENVIRONMENT_VARIABLE}: {error}") from error
    if (service := service_of(manager)) is not None:
        add_feedback_route(app, service)
        add_exposure_header(app, service)
