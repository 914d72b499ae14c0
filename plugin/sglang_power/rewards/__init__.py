"""Rewards: what answers are worth to somebody else than the model. R(prompt, answer) is a finite number.

An operator configures HTTP endpoints, other distributions install functions; a request names one. A
sampler asks through a `Scorer`, which applies the failure policy. Knows no sampler, no token and no SGLang;
imported by `samplers` and above.
"""

from sglang_power.rewards.base import NamedReward, OnError, Reward
from sglang_power.rewards.endpoint import Endpoint, EndpointConfig
from sglang_power.rewards.registry import installed_rewards, reward
from sglang_power.rewards.scorer import Scorer

__all__ = [
    "Endpoint",
    "EndpointConfig",
    "NamedReward",
    "OnError",
    "Reward",
    "Scorer",
    "installed_rewards",
    "reward",
]
