"""One tuning from its settings to its outcome: which problems, which candidates, what they came to."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import openai
from tqdm import tqdm

from sglang_power.errors import ConfigError
from sglang_power.evaluation import arms as arms_of
from sglang_power.evaluation import session as evaluation
from sglang_power.evaluation.arms import Arm
from sglang_power.evaluation.asking import RETRIES, Asker
from sglang_power.evaluation.catalogue import Task
from sglang_power.evaluation.driver import Driver
from sglang_power.evaluation.folder import Folder
from sglang_power.evaluation.grading import Grader
from sglang_power.evaluation.prompts import Asked
from sglang_power.evaluation.statistics import paired, share
from sglang_power.sampler_tuning import halving
from sglang_power.sampler_tuning.grid import Grid, candidates
from sglang_power.sampler_tuning.halving import Plan, Score, State
from sglang_power.sampler_tuning.outcome import HeldOut, Standing, Tuning, remarks

FEWEST: Final = 10
"""Problems of either part."""

HELD_OUT: Final = 0.3
"""Share of the problems, and of the budget, of the last figure."""

FEWEST_A_ROUND: Final = 4
"""Problems that the first round has to be able to pay for."""

CONTROLS: Final = ("plain", "greedy")


@dataclass(frozen=True)
class Settings:
    """What a command asks for.

    Args:
        grid: the candidates.
        budget: decoded tokens of everything.
        sample, sample_sha256: the file's name and digest.
        asking: how problems are put.
    """

    grid: Grid
    budget: int
    sample: str
    sample_sha256: str
    asking: evaluation.Settings


@dataclass(frozen=True)
class Parts:
    """The problems: those that choose, and those for the last figure."""

    chosen_by: Sequence[Asked]
    held_out: Sequence[Asked]


def parts_of(asked: Sequence[Asked], seed: int) -> Parts:
    """Return both parts, each in an order that the problems and the seed alone decide.

    Raises:
        ConfigError: there are too few problems.
    """
    held_out = max(FEWEST, round(HELD_OUT * len(asked)))
    if len(asked) - held_out < FEWEST:
        raise ConfigError(
            f"{len(asked)} problems that can be graded: at least {2 * FEWEST} are needed, {FEWEST} to choose "
            f"by and {FEWEST} others for a figure that the choice has not seen"
        )
    told = {
        each.item.id: hashlib.sha256(json.dumps([seed, each.item.id]).encode()).digest() for each in asked
    }
    order = sorted(asked, key=lambda each: told[each.item.id])
    return Parts(chosen_by=order[held_out:], held_out=order[:held_out])


@dataclass(frozen=True)
class Planned:
    """What a run is going to do.

    Args:
        plan: the same as an evaluation of all arms.
        parts: its problems.
        candidates: names of the arms that are chosen among; others are controls.
        arms: by name.
    """

    plan: evaluation.Plan
    parts: Parts
    candidates: tuple[str, ...]
    arms: Mapping[str, Arm]


def plan(server: evaluation.Server, task: Task, settings: Settings) -> Planned:
    """Return what a command asks for, checked.

    Raises:
        ConfigError: too few problems, or nothing that this server can run.
        UnsupportedError: the extra `math` is missing and the task needs it.
    """
    names = list(settings.grid)
    found = evaluation.plan(server, task, dataclasses.replace(settings.asking, samplers=names))
    parts = parts_of(found.asked.asked, settings.asking.seed)
    arms = candidates(settings.grid, found.run.arms)
    if len(arms) < 2:
        raise ConfigError(
            f"{len(arms)} candidates: there is nothing to choose between; give --grid more values"
        )
    items = [each.item for each in found.asked.asked]
    taken = {arm.name for arm in arms}
    controls = [arm for arm in arms_of.build(CONTROLS, items, {}, (), 1, None) if arm.name not in taken]
    run = found.run.model_copy(update={"arms": (*arms, *controls)})
    by_name = {arm.name: arm for arm in (*arms, *controls)}
    return Planned(dataclasses.replace(found, run=run), parts, tuple(arm.name for arm in arms), by_name)


async def tune(server: evaluation.Server, planned: Planned, settings: Settings, folder: Folder) -> Tuning:
    """Choose, and say what the choice is worth. What was answered is kept, whatever happens.

    Raises:
        PowerError: the budget is too small, the server or the disk is gone, or the folder holds another run.
    """
    run = folder.begin(planned.plan.run, fresh=settings.asking.fresh)
    client = openai.AsyncOpenAI(
        base_url=server.url + "/v1",
        api_key=server.api_key or "none",
        timeout=settings.asking.timeout,
        max_retries=RETRIES,
    )
    grader = Grader()
    try:
        async with client:
            with folder:
                asker = Asker(client, planned.plan.route)
                driver = Driver(asker, grader, folder, folder.answers(), run.seed)
                return await Session(planned, settings, driver).tune()
    finally:
        await asyncio.to_thread(grader.close)


class Session:
    """One tuning in progress.

    Args:
        planned: what is asked.
        settings: of the command.
        driver: asks, grades and keeps answers; those that are kept are not asked again, but count as spent.
    """

    def __init__(self, planned: Planned, settings: Settings, driver: Driver) -> None:
        self._planned, self._settings, self._driver = planned, settings, driver
        self._out: dict[str, int | str] = {}
        self._bar: Any = None

    async def tune(self) -> Tuning:
        """Run the rounds, then the held-out part."""
        settings = self._settings
        with tqdm(
            total=settings.budget, desc="tokens", unit="token", unit_scale=True, file=sys.stderr
        ) as bar:
            self._bar = bar
            state = await self._choose()
            best = halving.ranked(state)[0]
            names = list(dict.fromkeys((best, *CONTROLS)))
            last = await self._held_out(names, settings.budget - state.spent)
        return self._outcome(best, state, last, names)

    async def _choose(self) -> State:
        """Halve the candidates until one is left."""
        settings, problems = self._settings, self._planned.parts.chosen_by
        names = self._planned.candidates
        budget = settings.budget - int(HELD_OUT * settings.budget)
        whole = Plan(len(problems), budget, halving.rounds_of(len(names)), settings.asking.concurrency)
        state = await self._step(problems, State(names), 1)
        self._check_budget(whole, state)
        state = self._affordable(state)
        while len(state.alive) > 1:
            while state.alive and (items := halving.next_items(whole, state)):
                state = await self._step(problems, state, items)
                self._drop(state)
                state = halving.without(state, self._out)
            rest = halving.halved(state)
            self._out |= {name: rest.round for name in state.alive if name not in rest.alive}
            state = rest
        if not state.alive:
            told = [f"{name}: {why}" for name, why in self._out.items()]
            raise ConfigError("no candidate is left: " + "; ".join(told))
        return state

    async def _step(self, problems: Sequence[Asked], state: State, items: int) -> State:
        """Ask all candidates that are left the next problems."""
        asked = problems[state.item : state.item + items]
        arms = [self._planned.arms[name] for name in state.alive]
        best = halving.ranked(state)[0]
        self._bar.set_postfix_str(f"{len(arms)} candidates, best {best} {state.score(best).accuracy:.2f}")
        await self._driver.run(asked, arms, self._settings.asking.concurrency, shown=False)
        after = halving.answered(state, items, {arm.name: self._score(asked, arm.name) for arm in arms})
        self._bar.update(after.spent - state.spent)
        return after

    def _score(self, asked: Sequence[Asked], name: str) -> Score:
        """What a candidate came to on some problems; one that has no answer to a problem is wrong there."""
        kept = [self._driver.kept.get((each.item.id, name, 0)) for each in asked]
        answers = [answer for answer in kept if answer is not None]
        right = sum(answer.is_right for answer in answers)
        return Score(right, len(asked), sum(answer.decoded for answer in answers))

    def _check_budget(self, whole: Plan, state: State) -> None:
        """Refuse a budget whose first round ends before it says anything.

        Raises:
            ConfigError: it does; with what is needed.
        """
        if whole.budget // whole.rounds < FEWEST_A_ROUND * state.price:
            needed = round(whole.rounds * FEWEST_A_ROUND * state.price / (1.0 - HELD_OUT))
            raise ConfigError(
                f"--budget {self._settings.budget}: one problem took {round(state.price)} tokens of all "
                f"{len(state.alive)} candidates; {whole.rounds} rounds of {FEWEST_A_ROUND} problems or more "
                f"need about {needed}. Raise it, or name fewer values in --grid"
            )

    def _affordable(self, state: State) -> State:
        """Leave out candidates that the held-out part could not pay for."""
        limit = HELD_OUT * self._settings.budget / FEWEST
        dear = [name for name in state.alive if state.score(name).price > limit]
        self._out |= dict.fromkeys(dear, f"too dear: {FEWEST} answers take more than the held-out part has")
        self._drop(state)
        return halving.without(state, self._out)

    def _drop(self, state: State) -> None:
        """Note candidates that the server does not serve."""
        dropped = self._driver.missing.dropped
        self._out |= {name: f"refused: {dropped[name]}" for name in state.alive if name in dropped}

    async def _held_out(self, names: Sequence[str], budget: int) -> State:
        """Ask the pick and the controls what no choice has seen, as far as the budget goes."""
        problems = self._planned.parts.held_out
        plan = Plan(len(problems), budget, 1, self._settings.asking.concurrency)
        state = State(tuple(names))
        while items := halving.next_items(plan, state):
            state = await self._step(problems, state, items)
        return state

    def _outcome(self, best: str, state: State, last: State, names: Sequence[str]) -> Tuning:
        settings, run = self._settings, self._planned.plan.run
        held_out = self._figures(best, last, names)
        few = f"The budget ended after {last.item} of {len(self._planned.parts.held_out)} held-out problems."
        short = [few] if last.item < len(self._planned.parts.held_out) else []
        return Tuning(
            model=run.model,
            versions=run.versions,
            command=run.command,
            seed=run.seed,
            sample=settings.sample,
            sample_sha256=settings.sample_sha256,
            api=run.api,
            max_tokens=run.max_tokens,
            items=len(self._planned.parts.chosen_by),
            held_out_items=len(self._planned.parts.held_out),
            held_out_asked=last.item,
            budget=settings.budget,
            spent=state.spent + last.spent,
            standings=tuple(self._standings(best, state)),
            held_out=tuple(held_out),
            notes=(*run.notes, *remarks(held_out), *short),
        )

    def _standings(self, best: str, state: State) -> list[Standing]:
        """Every candidate: the pick, then by how long it was asked, then by its score."""
        everyone = State(tuple(state.scores), scores=state.scores)
        order = halving.ranked(everyone)
        last = max((out for out in self._out.values() if isinstance(out, int)), default=0)
        rounds = {name: out if isinstance(out, int) else -1 for name, out in self._out.items()} | {
            best: last + 1
        }
        return [
            Standing(
                name=name,
                params=self._planned.arms[name].params,
                right=state.score(name).right,
                asked=state.score(name).asked,
                tokens=state.score(name).tokens,
                left=None if name == best else self._out[name],
            )
            for name in sorted(order, key=lambda name: -rounds[name])
        ]

    def _figures(self, best: str, last: State, names: Sequence[str]) -> list[HeldOut]:
        asked = self._planned.parts.held_out[: last.item]
        right = {name: [[float(self._is_right(each, name))] for each in asked] for name in names}
        return [
            HeldOut(
                name=name,
                accuracy=share(right[name]),
                tokens=last.score(name).price,
                ahead=None if name == best else paired(right[best], right[name]),
            )
            for name in names
        ]

    def _is_right(self, asked: Asked, name: str) -> bool:
        answer = self._driver.kept.get((asked.item.id, name, 0))
        return answer is not None and answer.is_right
