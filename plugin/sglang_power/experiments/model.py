"""The file of one experiment, `configs/experiments/<name>.yaml`: all of it is decided before it runs.

Shared by the server, which assigns by it, and by the analysis, which judges by it. Knows no sampler: an arm's
parameters are checked by the server that would run them. Validate it as JSON, where lists may be tuples.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from sglang_power.experiments.metrics import Metric
from sglang_power.fields import NonNegativeFloat, Positive, PositiveFloat, conflict

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Text = Annotated[str, Field(min_length=1, max_length=2000)]
BasisPoints = Annotated[int, Field(ge=0, le=10_000)]
"""Hundredths of a percent."""

WHOLE = 10_000
Endpoint = Literal["generate", "completions", "chat"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Unit(_Section):
    """Whose requests stay together: exactly one of both.

    Args:
        header: HTTP header that names the user or the session.
        field: body field that does; OpenAI's `user`.
    """

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] | None = None
    field: Literal["user"] | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.header is None) == (self.field is None):
            raise conflict("header", "neither or both of header and field", "Give a header, or field: user")
        return self


class Eligibility(_Section):
    """Which requests may be enrolled at all.

    Args:
        models: served model names; all where empty.
        endpoints: routes.
        min_max_new_tokens: requests that may not generate as many run as without the experiment.
    """

    models: tuple[str, ...] = ()
    endpoints: tuple[Endpoint, ...] = ("generate", "completions", "chat")
    min_max_new_tokens: Positive = 2


class Namespace(_Section):
    """A share of the units that no other experiment of the namespace may have.

    Args:
        name: the same in every experiment that excludes the others.
        first, last: units in [first, last) of 10,000, by a salt of the namespace's own.
    """

    name: Name
    first: BasisPoints
    last: BasisPoints

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.first >= self.last:
            raise conflict("last", f"not above first={self.first}", "Give a range with units in it")
        return self


class Holdout(_Section):
    """Units that are in no experiment which names this holdout.

    Args:
        name: its salt.
        share: of all units.
    """

    name: Name
    share: Annotated[int, Field(ge=1, le=5_000)]


class Arm(_Section):
    """One way to sample.

    Args:
        name: in logs, metrics and reports.
        sampler: parameters as a client would write them (a preset among them); {"sampler": "none"} is
            SGLang's own sampling.
        weight: basis points of the enrolled units; ramps replace it.
        control: what the other arms are compared with: "plain", or "compute_matched" (the same tokens, spent
            without the idea under test).
        shadow: runs after the response of another arm, is logged and never served; its weight is 0.
    """

    name: Name
    sampler: dict[str, Any]
    weight: BasisPoints
    control: Literal["plain", "compute_matched"] | None = None
    shadow: bool = False


class Primary(_Section):
    """The one metric that decides.

    Args:
        metric: its name.
        min_effect: smallest improvement over a control that is worth shipping, in the metric's own unit.
    """

    metric: Name
    min_effect: NonNegativeFloat


class Guardrail(_Section):
    """A metric that must not get worse.

    Args:
        metric: its name.
        margin: the loss that is still accepted, in the metric's own unit.
    """

    metric: Name
    margin: PositiveFloat


class MinimumRun(_Section):
    """No verdict but "stop" before both are reached.

    Args:
        days: since the first enrolment of the phase.
        units: in the analysis, all arms together.
    """

    days: NonNegativeFloat = 7.0
    units: Positive = 1_000


class Phase(_Section):
    """One step of a ramp.

    Args:
        weights: basis points of every arm that is served.
        min_hours, min_units: what it takes to go on to the next phase.
    """

    weights: dict[Name, BasisPoints]
    min_hours: NonNegativeFloat = 24.0
    min_units: Positive = 100


class Override(_Section):
    """Lets named units choose their arm, for tests by hand; they are excluded from the analysis.

    Args:
        header: HTTP header that names the arm.
        units: who may.
    """

    header: Annotated[str, Field(pattern=r"^[A-Za-z0-9-]+$")] = "x-sglang-power-arm"
    units: Annotated[tuple[str, ...], Field(min_length=1)]


class Shadow(_Section):
    """What shadow arms may cost.

    Args:
        tokens_per_hour: decoded tokens of all shadow arms, per tokenizer process.
        priority: of their requests; the server must run with --enable-priority-scheduling.
    """

    tokens_per_hour: Positive
    priority: int = 0


class Switchback(_Section):
    """Randomised time windows: every request of a window has the same arm, on all servers of the pool.

    Args:
        pool: name of the servers that share their load.
        window_s: length of a window.
        washout_s: its beginning, which is not analysed: what the window before left running.
        min_windows: no verdict below it.
    """

    pool: Name
    window_s: PositiveFloat
    washout_s: NonNegativeFloat = 60.0
    min_windows: Annotated[int, Field(ge=40)] = 40

    @model_validator(mode="after")
    def _leaves_something(self) -> Self:
        if self.washout_s >= self.window_s:
            raise conflict("washout_s", f"not below window_s={self.window_s}", "Leave time to measure")
        return self


class Experiment(_Section):
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
        outcome_window_h: hours after its first enrolment in which a unit's outcomes count.
        ramp: phases, in order; `sglang-power ab ramp` goes through them and rolls back on a guardrail.
        kill: nobody is enrolled any more.
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
    ramp: tuple[Phase, ...] = ()
    kill: bool = False
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
    def _sections_fit(self) -> Self:
        if (self.kind == "switchback") != (self.switchback is not None):
            raise conflict("switchback", f"does not fit kind: {self.kind}", "Give both, or neither")
        if (self.kind == "unit") != (self.unit is not None):
            raise conflict("unit", f"does not fit kind: {self.kind}", "Units have one, switchbacks none")
        for field in ("namespace", "holdout"):
            if self.kind == "switchback" and getattr(self, field) is not None:
                raise conflict(field, "is a share of the units, and a switchback has none", "Leave it out")
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
