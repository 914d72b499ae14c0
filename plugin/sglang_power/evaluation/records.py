"""What a run keeps: its settings in run.json, an answer a line in answers.jsonl. `folder` writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, TypeAlias

from pydantic import BaseModel, ConfigDict

from sglang_power.evaluation.arms import Arm
from sglang_power.evaluation.catalogue import Api

Key: TypeAlias = tuple[str, str, int]
"""Item, arm and sample: what an answer answers."""


class Kept(BaseModel):
    """One graded answer.

    Args:
        item, arm, sample: what it answers.
        seed: that it was asked with.
        text, finish_reason: of the answer.
        value, correct, reason: its grade.
        returned, decoded, prefilled, depth: tokens and steps that it took.
        log_p: of the whole answer at temperature 1, nats.
        entropy: mean of its rows, nats, from below.
        blocks: steps and accepted ones of each stage of a chain.
        seconds: until it was there.
        power: `metadata.power`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    item: str
    arm: str
    sample: int
    seed: int
    text: str
    finish_reason: str | None
    value: str | None
    correct: bool | None
    reason: str
    returned: int
    decoded: int
    prefilled: int
    depth: int
    log_p: float | None
    entropy: float | None
    blocks: tuple[tuple[int, int], ...]
    seconds: float
    power: dict[str, Any] | None

    @property
    def key(self) -> Key:
        """Return what it answers."""
        return self.item, self.arm, self.sample

    @property
    def mean_log_p(self) -> float | None:
        """Return log p per token, nats; None where it is not known."""
        return None if self.log_p is None or not self.returned else self.log_p / self.returned

    @property
    def is_right(self) -> bool:
        """Return whether it counts as right: what no grader could judge does not."""
        return self.correct is True


class Run(BaseModel):
    """What was asked for; a run that goes on in the same folder must have asked for the same.

    Args:
        task, model: names.
        api, max_tokens, stop, seed, shots: how it was asked.
        has_plugin: whether the server has the plugin.
        alternatives: likely tokens that answers show.
        items: a hash of each item and its prompt, by its id, in the order of the task.
        kinds: how each item is judged.
        arms: samplers and their parameters.
        left_out: items of the task that cannot be graded.
        concurrency: requests at once.
        versions, hardware, command: of the last run in the folder.
        notes: what a reader must know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str
    model: str
    api: Api
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    shots: int
    has_plugin: bool
    alternatives: int
    items: dict[str, str]
    kinds: dict[str, str]
    arms: tuple[Arm, ...]
    left_out: int
    concurrency: int
    versions: dict[str, str]
    hardware: str | None
    command: str
    notes: tuple[str, ...] = ()

    same: ClassVar[Sequence[str]] = (
        *("task", "model", "versions", "has_plugin"),
        *("api", "max_tokens", "stop", "seed", "shots", "alternatives"),
    )
    """What all answers of a folder have in common, beside the parameters of each arm."""

    def difference(self, other: Run) -> str | None:
        """Return why the answers of another run are no answers to this one; None where they are."""
        for name in self.same:
            before, now = getattr(other, name), getattr(self, name)
            if before != now:
                return f"{name} was {before!r}, and is {now!r} now"
        for name, digest in self.items.items():
            if digest != other.items.get(name, digest):
                return f"item {name!r} is another one now"
        mine = {arm.name: arm for arm in self.arms}
        for arm in other.arms:
            if arm.name in mine and arm.params != mine[arm.name].params:
                return f"{arm.name} had {arm.params}, and has {mine[arm.name].params} now"
        return None

    def joined(self, before: Run) -> Run:
        """Return this run with the items and arms of an earlier one in the same folder."""
        mine = {arm.name: arm for arm in self.arms}
        old = {arm.name: arm for arm in before.arms}
        arms = [max(arm, mine.get(name, arm), key=lambda each: each.samples) for name, arm in old.items()] + [
            arm for name, arm in mine.items() if name not in old
        ]
        longer = max(self, before, key=lambda run: len(run.items))
        notes = tuple(dict.fromkeys((*before.notes, *self.notes)))
        update = {"arms": tuple(arms), "items": longer.items, "kinds": longer.kinds, "notes": notes}
        return self.model_copy(update=update)
