"""The parameters that a row carries to the scheduler, as flat scalars in `custom_params`.

Two kinds: children of an orchestrated request (written by `children`), and requests that a per-step policy
serves, which SGLang runs itself (written by `policy_run`). Read by `rows` in the scheduler process. Flat,
because SGLang's msgpack transport decodes nothing deeper. Knows neither torch nor SGLang.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any, Literal, cast

from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.early_rejection import EarlyRejection
from sglang_power.algorithms.triggers import Trigger, TriggerState, Watch
from sglang_power.policies import Policy, policies
from sglang_power.types import ProposalLaw

CHILD = "_power_child"
"""Value of `custom_params["sampler"]` that marks a child; clients cannot use it (unknown sampler)."""

POLICY = "_power_policy"
"""The same for a request whose rows a policy serves."""

GREEDY_FIELD = "greedy"
"""Set for a POLICY whose request has temperature 0, which SGLang's parsed parameters no longer tell."""

META_KEY = "sglang_power_rows"
"""`meta_info` key under which a child's ROW_FIELDS records come back, one per output token."""

Role = Literal["main", "twin"]

_POLICY_FIELD = "policy."


@dataclass(frozen=True)
class ChildParams:
    """One request in the scheduler.

    Args:
        law: the law to draw from.
        seed: of the draws, < 2^62.
        origin: absolute position of the row that the first new token is drawn from.
        forced: ids to emit instead of drawing.
        early_rejection: when to end the request as lost.
        watch: when to end the request because it should branch.
        deadline: unix time in seconds at which to end the request as late.
        probe: report this process's state instead of statistics.
        pair: name of the pair that the request belongs to, where two prompts decode one answer in lock step.
        role: "main" draws the pair's tokens, "twin" repeats them.
        native: SGLang answers the request itself; no statistics are sent back.
    """

    law: ProposalLaw
    seed: int
    origin: int
    forced: tuple[int, ...] | None = None
    early_rejection: EarlyRejection | None = None
    watch: Watch | None = None
    deadline: float | None = None
    probe: bool = False
    pair: str | None = None
    role: Role = "main"
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
            "deadline": self.deadline,
            "probe": self.probe,
            "pair": self.pair,
            "role": self.role,
        }
        if self.early_rejection is not None:
            flat |= _flat_rejection(self.early_rejection)
        if self.watch is not None:
            flat |= _flat_watch(self.watch)
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
            early_rejection=_rejection(flat) if "er_threshold" in flat else None,
            watch=_watch(flat) if "watch_names" in flat else None,
            deadline=flat.get("deadline"),
            probe=flat.get("probe", False),
            pair=flat.get("pair"),
            role=flat.get("role", "main"),
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


def _flat_rejection(rule: EarlyRejection) -> dict[str, Any]:
    return {
        "er_threshold": rule.threshold,
        "er_alpha": rule.alpha,
        "er_cut_beta": rule.cut.beta if isinstance(rule.cut, EntropyCut) else None,
        "er_cut_epsilon": rule.cut.epsilon,
        "er_count": rule.count,
        "er_total_gain": rule.total_gain,
        "er_previous_entropy": rule.previous_entropy,
    }


def _rejection(flat: dict[str, Any]) -> EarlyRejection:
    beta = flat.get("er_cut_beta")
    cut: CutLaw = UniformCut() if beta is None else EntropyCut(beta, flat["er_cut_epsilon"])
    return EarlyRejection(
        threshold=flat["er_threshold"],
        alpha=flat["er_alpha"],
        cut=cut,
        count=flat["er_count"],
        total_gain=flat["er_total_gain"],
        previous_entropy=flat["er_previous_entropy"],
    )


def _flat_watch(watch: Watch) -> dict[str, Any]:
    state = watch.state
    return {
        "watch_names": [trigger.name for trigger in watch.triggers],
        "watch_counts": [len(trigger.thresholds) for trigger in watch.triggers],
        "watch_thresholds": [value for trigger in watch.triggers for value in trigger.thresholds],
        "watch_position": state.position,
        "watch_previous": state.previous,
        "watch_open_from": state.open_from,
        "watch_history": list(state.history),
        "watch_start": watch.start,
    }


def _watch(flat: dict[str, Any]) -> Watch:
    thresholds = iter(flat["watch_thresholds"])
    return Watch(
        triggers=tuple(
            Trigger(name, tuple(itertools.islice(thresholds, count)))
            for name, count in zip(flat["watch_names"], flat["watch_counts"], strict=True)
        ),
        state=TriggerState(
            position=flat["watch_position"],
            previous=flat["watch_previous"],
            open_from=flat["watch_open_from"],
            history=tuple(flat["watch_history"]),
        ),
        start=flat["watch_start"],
    )
