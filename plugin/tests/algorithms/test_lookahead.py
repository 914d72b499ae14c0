"""Look-ahead sampling: weights by hand, the law with exact zeta, and what M and K do to it.

Exact but for the means over drawn weights, whose seeds are fixed: a rerun repeats its outcome.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from exact import NARROW, normalised, random_model, total_variation
from exact_lookahead import (
    Blocks,
    Weigh,
    answers_law,
    blind,
    enumerated_block,
    marginal,
    uncorrected,
)
from sglang_power.algorithms import lookahead
from sglang_power.algorithms.lookahead import LookaheadConfig
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.rng import Key
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Tokens, Usage

ALPHA = 2.5


def config_of(
    model: TabularModel, *, alpha: float = ALPHA, tau: float = 1.0, block: int = 2, k: int = 2, m: int = 2
) -> LookaheadConfig:
    return LookaheadConfig(alpha, ProposalLaw(1.0 / tau), model.horizon, k, m, model.horizon, block)


def pi_of(model: TabularModel, alpha: float = ALPHA) -> dict[Prefix, float]:
    return normalised(dict(zip(model.sequences(), model.power_law(alpha).tolist(), strict=True)))


# --- weights ------------------------------------------------------------------------------------------


def shares(own: list[float], futures: dict[int, list[float]]) -> tuple[list[float], int]:
    """Of weights that are no logarithms."""
    logs = {k: np.log(each) for k, each in futures.items()}
    found = lookahead.corrected(np.log(own), logs)
    return found.shares.tolist(), found.clipped


def test_a_case_by_hand() -> None:
    """zeta 2 against 1: w = 2/3; without one rollout 3/4 or 1/2; 2*2/3 - (3/4 + 1/2)/2 = 17/24."""
    found, clipped = shares([1.0, 1.0], {0: [1.0, 3.0]})
    assert found == pytest.approx([17 / 24, 7 / 24], abs=1e-15)
    assert clipped == 0


def test_what_falls_below_zero_is_clipped() -> None:
    """w = 1/5 of the second; without one rollout 1/9 or 1; 2/5 - (1/9 + 1)/2 = -7/45."""
    with np.errstate(divide="ignore"):
        assert shares([1.0, 1.0], {0: [0.0, 8.0]}) == ([1.0, 0.0], 1)


def test_three_candidates_are_as_computed_the_long_way() -> None:
    rng = np.random.default_rng(3)
    for count in (2, 3, 7):
        own, futures = rng.normal(size=3), {k: rng.normal(size=count) for k in (0, 2)}
        found = lookahead.corrected(own, futures)
        assert found.shares == pytest.approx(the_long_way(own, futures, count), abs=1e-12)
        assert found.ess == pytest.approx(1.0 / float((found.shares**2).sum()))


def the_long_way(own: FloatArray, futures: dict[int, FloatArray], count: int) -> FloatArray:
    def share(kept: list[int]) -> FloatArray:
        zeta = [float(np.exp(futures[k][kept]).mean()) if k in futures else 1.0 for k in range(len(own))]
        weights = np.exp(own) * zeta
        return np.asarray(weights / weights.sum())

    everything = list(range(count))
    left_out = sum((share([s for s in everything if s != out]) for out in everything), np.zeros(len(own)))
    exact = np.maximum(0.0, count * share(everything) - (count - 1) / count * left_out)
    return np.asarray(exact / exact.sum())


def test_a_single_rollout_and_ended_candidates_are_not_corrected() -> None:
    for found, clipped, expected in (
        (*shares([1.0, 2.0], {1: [3.0]}), [1 / 7, 6 / 7]),
        (*shares([1.0, 3.0], {}), [1 / 4, 3 / 4]),
    ):
        assert found == pytest.approx(expected)
        assert clipped == 0


def test_weights_are_logarithms() -> None:
    """Of 3,000 tokens they are far outside of what float64 holds as numbers."""
    far = lookahead.corrected(np.array([-9000.0, -9000.0]), {0: np.log([1.0, 3.0])})
    assert far.shares == pytest.approx([17 / 24, 7 / 24], abs=1e-12)
    uneven = lookahead.corrected(np.array([0.0, -500.0]), {0: np.array([-1200.0, -700.0, 0.0])})
    assert np.isfinite(uneven.shares).all()


def test_what_is_no_number_weighs_nothing() -> None:
    def answer(value: float) -> Continuation:
        tokens = Tokens.of([1], [[value, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
        return Continuation(tokens, finished=False, cut_short=False, usage=Usage())

    config, good, bad = config_of(NARROW, alpha=1.0), answer(-1.0), answer(math.nan)
    one_bad = lookahead.weighed(config, [good, bad], {0: [good, good], 1: [good, good]})
    assert (one_bad.shares.tolist(), one_bad.broken) == ([1.0, 0.0], 1)
    one_rollout = lookahead.weighed(config, [good, good], {0: [good, bad], 1: [good, good]})
    assert (one_rollout.broken, one_rollout.dead) == (1, False)
    assert lookahead.weighed(config, [good], {0: [good, bad]}).shares.tolist() == [1.0]
    dead = lookahead.weighed(config, [bad, bad], {})
    assert (dead.dead, dead.ess, dead.broken) == (True, 0.0, 2)


# --- law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("weigh", "right"), [(lookahead.corrected, True), (blind, False)])
@pytest.mark.parametrize("block", [1, 2, 3, 5])
def test_with_exact_zeta_answers_are_exact_draws(weigh: Weigh, right: bool, block: int) -> None:
    """Every block is a candidate once. Without zeta it is a low temperature of blocks: the control."""
    config = config_of(NARROW, block=block)

    def behind(prefix: Prefix) -> dict[Prefix, float]:
        blocks = Blocks.behind(NARROW, config, prefix)
        zeta = {k: np.array([futures.log_zeta]) for k, futures in blocks.futures.items()}
        return blocks.law(weigh(ALPHA * blocks.log_p, zeta))

    distance = total_variation(answers_law(NARROW, config, behind), pi_of(NARROW))
    print(block, distance)
    whole = block == NARROW.horizon  # nothing is ahead of a whole answer
    assert distance < 1e-12 if right or whole else distance > 0.05


def test_the_law_comes_nearer_with_more_rollouts_and_with_the_jackknife() -> None:
    """Every block is a candidate once; plain ratios fall as 1/M, corrected ones faster."""
    blocks = Blocks.behind(NARROW, config_of(NARROW))
    pi = marginal(pi_of(NARROW), 2)

    def distance(rollouts: int, weigh: Weigh = lookahead.corrected) -> float:
        return total_variation(blocks.mean_law_of_each_once(ALPHA, rollouts, 3000, weigh), pi)

    few, some, many = (distance(rollouts) for rollouts in (1, 4, 16))
    plain = distance(4, uncorrected)
    print(few, some, many, plain)
    assert few > 0.08
    assert 0.02 < plain < few / 2
    assert some < plain / 2
    assert many < few / 20
    assert distance(1, blind) > 0.15


def test_the_law_comes_nearer_with_more_candidates_and_not_with_the_published_weights() -> None:
    """Candidates are drawn from q; weights that leave q away tend to another law."""
    blocks = Blocks.behind(NARROW, config_of(NARROW))
    pi = marginal(pi_of(NARROW), 2)
    few, many = (
        total_variation(blocks.mean_law_of_drawn(ALPHA, count, 4, 9000 // count), pi) for count in (2, 30)
    )
    published = total_variation(blocks.mean_law_of_drawn(ALPHA, 30, 4, 300, published=True), pi)
    print(few, many, published)
    assert few > 0.12
    assert many < few / 4
    assert published > 10 * many


def test_the_law_with_two_candidates_and_two_rollouts() -> None:
    """Enumerated: it is near the target, nearer than q, and not the target."""
    model = random_model(3, vocab=3, horizon=3)
    config, pi = config_of(model, block=1), pi_of(model)
    law = answers_law(model, config, lambda prefix: enumerated_block(model, config, prefix))
    assert math.fsum(law.values()) == pytest.approx(1.0, abs=1e-12)
    q = {y: math.exp(float(model.score(y, config.law).log_q.sum())) for y in model.sequences()}
    print(total_variation(law, pi), total_variation(q, pi))
    assert 0.01 < total_variation(law, pi) < 0.75 * total_variation(q, pi)


# --- calls --------------------------------------------------------------------------------------------


def test_what_has_ended_rolls_out_to_nothing() -> None:
    config = config_of(NARROW, block=2, k=4, m=3)
    prefix = NARROW.score((1, 2), config.law)

    def answer(*ids: int) -> Continuation:
        tokens = NARROW.score((1, 2, *ids), config.law).after(2)
        return Continuation(tokens, ids[-1] == 0, cut_short=False, usage=Usage())

    calls = lookahead.rollout_calls(
        config, Key(1), 0, prefix, [answer(0), answer(1, 2), answer(2, 0), answer(1, 2)]
    )
    assert {k: [call.prefix for call in each] for k, each in calls.items()} == {
        1: [(1, 2, 1, 2)] * 3,
        3: [(1, 2, 1, 2)] * 3,
    }
    at_the_end = NARROW.score((1, 2, 1), config.law)
    answers = [Continuation(NARROW.score((1, 2, 1, 1, 2), config.law).after(3), False, False, Usage())] * 4
    assert lookahead.rollout_calls(config, Key(1), 1, at_the_end, answers) == {}
    assert lookahead.rollout_calls(config, Key(1), 0, prefix, [answer(1, 2)]) == {}


def test_lengths_end_at_the_horizon() -> None:
    config = LookaheadConfig(4.0, ProposalLaw(4.0), 10, 3, 2, rollout_tokens=3, block_size=4)
    assert [config.most_tokens(length) for length in (0, 4, 8)] == [3 * (4 + 2 * 3), 3 * (4 + 2 * 2), 3 * 2]
    assert [config.block_end(length) for length in (0, 4, 8)] == [4, 8, 10]
    alone = LookaheadConfig(4.0, ProposalLaw(4.0), 10, 1, 2, rollout_tokens=3, block_size=4)
    assert alone.most_tokens(0) == 4


def test_every_call_has_a_seed_of_its_own() -> None:
    config, seeds = config_of(NARROW, block=2, k=3, m=4), []
    for chain in (0, 1, 2):
        for block in (0, 1):
            key, prefix = Key(5, chain), NARROW.score((1, 2)[: 2 * block], config.law) if block else None
            settled = Tokens.EMPTY if prefix is None else prefix
            calls = lookahead.candidate_calls(config, key, block, settled)
            tokens = NARROW.score((*settled.ids, 1, 2), config.law).after(len(settled))
            answers = [Continuation(tokens, False, False, Usage())] * 3
            rolled = lookahead.rollout_calls(config, key, block, settled, answers)
            seeds += [call.seed for call in calls]
            seeds += [call.seed for each in rolled.values() for call in each]
            seeds.append(lookahead.ending_call(config, key, settled).seed)
    assert len(set(seeds)) == len(seeds) == 3 * 2 * (3 + 12 + 1)
