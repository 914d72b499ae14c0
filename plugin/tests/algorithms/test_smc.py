"""The law of particle runs by enumeration: E[Zhat; y] = p(y)^alpha, and invariant kernels, to 1e-12.

Every draw of the running code is enumerated (`exact_smc`): block by block, resampling included. Controls are
the mistakes that algorithms.md 4 and 4.1 name; each fails the very check that the right code passes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from exact import ALPHA, normalised, random_model, total_variation
from exact_smc import Atoms, answer_law, atoms, estimated, masses, runs
from scipy import integrate
from sglang_power.algorithms import resampling, smc
from sglang_power.algorithms.resampling import Resampled
from sglang_power.algorithms.smc import Particle, RunState, SMCConfig
from sglang_power.engines.tabular import Prefix
from sglang_power.rng import Key, Purpose
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Tokens, Usage

EXACT = 1e-12
WRONG = 1e-3

MODEL = random_model(31, vocab=3, horizon=4)
TINY = random_model(32, vocab=2, horizon=3, stop_share=1.0)
DEEP = random_model(33, vocab=2, horizon=5, stop_share=1.0)


def config(**changes: Any) -> SMCConfig:
    """Two particles in blocks of two tokens; with a threshold of 0.5 they would never be resampled."""
    given: dict[str, Any] = {"alpha": ALPHA, "horizon": MODEL.horizon, "particles": 2, "block_size": 2}
    given = {**given, "ess_threshold": 0.9, **changes}
    given.setdefault("law", ProposalLaw(given["alpha"]))
    return SMCConfig(**given)


def error(found: Mapping[Prefix, float], expected: Mapping[Prefix, float]) -> float:
    """Largest error, as a share of the whole mass."""
    answers = {*found, *expected}
    return max(abs(found.get(y, 0.0) - expected.get(y, 0.0)) for y in answers) / sum(expected.values())


def off_by(model: Any, setting: SMCConfig) -> float:
    """How far E[Zhat; y] is from p(y)^alpha."""
    return error(estimated(atoms(model, setting)), masses(model, setting))


BRIDGED = ProposalLaw(1.3)
SETTINGS = {
    "no ramp": config(),
    "resampled after every token": config(block_size=1, horizon=3, ess_threshold=1.0),
    "ramp over half a block": config(ramp=1, law=BRIDGED),
    "ramp into the second block": config(ramp=3, law=BRIDGED),
    "ramp beyond the horizon": config(ramp=9, law=ProposalLaw(2.5)),
    "forks inside the ramp": config(block_size=1, horizon=3, ramp=3, ess_threshold=1.0, law=ProposalLaw(1.0)),
    "truncated": config(law=ProposalLaw(1.2, top_k=2)),
    "above alpha": config(law=ProposalLaw(4.0)),
    "one particle": config(particles=1),
}


@pytest.mark.parametrize("scheme", ["systematic", "chopthin", "multinomial"])
@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_the_estimate_is_unbiased_for_every_answer(setting: SMCConfig, scheme: resampling.Scheme) -> None:
    assert off_by(MODEL, dataclasses.replace(setting, scheme=scheme)) < EXACT


@pytest.mark.parametrize("scheme", ["systematic", "chopthin", "multinomial"])
def test_three_particles(scheme: resampling.Scheme) -> None:
    setting = config(horizon=5, particles=3, ramp=3, law=ProposalLaw(1.0), scheme=scheme)
    assert off_by(DEEP, setting) < EXACT


def test_the_settings_resample() -> None:
    """The checks above reach what they are about."""
    for name, setting in SETTINGS.items():
        resampled = [state for _, state in runs(MODEL, setting) if state.resamplings]
        assert bool(resampled) == (name != "one particle"), name
        copied = [one for state in resampled for one in state.particles if one.finished and one.log_q == 0.0]
        never = name in ("one particle", "truncated")  # whose law draws no stop
        assert bool(copied) != never, name


def test_weights_at_the_proposal_temperature_do_not_depend_on_what_is_drawn() -> None:
    """tau = 1/alpha: after one token all particles weigh z_1(alpha), and none is resampled."""
    setting = config(block_size=1, particles=2, horizon=2, ess_threshold=1.0)
    log_z = MODEL.row((), 1, setting.law)[2]
    for _, state in runs(MODEL, dataclasses.replace(setting, horizon=1)):
        weights = smc.final_log_weights(setting, state)
        assert weights == pytest.approx([log_z] * 2, abs=1e-12)
    assert all(state.ess[0] == pytest.approx(2.0) for _, state in runs(MODEL, setting))


# --- controls -----------------------------------------------------------------------------------------


def test_control_frozen_weights_of_finished_particles(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = config(ramp=4, law=ProposalLaw(1.0))
    assert off_by(MODEL, setting) < EXACT

    def frozen(particle: Particle, exponent: float) -> float:
        if particle.finished and particle.log_q == 0.0:
            return 0.0  # a copy that had ended before it was made
        at = setting.exponent(len(particle.tokens)) if particle.finished else exponent
        return particle.log_start + at * particle.log_p - particle.log_q

    monkeypatch.setattr(Particle, "log_weight", frozen)
    assert off_by(MODEL, setting) > WRONG


def test_control_the_ramp_is_not_made_up_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    setting = config(ramp=9, law=BRIDGED)

    def uncorrected(config: SMCConfig, state: RunState) -> FloatArray:
        return smc.log_weights(state, config.exponent(max(len(one.tokens) for one in state.particles)))

    monkeypatch.setattr(smc, "final_log_weights", uncorrected)
    assert off_by(MODEL, setting) > WRONG


def test_control_weights_of_copies_are_set_to_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chopthin leaves weights unequal; forgetting them is another law."""
    setting = config(horizon=5, particles=3, law=ProposalLaw(1.0), scheme="chopthin")
    chopthin = resampling.chopthin

    def levelled(log_weights: FloatArray, u: float) -> Resampled:
        return Resampled(chopthin(log_weights, u).ancestors, np.zeros(len(log_weights)))

    monkeypatch.setattr(resampling, "chopthin", levelled)
    assert off_by(DEEP, setting) > WRONG


