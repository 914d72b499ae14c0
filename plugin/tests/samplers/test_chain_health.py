"""What a chain says of itself: its last stage in figures, and a hint where it is evidently too short.

The bet behind `climbing` is fair, exactly: its expectation under the target is 1, summed over every step of
an enumerated model. The rates of the hint are those of fixed seeds: at least 0.6 for chains that are known to
be too short, at most 0.05 for good ones.
"""

from __future__ import annotations

import dataclasses
import math

import exact
import pytest
from exact_tools import power_report
from sglang_power.algorithms import acceptance, cuts, mh
from sglang_power.algorithms.cuts import CutLaw
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState, Info
from sglang_power.engines.tabular import TabularModel
from sglang_power.request import parse_power
from sglang_power.rng import Key
from sglang_power.samplers import chain_health
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import ChainResult
from sglang_power.types import ProposalLaw

FAR = exact.random_model(3, vocab=5, horizon=40, stop_share=0.05)
"""Its likeliest answers are far above what temperature 1 draws: 10 steps are known to be too few."""


def last_stage(result: ChainResult) -> tuple[Info, ...]:
    return result.infos[-result.last_stage_steps :] if result.last_stage_steps else ()


def hints(model: TabularModel, config: MHConfig, count: int) -> list[str | None]:
    results = exact.run_chains(model, config, exact.seeds(0, count))
    return [chain_health.hint(last_stage(result)) for result in results]


def config_of(model: TabularModel, steps: int, *, early: bool = True, tries: int = 1) -> MHConfig:
    config = exact.make_config(
        model,
        alpha=4.0,
        law=ProposalLaw(1.0),
        block_size=model.horizon,
        steps=steps,
        early_rejection=early,
    )
    return dataclasses.replace(config, tries=tries)


@pytest.mark.parametrize("early", [False, True])
def test_a_chain_that_is_too_short_says_so(early: bool) -> None:
    found = hints(FAR, config_of(FAR, 10, early=early), 30)
    assert sum(hint is not None for hint in found) >= 0.6 * len(found)
    assert {chain_health.UNMOVED, chain_health.CLIMBING} <= set(found)


def test_so_does_one_with_several_tries() -> None:
    found = hints(FAR, config_of(FAR, 5, tries=3), 25)
    assert sum(hint is not None for hint in found) >= 0.6 * len(found)


@pytest.mark.parametrize("tries", [1, 3])
def test_a_good_chain_does_not(tries: int) -> None:
    """32 steps, whose law is within 0.05 of the target."""
    config = config_of(exact.NARROW, 32, tries=tries)
    if tries == 1:
        law = exact.chain_law(exact.NARROW, config)
        assert exact.total_variation(law, exact.target(exact.NARROW, config)) < 0.05
    found = hints(exact.NARROW, config, 40)
    assert sum(hint is not None for hint in found) <= 0.05 * len(found)


def test_a_long_chain_says_so_less_often_than_a_short_one() -> None:
    model = exact.random_model(3, vocab=5, horizon=12, stop_share=0.3)
    rates = [
        sum(hint is not None for hint in hints(model, config_of(model, steps), 25)) for steps in (8, 120)
    ]
    assert rates[0] > 2 * rates[1]


@pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))
@pytest.mark.parametrize("law", [ProposalLaw(1.0), ProposalLaw(4.0)])
def test_the_bet_is_fair_under_the_target(law: ProposalLaw, cut: CutLaw) -> None:
    """sum over all states, cuts and suffixes of pi * q * P(accepted or not) * factor = 1."""
    model = exact.random_model(19, vocab=3, horizon=4)
    config = exact.make_config(model, alpha=4.0, law=law, cut=cut)
    expectation = 0.0
    for y, mass in exact.target(model, config).items():
        state = ChainState(model.score(y, law), model.ends(y), config.stages)
        for m in range(len(y)):
            cut_mass = mass * math.exp(cuts.log_prob(cut, m, state.tokens.entropy))
            for candidate in model.sequences(None, y[:m]):
                suffix = model.score(candidate, law).after(m)
                terms = mh.hastings_terms(config, state, m, suffix)
                ratio = acceptance.log_ratio(terms)
                accepted = exact.acceptance_probability(ratio)
                factors = (_factor(terms, ratio, accepted=True), _factor(terms, ratio, accepted=False))
                expected = accepted * factors[0] + (1.0 - accepted) * factors[1]
                expectation += cut_mass * math.exp(suffix.log_q.sum()) * expected
    assert expectation == pytest.approx(1.0, abs=1e-12)


