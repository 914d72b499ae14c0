"""GET /sglang_power/status: what `sglang-power check` reads. Tokenizer process.

The scheduler side is asked by a probe child: one token whose statistics are replaced by the scheduler's
own report, sent to every data-parallel rank.
"""

from __future__ import annotations

import uuid
from typing import Any

from sglang.srt.managers.io_struct import GenerateReqInput

import sglang_power
from sglang_power.policies import policies
from sglang_power.request import samplers
from sglang_power.routes import STATUS_ROUTE
from sglang_power.server.config import server_config
from sglang_power.sglang_host import probe
from sglang_power.sglang_host.child_params import META_KEY, ChildParams
from sglang_power.sglang_host.experiments.service import service_of
from sglang_power.sglang_host.tokenizer.host import state_of
from sglang_power.sglang_host.tokenizer.support import server_refusals
from sglang_power.types import ProposalLaw


def add_status_route(app: Any, manager: Any) -> None:
    """Add the route to SGLang's application, once."""

    async def status() -> dict[str, Any]:
        return await server_status(manager)

    if STATUS_ROUTE not in {getattr(route, "path", None) for route in app.routes}:
        app.add_api_route(STATUS_ROUTE, status, methods=["GET"])


async def server_status(manager: Any) -> dict[str, Any]:
    """Reports of this tokenizer process and of every scheduler rank, and what this server refuses."""
    import sglang

    config = server_config()
    args, service = manager.server_args, service_of(manager)
    in_force: dict[str, Any] = {} if service is None else service.report()
    return {
        "sglang": sglang.__version__,
        "served_model": manager.served_model_name,
        "processes": [
            {**probe.report("tokenizer"), "at_work": _at_work(manager), **in_force},
            *[await _probe_scheduler(manager, rank) for rank in range(args.dp_size)],
        ],
        "refused": [str(refusal) for refusal in server_refusals(args)],
        "limits": config.limits.model_dump(),
        "samplers": sorted(samplers()),
        "presets": config.presets,
        "default": config.default_for(manager.served_model_name),
        "experiments": in_force.get("experiments", {}),
        "tokenizer_workers": args.tokenizer_worker_num,
    }


def _at_work(manager: Any) -> dict[str, int]:
    """Return how many requests of ours, and children of theirs, this process has."""
    state = state_of(manager, server_config())
    return {"requests": len(state.live), **state.governor.counts()}


def server_info(manager: Any) -> dict[str, Any]:
    """Return what SGLang's own /server_info says of the plugin; the status route says the rest."""
    config = server_config()
    return {
        "version": sglang_power.__version__,
        "samplers": sorted(samplers()),
        "policies": sorted(policies()),
        "presets": sorted(config.presets),
        "default": config.default_for(manager.served_model_name),
        "hooks": probe.report("tokenizer")["hooks"],
        "refused": [str(refusal) for refusal in server_refusals(manager.server_args)],
        "status": STATUS_ROUTE,
    }


async def _probe_scheduler(manager: Any, rank: int) -> dict[str, Any]:
    """One probe child; a scheduler without the plugin answers without a report."""
    params = ChildParams(law=ProposalLaw(1.0), seed=0, origin=0, probe=True)
    child = GenerateReqInput(
        rid=f"sglang-power-probe-{uuid.uuid4().hex}",
        input_ids=[0],
        sampling_params={"max_new_tokens": 1, "custom_params": params.to_custom_params()},
        log_metrics=False,
        routed_dp_rank=rank if manager.server_args.dp_size > 1 else None,
    )
    original = type(manager).generate_request.__wrapped__  # the hook would refuse the marker of a child
    answer: dict[str, Any] = await anext(original(manager, child, None))
    reports = answer["meta_info"].get(META_KEY)
    missing = {"role": "scheduler", "version": None, "hooks": {"PowerSampler": "missing"}}
    return {"dp_rank": rank, **(reports[0] if reports else missing)}
