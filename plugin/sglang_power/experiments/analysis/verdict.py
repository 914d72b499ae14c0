"""Ship, stop or keep running: pure, from intervals to one sentence.

The only module that knows which way of a metric is better. Ship asks for the bad end of every interval, stop
for the good end: neither rests on an estimate, but for guardrails whose effect changed while it was measured.
Of these there is no interval, and an arm that breaks late must not be safe for having been well before.
An asymptotic interval of a skewed metric is shown early and may be stopped by at once; shipping by it, and
calling a guardrail kept, waits for more units (`enough.DECISIVE`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sglang_power.experiments.analysis.results import Effect, ExperimentVerdict, Srm
from sglang_power.experiments.model import Experiment

CARRY_OVER_P = 0.01
"""Below it, windows of a switchback seem to depend on the window before. By chance it is at one in 100 looks
of a metric and pair; looks are planned and few, since each needs twice the windows of the one before."""


def gain(effect: Effect) -> tuple[float, float]:
    """The interval of the improvement, (worst, best): positive is better whatever the direction.

    Without an interval nothing is excluded: (-inf, inf).
    """
    low, high = effect.interval.low, effect.interval.high
    if low is None or high is None:
        return -math.inf, math.inf
    return (low, high) if effect.direction == "higher" else (-high, -low)


def within(guardrail: Effect) -> bool:
    """Whether the loss is surely inside of the margin, by an interval that may be decided by."""
    return guardrail.interval.too_early is None and gain(guardrail)[0] >= -_threshold(guardrail)


def beyond(guardrail: Effect) -> bool:
    """Whether the loss is larger than the margin: surely, or as estimated where the effect changed."""
    if guardrail.interval.changed:
        return _loss(guardrail) > _threshold(guardrail)
    return gain(guardrail)[1] < -_threshold(guardrail)


def _loss(effect: Effect) -> float:
    """By how much an arm is worse, as estimated: negative is better; NaN without an estimate."""
    estimate = effect.interval.estimate
    if estimate is None:
        return math.nan
    return -estimate if effect.direction == "higher" else estimate


def verdict(
    experiment: Experiment, effects: Sequence[Effect], srm: Srm, units: int, days: float
) -> ExperimentVerdict:
    """What to do with an experiment.

    ship: minimum run reached, no sample ratio mismatch, and an arm's primary metric is better than every
        control by at least min_effect (worst end), with every guardrail within its margin, and no interval
        too early to decide by. Of several such arms the one whose worst end is best.
    stop: an arm's primary metric is worse than a control (best end below 0), or a guardrail is beyond its
        margin (best end; the estimate, where its effect changed while it was measured). It is about harm, so
        neither the minimum run nor the sample ratio holds it back.
    keep running: everything else.

    Args:
        effects: of all pairs.
        units: in the analysis, all arms together; windows of a switchback.
        days: since the first enrolment of the phase.
    """
    judged = [effect for effect in effects if effect.role != "shown"]
    obstacle = _obstacle(experiment, judged, srm, units, days)
    winners = [arm for arm in _arms(judged) if not any(_unproven(e) for e in judged if e.arm == arm)]
    if winners and obstacle is None:
        return _ship(max(winners, key=lambda arm: _worst(judged, arm)), judged)
    if harmful := next((effect for effect in judged if _harmful(effect)), None):
        return _stop(harmful, srm)
    if obstacle is not None:
        return ExperimentVerdict(decision="keep running", arm=None, reason=obstacle)
    return _keep(max(_arms(judged), key=lambda arm: _worst(judged, arm)), judged)


def _threshold(effect: Effect) -> float:
    if effect.threshold is None:
        raise ValueError(f"{effect.metric} decides nothing")
    return effect.threshold


def _least(effect: Effect) -> float:
    """The improvement that is asked for before an arm ships: negative where a loss is tolerated."""
    return _threshold(effect) if effect.role == "primary" else -_threshold(effect)


def _arms(effects: Sequence[Effect]) -> list[str]:
    """In order of declaration."""
    return list(dict.fromkeys(effect.arm for effect in effects))


def _worst(effects: Sequence[Effect], arm: str) -> float:
    """The worst end of an arm's primary metric, over all controls."""
    return min(gain(effect)[0] for effect in effects if effect.arm == arm and effect.role == "primary")


def _unproven(effect: Effect) -> bool:
    """Whether this effect keeps its arm from being shipped."""
    if effect.role == "primary":
        proven = effect.interval.too_early is None and gain(effect)[0] >= _threshold(effect)
        return not proven  # NaN proves nothing.
    return not within(effect)


