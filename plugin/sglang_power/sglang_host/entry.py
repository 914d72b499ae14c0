"""The hooks on SGLang's request path. Each is a plain function around the original."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException
from sglang.srt.managers.io_struct import (
    GenerateReqInput,
    TokenizedGenerateReqInput,
    UpdateWeightFromDiskReqInput,
    UpdateWeightsFromDistributedReqInput,
    UpdateWeightsFromIPCReqInput,
    UpdateWeightsFromTensorReqInput,
)

from sglang_power.errors import RequestError
from sglang_power.server.config import ServerConfig, server_config
from sglang_power.sglang_host.child_params import META_KEY, STATISTICS_KEY
from sglang_power.sglang_host.experiments import enrolled
from sglang_power.sglang_host.experiments.service import service_of
from sglang_power.sglang_host.tokenizer import orchestrator, parent
from sglang_power.sglang_host.tokenizer.body import Body, body_of
from sglang_power.sglang_host.tokenizer.host import Host, state_of
from sglang_power.sglang_host.tokenizer.placeholder import parent_id
from sglang_power.sglang_host.tokenizer.places import Written, places_of, without_own, written
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan, is_users, plan_request

WEIGHT_UPDATES = (
    UpdateWeightFromDiskReqInput,
    UpdateWeightsFromDistributedReqInput,
    UpdateWeightsFromIPCReqInput,
    UpdateWeightsFromTensorReqInput,
)
"""Messages to the scheduler after which it may compute by other weights."""


def generate_request(
    original: Callable[..., AsyncIterator[Any]], manager: Any, obj: Any, request: Any = None
) -> AsyncIterator[Any]:
    """Around TokenizerManager.generate_request: power requests are served, all others pass untouched.

    A plain function, so that errors in a request are raised before anything is generated.
    """
    if not isinstance(obj, GenerateReqInput):
        return original(manager, obj, request)
    body, config = body_of(request), server_config()
    plans = _planned(manager, obj, body, config)
    service = service_of(manager)
    facts = service.facts_of(obj, request, body) if service is not None and is_users(obj) else None
    _strip_own_fields(obj, body, served=not all(isinstance(plan, PlainPlan) for plan in plans))
    host = Host(manager, original, obj, request, config)
    if service is None or facts is None:
        return orchestrator.respond(host, plans)
    return enrolled.answers(service, host, facts, body, plans)


def _planned(manager: Any, obj: Any, body: Body, config: ServerConfig) -> list[Plan]:
    """Return the plans of a call; SGLang's other routes make a 400 of a ValueError, Ollama's do not."""
    try:
        return plan_request(manager, obj, body, config)
    except ValueError as error:  # ours, and what SGLang says of its own parameters
        if body.is_ollamas:
            raise HTTPException(HTTPStatus.BAD_REQUEST, str(error)) from error
        raise


def _strip_own_fields(obj: Any, body: Body, *, served: bool) -> None:
    """Take our fields out of the sampling parameters, which SGLang would refuse.

    Args:
        obj: the request; where it has none of them its parameters stay the same object.
        body: the client's.
        served: whether a sampler of ours serves any of its prompts.
    """
    requests = written(obj, body)
    ours = served or any(places_of(request) for request in requests)
    stripped = [without_own(request.params, nulls_only=not ours) for request in requests]
    if stripped != [request.params for request in requests]:
        obj.sampling_params = stripped if isinstance(obj.sampling_params, list) else stripped[0]


def abort_request(
    original: Callable[..., None], manager: Any, rid: str = "", abort_all: bool = False
) -> None:
    """Around TokenizerManager.abort_request: an abort also ends what is between two children.

    The id of a call with several answers or prompts, which SGLang does not know, ends all of them.
    """
    state = state_of(manager, server_config())
    if abort_all:
        original(manager, rid, abort_all)
        parent.abort_all(state)
        return
    parts = state.parts.get(rid, ())
    for part in parts:
        abort_request(original, manager, part)
    if (ours := state.live.get(rid)) is not None:
        ours.abort_parts()
    elif not parts:
        original(manager, rid, abort_all)
        if rid and rid not in manager.rid_to_state and manager.server_args.tokenizer_worker_num > 1:
            parent.abort_elsewhere(manager, state, rid)


def dispatch_to_scheduler(original: Callable[[Any, Any], None], manager: Any, obj: Any) -> None:
    """Around TokenizerManager._dispatch_to_scheduler: children that are ready together are sent together.

    Updates of weights leave here, too, and are counted: they have a version only where a client names one.
    """
    state = state_of(manager, server_config())
    state.weight_updates += isinstance(obj, WEIGHT_UPDATES)
    send = functools.partial(original, manager)
    if isinstance(obj, TokenizedGenerateReqInput) and parent_id(obj.rid) in state.live:
        state.launches.hold(obj, send)
        return
    state.launches.flush()
    send(obj)


def update_request_meta_info(
    original: Callable[..., None],
    manager: Any,
    meta_info: dict[str, Any],
    state: Any,
    customized_info: dict[str, Any],
    index: int,
    *args: Any,
    **kwargs: Any,
) -> None:
    """Around TokenizerManager.update_request_meta_info: SGLang pads our keys for every co-emitted request."""
    padded = {
        key
        for key in (META_KEY, STATISTICS_KEY)
        if key in customized_info and all(row is None for row in customized_info[key][index])
    }
    if padded:
        customized_info = {key: value for key, value in customized_info.items() if key not in padded}
    original(manager, meta_info, state, customized_info, index, *args, **kwargs)


def generate_contract_error(original: Callable[[Any], str | None], body: Any) -> str | None:
    """Around the JSON contract of /generate (from 0.5.22): accept our keys, refuse bad streams with 400."""
    if not isinstance(body, dict):
        return original(body)
    params = body.get("sampling_params")
    each = params if isinstance(params, list) else [params]
    try:
        stripped = [_as_sglang_knows(prompt_params, body) for prompt_params in each]
    except RequestError as refused:
        return str(refused)
    clean = {**body, "sampling_params": stripped if isinstance(params, list) else stripped[0]}
    error = original(clean if "sampling_params" in body else body)
    return error if error is not None or not body.get("stream") else _streaming_error(body)


def _as_sglang_knows(params: Any, body: dict[str, Any]) -> Any:
    """Return one prompt's sampling parameters of a /generate body without what is ours in them."""
    if not isinstance(params, dict):
        return params
    asks = places_of(Written(params, Body(body), bool(body.get("custom_logit_processor"))))
    return without_own(params, nulls_only=not asks)


