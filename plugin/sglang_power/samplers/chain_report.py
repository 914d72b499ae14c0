"""What a response says of a chain: its steps, its law, its trace, its progress. Pure; no SGLang."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from sglang_power.algorithms.mh import CHAIN_VERSION, MHConfig
from sglang_power.algorithms.steps import Info
from sglang_power.request import PowerRequest
from sglang_power.samplers.chain import ChainResult
from sglang_power.samplers.chain_health import health, hint
from sglang_power.samplers.report import finite
from sglang_power.samplers.tree import common_length

MAX_TRACED_IDS = 4096
"""A traced proposal longer than this is cut in the trace, which says so by `proposal_length`."""

MAX_KEPT_TEXT = 200
"""Characters before a cut in the trace; the cut says how many tokens they are the end of."""

Decode = Callable[[Sequence[int]], str]
"""The text of token ids, all at once."""


def chain_law(config: MHConfig, result: ChainResult) -> Literal["power", "approximate"]:
    """Return "power" where only steps that leave the target invariant stand behind the answer, one at least.

    The target is p^alpha, times exp(lambda * R) with a reward; steps of the last stage leave it invariant. A
    state that has just entered that stage follows the law of an earlier one, or of q.
    """
    exact = (
        config.schedule == "exact"
        and config.lookback_blocks is None
        and not config.law.truncated
        and result.state.untilted_at is None
        and result.last_stage_steps > 0
        and result.stopped_by in ("completed", "max_steps")
    )
    return "power" if exact else "approximate"


def chain_report(
    request: PowerRequest,
    config: MHConfig,
    result: ChainResult,
    decode: Decode,
    reward_calls: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the entries of `meta_info.power` that only a chain has.

    Args:
        request, config: what was asked, after defaults.
        result: the chain's end.
        decode: writes the texts of a trace.
        reward_calls: what the scorer reports, with a reward.
    """
    infos = result.infos
    early = [info for info in infos if info.early_rejected]
    accepted = sum(info.accepted for info in infos)
    report: dict[str, Any] = {
        "chain_version": CHAIN_VERSION,
        "steps": len(infos),
        "proposals": len(infos),
        "accepted": accepted,
        "acceptance_rate": accepted / len(infos) if infos else None,
        "early_rejected": len(early),
        "saved_tokens_max": sum(_saved_at_most(config, info) for info in early),
        "log_target": _log_target(config, result),
        **_health(config, result),
    }
    if config.prefetch > 1:
        report |= {"prefetched": result.prefetched, "discarded": result.discarded}
    if reward_calls is not None:
        report["reward"] = {
            **reward_calls,
            "weight": request.weight,
            "value": result.state.reward,
            "dropped_at_step": result.state.untilted_at,
        }
    if not_numbers := sum(math.isnan(info.log_ratio) for info in infos):
        report["not_a_number"] = not_numbers
    check = result.rejection_check
    if check is not None and check.resumed:
        report["shadow"] = {"resumed": check.resumed, "violations": check.violations}
    if request.return_trace:
        report["trace"] = [traced(info, config, decode) for info in infos]
    return report


def _health(config: MHConfig, result: ChainResult) -> dict[str, Any]:
    """How the last stage went; of a chain whose schedule ends before it, the stage that it ended in."""
    stage = result.infos[-1].stage if config.schedule == "paper" and result.infos else config.stages
    last = [info for info in result.infos if info.stage == stage]
    found = health(last, result.log_p_start, float(result.state.tokens.log_p.sum()))
    return {"health": found.reported(), "hint": hint(last)}


def _log_target(config: MHConfig, result: ChainResult) -> float | None:
    """log of the unnormalised target that the chain ended with; None where it is not known."""
    log_power = config.alpha * float(result.state.tokens.log_p.sum())
    if config.tilt is None or result.state.untilted_at is not None:
        return finite(log_power)
    if result.state.reward is None:
        return None
    return finite(log_power + config.tilt.log_factor(result.state.reward))


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
        "log_w_proposal": finite(info.terms.log_w_proposal),
        "log_w_current": finite(info.terms.log_w_current),
        "log_cut_proposal": finite(info.terms.log_cut_proposal),
        "log_cut_current": finite(info.terms.log_cut_current),
        "log_tilt_proposal": finite(info.terms.log_tilt_proposal),
        "log_tilt_current": finite(info.terms.log_tilt_current),
        "log_ratio": finite(info.log_ratio),
        "log_u": info.log_u,
        "accepted": info.accepted,
        "early_rejected": info.early_rejected,
        "saved_tokens_max": _saved_at_most(config, info) if info.early_rejected else 0,
        **_tries(info),
        **_texts(info, decode),
    }


def _tries(info: Info) -> dict[str, Any]:
    """What competed to be the proposal, where several did; `picked` is the index of the one that did."""
    if not info.tries:
        return {}
    shown = [
        {"proposal_length": len(each.proposal), "log_ratio": finite(each.log_ratio)} for each in info.tries
    ]
    return {"tries": shown, "picked": info.picked}


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
