"""Every policy by its name: the built-in ones and those of the entry-point group `sglang_power.policies`."""

from __future__ import annotations

import functools

from sglang_power.errors import ConfigError
from sglang_power.extensions import extensions
from sglang_power.policies.adapt import Adapt
from sglang_power.policies.base import Policy
from sglang_power.policies.dynatemp import DynaTemp
from sglang_power.policies.edt import EDT
from sglang_power.policies.entropix import Entropix
from sglang_power.policies.epsilon import Epsilon
from sglang_power.policies.eta import Eta
from sglang_power.policies.kl_guided import KLGuided
from sglang_power.policies.min_k import MinK
from sglang_power.policies.p_less import PLess
from sglang_power.policies.standard import Greedy, MinP, Temperature, TopK, TopP
from sglang_power.policies.top_h import TopH
from sglang_power.policies.top_n_sigma import TopNSigma
from sglang_power.policies.typical import Typical

ENTRY_POINTS = "sglang_power.policies"

BUILT_IN: tuple[type[Policy], ...] = (
    Greedy,
    Temperature,
    TopK,
    TopP,
    MinP,
    TopNSigma,
    Typical,
    Epsilon,
    Eta,
    EDT,
    Adapt,
    KLGuided,
    DynaTemp,
    Entropix,
    TopH,
    PLess,
    MinK,
)

RESERVED = frozenset({"power", "none", "cot", "branch", "vote", "best_of", "smc", "perfect", "lookahead"})
"""Names of samplers of whole answers."""


@functools.cache
def policies() -> dict[str, type[Policy]]:
    """Name -> policy.

    Raises:
        ConfigError: an entry point that cannot be loaded, is no policy, or takes a name that is in use.
    """
    found = {policy.name(): policy for policy in BUILT_IN}
    for _, named, policy in extensions(ENTRY_POINTS):
        if not (isinstance(policy, type) and issubclass(policy, Policy)):
            raise ConfigError(f"{named}: not a Policy")
        if not isinstance(policy.model_fields["sampler"].default, str):
            raise ConfigError(f"{named}: `sampler` has no default, its name")
        if policy.name() in found.keys() | RESERVED:
            raise ConfigError(f"{named}: the name {policy.name()!r} is in use; choose another")
        found[policy.name()] = policy
    return found
