"""`meta_info.power`: what a response says of how its answer was made. Pure; no SGLang."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import sglang_power
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import Info
from sglang_power.policies import Policy
from sglang_power.request import PowerRequest, SelectingRequest
from sglang_power.samplers.candidates import Selection, reported_path
from sglang_power.samplers.chain import ChainResult
from sglang_power.samplers.fallback import Fallback
from sglang_power.samplers.tree import common_length
from sglang_power.types import Usage

MAX_TRACED_IDS = 4096
"""A traced proposal longer than this is cut in the trace, which says so by `proposal_length`."""

MAX_KEPT_TEXT = 200
"""Characters before a cut in the trace; the cut says how many tokens they are the end of."""

Decode = Callable[[Sequence[int]], str]
"""The text of token ids, all at once."""


def law_of(config: MHConfig, result: ChainResult) -> Literal["power", "approximate"]:
    """Return "power" where only steps that leave the target invariant stand behind the answer, one at least.

    The target is p^alpha, times exp(lambda * R) with a reward; steps of the last stage leave it invariant. A
    state that has just entered that stage follows the law of an earlier one, or of q.
    """
    exact = (
        config.schedule == "exact"
        and config.lookback_blocks is None
        and not config.law.truncated
        and result.tilt_dropped_at is None
        and result.last_stage_steps > 0
        and result.stopped_by in ("completed", "max_steps")
    )
    return "power" if exact else "approximate"


def power_report(
    request: PowerRequest,
    config: MHConfig,
    result: ChainResult,
    *,
    seed: int,
    neutralised: list[str],
    prompt_usage: Usage,
    weight_version: str | None,
    decode: Decode,
    reward_calls: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The summary of one chain; counters of all chains of a request add up to its whole cost.

    Args:
        request, config: what was asked, after defaults.
        result: the chain's end.
        seed: of the request; chain i of n is keyed by (seed, i).
        neutralised: model defaults that were not applied.
        prompt_usage: cost of caching the prompt; passed for the first chain only.
        weight_version: of the weights that drew every token.
        decode: writes the texts of a trace.
        reward_calls: what the scorer reports, with a reward.
    """
    infos = result.infos
    early = [info for info in infos if info.early_rejected]
    report: dict[str, Any] = {
        "sampler": request.sampler,
        "params": {**_echo(request, config), "neutralised": neutralised},
        "seed": seed,
        "steps": len(infos),
        "proposals": len(infos),
        "accepted": sum(info.accepted for info in infos),
        "acceptance_rate": sum(info.accepted for info in infos) / len(infos) if infos else None,
        **_cost(result.usage + prompt_usage),
        "early_rejected": len(early),
        "saved_tokens_max": sum(_saved_at_most(config, info) for info in early),
        "law": law_of(config, result),
        "fallback_reason": None,
        "log_p": _finite(float(result.state.tokens.log_p.sum())),
        "log_target": _log_target(config, result),
        "stopped_by": result.stopped_by,
        "weight_version": weight_version,
        "version": sglang_power.__version__,
    }
    if reward_calls is not None:
        report["reward"] = {
            **reward_calls,
            "weight": request.weight,
            "value": result.state.reward,
            "dropped_at_step": result.tilt_dropped_at,
        }
    if not_numbers := sum(math.isnan(info.log_ratio) for info in infos):
        report["not_a_number"] = not_numbers
    if result.shadow.resumed:
        report["shadow"] = {"resumed": result.shadow.resumed, "violations": result.shadow.violations}
    if request.return_trace:
        report["trace"] = [traced(info, config, decode) for info in infos]
    return report


def _echo(request: PowerRequest, config: MHConfig) -> dict[str, Any]:
    return request.echo(config.horizon, None if config.tilt is None else config.tilt.upper_bound)


def _log_target(config: MHConfig, result: ChainResult) -> float | None:
    """log of the unnormalised target that the chain ended with; None where it is not known."""
    log_power = config.alpha * float(result.state.tokens.log_p.sum())
    if config.tilt is None or result.tilt_dropped_at is not None:
        return _finite(log_power)
    if result.state.reward is None:
        return None
    return _finite(log_power + config.tilt.log_factor(result.state.reward))


def _saved_at_most(config: MHConfig, info: Info) -> int:
    return config.stage_horizon(info.stage) - info.cut - len(info.proposal)


