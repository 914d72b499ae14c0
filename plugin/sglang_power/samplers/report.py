"""`meta_info.power`: what a response says of how its answer was made. Pure; no SGLang."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import sglang_power
from sglang_power.policies import Policy
from sglang_power.samplers.base import Outcome
from sglang_power.samplers.fallback import Fallback
from sglang_power.types import Usage


def answer_report(
    name: str,
    outcome: Outcome,
    *,
    seed: int,
    neutralised: Sequence[str],
    prompt_usage: Usage,
    weight_version: str | None,
) -> dict[str, Any]:
    """Return `meta_info.power` of one answer of a sampler of whole answers.

    Args:
        name: of the sampler, as it was asked for.
        outcome: what its run came to.
        seed: of the request; answer i of n is keyed by (seed, i).
        neutralised: sampling fields that were not applied.
        prompt_usage: cost of caching the prompts; passed for one answer only, so that the counters of all
            answers of a request add up to its whole cost.
        weight_version: of the weights that drew every token.
    """
    # A policy acts at the request's own law: it has nothing to neutralise.
    ours = {} if outcome.law == "policy" else {"neutralised": list(neutralised)}
    return {
        "sampler": name,
        **outcome.headline,
        "params": {**outcome.params, **ours},
        "seed": seed,
        **cost(outcome.usage + prompt_usage),
        "law": outcome.law,
        "fallback_reason": None,
        "log_p": finite(float(outcome.tokens.log_p.sum())),
        "stopped_by": outcome.stopped_by,
        "weight_version": weight_version,
        "version": sglang_power.__version__,
        **outcome.report,
    }


def unanswered_report(name: str) -> dict[str, Any]:
    """Return `meta_info.power` of an answer that an abort forestalled."""
    return {"sampler": name, "stopped_by": "abort"}


def policy_report(policy: Policy, seed: int, weight_version: str | None) -> dict[str, Any]:
    """`meta_info.power` of an answer whose tokens a per-step policy drew.

    `law` is "policy": tokens follow the policy's law row by row, which is no power of the sequence's.
    """
    return {
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


def cost(usage: Usage) -> dict[str, Any]:
    return {
        "decoded_tokens": usage.decoded,
        "prefilled_tokens": usage.prefilled,
        "wasted_tokens": usage.wasted,
        "depth": usage.depth,
        "children": usage.children,
    }


def finite(value: float) -> float | None:
    """JSON has no infinities."""
    return value if math.isfinite(value) else None
