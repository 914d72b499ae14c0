"""A sampler of whole answers as another package would bring it: a shortlist by reward, judged by the model.

A distribution of one module is enough. Its `entry_points.txt` (in pyproject.toml:
`[project.entry-points."sglang_power.samplers"]`) says

    [sglang_power.samplers]
    shortlist = shortlist_sampler:ShortlistSampler
    [sglang_power.rewards]
    brevity = shortlist_sampler:brevity

and requests may name it: {"sampler": "shortlist", "samples": 8, "reward": "brevity", "keep": 2}. conftest.py
installs this file so beside the servers. It was written from "Adding a sampler of whole answers" in
plugin/docs/developing.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator
from sglang_power.fields import Positive, conflict
from sglang_power.request import Needs, SamplesRequest, Wanted
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.samples import SampledSelection, samples_of
from sglang_power.samplers.scores import Scores
from sglang_power.samplers.selecting import Selecting
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.types import Usage, in_parallel


class ShortlistRequest(SamplesRequest):
    """`sampler="shortlist"`: all draws are compared by a reward, the best of them by the served model.

    A reward is cheap and the model's judgement is not: it is asked about a few draws only.

    Args:
        reward: what compares all draws.
        keep: how many of them the served model is asked about; with 1 the reward decides alone.
    """

    sampler: Literal["shortlist"] = "shortlist"
    reward: Annotated[str, Field(min_length=1)]
    keep: Positive = 2

    @model_validator(mode="after")
    def _no_more_than_there_are(self) -> Self:
        if self.keep > self.samples:
            raise conflict("keep", f"more than the {self.samples} samples", "Lower it, or raise samples")
        return self

    @property
    def needs(self) -> Needs:
        """Return what it takes to serve the request."""
        needs = replace(super().needs, reward=self.reward)
        return needs if self.keep == 1 else replace(needs, judge=Wanted("keep", str(self.keep)))


def shortlist(rewards: Sequence[float | None], keep: int) -> list[int]:
    """Return the indices of the highest rewards, the highest first, the first of equal ones before others.

    Args:
        rewards: of all draws; those that are unknown come last.
        keep: at most so many.
    """
    known = sorted(((-value, i) for i, value in enumerate(rewards) if value is not None))
    unknown = [i for i, value in enumerate(rewards) if value is None]
    return [*(i for _, i in known), *unknown][:keep]


def most_probable(listed: Sequence[int], log_right: Sequence[float | None]) -> int | None:
    """Return the index that is most probably right, the first of equal ones; None where nothing is known.

    Args:
        listed: indices of draws.
        log_right: log probability that each of them is right, nats; None where that is unknown.
    """
    known = [(value, -place) for place, value in enumerate(log_right) if value is not None]
    return listed[-max(known)[1]] if known else None


class Shortlist(SampledSelection):
    """The draw of the shortlist that the served model most probably calls right."""

    async def run(self, reward: Scores, right: Scores | None, keep: int) -> Selection:
        """Draw, and choose in two rounds.

        Args:
            reward: scores all draws.
            right: scores those of the shortlist; None where the reward decides alone.
            keep: length of the shortlist.
        """
        candidates = await self.candidates()
        rewarded = await gather_or_cancel([reward.whole(each) for each in candidates])
        values, usage, notes = [value for value, _ in rewarded], Usage(), dict(reward.notes)
        listed = shortlist(values, keep)
        chosen, reason = listed[0], "no_score" if values[listed[0]] is None else "reward"
        if right is not None:
            judged = await gather_or_cancel([right.whole(candidates[i]) for i in listed])
            verdicts, usage = [value for value, _ in judged], in_parallel(cost for _, cost in judged)
            best = most_probable(listed, verdicts)
            chosen, reason = (chosen, reason) if best is None else (best, "self_evaluation")
            shown = [{"index": i, "log_right": value} for i, value in zip(listed, verdicts, strict=True)]
            notes = {**notes, **right.notes, "shortlist": shown}
        selection = Selection(
            candidates=tuple(candidates),
            chosen=chosen,
            reason=reason,
            scores=tuple(values),
            usage=usage,
            notes=notes,
        )
        return self.with_cost(selection)


class ShortlistSampler:
    """See the module."""

    request = ShortlistRequest

    async def run(self, asked: ShortlistRequest, tools: Tools) -> Outcome:
        """Make one answer."""
        selecting = Selecting(asked, tools)
        draws = Shortlist(tools.engine, selecting.reader, samples_of(asked, tools), tools.key)
        right = None if asked.keep == 1 else selecting.scores("self_evaluation")
        selection = await draws.run(selecting.scores("reward"), right, asked.keep)
        return await selecting.outcome(selecting.with_star(selection))


def brevity(prompt: str, answer: str) -> float:  # noqa: ARG001  (the form of a reward)
    """Minus the number of characters."""
    return -float(len(answer))


brevity.upper_bound = 0.0  # type: ignore[attr-defined]  # early rejection needs it