def traced(info: Info, config: MHConfig, decode: Decode) -> dict[str, Any]:
    """One step as JSON: what was kept, what competed with what, every term, the decision."""
    return {
        "stage": info.stage,
        "step": info.step,
        "cut": info.cut,
        "current_length": info.current_length,
        "proposal_ids": list(info.proposal.ids[:MAX_TRACED_IDS]),
        "proposal_length": len(info.proposal),
        "proposal_finished": info.proposal_finished,
        "log_w_proposal": _finite(info.terms.log_w_proposal),
        "log_w_current": _finite(info.terms.log_w_current),
        "log_cut_proposal": _finite(info.terms.log_cut_proposal),
        "log_cut_current": _finite(info.terms.log_cut_current),
        "log_tilt_proposal": _finite(info.terms.log_tilt_proposal),
        "log_tilt_current": _finite(info.terms.log_tilt_current),
        "log_ratio": _finite(info.log_ratio),
        "log_u": info.log_u,
        "accepted": info.accepted,
        "early_rejected": info.early_rejected,
        "saved_tokens_max": _saved_at_most(config, info) if info.early_rejected else 0,
        **_texts(info, decode),
    }


def _texts(info: Info, decode: Decode) -> dict[str, str]:
    """The end of what was kept, and the two suffixes that competed.

    Whole sequences are decoded, since pieces break inside of characters and merges; a character that the cut
    splits belongs to the suffixes.
    """
    prefix = info.current_ids[: info.cut]
    kept = decode(prefix).rstrip("\N{REPLACEMENT CHARACTER}")
    current = decode(info.current_ids)
    proposal = decode((*prefix, *info.proposal.ids[:MAX_TRACED_IDS]))
    return {
        "kept_text": kept[-MAX_KEPT_TEXT:],
        "current_text": _behind(kept, current),
        "proposal_text": _behind(kept, proposal),
    }


def _behind(kept: str, whole: str) -> str:
    """What follows in `whole` where the two part."""
    return whole[common_length((kept, whole)) :]


def progress(config: MHConfig, step: int, stage: int, accepted: int, tokens: int) -> dict[str, Any]:
    """What a stream says while a chain runs."""
    return {
        "stage": stage,
        "stages": config.stages,
        "step": step,
        "accepted": accepted,
        "tokens": tokens,
    }


def selection_report(
    request: SelectingRequest,
    selection: Selection,
    *,
    name: str | None = None,
    seed: int,
    horizon: int,
    sampling: Mapping[str, Any],
    neutralised: list[str],
    prompt_usage: Usage,
    weight_version: str | None,
    copy_of: int | None = None,
) -> dict[str, Any]:
    """`meta_info.power` of an answer that was chosen among several; every candidate is in `paths`.

    Args:
        request, selection: what was asked, and what came of it.
        name: of the sampler that was asked for, where `request` stands for another.
        horizon: L.
        sampling: SGLang's own sampling parameters, of which those are echoed that may act.
        seed, neutralised, prompt_usage, weight_version: as `power_report`.
        copy_of: index of the choice whose run this is, where that is another one's.
    """
    params = {**request.echo(), **{field: sampling[field] for field in request.sampling_fields}}
    return {
        "sampler": request.sampler if name is None else name,
        **selection.headline,
        "params": {**params, "max_new_tokens": horizon, "neutralised": neutralised},
        "seed": seed,
        **_cost(selection.usage + prompt_usage),
        "law": "selection",
        "fallback_reason": None,
        "log_p": _finite(selection.best.log_p),
        "paths": [
            reported_path(one, score, rows=request.return_rows)
            for one, score in zip(selection.candidates, selection.scores, strict=True)
        ],
        "classes": list(selection.classes),
        "chosen": {"index": selection.chosen, "reason": selection.reason},
        "comparisons": selection.comparisons,
        "stopped_by": selection.stopped_by,
        "weight_version": weight_version,
        "version": sglang_power.__version__,
        **({} if copy_of is None else {"copy_of": copy_of}),
        **selection.notes,
    }


def policy_report(
    policy: Policy, seed: int, weight_version: str | None, usage: Usage | None = None
) -> dict[str, Any]:
    """`meta_info.power` of an answer whose tokens a per-step policy drew.

    `law` is "policy": tokens follow the policy's law row by row, which is no power of the sequence's. The
    cost is told where it is more than the answer's own tokens (`usage`).
    """
    return {
        **({} if usage is None else _cost(usage)),
        "sampler": policy.name(),
        "params": policy.parameters,
        "seed": seed,
        "law": "policy",
        "fallback_reason": None,
        "weight_version": weight_version,
        "version": sglang_power.__version__,
    }


def plain_report() -> dict[str, Any]:
    """`meta_info.power` of an enrolled request whose arm is SGLang's own sampling."""
    return {"sampler": "none", "version": sglang_power.__version__}


def fallback_report(fallback: Fallback) -> dict[str, Any]:
    """`meta_info.power` of a request that a default preset could not serve: it ran plain."""
    return {**plain_report(), "fallback": fallback.reason, "fallback_reason": fallback.message}


def _cost(usage: Usage) -> dict[str, Any]:
    return {
        "decoded_tokens": usage.decoded,
        "prefilled_tokens": usage.prefilled,
        "wasted_tokens": usage.wasted,
        "depth": usage.depth,
        "children": usage.children,
    }


def _finite(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
