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
from itertools import pairwise

import exact
import pytest
from sglang_power.algorithms import acceptance, mh
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.mh import ChainState, MHConfig
from sglang_power.engines.tabular import Prefix, TabularModel
from sglang_power.rng import Key
from sglang_power.serving.budgets import Budget
from sglang_power.types import ProposalLaw, Tokens

FAMILY = 40
LEVEL = 1e-3 / FAMILY
REJECTED = 1e-6
CHAINS = 2500

TAU_ONE = ProposalLaw(1.0)
BETWEEN = ProposalLaw(1.6)
ABOVE = ProposalLaw(3.5)
JOINT = ProposalLaw(1.2, top_k=3, top_p=0.9, min_p=0.05)

narrow = exact.make_config
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
        return exact.answers(
            exact.run_chains(self.model, self.config, keys, draft=self.draft, budget=budget)
        )


def outside_support(model: TabularModel, law: ProposalLaw) -> Prefix:
    """A long draft that the truncated proposals cannot make."""
    return max((y for y in model.sequences() if not exact.reachable(model, law, y)), key=len)


def _cases() -> dict[str, Case]:
    n, w = exact.NARROW, exact.WIDE
    make = exact.make_config
    cases: dict[str, Case] = {}
    for name, cut in exact.CUTS.items():
        early = {"cut": cut, "early_rejection": True}
        cases |= {
            f"{name}, exact": Case(make(n, cut=cut)),
            f"{name}, paper": Case(make(n, cut=cut, schedule="paper")),
            f"{name}, tau=1": Case(make(n, law=TAU_ONE, cut=cut, steps=3)),
            f"{name}, tau=1, paper": Case(make(n, law=TAU_ONE, cut=cut, schedule="paper")),
            f"{name}, kappa between": Case(make(n, law=BETWEEN, cut=cut)),
            f"{name}, kappa above alpha": Case(make(n, law=ABOVE, cut=cut)),
            f"{name}, truncated": Case(make(w, law=JOINT, cut=cut), model=w),
            f"{name}, early rejection": Case(make(n, cut=cut, early_rejection=True, steps=3)),
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


def test_the_family_is_as_large_as_stated() -> None:
    assert len(CASES) + 4 <= FAMILY


@pytest.mark.parametrize("name", CASES)
def test_answers_follow_the_exact_law_of_their_steps(name: str) -> None:
    seed = 1_000_000 * (1 + list(CASES).index(name))
    case = CASES[name]
    assert exact.g_test(case.sample(seed), case.law()) > LEVEL