def _harmful(effect: Effect) -> bool:
    return gain(effect)[1] < 0.0 if effect.role == "primary" else beyond(effect)


def _obstacle(
    experiment: Experiment, effects: Sequence[Effect], srm: Srm, units: int, days: float
) -> str | None:
    """What forbids to ship, however good the metrics are."""
    if srm.red:
        return (
            "Sample ratio mismatch: units did not arrive in the arms as assigned (e-value "
            f"10^{srm.log10_e:.1f}, red from 10^3), so no metric can be trusted; find the cause, start again"
        )
    if missing := _missing_run(experiment, units, days):
        return f"The minimum run is not reached: {missing}"
    for effect in effects:
        if effect.carry_over_p is not None and effect.carry_over_p < CARRY_OVER_P:
            return (
                f"{effect.metric} of a window depends on the arm of the window before "
                f"(p = {effect.carry_over_p:.2g}): make washout_s longer and start again"
            )
    return None


def _missing_run(experiment: Experiment, units: int, days: float) -> str:
    """How far the experiment is, of what it asks for; empty where it has run long enough."""
    run, rows = experiment.minimum_run, "windows" if experiment.kind == "switchback" else "units"
    if days >= run.days and units >= run.units:
        return ""
    asked = [f"{days:.1f} of {run.days:g} days"] if run.days else []
    return ", ".join([*asked, f"{units:,} of {run.units:,} {rows}"])


def _ship(arm: str, effects: Sequence[Effect]) -> ExperimentVerdict:
    wins = [effect for effect in effects if effect.arm == arm and effect.role == "primary"]
    said = "; ".join(f"against {e.control} {_said(e)}, at least {gain(e)[0]:+.4g}" for e in wins)
    guardrails = sum(effect.arm == arm and effect.role == "guardrail" for effect in effects)
    return ExperimentVerdict(
        decision="ship",
        arm=arm,
        reason=f"{wins[0].metric} of {arm} is better by {_threshold(wins[0]):g} or more than every control "
        f"({said}), and {_guarded(guardrails)}",
    )


def _guarded(guardrails: int) -> str:
    return "every guardrail is within its margin" if guardrails else "no guardrail was declared"


def _stop(effect: Effect, srm: Srm) -> ExperimentVerdict:
    best = gain(effect)[1]
    if effect.role == "primary":
        why = f"{effect.metric} of {effect.arm} is worse than of {effect.control}"
        limit = f"at best {best:+.4g}"
    else:
        why = f"Guardrail {effect.metric} of {effect.arm} is worse than of {effect.control}"
        known = effect.interval.why_none or f"at least {-best:.4g} worse"
        limit = f"{known}, margin {_threshold(effect):g}"
    doubt = "; the sample ratio is off, too, so find its cause first" if srm.red else ""
    return ExperimentVerdict(
        decision="stop", arm=effect.arm, reason=f"{why} ({_said(effect)}, {limit}){doubt}"
    )


def _keep(arm: str, effects: Sequence[Effect]) -> ExperimentVerdict:
    """Names what the most promising arm lacks first."""
    effect = next(effect for effect in effects if effect.arm == arm and _unproven(effect))
    worst, best = gain(effect)
    pair = f"{effect.metric} of {arm} against {effect.control}"
    if effect.interval.low is None:
        mean = f" ({_said(effect)} so far)" if effect.interval.changed else ""
        reason = f"{pair}: {effect.interval.why_none}{mean}"
    elif effect.interval.too_early is not None and worst >= _least(effect):
        kept = "is within its margin" if effect.role == "guardrail" else "is better by enough"
        reason = f"{pair} {kept} ({_said(effect)}), but it is {effect.interval.too_early}"
    elif effect.role == "guardrail":
        reason = (
            f"Guardrail {pair} may be {-worst:.4g} worse, margin {_threshold(effect):g} ({_said(effect)})"
        )
    elif best < _threshold(effect):
        reason = (
            f"{pair} is at most {best:.4g} better, and {_threshold(effect):g} is needed to ship "
            f"({_said(effect)}): it will not ship, so ending the experiment loses nothing"
        )
    else:
        reason = (
            f"{pair} is between {worst:+.4g} and {best:+.4g} better, and {_threshold(effect):g} is needed "
            f"to ship ({_said(effect)})"
        )
    return ExperimentVerdict(decision="keep running", arm=None, reason=reason)


def _said(effect: Effect) -> str:
    """The estimate as people read it: arm minus control."""
    estimate = effect.interval.estimate
    if estimate is None:
        return "no estimate"
    return f"estimate {estimate:+.4g}{f' {effect.measured_in}' if effect.measured_in else ''}"