# --- runs ---------------------------------------------------------------------------------------------

SMALL = config(horizon=3, law=ProposalLaw(1.0))


def joint_target(found: Atoms) -> Atoms:
    """What runs leave invariant: an atom's probability times its Zhat."""
    weighed = {atom: share * math.exp(atom[0]) for atom, share in found.items()}
    whole = math.fsum(weighed.values())
    return {atom: mass / whole for atom, mass in weighed.items()}


def after_run(current: Atoms, proposal: Atoms) -> dict[tuple[float, Prefix], float]:
    """The law behind one more run, by the running acceptance rule."""
    law: dict[tuple[float, Prefix], float] = {}
    for old, mass in current.items():
        for new, share in proposal.items():
            accepted = acceptance_of(new[0], old[0])
            law[new] = law.get(new, 0.0) + mass * share * accepted
            law[old] = law.get(old, 0.0) + mass * share * (1.0 - accepted)
    return law


def acceptance_of(proposed: float, current: float) -> float:
    """P(accepted), found from `smc.next_run` itself: the largest uniform that it accepts."""
    low, high = 0.0, 1.0
    if smc.next_run(Uniform(high), 1, proposed, current):  # type: ignore[arg-type]
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        accepted = smc.next_run(Uniform(middle), 1, proposed, current)  # type: ignore[arg-type]
        low, high = (middle, high) if accepted else (low, middle)
    return low


@dataclasses.dataclass(frozen=True)
class Uniform:
    """A key whose uniform is 1 - `value`."""

    value: float

    def uniform(self, step: int, purpose: Purpose) -> float:
        assert (step, purpose) == (1, Purpose.ACCEPT)
        return min(1.0 - self.value, math.nextafter(1.0, 0.0))


def answers_of(law: Atoms) -> dict[Prefix, float]:
    found: dict[Prefix, float] = {}
    for (_, answer), mass in law.items():
        found[answer] = found.get(answer, 0.0) + mass
    return found


