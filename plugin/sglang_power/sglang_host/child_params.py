"""The parameters that a row carries to the scheduler, as flat scalars in `custom_params`.

Two kinds: children of an orchestrated request (written by `children`), and requests that a per-step policy
serves, which SGLang runs itself (written by `policy_run`). Read by `rows` in the scheduler process. Flat,
because SGLang's msgpack transport decodes nothing deeper. Knows neither torch nor SGLang.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast

from sglang_power.algorithms.monitors import RowRule, flat_rules, rules_of
from sglang_power.algorithms.penalties import Penalties
from sglang_power.policies import Policy, policies
from sglang_power.types import ProposalLaw

CHILD = "_power_child"
"""Value of `custom_params["sampler"]` that marks a child; clients cannot use it (unknown sampler)."""

POLICY = "_power_policy"
"""The same for a request whose rows a policy serves."""

GREEDY_FIELD = "greedy"
"""Set for a POLICY whose request has temperature 0, which SGLang's parsed parameters no longer tell."""

REPORTED = "_power_reported"
"""The same for a request whose tokens SGLang's own sampler draws, and whose rows are reported."""

REPORTED_FIELD = "reported"
"""Set for a POLICY whose rows are reported, too."""

STATISTICS_KEY = "sglang_power_statistics"
"""`meta_info` key under which the REPORTED_STATISTICS of such rows come back, a record per output token."""

META_KEY = "sglang_power_rows"
"""`meta_info` key under which a child's ROW_FIELDS records come back, one per output token."""

APART = math.inf
"""log_q of a token that does not count, since the partner of its row was not in the same step; no density is
infinite."""

NOT_NUMBERS = "the model returned logits that are not numbers, or no law can be made of them"
"""Why a request ends whose row has no log p or no log q."""

GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
"""SGLang's sampling parameters that constrain an answer; one of them at most."""

_POLICY_FIELD = "policy."


@dataclass(frozen=True, slots=True)
class Coupling:
    """What ties a request to another one of the same step: two prompts that decode one answer in lock step.

    Args:
        name: both requests of the pair have it.
        role: "main" draws the pair's tokens, "twin" repeats them.
    """

    name: str
    role: Literal["main", "twin"]


@dataclass(frozen=True)
class ChildParams:
    """One request in the scheduler.

    Args:
        law: the law to draw from.
        seed: of the draws, < 2^62.
        origin: absolute position of the row that the first new token is drawn from.
        forced: ids to emit instead of drawing.
        known: how many of them, at the start, are not new: no rule sees their rows.
        kept: how many tokens at the end of the prompt belong to the answer: its grammar, and its penalties,
            have to know them.
        penalties: of the base law; None where it has none. To SGLang the child has none, either.
        rules: when to end the request early.
        probe: report this process's state instead of statistics.
        coupling: the request that has to be in the same step; None where there is none.
        native: SGLang answers the request itself; no statistics are sent back.
    """

    law: ProposalLaw
    seed: int
    origin: int
    forced: tuple[int, ...] | None = None
    known: int = 0
    kept: int = 0
    penalties: Penalties | None = None
    rules: tuple[RowRule, ...] = ()
    probe: bool = False
    coupling: Coupling | None = None
    native: bool = False

    @property
    def policy(self) -> Policy | None:
        """The policy of the law, as the class that can act on tensors."""
        return cast("Policy | None", self.law.policy)

    def to_custom_params(self) -> dict[str, Any]:
        """The flat form of a child; absent means None."""
        flat: dict[str, Any] = {
            "sampler": CHILD,
            "kappa": self.law.kappa,
            "top_k": self.law.top_k,
            "top_p": self.law.top_p,
            "min_p": self.law.min_p,
            "seed": self.seed,
            "origin": self.origin,
            "forced": None if self.forced is None else list(self.forced),
            "known": self.known or None,
            "kept": self.kept or None,
            "probe": self.probe,
            "pair": None if self.coupling is None else self.coupling.name,
            "role": None if self.coupling is None else self.coupling.role,
            **flat_rules(self.rules),
            **({} if self.penalties is None else self.penalties.flat()),
        }
        if self.policy is not None:
            flat |= flat_policy(self.policy)
        return {key: value for key, value in flat.items() if value is not None}

    @classmethod
    def from_custom_params(cls, flat: dict[str, Any]) -> ChildParams:
        """Inverse of `to_custom_params`."""
        forced = flat.get("forced")
        return cls(
            law=ProposalLaw(
                flat["kappa"],
                flat.get("top_k"),
                flat.get("top_p"),
                flat.get("min_p"),
                policy_of(flat),
            ),
            seed=flat["seed"],
            origin=flat["origin"],
            forced=None if forced is None else tuple(forced),
            known=flat.get("known", 0),
            kept=flat.get("kept", 0),
            penalties=Penalties.of(flat),
            rules=rules_of(flat),
            probe=flat.get("probe", False),
            coupling=Coupling(flat["pair"], flat["role"]) if "pair" in flat else None,
        )


def flat_policy(policy: Policy) -> dict[str, Any]:
    """A policy's name and parameters, flat."""
    named = {_POLICY_FIELD + key: value for key, value in policy.parameters.items() if value is not None}
    return {"policy": policy.name(), **named}


def policy_of(flat: dict[str, Any]) -> Policy | None:
    """Inverse of `flat_policy`; None where no policy is named."""
    if "policy" not in flat:
        return None
    values = {
        key.removeprefix(_POLICY_FIELD): value for key, value in flat.items() if key.startswith(_POLICY_FIELD)
    }
    return policies()[flat["policy"]].model_validate(values)
