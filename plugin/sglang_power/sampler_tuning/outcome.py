"""What a tuning came to: its record, its words, and the preset with what it rests on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict

from sglang_power.evaluation.statistics import Interval, Paired
from sglang_power.evaluation.wording import difference, interval, number


class Standing(BaseModel):
    """A candidate, as far as it was asked.

    Args:
        name: of the candidate.  params: what was sent.
        right, asked, tokens: its answers.
        left: the round after which it was out, from 1, or why it was; None of the one that was picked.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    params: dict[str, Any]
    right: int
    asked: int
    tokens: int
    left: int | str | None


class HeldOut(BaseModel):
    """One sampler on the problems that no choice has seen.

    Args:
        name: of the candidate.
        accuracy: share of right answers, with Wilson's 95% interval.
        tokens: decoded, an answer.
        ahead: how the pick differs from it on the same problems; None of the pick itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    accuracy: Interval
    tokens: float
    ahead: Paired | None


class Tuning(BaseModel):
    """A whole run.

    Args:
        model, versions, command, seed: of whom, and how.
        sample: the file's name; sample_sha256: its digest.
        api, max_tokens: how problems were asked.
        items, held_out_items: problems for the choice, and others for the last figure.
        budget, spent: decoded tokens.
        standings: every candidate, best first.
        held_out: the pick, then the controls, on `held_out_asked` problems.
        notes: what a reader must know.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    versions: dict[str, str]
    command: str
    seed: int
    sample: str
    sample_sha256: str
    api: str
    max_tokens: int
    items: int
    held_out_items: int
    held_out_asked: int
    budget: int
    spent: int
    standings: tuple[Standing, ...]
    held_out: tuple[HeldOut, ...]
    notes: tuple[str, ...] = ()

    @property
    def pick(self) -> Standing:
        """Return the candidate that was picked."""
        return self.standings[0]


def lines(found: Tuning) -> list[str]:
    """Return what the terminal shows."""
    head = ("candidate", "right", "tokens / answer", "out after")
    rows = [head, *(_cells(each) for each in found.standings)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    return [
        *(row.rstrip() for row in table),
        f"On {found.held_out_asked} problems that no choice has seen:",
        *(f"  {told}" for told in held_out_lines(found)),
        f"{found.spent} of {found.budget} decoded tokens spent",
        *found.notes,
    ]


def _cells(each: Standing) -> tuple[str, str, str, str]:
    price = each.tokens / each.asked if each.asked else 0.0
    out = "picked" if each.left is None else f"round {each.left}" if isinstance(each.left, int) else each.left
    return each.name, f"{each.right}/{each.asked}", number(price), out


def held_out_lines(found: Tuning) -> list[str]:
    """Return the figures of the held-out part, a line for each sampler."""
    told = []
    for each in found.held_out:
        ahead = "" if each.ahead is None else f"; the pick is ahead by {difference(each.ahead)}"
        told.append(
            f"{each.name}: {interval(each.accuracy)} at {number(each.tokens)} tokens an answer{ahead}"
        )
    return told


def preset(found: Tuning, name: str) -> str:
    """Return a configuration file with the pick as a preset, which says what it rests on.

    Args:
        found: the run.
        name: of the preset.
    """
    versions = ", ".join(f"{package} {version}" for package, version in found.versions.items())
    asked = f"{found.api}, {found.max_tokens} tokens an answer at most, seed {found.seed}"
    told = [
        f"Written by: {found.command}",
        f"Model {found.model}, {versions}. Sample {found.sample} (sha256 {found.sample_sha256}).",
        f"Picked of {len(found.standings)} candidates on {found.items} problems by successive halving, "
        f"within {found.budget} decoded tokens ({found.spent} spent); {asked}.",
        f"On {found.held_out_asked} problems that no choice has seen, right answers (95%):",
        *(f"  {line}" for line in held_out_lines(found)),
        *found.notes,
    ]
    comments = "".join(f"# {line}\n" for text in told for line in text.splitlines())
    return comments + yaml.safe_dump({"presets": {name: found.pick.params}}, sort_keys=False)


def remarks(held_out: Sequence[HeldOut]) -> list[str]:
    """Return what the held-out figures leave open."""
    unproven = [each.name for each in held_out if each.ahead is not None and not _is_ahead(each.ahead)]
    if not unproven:
        return []
    return [f"The held-out part does not show that the pick is better than {' and '.join(unproven)}."]


def _is_ahead(found: Paired) -> bool:
    return found.difference.value > 0.0 and found.p < 0.05
