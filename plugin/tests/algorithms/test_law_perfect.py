"""Perfect draws follow p^alpha exactly: enumerated, and by a G-test of the running trials.

Enumerated to 1e-12 over every answer of a tabular model. The sampled tests run the code that serves requests
on an engine whose calls end in the order of their length, with fixed seeds, so they repeat their outcome; for
fresh seeds the right one would fail with probability 1e-3. The control that takes the first trial to end
fails the same test at the same sample size.
"""

from __future__ import annotations

import dataclasses
import math

import exact
import exact_tilt
import numpy as np
import pytest
from perfect_cases import FirstToEnd, answers, config_of, drawn
from sglang_power.algorithms import perfect
from sglang_power.algorithms.early_rejection import MARGIN
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.monitors import flat_rules, rules_of
from sglang_power.algorithms.perfect import PerfectConfig, Trial, Verdict
from sglang_power.algorithms.tilt import Tilt
from sglang_power.engines.tabular import Prefix, TabularEngine
from sglang_power.rng import Key
from sglang_power.samplers.trials import Trials
from sglang_power.types import Continuation, ProposalLaw, Tokens, Usage

MODEL = exact.NARROW
ALPHA = 1.3
"""63 answers, 1/Z = 2.9 trials: of 16 several are accepted, and the long ones lose a race among them."""

CONFIG = config_of(MODEL, ALPHA)
TILT = Tilt(exact_tilt.WEIGHT, exact_tilt.UPPER_BOUND)
TILTED = dataclasses.replace(CONFIG, tilt=TILT)
KEPT, REJECTED = 1e-3, 1e-6
RUNS = 600


def log_p(ids: Prefix) -> float:
    return float(MODEL.score(ids, ProposalLaw(1.0)).log_p.sum())


def normaliser(alpha: float) -> float:
    return math.fsum(math.exp(alpha * log_p(ids)) for ids in MODEL.sequences())


def verdict(config: PerfectConfig, ids: Prefix, log_u: float, reward: float | None = None) -> Verdict:
    """What the running code decides of a whole answer."""
    tokens = MODEL.score(ids, config.law)
    trial = Trial(0, log_u, ContinuationCall((), config.horizon, config.law, seed=0))
    whole = Continuation(tokens, MODEL.ends(ids), cut_short=False, usage=Usage())
    return perfect.judged(trial, whole, config.tilt, reward).verdict


# --- enumerated -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, ALPHA, 4.0])
def test_the_weight_identity_holds_for_every_answer(alpha: float) -> None:
    law = config_of(MODEL, alpha).law
    for ids in MODEL.sequences():
        tokens = MODEL.score(ids, law)
        assert (tokens.log_z <= 1e-12).all()
        log_w = perfect.log_weight(tokens)
        assert float(tokens.log_q.sum()) + log_w == pytest.approx(alpha * log_p(ids), abs=1e-9)


@pytest.mark.parametrize("config", [CONFIG, TILTED], ids=["power", "with a reward"])
def test_what_is_accepted_has_exactly_the_target_law(config: PerfectConfig) -> None:
    accepted = {}
    for ids in MODEL.sequences():
        tokens = MODEL.score(ids, config.law)
        reward = None if config.tilt is None else exact_tilt.reward(ids)
        log_a = perfect.log_weight(tokens)
        log_a += 0.0 if reward is None else TILT.weight * (reward - exact_tilt.UPPER_BOUND)
        assert log_a <= 1e-12, "no probability"
        assert verdict(config, ids, log_a - 1e-9, reward) == "accepted"
        assert verdict(config, ids, log_a + 1e-9, reward) == "rejected"
        accepted[ids] = math.exp(float(tokens.log_q.sum()) + log_a)
    mh = exact.make_config(MODEL, alpha=ALPHA)
    target = exact.target(MODEL, mh)
    if config.tilt is not None:
        target = exact_tilt.target(MODEL, exact_tilt.tilted(mh))
    else:
        assert math.fsum(accepted.values()) == pytest.approx(normaliser(ALPHA), rel=1e-12)
    assert exact.total_variation(exact.normalised(accepted), target) < 1e-12


def test_a_weight_that_is_no_number_is_never_accepted() -> None:
    ids = (1, 2, 0)
    rows = MODEL.score(ids, CONFIG.law).rows.copy()
    rows[1, 2] = math.nan
    tokens = Tokens.of(ids, rows)
    trial = Trial(0, -math.inf, ContinuationCall((), CONFIG.horizon, CONFIG.law, seed=0))
    assert perfect.judged(trial, Continuation(tokens, True, False, Usage()), None).verdict == "rejected"


