"""The running chain draws from its own exact law: sampled G-tests of whole runs, stage by stage.

Every case runs thousands of chains of the serving code (`Chain` over `TabularEngine`) and compares the
answers with the exact law after the same finite number of steps, which the oracle enumerates. A test of
few steps has power: nothing is hidden behind convergence.

Family-wise error rate 1e-3 (Bonferroni): each of the at most `FAMILY` tests rejects below 1e-3 / FAMILY.
Seeds are fixed, so a passing suite passes always. Each negative control must be rejected with p < 1e-6 at
the same sample size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import exact
import numpy as np
import pytest
from sglang_power.algorithms import acceptance, mh
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.mh import MHConfig, Schedule
from sglang_power.algorithms.steps import ChainState
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.types import FloatArray, ProposalLaw, Tokens

FAMILY = 40
LEVEL = 1e-3 / FAMILY
REJECTED = 1e-6
CHAINS = 1500
PAIRS = 800

TAU_ONE = ProposalLaw(1.0)
BETWEEN = ProposalLaw(1.6)
ABOVE = ProposalLaw(3.5)
JOINT = ProposalLaw(1.2, top_k=3, top_p=0.9, min_p=0.05)

UNFINISHED_DRAFT: Prefix = (1, 2)
FINISHED_DRAFT: Prefix = (2, 1, 0)


@dataclass(frozen=True)
class Case:
    """One variant of the algorithm: what runs, from where, and for how many steps at most."""

    config: MHConfig
    model: TabularModel = exact.NARROW
    draft: Prefix | None = None
    max_steps: int | None = None

    def law(self) -> dict[Prefix, float]:
        return exact.chain_law(self.model, self.config, draft=self.draft, max_steps=self.max_steps)

    def sample(self, seed: int, count: int = CHAINS) -> list[Prefix]:
        budget = Budget(max_total_tokens=1_000_000, max_steps=self.max_steps)
        keys = exact.seeds(seed, count)
        return exact.answers(exact.run_chains(self.model, self.config, keys, draft=self.draft, budget=budget))


def outside_support(model: TabularModel, law: ProposalLaw) -> Prefix:
    """A long draft that the truncated proposals cannot make."""
    return max((y for y in model.sequences() if not exact.reachable(model, law, y)), key=len)


def _cases() -> dict[str, Case]:
    n, w = exact.NARROW, exact.WIDE
    make = exact.make_config
    cases: dict[str, Case] = {}
    for name, cut in exact.CUTS.items():
        cases |= {
            f"{name}, exact": Case(make(n, cut=cut)),
            f"{name}, paper": Case(make(n, cut=cut, schedule="paper")),
            f"{name}, tau=1": Case(make(n, law=TAU_ONE, cut=cut, block_size=1)),
            f"{name}, tau=1, paper": Case(make(n, law=TAU_ONE, cut=cut, schedule="paper")),
            f"{name}, kappa between": Case(make(n, law=BETWEEN, cut=cut, block_size=4)),
            f"{name}, kappa above alpha": Case(make(n, law=ABOVE, cut=cut)),
            f"{name}, truncated": Case(make(w, law=JOINT, cut=cut), model=w),
            f"{name}, early rejection": Case(make(n, cut=cut, early_rejection=True)),
            f"{name}, early rejection, kappa between": Case(
                make(n, law=BETWEEN, cut=cut, early_rejection=True)
            ),
            f"{name}, early rejection, truncated": Case(
                make(w, law=JOINT, cut=cut, early_rejection=True), model=w
            ),
            f"{name}, finished draft": Case(make(n, cut=cut, steps=3), draft=FINISHED_DRAFT),
            f"{name}, unfinished draft": Case(make(n, cut=cut, steps=3), draft=UNFINISHED_DRAFT),
            f"{name}, draft outside the support": Case(
                make(w, law=JOINT, cut=cut, steps=2, early_rejection=True),
                model=w,
                draft=outside_support(w, JOINT),
            ),
            f"{name}, lookback 1": Case(make(n, cut=cut, lookback_blocks=1, early_rejection=True)),
            f"{name}, lookback 2": Case(make(n, cut=cut, law=TAU_ONE, lookback_blocks=2)),
            f"{name}, max_steps": Case(make(n, cut=cut), max_steps=3),
        }
    return cases


CASES = _cases()
QUICKLY = (
    "entropy, exact",
    "uniform, paper",
    "entropy, tau=1",
    "uniform, kappa between",
    "entropy, kappa above alpha",
    "uniform, early rejection, truncated",
    "entropy, early rejection",
    "uniform, finished draft",
    "entropy, unfinished draft",
    "entropy, draft outside the support",
    "uniform, lookback 1",
    "entropy, max_steps",
)
"""One of a kind; the others are long."""


def test_the_family_is_as_large_as_stated() -> None:
    assert len(CASES) + len(PARTNERS) + 5 <= FAMILY


def test_the_g_test_keeps_its_level() -> None:
    """Samples of the law itself: one in a hundred falls below 0.01, give or take."""
    law = CASES["uniform, exact"].law()
    answers, weights = list(law), np.array(list(law.values()))
    rng = np.random.default_rng(1)
    drawn = [rng.choice(len(answers), CHAINS, p=weights / weights.sum()).tolist() for _ in range(300)]
    p_values = [exact.g_test([answers[i] for i in sample], law) for sample in drawn]
    assert sum(p < 0.01 for p in p_values) <= 10


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in QUICKLY else pytest.mark.long) for name in CASES]
)
def test_answers_follow_the_exact_law_of_their_steps(name: str) -> None:
    seed = 1_000_000 * (1 + list(CASES).index(name))
    case = CASES[name]
    assert exact.g_test(case.sample(seed), case.law()) > LEVEL


# --- the chains of one request, and those of neighbouring seeds ---------------------------------------

PARTNERS: dict[str, Callable[[int], Key]] = {
    "next chain of the same request": lambda seed: Key(seed, chain=1),
    "first chain of the next seed": lambda seed: Key(seed + 1),
}


def outline(y: Prefix) -> tuple[int, int]:
    """A coarse view of an answer: first token and length."""
    return y[0], len(y)


def joint_outlines(partner: Callable[[int], Key]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    keys = [key for seed in range(0, 2 * PAIRS, 2) for key in (Key(seed), partner(seed))]
    answers = exact.answers(exact.run_chains(exact.NARROW, exact.make_config(exact.NARROW), keys))
    outlines = [outline(y) for y in answers]
    return list(zip(outlines[::2], outlines[1::2], strict=True))


def product_law() -> dict[tuple[tuple[int, int], tuple[int, int]], float]:
    single: dict[tuple[int, int], float] = {}
    for y, w in exact.chain_law(exact.NARROW, exact.make_config(exact.NARROW)).items():
        single[outline(y)] = single.get(outline(y), 0.0) + w
    return {(a, b): v * w for a, v in single.items() for b, w in single.items()}


@pytest.mark.parametrize("partner", PARTNERS.values(), ids=list(PARTNERS))
def test_chains_are_independent(partner: Callable[[int], Key]) -> None:
    assert exact.g_test(joint_outlines(partner), product_law()) > LEVEL


def test_control_chains_with_one_key_are_not_independent() -> None:
    assert exact.g_test(joint_outlines(Key), product_law()) < REJECTED


def test_the_chains_of_one_request_follow_the_law() -> None:
    config = exact.make_config(exact.NARROW)
    keys = [Key(2026, chain=i) for i in range(CHAINS)]
    sample = exact.answers(exact.run_chains(exact.NARROW, config, keys))
    assert exact.g_test(sample, exact.chain_law(exact.NARROW, config)) > LEVEL


# --- the two schedules --------------------------------------------------------------------------------

MIXING = exact.random_model(5, horizon=4)
"""A model on which 8 steps per stage come within 0.01 of the limit."""


def long_run(schedule: Schedule) -> Case:
    config = exact.make_config(
        MIXING, alpha=2.0, law=ProposalLaw(1.4), cut=exact.ENTROPY, steps=8, schedule=schedule
    )
    return Case(config, model=MIXING)


def test_the_exact_schedule_reaches_the_target() -> None:
    case = long_run("exact")
    pi = exact.target(MIXING, case.config)
    assert exact.total_variation(case.law(), pi) < 0.005
    assert exact.g_test(case.sample(41_000_000), pi) > LEVEL


@pytest.mark.long
def test_the_paper_schedule_reaches_its_own_limit_and_is_rejected_against_the_target() -> None:
    case = long_run("paper")
    limit, pi = exact.paper_limit(MIXING, case.config), exact.target(MIXING, case.config)
    assert exact.total_variation(case.law(), limit) < 0.01
    sample = case.sample(42_000_000)
    assert exact.g_test(sample, case.law()) > LEVEL
    assert exact.g_test(sample, pi) < REJECTED


def test_without_steps_the_answer_is_a_draw_of_low_temperature_which_is_another_law() -> None:
    case = Case(exact.make_config(exact.NARROW, steps=0))
    sample = case.sample(43_000_000)
    low_temperature = exact.extend(exact.NARROW, case.config.law, {(): 1.0}, exact.NARROW.horizon)
    assert exact.g_test(sample, low_temperature) > LEVEL
    assert exact.g_test(sample, exact.target(exact.NARROW, case.config)) < REJECTED


# --- negative controls: the running chain with a known mistake ----------------------------------------

TermsFunction = Callable[[MHConfig, ChainState, int, Tokens], HastingsTerms]
correct_terms = mh.hastings_terms


def without_cut_ratio(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    terms = correct_terms(config, state, m, suffix)
    return dataclasses.replace(terms, log_cut_proposal=0.0, log_cut_current=0.0)


def common_length_slice(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    old = state.tokens.after(m).first(len(suffix))
    terms = correct_terms(config, state, m, suffix)
    return dataclasses.replace(terms, log_w_current=acceptance.log_weight(config.alpha, old))


def reversed_proposal_term(config: MHConfig, state: ChainState, m: int, suffix: Tokens) -> HastingsTerms:
    def log_weight(tokens: Tokens) -> float:
        return float(config.alpha * tokens.log_p.sum() + tokens.log_q.sum())

    return dataclasses.replace(
        correct_terms(config, state, m, suffix),
        log_w_proposal=log_weight(suffix),
        log_w_current=log_weight(state.tokens.after(m)),
    )


CONTROLS: dict[str, tuple[TermsFunction, str]] = {
    "missing cut ratio": (without_cut_ratio, "uniform, tau=1"),
    "common-length slicing": (common_length_slice, "uniform, tau=1"),
    "common-length slicing, entropy cut": (common_length_slice, "entropy, tau=1"),
    "reversed proposal term": (reversed_proposal_term, "uniform, exact"),
}


@pytest.mark.parametrize(("wrong_terms", "name"), CONTROLS.values(), ids=list(CONTROLS))
def test_control_a_chain_with_a_wrong_ratio_is_rejected(
    wrong_terms: TermsFunction, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES[name]
    law = case.law()
    monkeypatch.setattr(mh, "hastings_terms", wrong_terms)
    assert exact.g_test(case.sample(51_000_000), law) < REJECTED


class BeforeTruncation(exact.MemoModel):
    """Draws from the truncated law and reports the log-probabilities before truncation."""

    def row(self, prefix: Prefix, token: int, law: ProposalLaw) -> tuple[float, ...]:
        row = super().row(prefix, token, law)
        before = super().row(prefix, token, ProposalLaw(law.kappa))
        return (row[0], before[1], *row[2:])


def uneven_table(prefix: Prefix) -> FloatArray:
    """Behind token 1, top-3 truncation drops 0.4 of every row; elsewhere it drops nothing."""
    if not prefix:
        return np.array([0.0, 0.5, 0.5, 0.0, 0.0, 0.0])
    if prefix[0] == 1:
        return np.array([0.19, 0.21, 0.2, 0.14, 0.13, 0.13])
    return np.array([0.25, 0.4, 0.35, 0.0, 0.0, 0.0])


def test_control_log_probabilities_before_truncation_are_rejected() -> None:
    model = exact.MemoModel(uneven_table, horizon=3)
    law = ProposalLaw(1.0, top_k=3)
    right = Case(exact.make_config(model, alpha=1.5, law=law, block_size=3, steps=8), model=model)
    wrong = dataclasses.replace(right, model=BeforeTruncation(uneven_table, horizon=3))
    assert exact.g_test(right.sample(52_000_000), right.law()) > LEVEL
    assert exact.g_test(wrong.sample(52_000_000), right.law()) < REJECTED
