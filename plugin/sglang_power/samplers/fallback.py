"""Why a prompt runs on another sampler than the one that was meant for it, from a closed set of reasons.

Today that is a default preset that does not fit a request, which SGLang then answers itself. `strict` makes
an error of it. Pure; no SGLang.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from sglang_power.errors import (
    GreedyError,
    LimitError,
    RequestError,
    ServerSettingsError,
    TemperatureError,
    UnsupportedError,
)

FallbackReason = Literal[
    "greedy", "temperature", "unsupported_field", "limits", "server", "parameters", "scoring", "short"
]
"""greedy             the client asks for greedy decoding (temperature 0, or top_k 1)
temperature        the client names a temperature, which the preset's `on_temperature` refuses
unsupported_field  a field of the request that the preset's sampler does not support
limits             longer, or more tokens, than the server or the context allows
server             the server's own settings rule the sampler out
parameters         anything else in the request or in the preset that contradicts it
scoring            log probabilities of the prompt are asked for
short              at most one token is asked for"""

NEVER_MEANT: frozenset[FallbackReason] = frozenset({"scoring", "short"})
"""What no default is for: neither `strict` nor the alert speaks of it."""

_REASONS: tuple[tuple[type[RequestError], FallbackReason], ...] = (
    (GreedyError, "greedy"),
    (TemperatureError, "temperature"),
    (LimitError, "limits"),
    (ServerSettingsError, "server"),
    (UnsupportedError, "unsupported_field"),
    (RequestError, "parameters"),
)


@dataclass(frozen=True)
class Fallback:
    """One fallback.

    Args:
        reason: label of the metric.
        message: a full sentence for `meta_info.power.fallback_reason`.
    """

    reason: FallbackReason
    message: str


def fall_back(error: RequestError, meant: str, strict: bool) -> Fallback:
    """Return the fallback that an error of a sampler means.

    Args:
        error: why the sampler cannot serve the request.
        meant: what asked for the sampler, as a message calls it.
        strict: whether that is an error.

    Raises:
        RequestError: strict.
    """
    if strict:
        problem = f"{error.problem}; {meant} is strict"
        raise RequestError(error.field, error.value, problem, error.hint) from error
    reason = next(reason for kind, reason in _REASONS if isinstance(error, kind))
    return Fallback(reason, str(error))
