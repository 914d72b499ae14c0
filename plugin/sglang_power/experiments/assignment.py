"""Who gets which arm: asks the flags of an experiment, and takes no answer but a clear one.

Pure but for the provider: one unit has one arm for as long as the flags are the same. Whoever is not clearly
assigned is not enrolled at all; a default would be a third, self-chosen group.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.flags import HELD, NOT_HELD, flag_set, holdout_key, namespace_key
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.providers import (
    Embedded,
    External,
    NoAnswer,
    Source,
    UnansweredError,
    installed_provider,
)
from sglang_power.experiments.settings import EMBEDDED, ExperimentSettings

Reason: TypeAlias = NoAnswer | Literal["holdout", "namespace", "unknown_arm"]
"""Why a unit has no arm; "unknown_arm": the provider named an arm that is not served."""


@dataclass(frozen=True)
class Assigned:
    """A unit's arm."""

    arm: str


@dataclass(frozen=True)
class NotAssigned:
    """A unit that has none."""

    reason: Reason


class Assigner:
    """Assigns units to arms.

    Args:
        source: answers flags.
    """

    def __init__(self, source: Source) -> None:
        self._source = source

    def load(self, experiments: Iterable[Loaded]) -> None:
        """Replace the embedded provider's flags by those of a catalogue's snapshot, all at once."""
        self._source.load(flag_set((each.experiment, each.phase) for each in experiments))

    async def assign(self, loaded: Loaded, unit: str) -> Assigned | NotAssigned:
        """The arm of a unit, or why it has none.

        Args:
            loaded: of the snapshot whose flags are loaded; whether it is enrolling is not asked here.
            unit: its name, or the number of a switchback's window; never empty, for which providers answer
                with a default.
        """
        if not unit:
            raise ValueError("a request without a unit cannot be assigned")
        try:
            return await self._assign(loaded.experiment, unit)
        except UnansweredError as error:
            return NotAssigned(error.reason)

    async def _assign(self, experiment: Experiment, unit: str) -> Assigned | NotAssigned:
        ask = self._source.ask
        if experiment.holdout is not None:
            held = await ask(holdout_key(experiment.holdout.name), unit)
            if held != NOT_HELD:
                return NotAssigned("holdout" if held == HELD else "unknown_arm")
        if experiment.namespace is not None:
            owner = await ask(namespace_key(experiment.namespace.name), unit)
            if owner != experiment.name:
                return NotAssigned("namespace")
        arm = await ask(experiment.name, unit)
        known = any(arm == served.name for served in experiment.served)
        return Assigned(arm) if known else NotAssigned("unknown_arm")


def assigner_of(settings: ExperimentSettings) -> Assigner:
    """The assigner that a server's configuration asks for.

    Raises:
        ConfigError: its provider is not installed, or cannot be made.
    """
    if settings.provider == EMBEDDED:
        return Assigner(Embedded())
    provider = installed_provider(settings.provider)
    return Assigner(External(provider, settings.deadline_ms, settings.breaker))
