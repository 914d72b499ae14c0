"""The controls' Metropolis-Hastings has p^alpha as its law; without the cut term it has not.

The kernel is exact. The G-test of the running chain has a fixed seed: it cannot fail by chance.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from exact import MemoModel, random_model
from scipy import stats
from sglang_power.engines.tabular import Prefix
from sglang_power.serve_benchmark.metropolis import (
    Complete,
    Cost,
    Piece,
    Schedule,
    log_ratio,
    log_weights,
    sample,
)
from sglang_power.types import ProposalLaw

TAU = 0.7
LAW = ProposalLaw(kappa=1.0 / TAU)
Ratio = Callable[[Sequence[float], int, Sequence[float]], float]


@dataclass(frozen=True)
class Params:
    alpha: float = 2.5
    block_size: int = 2
    steps: int = 12


PARAMS = Params()


@pytest.fixture
def model() -> MemoModel:
    return random_model(3, vocab=3, horizon=4)


def sequences(model: MemoModel, before: Prefix = ()) -> Iterator[Prefix]:
    """Every whole sequence that begins with a prefix."""
    if before and (before[-1] == model.eos or len(before) == model.horizon):
        yield before
        return
    for token in range(len(model.probs(before))):
        yield from sequences(model, (*before, token))


def piece(model: MemoModel, before: Prefix, drawn: Prefix) -> Piece:
    """What a call would say of these tokens."""
    log_p, log_q = [], []
    for token in drawn:
        log_p.append(float(np.log(model.probs(before)[token])))
        log_q.append(float(np.log(model.proposal(before, LAW)[token])))
        before = (*before, token)
    return Piece(drawn, tuple(log_p), tuple(log_q), before[-1] == model.eos)


def target(model: MemoModel) -> dict[Prefix, float]:
    """p^alpha over the whole sequences."""
    masses = {y: np.exp(PARAMS.alpha * sum(piece(model, (), y).log_p)) for y in sequences(model)}
    total = sum(masses.values())
    return {y: float(mass / total) for y, mass in masses.items()}


def kernel(model: MemoModel, ratio: Ratio) -> np.ndarray:
    """The transition matrix of one step at the full horizon."""
    states = list(sequences(model))
    index = {y: i for i, y in enumerate(states)}
    matrix = np.zeros((len(states), len(states)))
    for y in states:
        current = log_weights(PARAMS.alpha, piece(model, (), y))
        for cut in range(len(y)):
            for proposed in sequences(model, y[:cut]):
                drawn = piece(model, y[:cut], proposed[cut:])
                log_accept = ratio(current, cut, log_weights(PARAMS.alpha, drawn))
                chance = np.exp(sum(drawn.log_q)) / len(y)
                accepted = min(1.0, float(np.exp(log_accept)))
                matrix[index[y], index[proposed]] += chance * accepted
                matrix[index[y], index[y]] += chance * (1.0 - accepted)
    return matrix


def drift(model: MemoModel, ratio: Ratio) -> float:
    law = np.array(list(target(model).values()))
    return float(np.abs(law @ kernel(model, ratio) - law).max())


def test_a_step_leaves_the_target_invariant(model: MemoModel) -> None:
    assert drift(model, log_ratio) < 1e-12


def test_control_without_the_cut_term_it_does_not(model: MemoModel) -> None:
    def common_mistake(current: Sequence[float], cut: int, proposed: Sequence[float]) -> float:
        return sum(proposed) - sum(current[cut:])

    assert drift(model, common_mistake) > 1e-3


def counts(model: MemoModel, steps: int, chains: int = 1500) -> Counter[Prefix]:
    """Where chains end."""
    rng = np.random.default_rng(11)

    async def complete(before: Sequence[int], count: int) -> Piece:
        drawn: Prefix = ()
        while len(drawn) < count and (not drawn or drawn[-1] != model.eos):
            row = model.proposal((*before, *drawn), LAW)
            drawn = (*drawn, int(rng.choice(len(row), p=row)))
        return piece(model, tuple(before), drawn)

    async def run() -> Counter[Prefix]:
        params = Params(steps=steps)
        return Counter(
            [(await sample(complete, params, model.horizon, rng, "exact")).ids for _ in range(chains)]
        )

    return asyncio.run(run())


def p_value(model: MemoModel, steps: int) -> float:
    law, seen = target(model), counts(model, steps)
    expected = {y: mass * sum(seen.values()) for y, mass in law.items()}
    rare = [y for y in law if expected[y] < 5.0]
    common = [y for y in law if expected[y] >= 5.0]
    observed = [seen[y] for y in common] + [sum(seen[y] for y in rare)]
    hoped = [expected[y] for y in common] + [sum(expected[y] for y in rare)]
    return float(stats.power_divergence(observed, hoped, lambda_=0).pvalue)


def test_chains_end_with_the_law_of_the_target(model: MemoModel) -> None:
    assert p_value(model, steps=12) > 1e-3


def test_control_without_steps_they_do_not(model: MemoModel) -> None:
    assert p_value(model, steps=0) < 1e-6


def scripted(pieces: list[Piece]) -> tuple[Complete, list[tuple[int, int]]]:
    """Calls that are answered in order; yields kept tokens and room of each."""
    asked: list[tuple[int, int]] = []

    async def complete(before: Sequence[int], count: int) -> Piece:
        asked.append((len(before), count))
        return pieces.pop(0) if pieces else Piece((5,) * count, (-9.0,) * count, (-1.0,) * count, False)

    return complete, asked


@pytest.mark.parametrize(("schedule", "rooms"), [("exact", {6}), ("paper", {2})])
def test_an_answer_that_stops_at_once_goes_where_the_schedule_sends_it(
    schedule: Schedule, rooms: set[int]
) -> None:
    """After its extension in the first stage: to the full horizon, or through that stage and out."""
    complete, asked = scripted([Piece((5, 0), (-0.1, -0.1), (-0.1, -0.1), True)])
    params = Params(block_size=2, steps=3)
    chain = asyncio.run(sample(complete, params, 6, np.random.default_rng(0), schedule))
    assert chain.finished
    assert asked[0] == (0, 2)
    assert len(asked) == 4
    assert {kept + room for kept, room in asked[1:]} == rooms


def test_every_call_counts_its_tokens_and_one_launch() -> None:
    cost = Cost()
    cost.add(Piece((1, 2), (0.0, 0.0), (0.0, 0.0), False, prefilled=3))
    cost.add(Piece((1,), (0.0,), (0.0,), True, prefilled=1))
    assert (cost.decoded, cost.prefilled, cost.depth) == (3, 4, 5)
