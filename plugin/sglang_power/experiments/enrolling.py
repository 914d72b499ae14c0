"""Which experiment a request joins, and with which arm. Nobody is harmed by being enrolled.

A request joins the first live experiment, in order of their names, that it is eligible for and that assigns
its unit; every arm of it must be able to serve the request, so that what a client gets never depends on an
error of an arm. Whoever does not fit, or meets a defect, runs as if there were no experiment, and is counted.
Knows no SGLang.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sglang_power.errors import RequestError
from sglang_power.experiments.assignment import Assigned, Assigner
from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.counters import NotEnrolledReason
from sglang_power.experiments.model import Arm, Experiment, Switchback
from sglang_power.experiments.records import unit_hash

logger = logging.getLogger("sglang_power")

Fits: TypeAlias = Callable[[Arm], bool]
"""Whether an arm can serve the request on this server as it stands."""

Refused: TypeAlias = Callable[[Experiment, NotEnrolledReason], None]


@dataclass(frozen=True)
class Facts:
    """What is known of a request before any arm is.

    Args:
        model, endpoint, stream: of the request; `endpoint` as in Eligibility, or another route's path.
        max_new_tokens: as SGLang will apply it; None where it is open.
        headers: names in lower case.
        user: OpenAI's body field.
        metadata: OpenAI's, as the client sent it.
        excluded: why no experiment may have it, whatever its arms: the client chose how to sample.
    """

    model: str
    endpoint: str
    stream: bool
    max_new_tokens: int | None
    headers: Mapping[str, str]
    user: str | None
    metadata: Mapping[str, object]
    excluded: Literal["own_sampler", "seed", "greedy", "batch"] | None


@dataclass(frozen=True)
class Enrolled:
    """A request's place in an experiment.

    Args:
        loaded: the experiment as it is now.
        arm: the assigned one.
        unit: keyed hash of the unit's name; with a switchback the window's number.
        override: a tester chose the arm.
        washout: within the washout of a switchback's window.
    """

    loaded: Loaded
    arm: Arm
    unit: str
    override: bool = False
    washout: bool = False


class Enroller:
    """Decides for one request after the other; what it decides depends on nothing but its arguments.

    Args:
        assigner: asks the flags.
        key: what unit names are hashed with.
        refused: told of every experiment that a request does not join.
    """

    def __init__(self, assigner: Assigner, key: bytes, refused: Refused) -> None:
        self._assigner, self._key, self._refused = assigner, key, refused

    async def enrol(
        self, experiments: tuple[Loaded, ...], facts: Facts, fits: Fits, now: float
    ) -> Enrolled | None:
        """The experiment that the request joins, if any.

        Args:
            experiments: in order of names.
            facts: of the request.
            fits: asked of every arm of an experiment, before anything is assigned.
            now: seconds since 1970; only switchbacks look at it.

        Raises:
            RequestError: a tester names an arm that is not served.
        """
        for loaded in experiments:
            result = await self._join_or_pass(loaded, facts, fits, now)
            if isinstance(result, Enrolled):
                return result
            self._refused(loaded.experiment, result)
        return None

    async def _join_or_pass(
        self, loaded: Loaded, facts: Facts, fits: Fits, now: float
    ) -> Enrolled | NotEnrolledReason:
        """Return what `_join` does; a defect there, or in a sampler, must cost no client an answer."""
        try:
            return await self._join(loaded, facts, fits, now)
        except RequestError:
            raise
        except Exception:
            logger.exception("experiment %s: a request is not enrolled", loaded.experiment.name)
            return "internal"

    async def _join(
        self, loaded: Loaded, facts: Facts, fits: Fits, now: float
    ) -> Enrolled | NotEnrolledReason:
        experiment = loaded.experiment
        if not loaded.enrolling:
            return "killed"
        if not _eligible(experiment, facts):
            return "not_eligible"
        if facts.excluded is not None:
            return facts.excluded
        name = _unit_of(experiment, facts, now)
        if name is None:
            return "no_unit"
        if not all(fits(arm) for arm in experiment.arms):
            return "unsupported"
        if (chosen := _override(experiment, name, facts)) is not None:
            return Enrolled(loaded, chosen, unit_hash(name, self._key), override=True)
        assigned = await self._assigner.assign(loaded, name)
        if not isinstance(assigned, Assigned):
            return assigned.reason
        arm = experiment.arm(assigned.arm)
        if experiment.switchback is not None:
            return Enrolled(loaded, arm, name, washout=_in_washout(experiment.switchback, now))
        return Enrolled(loaded, arm, unit_hash(name, self._key))


def _eligible(experiment: Experiment, facts: Facts) -> bool:
    rule = experiment.eligibility
    return (
        (not rule.models or facts.model in rule.models)
        and facts.endpoint in rule.endpoints
        and (facts.max_new_tokens is None or facts.max_new_tokens >= rule.min_max_new_tokens)
    )


def _unit_of(experiment: Experiment, facts: Facts, now: float) -> str | None:
    if experiment.switchback is not None:
        return str(int(now // experiment.switchback.window_s))
    assert experiment.unit is not None
    unit = experiment.unit
    if unit.metadata is not None:
        name = _text_in_metadata(facts, unit.metadata)
    else:
        name = facts.user if unit.header is None else facts.headers.get(unit.header.lower())
    return name if name and _is_text(name) else None


def _text_in_metadata(facts: Facts, key: str) -> str | None:
    """Return an entry of the metadata; None where it is no text, as it must be in OpenAI's API."""
    value = facts.metadata.get(key)
    return value if isinstance(value, str) else None


def _is_text(name: str) -> bool:
    """Whether a name has bytes to be hashed; JSON lets lone surrogates through."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _in_washout(switchback: Switchback, now: float) -> bool:
    return now % switchback.window_s < switchback.washout_s


def _override(experiment: Experiment, unit: str, facts: Facts) -> Arm | None:
    """The arm that a tester on the allow-list asks for."""
    if experiment.qa is None or unit not in experiment.qa.units:
        return None
    place = experiment.qa.header
    name = facts.headers.get(place.lower())
    if name is None and (key := experiment.qa.metadata) is not None:
        place, name = f"metadata.{key}", _text_in_metadata(facts, key)
    if name is None:
        return None
    served = [arm.name for arm in experiment.served]
    if name not in served:
        hint = f"Name one of {', '.join(served)}, or leave it out"
        raise RequestError(place, name, f"no served arm of experiment {experiment.name!r}", hint)
    return experiment.arm(name)
