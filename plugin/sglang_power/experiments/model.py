"""The file of one experiment, `configs/experiments/<name>.yaml`: all of it is decided before it runs.

Shared by the server, which assigns by it, and by the analysis, which judges by it. Knows no sampler: an arm's
parameters are checked by the server that would run them. Validate it as JSON, where lists may be tuples.
What a part means is in `sections`; here is what they mean together.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sglang_power.experiments.metrics import Metric
from sglang_power.experiments.sections import (
    WHOLE,
    Arm,
    Eligibility,
    Guardrail,
    Holdout,
    MinimumRun,
    Name,
    Namespace,
    Override,
    Phase,
    Primary,
    Section,
    Shadow,
    Switchback,
    Text,
    Unit,
)
from sglang_power.fields import NonNegativeFloat, PositiveFloat, conflict

__all__ = ["WHOLE", "Arm", "Experiment", "Name", "Namespace", "Phase", "Switchback"]


class Experiment(Section):
    """One A/B test.

    Args:
        name, owner, hypothesis: for people; the name is the salt of the assignment.
        kind: "unit" randomises units, "switchback" time windows.
        unit: who is randomised; with switchback nobody.
        eligibility, namespace, holdout: which requests and units take part.
        arms: at least two that are served; at least one is a control, at least one is not.
        metrics: name -> how it is measured.
        primary, guardrails: what is judged.
        alpha: chance that the primary metric's intervals ever miss, over all arm x control pairs.
        minimum_run: see MinimumRun.
        outcome_window_h: hours after its first enrolment in which a unit's requests and what is said of them
            count.
        completion_grace_s: seconds after that window in which its requests may still end: each is judged by
            its own end, and counts as lost without one. Only then the unit enters the analysis.
        ramp: phases, in order; `sglang-power ab ramp` goes through them and rolls back on a guardrail. Where
            units are randomised an arm may only grow or only shrink.
        kill: nobody is enrolled any more; units whose window it cuts off are not analysed.
        drain: everybody is enrolled as before, but the analysis admits no unit that came after it began, so
            that the windows of the others close. Set `kill` when the report says that they have.
        on_error: what an arm's failure does: the server's default sampler answers, or the request fails.
        qa: see Override.
        shadow: see Shadow; needed by arms that are shadows.
        pool: whether the arms share workers ("shared"), so that a slow arm slows the others, too.
        switchback: see Switchback.
    """

    name: Name
    owner: Text
    hypothesis: Text
    kind: Literal["unit", "switchback"] = "unit"
    unit: Unit | None = None
    eligibility: Eligibility = Eligibility()
    namespace: Namespace | None = None
    holdout: Holdout | None = None
    arms: Annotated[tuple[Arm, ...], Field(min_length=2, max_length=16)]
    metrics: Annotated[dict[Name, Metric], Field(min_length=1)]
    primary: Primary
    guardrails: tuple[Guardrail, ...] = ()
    alpha: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    minimum_run: MinimumRun = MinimumRun()
    outcome_window_h: PositiveFloat = 24.0
    completion_grace_s: NonNegativeFloat = 600.0
    ramp: tuple[Phase, ...] = ()
    kill: bool = False
    drain: bool = False
    on_error: Literal["default_sampler", "error"] = "default_sampler"
    qa: Override | None = None
    shadow: Shadow | None = None
    pool: Literal["shared", "separate"] = "shared"
    switchback: Switchback | None = None

    @property
    def served(self) -> tuple[Arm, ...]:
        """The arms whose answers clients get, in order."""
        return tuple(arm for arm in self.arms if not arm.shadow)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (arm, control) that is compared."""
        controls = [arm.name for arm in self.served if arm.control is not None]
        return [(arm.name, other) for arm in self.served if arm.control is None for other in controls]

    def arm(self, name: str) -> Arm:
        """The arm of a name."""
        return next(arm for arm in self.arms if arm.name == name)

    def weights(self, phase: int) -> dict[str, int]:
        """Basis points of the served arms in a phase."""
        if self.ramp:
            return dict(self.ramp[phase].weights)
        return {arm.name: arm.weight for arm in self.served}

    @model_validator(mode="after")
    def _arms_fit(self) -> Self:
        names = [arm.name for arm in self.arms]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise conflict("arms", f"{twice[0]!r} twice", "Give every arm a name of its own")
        if wrong := [arm.name for arm in self.arms if arm.shadow and (arm.weight or arm.control)]:
            raise conflict(
                "arms", f"shadow arm {wrong[0]!r} has a weight, or is a control", "It serves nobody"
            )
        if not self.pairs:
            raise conflict("arms", "no pair of an arm and a control", "Declare control: plain on one arm")
        for phase in range(max(1, len(self.ramp))):
            _check_weights(self, phase)
        if self.kind == "unit":
            _check_ramp(self)
        return self

    @model_validator(mode="after")
    def _metrics_are_known(self) -> Self:
        for field, name in [
            ("primary", self.primary.metric),
            *[("guardrails", g.metric) for g in self.guardrails],
        ]:
            if name not in self.metrics:
                raise conflict(field, f"metric {name!r} is not defined", "Define it under metrics")
            if self.metrics[name].interferes and self.kind == "unit" and self.pool == "shared":
                raise conflict(
                    field,
                    f"{name!r} of one arm depends on the others' load on a shared pool",
                    "Use kind: switchback, or pool: separate where the arms have workers of their own",
                )
        return self

    @model_validator(mode="after")
    def _guardrails_differ(self) -> Self:
        names = [guardrail.metric for guardrail in self.guardrails]
        for i, name in enumerate(names):
            if name in names[:i]:
                raise conflict(f"guardrails.{i}.metric", f"{name!r} has a margin already", "Keep one of them")
        return self

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if (self.kind == "switchback") != (self.switchback is not None):
            raise conflict("switchback", f"does not fit kind: {self.kind}", "Give both, or neither")
        if (self.kind == "unit") != (self.unit is not None):
            raise conflict("unit", f"does not fit kind: {self.kind}", "Units have one, switchbacks none")
        for field in ("namespace", "holdout", "qa"):
            if self.kind == "switchback" and getattr(self, field) is not None:
                raise conflict(field, "speaks of units, and a switchback has none", "Leave it out")
        if any(arm.shadow for arm in self.arms) != (self.shadow is not None):
            raise conflict("shadow", "a budget without shadow arms, or the reverse", "Give both, or neither")
        return self


