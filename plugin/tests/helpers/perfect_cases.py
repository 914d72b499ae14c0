"""What tests of perfect draws share: an engine whose calls end in the order of their length, a control."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import exact
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.perfect import PerfectConfig
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.base import Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.perfect_draw import Chain, PerfectDraw
from sglang_power.samplers.trials import Trials
from sglang_power.types import Continuation


class SteppingEngine(TabularEngine):
    """All calls advance by one token per turn of the event loop, as the rows of a batch do.

    Attributes:
        calls: that were begun.
        most: of them ran at once.
        steps: decoded by all of them, those of cancelled calls included.

    Args:
        places: calls that others leave room for.
    """

    def __init__(self, model: TabularModel, places: int = 1000) -> None:
        super().__init__(model)
        self.places = places
        self.calls: list[ContinuationCall] = []
        self.running = self.most = self.steps = 0

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            whole = await super().generate(call)
            for _ in range(len(whole.tokens)):
                self.steps += 1
                await asyncio.sleep(0)
        finally:
            self.running -= 1
        return whole

    def share(self, wanted: int) -> int:
        return min(wanted, self.places)


class FirstToEnd(Trials):
    """A negative control: the answer is whichever accepted trial ends first."""

    def _is_behind(self, index: int) -> bool:  # noqa: ARG002  (the overridden signature)
        return self.accepted is not None


def config_of(model: TabularModel, alpha: float, width: int = 16, max_trials: int = 10_000) -> PerfectConfig:
    return PerfectConfig(alpha, model.horizon, max_trials, width)


Driver = Callable[[Engine, PerfectConfig, Key], Trials]


def drawn(
    model: TabularModel,
    config: PerfectConfig,
    keys: Sequence[Key],
    driver: Driver = Trials,
    engine: Callable[[TabularModel], Engine] = SteppingEngine,
) -> list[Trials]:
    """The trials of one draw for each key."""

    async def run() -> list[Trials]:
        each = [driver(engine(model), config, key) for key in keys]
        for trials in each:
            await trials.run(range(config.max_trials))
        return each

    return asyncio.run(run())


def answers(drawn_trials: Sequence[Trials]) -> list[Prefix]:
    return [trials.accepted.tokens.ids for trials in drawn_trials if trials.accepted is not None]


async def no_chain(key: Key, budget: Budget) -> Outcome:
    raise AssertionError((key, budget))


def draw_of(
    model: TabularModel,
    config: PerfectConfig,
    key: Key,
    budget: Budget = exact.AMPLE,
    chain: Chain | None = no_chain,
) -> Awaitable[Outcome]:
    """The outcome of one draw."""
    return PerfectDraw(SteppingEngine(model), config, key, budget, chain).run()
