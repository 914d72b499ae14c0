"""The oracle of the law tests: exact kernels, exact laws after N steps, limit laws and the G-test.

Builds, in float64 over every sequence of a tabular model, the transition matrix of one
Metropolis-Hastings step *from the running code*: the cut law, the proposal law, the Hastings terms and the
ratio are the functions that serve requests. Only the schedule (stages, extensions, frozen tokens) is
written a second time here, from the design, so that the driver is tested against something else.
"""

from __future__ import annotations

import asyncio
import functools
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from scipy import stats
from sglang_power.algorithms import acceptance, cuts, mh
from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.mh import MHConfig, Schedule
from sglang_power.algorithms.steps import ChainState
from sglang_power.engines.tabular import Prefix, Table, TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import Chain, ChainResult, RejectionCheck, StateReward
from sglang_power.types import FloatArray, ProposalLaw, Tokens

AMPLE = Budget(max_total_tokens=1_000_000)
"""A budget that never ends a chain of these tests."""

ALPHA = 2.5
"""The exponent of most law tests."""

UNIFORM = UniformCut()
ENTROPY = EntropyCut(beta=2.0, epsilon=0.1)
CUTS: dict[str, CutLaw] = {"uniform": UNIFORM, "entropy": ENTROPY}

Masses = Mapping[Prefix, float]
"""An unnormalised law over sequences."""

Cell = TypeVar("Cell", bound=Hashable)

Ratio = Callable[[MHConfig, ChainState, int, Tokens], float]
"""The log acceptance ratio of replacing what follows m tokens of the state by a suffix."""


class MemoModel(TabularModel):
    """A tabular model that remembers its rows: the same numbers, much faster."""

    def __init__(self, table: Table, *, horizon: int, eos: int = 0) -> None:
        super().__init__(table, horizon=horizon, eos=eos)
        self._remembered_proposal = functools.cache(super().proposal)
        self._remembered_row = functools.cache(super().row)
        self._remembered_score = functools.cache(super().score)

    def proposal(self, prefix: Prefix, law: ProposalLaw) -> FloatArray:
        return self._remembered_proposal(prefix, law)

    def row(self, prefix: Prefix, token: int, law: ProposalLaw) -> tuple[float, ...]:
        return self._remembered_row(prefix, token, law)

    def score(self, ids: Prefix, law: ProposalLaw) -> Tokens:
        return self._remembered_score(ids, law) if ids else Tokens.EMPTY


@functools.cache
def random_model(
    seed: int, *, vocab: int = 3, horizon: int = 5, concentration: float = 3.0, stop_share: float = 0.25
) -> MemoModel:
    """Dirichlet rows; token 0 stops and is rarer than the others, so lengths vary from 1 to the horizon."""
    weights = np.array([concentration * stop_share, *[concentration] * (vocab - 1)])

    def table(prefix: Prefix) -> FloatArray:
        return np.random.default_rng([seed, len(prefix), *prefix]).dirichlet(weights)

    return MemoModel(table, horizon=horizon)


@functools.cache
def endless_model(seed: int, *, vocab: int = 3, horizon: int = 4) -> MemoModel:
    """A model that never stops: every sequence has exactly `horizon` tokens."""
    source = TabularModel.random(seed, vocab=vocab, horizon=horizon)
    return MemoModel(source.probs, horizon=horizon, eos=-1)


NARROW = random_model(19, vocab=3, horizon=5)
"""The model of most law tests: 63 answers, P(stop before the horizon) 0.39 under the default target."""

WIDE = random_model(6, vocab=4, horizon=4)
"""121 answers over 4 tokens, for truncated proposals."""


