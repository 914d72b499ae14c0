"""The parameters that one child request carries to the scheduler, as flat scalars.

Written by `children` in the tokenizer process, read by `rows` in the scheduler process. Flat, because
SGLang's msgpack transport decodes nothing deeper. Knows neither torch nor SGLang.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.early_rejection import EarlyRejection
from sglang_power.types import ProposalLaw

CHILD = "_power_child"
"""Value of `custom_params["sampler"]` that marks a child; clients cannot use it (unknown sampler)."""


META_KEY = "sglang_power_rows"
"""`meta_info` key under which a child's ROW_FIELDS records come back, one per output token."""


@dataclass(frozen=True)
class ChildParams:
    """One child request.

    Args:
        law: the law to draw from.
        seed: of the draws, < 2^62.
        origin: absolute position of the row that the first new token is drawn from.
        forced: ids to emit instead of drawing.
        early_rejection: when to end the request as lost.
        deadline: unix time in seconds at which to end the request as late.
        probe: report this process's state instead of statistics.
    """

    law: ProposalLaw
    seed: int
    origin: int
    forced: tuple[int, ...] | None = None
    early_rejection: EarlyRejection | None = None
    deadline: float | None = None
    probe: bool = False

    def to_custom_params(self) -> dict[str, Any]:
        """The flat form; absent means None."""
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
        }
        if self.early_rejection is not None:
            flat |= _flat_rejection(self.early_rejection)
        return {key: value for key, value in flat.items() if value is not None}

    @classmethod
    def from_custom_params(cls, flat: dict[str, Any]) -> ChildParams:
        """Inverse of `to_custom_params`."""
        forced = flat.get("forced")
        return cls(
            law=ProposalLaw(flat["kappa"], flat.get("top_k"), flat.get("top_p"), flat.get("min_p")),
            seed=flat["seed"],
            origin=flat["origin"],
            forced=None if forced is None else tuple(forced),
            early_rejection=_rejection(flat) if "er_threshold" in flat else None,
            deadline=flat.get("deadline"),
            probe=flat.get("probe", False),
        )


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