def drift(current: Atoms, proposal: Atoms) -> float:
    """|pi K - pi| of the answers after one run, from the target of the current run's kind."""
    start = joint_target(current)
    return total_variation(answers_of(after_run(start, proposal)), normalised(masses(TINY, SMALL)))


@pytest.mark.parametrize("scheme", ["systematic", "chopthin"])
def test_runs_leave_the_target_invariant(scheme: resampling.Scheme) -> None:
    found = atoms(TINY, dataclasses.replace(SMALL, scheme=scheme, ramp=2))
    assert drift(found, found) < EXACT


def test_control_runs_of_another_number_of_particles() -> None:
    many = atoms(TINY, dataclasses.replace(SMALL, particles=3))
    few = atoms(TINY, dataclasses.replace(SMALL, particles=1))
    assert drift(many, many) < EXACT
    assert drift(many, few) > WRONG


def after_runs(found: Atoms, count: int) -> dict[Prefix, float]:
    """The law of the answer of so many runs."""
    law: Atoms = found
    for _ in range(count - 1):
        law = after_run(law, found)
    return answers_of(law)


def chosen_by_share(found: Atoms, count: int) -> dict[Prefix, float]:
    """The law of the answer of one of so many runs, chosen with probability Zhat_k / sum Zhat: a mistake.

    E[sum_k z_k 1_k / sum z] = K * integral over t of E[z 1 exp(-t*z)] * E[exp(-t*z)]^(K-1).
    """
    z = np.exp([log_z for log_z, _ in found])
    shares, names = np.array(list(found.values())), [answer for _, answer in found]
    scale = float(z.mean())

    def density(x: float) -> FloatArray:
        decayed = shares * np.exp(-x * z / scale)
        return np.asarray(count * decayed * (z / scale) * decayed.sum() ** (count - 1))

    law = integrate.quad_vec(density, 0.0, np.inf, epsabs=1e-12)[0]
    found_law: dict[Prefix, float] = {}
    for name, mass in zip(names, law.tolist(), strict=True):
        found_law[name] = found_law.get(name, 0.0) + mass
    return found_law


def test_runs_forget_their_start_and_a_choice_by_share_does_not() -> None:
    """K = 1, 4, 12, 24 runs of two particles: TV falls geometrically; by share it falls with 1/K."""
    found, pi = atoms(TINY, SMALL), normalised(masses(TINY, SMALL))
    right = [total_variation(after_runs(found, count), pi) for count in (1, 4, 12, 24)]
    wrong = [total_variation(chosen_by_share(found, count), pi) for count in (4, 12, 24)]
    print("TV after K runs", right)
    print("TV of a choice by share", wrong)
    assert right == sorted(right, reverse=True)
    assert right[0] > 0.1
    assert right[-1] < WRONG < wrong[-1]


def test_runs_are_accepted_in_order() -> None:
    key = Key(3)
    current = smc.accepted_runs(key, [-5.0, -1.0, -90.0, 0.0, -math.inf])
    assert current == [0, 1, 3]
    assert smc.accepted_runs(key, [-math.inf, -math.inf, -7.0]) == [0, 2]
    assert smc.accepted_runs(key, [-2.0]) == [0]


# --- conditional runs ---------------------------------------------------------------------------------

CONDITIONAL = config(horizon=3, scheme="multinomial", law=ProposalLaw(1.0))


def conditional_drift(setting: SMCConfig) -> float:
    """|pi K - pi| of a conditional run."""
    pi = normalised(masses(TINY, setting))
    law: dict[Prefix, float] = {}
    for reference, mass in pi.items():
        for probability, state in runs(TINY, setting, reference):
            assert state.particles[0].tokens.ids == reference
            for answer, share in answer_law(setting, state).items():
                law[answer] = law.get(answer, 0.0) + mass * probability * share
    return total_variation(law, pi)