@pytest.mark.parametrize("log_u", [-0.05, -0.7, -2.0, -9.0])
def test_a_lost_trial_ends_at_its_first_token_below_and_its_rule_travels(log_u: float) -> None:
    """Also where the call is resumed behind any of its tokens, as a server does after a retraction."""
    trial = perfect.trial(CONFIG, Key(3), 7)
    (rule,) = rules_of(flat_rules(trial.call.rules))
    assert (rule,) == trial.call.rules
    rule = dataclasses.replace(trial.call.rules[0], threshold=log_u)  # type: ignore[type-var]
    for ids in MODEL.sequences():
        rows = MODEL.score(ids, CONFIG.law).rows
        below = np.flatnonzero(np.cumsum(rows[:, 2]) < log_u - MARGIN)
        first = int(below[0]) if len(below) else None
        for start in range(len(ids) if first is None else first + 1):
            rest = rule.behind(rows[:start])
            assert rest is not None
            monitor = rest.monitor()
            ends = [monitor.ends(i, row) for i, row in enumerate(rows[start:].tolist())]
            assert next((start + i for i, end in enumerate(ends) if end), None) == first
        monitor = rule.monitor()
        monitor.ends(0, rows[0].tolist())
        assert not monitor.ends(0, rows[0].tolist()), "a row that comes again changes nothing"


# --- the running trials ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs() -> list[Trials]:
    return drawn(MODEL, CONFIG, exact.seeds(1, RUNS))


def test_answers_follow_the_power_law(runs: list[Trials]) -> None:
    target = exact.target(MODEL, exact.make_config(MODEL, alpha=ALPHA))
    assert exact.g_test(answers(runs), target) > KEPT
    assert exact.g_test(answers(runs), exact.target(MODEL, exact.make_config(MODEL, alpha=1.8))) < REJECTED


def test_control_the_first_trial_to_end_is_another_law() -> None:
    target = exact.target(MODEL, exact.make_config(MODEL, alpha=ALPHA))
    first = answers(drawn(MODEL, CONFIG, exact.seeds(1, RUNS), FirstToEnd))
    assert exact.g_test(first, target) < REJECTED


def test_trials_are_as_many_as_expected(runs: list[Trials]) -> None:
    """Geometric with mean 1/Z; five standard errors: 6e-7 for fresh seeds."""
    z = normaliser(ALPHA)
    taken = [trials.accepted.index + 1 for trials in runs if trials.accepted is not None]
    assert abs(np.mean(taken) - 1.0 / z) < 5.0 * math.sqrt((1.0 - z) / len(taken)) / z
    assert [len(trials.log_weights) for trials in runs] == taken


def test_a_trial_has_as_many_tokens_as_its_uniform_lets_it() -> None:
    """Where none of many is accepted: sum over prefixes x of q(x) * P(log u - MARGIN <= sum z of x)."""
    config, expected = config_of(MODEL, 4.0), 0.0
    prefixes = {ids[:t] for ids in MODEL.sequences() for t in range(len(ids))}
    for prefix in prefixes:
        tokens = MODEL.score(prefix, config.law)
        alive = min(1.0, math.exp(perfect.log_weight(tokens) + MARGIN))
        expected += math.exp(float(tokens.log_q.sum())) * alive
    whole = math.fsum(
        len(ids) * math.exp(float(MODEL.score(ids, config.law).log_q.sum())) for ids in MODEL.sequences()
    )
    config = dataclasses.replace(config, max_trials=4_000)
    tokens_each = []
    for key in exact.seeds(50, 2):
        (trials,) = drawn(MODEL, config, [key])
        if trials.accepted is None:
            tokens_each.append(trials.usage.decoded / config.max_trials)
    assert tokens_each
    assert tokens_each == pytest.approx([expected] * len(tokens_each), rel=0.03)
    assert expected < 0.5 * whole


def test_what_runs_beside_what_changes_no_answer() -> None:
    """One seed, one answer: for every width, and for an engine that runs every trial to its end."""

    class Deaf(TabularEngine):
        async def generate(self, call: ContinuationCall) -> Continuation:
            return await super().generate(dataclasses.replace(call, rules=()))

    class Hasty(TabularEngine):
        """Ends every call after one token, which is a hint at most."""

        async def generate(self, call: ContinuationCall) -> Continuation:
            horizon = len(call.prefix) + 1
            part = await super().generate(dataclasses.replace(call, horizon=horizon))
            whole = part.finished or horizon == call.horizon
            return dataclasses.replace(part, cut_short=not whole)

    keys = exact.seeds(900, 60)
    each = [answers(drawn(MODEL, config_of(MODEL, ALPHA, width), keys)) for width in (1, 2, 5, 16)]
    each += [answers(drawn(MODEL, CONFIG, keys, engine=kind)) for kind in (Deaf, Hasty)]
    assert len(each[0]) == len(keys)
    assert all(one == each[0] for one in each)