def _streaming_error(body: dict[str, Any]) -> str | None:
    """What generate_request would raise after the 200 of a stream had been sent."""
    from sglang.srt.entrypoints.http_server import get_global_state

    fields = GenerateReqInput.__dataclass_fields__.keys()
    obj = GenerateReqInput(**{key: value for key, value in body.items() if key in fields})
    try:
        plan_request(get_global_state().tokenizer_manager, obj, Body(body), server_config())
    except ValueError as error:  # a RequestError, or what SGLang says of its own sampling parameters
        return str(error)
    return None


class _DefaultBackend:
    """SGLang's view of its arguments, with the sampling backend not chosen."""

    def __init__(self, view: Any) -> None:
        self._view = view
        self.sampling_backend = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._view, name)


def sampling_backend_default(original: Callable[[Any], dict[str, Any]], view: Any) -> dict[str, Any]:
    """Around the resolution of --sampling-backend: "power" means the platform's default backend.

    The plugin serves its rows under any name; under "power" SGLang's own sampler would refuse top-p rows.
    """
    return original(_DefaultBackend(view) if view.sampling_backend == "power" else view)


def uvicorn_run(original: Callable[..., Any], app: Any, *args: Any, **kwargs: Any) -> Any:
    """Around uvicorn.run: 0.5.20 to 0.5.22 name the workers' application literally."""
    from sglang_power.sglang_host.install import APP_PATH

    literal = app == "sglang.srt.entrypoints.http_server:app"
    return original(APP_PATH if literal else app, *args, **kwargs)