@pytest.mark.parametrize(
    "changes",
    [{}, {"ramp": 2}, {"particles": 3}, {"block_size": 1, "ess_threshold": 1.0}, {"law": ProposalLaw(ALPHA)}],
    ids=str,
)
def test_conditional_runs_leave_the_target_invariant(changes: Any) -> None:
    assert conditional_drift(dataclasses.replace(CONDITIONAL, **changes)) < EXACT


def test_control_conditional_runs_that_resample_systematically(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reference is put back into slot 0 of systematic copies."""
    setting = dataclasses.replace(CONDITIONAL, particles=3, ess_threshold=1.0)
    assert conditional_drift(setting) < EXACT

    def kept(log_weights: FloatArray, uniforms: FloatArray) -> Resampled:
        drawn = resampling.resample("systematic", log_weights, uniforms)
        return Resampled((0, *drawn.ancestors[1:]), drawn.log_weights)

    monkeypatch.setattr(resampling, "conditional", kept)
    assert conditional_drift(setting) > WRONG


def test_a_reference_that_cannot_be_drawn_is_never_the_answer() -> None:
    setting = dataclasses.replace(CONDITIONAL, law=ProposalLaw(1.0, top_k=1))
    outside = next(y for y in TINY.sequences(3) if not np.isfinite(TINY.score(y, setting.law).log_q).all())
    for _, state in runs(TINY, setting, outside):
        assert state.particles[0].dead
        assert outside not in answer_law(setting, state)


# --- numbers that are none ----------------------------------------------------------------------------


def answered(model_ids: Sequence[int], log_p: float, log_q: float) -> Continuation:
    rows = [(log_p, log_q, 0.0, 0.0, 0.0, 0.0, 0.0)] * len(model_ids)
    return Continuation(Tokens.of(model_ids, rows), finished=False, cut_short=False, usage=Usage())


def test_a_weight_that_is_no_number_is_a_dead_particle() -> None:
    setting = config(horizon=6, particles=4, ess_threshold=1.0)
    state = smc.initial_state(setting)
    drawn = {slot: answered([1, 2], -1.0, -0.2) for slot in range(4)} | {2: answered([1, 1], math.nan, -0.2)}
    state = smc.absorbed(setting, Key(1), state, drawn)
    assert (state.died, state.resamplings) == (1, 1)
    assert not any(particle.dead for particle in state.particles)
    state = smc.absorbed(setting, Key(1), state, {slot: answered([1], math.nan, -0.2) for slot in range(4)})
    assert state.died == 5
    assert smc.ended(setting, state)
    assert smc.log_z(setting, state) == -math.inf


def test_the_dead_are_not_continued() -> None:
    setting = config(horizon=6, particles=3, ess_threshold=0.1)
    drawn = {slot: answered([1, 2], -1.0, -0.2) for slot in (0, 2)} | {1: answered([1, 1], math.nan, -0.2)}
    state = smc.absorbed(setting, Key(1), smc.initial_state(setting), drawn)
    assert list(smc.calls(setting, Key(1), state)) == [0, 2]
    assert smc.likeliest_slot(state) == 0


# --- calls --------------------------------------------------------------------------------------------


def test_every_call_has_a_seed_of_its_own() -> None:
    setting = config(horizon=6, particles=3)
    seeds: set[int] = set()
    for number, key in enumerate(smc.run_keys(Key(5), 2), start=1):
        state = smc.initial_state(setting)
        for block in range(3):
            calls = smc.calls(setting, key, state)
            assert {call.horizon for call in calls.values()} == {2 * (block + 1)}
            seeds |= {call.seed for call in calls.values()}
            state = smc.absorbed(setting, key, state, {slot: answered([1, 2], -1.0, -0.2) for slot in calls})
        assert len(seeds) == 9 * number


def test_the_exponent_rises_to_alpha_over_the_ramp() -> None:
    setting = config(ramp=4, alpha=3.0)
    assert [setting.exponent(t) for t in range(6)] == [1.0, 1.5, 2.0, 2.5, 3.0, 3.0]
    assert config(ramp=0).exponent(0) == ALPHA
