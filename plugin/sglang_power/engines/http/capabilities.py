"""What one pass of a server without the plugin states exactly, and the refusal of everything else.

A response holds log p of each token and the two largest log p of its row, at temperature 1. That gives gap
and margin, and log_q and log_z of two laws. Statistics of the whole row (entropy, varentropy, log_z at
another kappa, the mass of a kept set) it does not give. Pure; knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.cuts import CutLaw
from sglang_power.algorithms.early_rejection import EarlyRejection
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.low_confidence import LowConfidence
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.triggers import Watch
from sglang_power.errors import UnsupportedError
from sglang_power.types import ProposalLaw

BASE = ProposalLaw(1.0)
"""p itself: log_q = log_p, log_z = 0."""

READABLE_TRIGGERS = frozenset({"ratio"})
"""Triggers that look at log p, gap and margin alone."""

PLUGIN = "or ask a server that runs sglang-power"

NEUTRAL_SETTINGS: dict[str, object] = {
    "speculative_algorithm": None,
    "dllm_algorithm": None,
    "watermark_default_enabled": False,
    "watermark_enforce_all": False,
}
"""Settings of SGLang under which tokens are not drawn, one by one, from the law that is reported."""


def check_server(settings: Mapping[str, Any]) -> None:
    """Refuse a server whose draws follow another law than its log probabilities.

    Args:
        settings: what /server_info answers; a setting that it lacks is of a later version.

    Raises:
        UnsupportedError: names the setting.
    """
    for name, neutral in NEUTRAL_SETTINGS.items():
        if (value := settings.get(name, neutral)) != neutral:
            problem = "under it the server's draws need not follow the law that it reports"
            raise UnsupportedError(name, value, problem, "Start the server without it")


def check_chain(config: MHConfig) -> None:
    """Refuse a chain that would read what the server cannot say.

    Raises:
        UnsupportedError: names the field.
    """
    check_law(config.law)
    _check_cut(config.cut)


def check_call(call: ContinuationCall) -> None:
    """Refuse a call that would read what the server cannot say.

    Raises:
        UnsupportedError: names the field.
    """
    check_law(call.law)
    for rule in call.rules:
        if isinstance(rule, EarlyRejection):
            _check_cut(rule.cut)
        if isinstance(rule, Watch):
            _check_watch(rule)
        if isinstance(rule, LowConfidence):
            problem = "it reads entropies, which a server without sglang-power does not report"
            raise UnsupportedError("drop_below", rule.threshold, problem, f"Leave it out, {PLUGIN}")


def check_law(law: ProposalLaw) -> None:
    """Refuse every law but p itself and greedy.

    Raises:
        UnsupportedError: names the field.
    """
    if law in (BASE, GREEDY):
        return
    one_pass = "the law of the draws does not follow from one pass of a server without sglang-power"
    if law.kappa != BASE.kappa:
        hint = f"Use kappa = 1 (proposal temperature 1), {PLUGIN}"
        raise UnsupportedError("kappa", law.kappa, one_pass, hint)
    fields = {"policy": law.policy, "top_p": law.top_p, "min_p": law.min_p, "top_k": law.top_k}
    name, value = next((name, value) for name, value in fields.items() if value is not None)
    raise UnsupportedError(name, value, one_pass, f"Leave it out (top_k may be 1, alone), {PLUGIN}")


def _check_cut(cut: CutLaw) -> None:
    if cut.epsilon != 1.0:  # anything else mixes gains in, which are entropies
        problem = "it reads entropies, which a server without sglang-power does not report"
        raise UnsupportedError("cut", cut, problem, f"Use the uniform cut, {PLUGIN}")


def _check_watch(watch: Watch) -> None:
    for trigger in watch.triggers:
        if trigger.name not in READABLE_TRIGGERS:
            problem = "it reads entropies, which a server without sglang-power does not report"
            raise UnsupportedError("trigger", trigger.name, problem, f'Use "ratio", {PLUGIN}')