def _factor(terms: acceptance.HastingsTerms, ratio: float, *, accepted: bool) -> float:
    """What one step multiplies the bet by, behind a step that has won enough for it to show."""
    tokens = exact.NARROW.score((1,), ProposalLaw(1.0))
    step = Info(1, 0, 0, (1,), tokens, False, terms, ratio, -1.0, accepted, False)
    won = Info(1, 1, 0, (1,), tokens, False, terms, 50.0, -1.0, True, False)
    if accepted and ratio > 0.0:
        return math.exp(chain_health.largest_bet([step, won]) - chain_health.largest_bet([won]))
    if accepted or ratio > 0.0:
        return 1.0
    # A loss never makes the largest bet: it is what a win behind it, on the way back, is short of.
    lost = chain_health.largest_bet([dataclasses.replace(won, log_ratio=60.0), step, won])
    return math.exp(lost - chain_health.largest_bet([dataclasses.replace(won, log_ratio=60.0), won]))


def test_odd_ratios_bet_nothing() -> None:
    tokens = exact.NARROW.score((1,), ProposalLaw(1.0))
    terms = acceptance.HastingsTerms(0.0, 0.0, 0.0, 0.0)

    def step(ratio: float, *, accepted: bool) -> Info:
        return Info(1, 0, 0, (1,), tokens, False, terms, ratio, -1.0, accepted, False)

    assert chain_health.largest_bet([step(math.nan, accepted=False), step(-math.inf, accepted=False)]) == 0.0
    assert chain_health.largest_bet([step(0.0, accepted=True), step(-0.1, accepted=True)]) == 0.0
    assert chain_health.largest_bet([step(math.inf, accepted=True)]) > 100.0


# --- the report ---------------------------------------------------------------------------------------


def report_of(result: ChainResult, config: MHConfig, **power: object) -> dict[str, object]:
    return power_report(parse_power({"sampler": "power", **power}), config, result, str)


def test_the_report_tells_how_the_last_stage_went() -> None:
    config = exact.make_config(FAR, alpha=4.0, law=ProposalLaw(1.0), block_size=20, steps=8)
    for seed in range(6):
        result = exact.run_chain(FAR, config, Key(seed))
        report, last = report_of(result, config), last_stage(result)
        health = report["health"]
        assert isinstance(health, dict)
        assert len(last) == 8
        assert health["acceptance_rate"] == sum(info.accepted for info in last) / 8
        since = health["steps_since_acceptance"]
        assert not any(info.accepted for info in last[8 - since :])
        assert since == 8 or last[7 - since].accepted
        start = FAR.score(last[0].current_ids, config.law).log_p.sum()
        assert health["log_p_start"] == pytest.approx(start, abs=1e-12)
        assert health["log_p_end"] == report["log_p"]
        assert report["hint"] == chain_health.hint(last)
        assert "prefetched" not in report


def test_a_chain_without_a_step_of_the_last_stage_says_nothing_of_it() -> None:
    config = exact.make_config(FAR, alpha=4.0, law=ProposalLaw(1.0), block_size=20, steps=8)
    limited = Budget(100_000, max_steps=2)
    results = exact.run_chains(FAR, config, exact.seeds(0, 8), budget=limited)
    result = next(result for result in results if result.last_stage_steps == 0)
    report = report_of(result, config)
    assert report["health"] == {
        "acceptance_rate": None,
        "steps_since_acceptance": 0,
        "log_p_start": None,
        "log_p_end": None,
    }
    assert report["hint"] is None


def test_the_report_tells_what_was_prefetched_and_every_try() -> None:
    config = dataclasses.replace(config_of(FAR, 8, tries=2), prefetch=4)
    result = exact.run_chain(FAR, config, Key(1))
    report = report_of(result, config, return_trace=True)
    assert (report["prefetched"], report["discarded"]) == (result.prefetched, result.discarded)
    assert report["chain_version"] == 2
    trace = report["trace"]
    assert isinstance(trace, list)
    for step, info in zip(trace, result.infos, strict=True):
        assert [one["proposal_length"] for one in step["tries"]] == [len(t.proposal) for t in info.tries]
        assert step["picked"] == info.picked