def make_config(
    model: TabularModel,
    *,
    alpha: float = ALPHA,
    law: ProposalLaw | None = None,
    cut: CutLaw = UNIFORM,
    block_size: int = 2,
    steps: int = 2,
    schedule: Schedule = "exact",
    early_rejection: bool = False,
    lookback_blocks: int | None = None,
) -> MHConfig:
    """A configuration at the model's horizon; tau = 1/alpha where no proposal law is given."""
    return MHConfig(
        alpha=alpha,
        law=ProposalLaw(alpha) if law is None else law,
        horizon=model.horizon,
        block_size=block_size,
        steps=steps,
        cut=cut,
        schedule=schedule,
        early_rejection=early_rejection,
        lookback_blocks=lookback_blocks,
    )


# --- one step -----------------------------------------------------------------------------------------


def running_ratio(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> float:
    """The ratio that the running code decides by."""
    return acceptance.log_ratio(mh.hastings_terms(config, state, m, suffix))


def acceptance_probability(ratio: float) -> float:
    """P(log u < ratio) for u uniform; a ratio that is not a number never accepts."""
    return 0.0 if math.isnan(ratio) else math.exp(min(0.0, ratio))


@dataclass(frozen=True, eq=False)
class Kernel:
    """K[i, j] = P(states[i] -> states[j]) of one step."""

    states: tuple[Prefix, ...]
    matrix: FloatArray

    def vector(self, masses: Masses) -> FloatArray:
        """A law as a row vector over the states."""
        assert set(masses) <= set(self.states)
        return np.array([masses.get(y, 0.0) for y in self.states])

    def masses(self, vector: FloatArray) -> dict[Prefix, float]:
        """A row vector as a law, zeros left out."""
        return {y: float(w) for y, w in zip(self.states, vector, strict=True) if w > 0}

    def after(self, masses: Masses, steps: int) -> dict[Prefix, float]:
        """The law after some steps."""
        return self.masses(self.vector(masses) @ np.linalg.matrix_power(self.matrix, steps))

    def drift(self, masses: Masses) -> float:
        """|pi K - pi|_1."""
        vector = self.vector(masses)
        return float(np.abs(vector @ self.matrix - vector).sum())


def step_kernel(
    model: TabularModel,
    config: MHConfig,
    *,
    stage: int | None = None,
    frozen: int = 0,
    ratio: Ratio = running_ratio,
    capped_at_current_length: bool = False,
) -> Kernel:
    """The exact kernel of one step of a stage (default: the last), by summing over cuts and suffixes.

    Args:
        stage: k; the states are Y_{L_k}, without those that a frozen prefix rules out.
        frozen: F, tokens that no cut touches.
        ratio: the acceptance rule, replaced in negative controls.
        capped_at_current_length: a negative control: proposals end at the current length, and so the
            states are every non-empty sequence up to the horizon.
    """
    horizon = config.stage_horizon(config.stages if stage is None else stage)
    states = model.sequences(horizon)
    if capped_at_current_length:
        states = sorted({y for limit in range(1, horizon + 1) for y in model.sequences(limit)})
    kept = tuple(y for y in states if len(y) > frozen)
    index = {y: i for i, y in enumerate(kept)}
    matrix = np.zeros((len(kept), len(kept)))
    for i, y in enumerate(kept):
        reach = len(y) if capped_at_current_length else horizon
        state = ChainState(model.score(y, config.law), model.ends(y), config.stages, frozen=frozen)
        for m in range(frozen, len(y)):
            cut = math.exp(cuts.log_prob(config.cut, m, state.tokens.entropy, frozen))
            for candidate in model.sequences(reach, y[:m]):
                suffix = model.score(candidate, config.law).after(m)
                weight = cut * math.exp(suffix.log_q.sum())
                if weight == 0.0:
                    continue
                accepted = weight * acceptance_probability(ratio(config, state, m, suffix))
                matrix[i, index[candidate]] += accepted
                matrix[i, i] += weight - accepted
    assert np.abs(matrix.sum(axis=1) - 1.0).max() < 1e-12, "not a kernel"
    return Kernel(kept, matrix)


@functools.cache
def cached_kernel(model: TabularModel, config: MHConfig, stage: int | None = None, frozen: int = 0) -> Kernel:
    """The running code's kernel, built once."""
    return step_kernel(model, config, stage=stage, frozen=frozen)


def target(model: TabularModel, config: MHConfig, *, stage: int | None = None, frozen: int = 0) -> Masses:
    """pi on Y_{L_k}: p^alpha restricted to what the proposals reach (and the frozen tokens allow)."""
    horizon = config.stage_horizon(config.stages if stage is None else stage)
    laws = zip(model.sequences(horizon), model.power_law(config.alpha, horizon), strict=True)
    return normalised({y: float(w) for y, w in laws if len(y) > frozen and reachable(model, config.law, y)})


def reachable(model: TabularModel, law: ProposalLaw, y: Prefix) -> bool:
    """Whether q(y) > 0."""
    return bool(np.isfinite(model.score(y, law).log_q).all())


def normalised(masses: Masses) -> dict[Prefix, float]:
    """The same law with total mass 1, zeros left out."""
    total = math.fsum(masses.values())
    return {y: w / total for y, w in masses.items() if w > 0}


def total_variation(one: Masses, other: Masses) -> float:
    """Half of the L1 distance."""
    return 0.5 * math.fsum(abs(one.get(y, 0.0) - other.get(y, 0.0)) for y in {*one, *other})


# --- the whole algorithm ------------------------------------------------------------------------------


def added(masses: Iterable[Masses]) -> dict[Prefix, float]:
    """The sum of several masses."""
    total: defaultdict[Prefix, float] = defaultdict(float)
    for mass in masses:
        for y, w in mass.items():
            total[y] += w
    return dict(total)


def extend(model: TabularModel, law: ProposalLaw, masses: Masses, horizon: int) -> dict[Prefix, float]:
    """Every unfinished sequence continued with q, to `horizon` tokens or to a stop."""
    grown: defaultdict[Prefix, float] = defaultdict(float)
    for prefix, mass in masses.items():
        for y in model.sequences(horizon, prefix) if len(prefix) < horizon else [prefix]:
            grown[y] += mass * math.exp(model.score(y, law).log_q[len(prefix) :].sum())
    return {y: w for y, w in grown.items() if w > 0}


def split(model: TabularModel, masses: Masses) -> tuple[dict[Prefix, float], dict[Prefix, float]]:
    """The finished and the unfinished sequences."""
    finished = {y: w for y, w in masses.items() if model.ends(y)}
    return finished, {y: w for y, w in masses.items() if y not in finished}


def chain_law(
    model: TabularModel,
    config: MHConfig,
    *,
    draft: Prefix | None = None,
    max_steps: int | None = None,
    last: Kernel | None = None,
) -> dict[Prefix, float]:
    """The exact law of the answer of a whole run with N = config.steps.

    Written from the design, not from `mh`: stages, the two schedules, frozen tokens, drafts, and a
    budget of steps after which q brings the state to a stop or to the horizon. `last` is the kernel of the
    last stage where that is another one (no tokens are frozen then).
    """
    assert last is None or config.lookback_blocks is None
    answers: list[Masses] = []
    waiting: list[tuple[Masses, int, int]] = []  # masses, frozen tokens, steps done: the last stage is next
    live: Masses = {(): 1.0}
    frozen = done = 0
    limit = math.inf if max_steps is None else max_steps
    stages = range(1, config.stages) if draft is None else range(0)
    for stage in stages:
        frozen = _frozen(config, stage, frozen)
        live = extend(model, config.law, live, config.stage_horizon(stage))
        if config.schedule == "exact":
            finished, live = split(model, live)
            waiting.append((finished, frozen, done))
        steps = int(min(config.steps, limit - done))
        live = cached_kernel(model, config, stage=stage, frozen=frozen).after(live, steps)
        done += steps
        finished, live = split(model, live)
        if config.schedule == "paper":
            answers.append(finished)
        else:
            waiting.append((finished, frozen, done))
    start = live if draft is None else {draft: 1.0}
    last_frozen = frozen if draft is not None else _frozen(config, config.stages, frozen)
    waiting.append((extend(model, config.law, start, config.horizon), last_frozen, done))
    for masses, kept, before in waiting:
        steps = int(min(config.steps, limit - before))
        kernel = cached_kernel(model, config, frozen=kept) if last is None else last
        answers.append(kernel.after(masses, steps))
    return added(answers)


def _frozen(config: MHConfig, stage: int, before: int) -> int:
    if config.lookback_blocks is None:
        return 0
    return max(before, (stage - config.lookback_blocks) * config.block_size)


def paper_limit(model: TabularModel, config: MHConfig) -> dict[Prefix, float]:
    """What the paper's schedule tends to as N grows: a mixture of the targets of all stages.

    Stage k forgets its start and samples pi on Y_{L_k}; what has stopped is returned, the rest goes on.
    """
    answers: list[Masses] = []
    alive = 1.0
    for stage in range(1, config.stages + 1):
        law = target(model, config, stage=stage)
        finished, unfinished = split(model, law)
        returned = finished if stage < config.stages else law
        answers.append({y: alive * w for y, w in returned.items()})
        alive *= math.fsum(unfinished.values())
    return added(answers)


# --- the running chain --------------------------------------------------------------------------------


def run_chain(
    model: TabularModel,
    config: MHConfig,
    key: Key,
    *,
    draft: Prefix | None = None,
    budget: Budget = AMPLE,
    shadow: bool = False,
) -> ChainResult:
    """One chain of the running code."""
    return run_chains(model, config, [key], draft=draft, budget=budget, shadow=shadow)[0]


def run_chains(
    model: TabularModel,
    config: MHConfig,
    keys: Iterable[Key],
    *,
    draft: Prefix | None = None,
    budget: Budget = AMPLE,
    reward: StateReward | None = None,
    shadow: bool = False,
) -> list[ChainResult]:
    """One chain of the running code for each key."""

    async def run() -> list[ChainResult]:
        chains = [
            Chain(
                TabularEngine(model),
                config,
                key,
                budget,
                reward=reward,
                rejection_check=RejectionCheck() if shadow else None,
            )
            for key in keys
        ]
        return [await chain.run(draft) for chain in chains]

    return asyncio.run(run())


def seeds(first: int, count: int) -> list[Key]:
    """Keys of `count` requests."""
    return [Key(first + i) for i in range(count)]


def answers(results: Sequence[ChainResult]) -> list[Prefix]:
    """The returned sequences."""
    return [result.state.tokens.ids for result in results]


# --- the test of goodness of fit ----------------------------------------------------------------------


def g_test(observed: Sequence[Cell], law: Mapping[Cell, float]) -> float:
    """p-value of the G-test of a sample against a law; cells with expectation below 5 are pooled.

    0 where something was observed that the law rules out.
    """
    counts = Counter(observed)
    if any(law.get(cell, 0.0) == 0.0 for cell in counts):
        return 0.0
    expected, seen = _pooled([(len(observed) * p, counts[cell]) for cell, p in law.items() if p > 0])
    assert len(expected) > 1, "no power: too few cells"
    return float(stats.power_divergence(seen, expected, lambda_="log-likelihood").pvalue)


def _pooled(cells: Sequence[tuple[float, int]]) -> tuple[list[float], list[int]]:
    ranked = sorted(cells, reverse=True)
    large = [cell for cell in ranked if cell[0] >= 5.0]
    small = ranked[len(large) :]
    if small:
        pool = (math.fsum(e for e, _ in small), sum(o for _, o in small))
        if pool[0] < 5.0:
            last = large.pop()
            pool = (pool[0] + last[0], pool[1] + last[1])
        large.append(pool)
    return [e for e, _ in large], [o for _, o in large]


def checked(result: ChainResult) -> RejectionCheck:
    """What a chain that checks its early rejections counted."""
    assert result.rejection_check is not None
    return result.rejection_check