def _check_weights(experiment: Experiment, phase: int) -> None:
    weights = experiment.weights(phase)
    field = f"ramp.{phase}.weights" if experiment.ramp else "arms"
    if unknown := sorted(weights.keys() ^ {arm.name for arm in experiment.served}):
        raise conflict(
            field, f"{unknown[0]!r} is no served arm, or has no weight", "Name each served arm once"
        )
    if (total := sum(weights.values())) != WHOLE:
        raise conflict(field, f"weights sum to {total}", f"Make them sum to {WHOLE:,} basis points")


def _check_ramp(experiment: Experiment) -> None:
    """Refuse arms that turn back; without them the units of an arm's smallest phase are in it throughout.

    `flags.reweighted` takes from shrinking arms and gives to growing ones only. So an arm that only shrinks
    loses units and gets none, and one that only grows the reverse, however many arms there are;
    `analysis.units.kept_shares` rests on it.
    """
    for arm in experiment.served:
        weights = [phase.weights[arm.name] for phase in experiment.ramp]
        for phase in range(2, len(weights)):
            so_far = weights[: phase + 1]
            if so_far not in (sorted(so_far), sorted(so_far, reverse=True)):
                raise conflict(
                    f"ramp.{phase}.weights.{arm.name}",
                    f"{weights[phase]} after {', '.join(map(str, weights[:phase]))}: the arm both grows and "
                    "shrinks, so it is not known which of its units stayed in it",
                    "Let each arm only grow or only shrink, or start another experiment with a new name",
                )
