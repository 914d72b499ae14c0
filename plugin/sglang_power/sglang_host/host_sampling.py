"""SGLang's own sampling parameters as SGLang reads them: what is neutral, what is greedy, which law they are.

SGLang turns temperature 0 into top_k 1 at temperature 1 when it parses the parameters (0.5.20 to 0.5.23), so
only the parameters as they were sent tell a greedy request from one that keeps the best token of a law.
Tokenizer process, and `law_of` in the scheduler.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang.srt.sampling.sampling_params import SamplingParams

from sglang_power.fields import MIN_TEMPERATURE, TOP_K_ALL
from sglang_power.policies import Policy
from sglang_power.types import ProposalLaw

TRUNCATION = ("top_p", "top_k", "min_p")
NEUTRAL: dict[str, Any] = {
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
}
"""Values that change nothing, of the fields that a model's generation config may set."""

GREEDY_BELOW = 1e-6
"""SGLang decodes greedily at lower temperatures."""


def is_zero(temperature: object) -> bool:
    """Return whether SGLang decodes greedily at a temperature."""
    return isinstance(temperature, int | float) and 0 <= temperature < GREEDY_BELOW


def sampling_of(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return SGLang's own temperature and truncation of a request, with the values of absent ones."""
    named = {key: params.get(key) for key in ("temperature", *TRUNCATION)}
    return {key: NEUTRAL[key] if value in (None, TOP_K_ALL) else value for key, value in named.items()}


def with_preferred(manager: Any, params: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's parameters on top of the server's --preferred-sampling-params, as SGLang has it."""
    return {**(getattr(manager, "preferred_sampling_params", None) or {}), **params}


def law_asked(manager: Any, params: Mapping[str, Any], policy: Policy | None) -> ProposalLaw:
    """Return the law of a request's own temperature and truncation around a policy.

    Args:
        manager: SGLang's TokenizerManager.
        params: sampling parameters as they were sent.
        policy: what reshapes the tempered law.
    """
    whole = with_preferred(manager, params)
    return law_of(SamplingParams(**whole), policy, greedy=is_zero(whole.get("temperature")))


def law_of(params: Any, policy: Policy | None, *, greedy: bool = False) -> ProposalLaw:
    """Return the law of SGLang's SamplingParams around a policy.

    Args:
        params: normalised: greedy is top_k = 1 at temperature 1.
        policy: what reshapes the tempered law.
        greedy: the request's temperature was 0. A policy then meets the law of that temperature, all of it
            on the most likely token, and not the law of temperature 1, of which it may drop that token.
    """
    coldest = greedy and policy is not None
    return ProposalLaw(
        kappa=1.0 / (MIN_TEMPERATURE if coldest else params.temperature),
        top_k=params.top_k if 0 < params.top_k < TOP_K_ALL else None,
        top_p=params.top_p if params.top_p < 1.0 else None,
        min_p=params.min_p if params.min_p > 0.0 else None,
        policy=policy,
    )
