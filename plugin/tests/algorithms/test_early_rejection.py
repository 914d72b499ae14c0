"""Early rejection changes what a chain costs and nothing else.

Bit for bit: with the same seed a chain has the same cuts, decisions, answers and row statistics with and
without it, for every law for which it is exact; outside of that range it is off, and a control shows that
it would have to be. The bound itself is checked token by token on suffixes of random models. Nothing is
tested by frequency: error rate 0.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from itertools import pairwise

import exact
import numpy as np
import pytest
from early_rejection_cases import LONG, assert_same_chain, assert_same_tokens, config_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power.algorithms import mh
from sglang_power.algorithms.cuts import CutLaw, EntropyCut
from sglang_power.algorithms.early_rejection import MARGIN, EarlyRejection, RejectionMonitor, is_exact
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.chain import Chain, ChainResult
from sglang_power.types import Continuation, ProposalLaw

EXACT_LAWS = {
    "tau=1/alpha": ProposalLaw(exact.ALPHA),
    "tau=1": ProposalLaw(1.0),
    "kappa between": ProposalLaw(1.6),
    "truncated": ProposalLaw(1.4, top_k=4, top_p=0.9, min_p=0.02),
    "truncated, tau=1/alpha": ProposalLaw(exact.ALPHA, top_k=3),
}
INEXACT = {"kappa below 1": (1.0, ProposalLaw(0.5)), "kappa above alpha": (1.0, ProposalLaw(2.0))}
SEEDS = range(15)


def run(config: MHConfig, seed: int, *, shadow: bool = False) -> ChainResult:
    return exact.run_chain(LONG, config, Key(seed), shadow=shadow)


@pytest.mark.parametrize("lookback_blocks", [None, 1])
@pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))
@pytest.mark.parametrize("law", EXACT_LAWS.values(), ids=list(EXACT_LAWS))
def test_chains_are_identical_and_tokens_are_saved(
    law: ProposalLaw, cut: CutLaw, lookback_blocks: int | None
) -> None:
    saved = 0
    for seed in SEEDS:
        early = run(config_of(law, cut, early=True, lookback_blocks=lookback_blocks), seed)
        whole = run(config_of(law, cut, early=False, lookback_blocks=lookback_blocks), seed)
        assert_same_chain(early, whole)
        unsampled = sum(
            len(other.proposal) - len(one.proposal)
            for one, other in zip(early.infos, whole.infos, strict=True)
        )
        assert whole.usage.decoded - early.usage.decoded == unsampled
        assert early.usage.children == whole.usage.children
        saved += unsampled
    assert saved > 0


@pytest.mark.parametrize("law", EXACT_LAWS.values(), ids=list(EXACT_LAWS))
def test_shadow_mode_finds_no_wrong_rejection(law: ProposalLaw) -> None:
    plain, shadowed = (
        [run(config_of(law, exact.ENTROPY, early=True), seed, shadow=shadow) for seed in SEEDS]
        for shadow in (False, True)
    )
    for one, other in zip(plain, shadowed, strict=True):
        assert_same_tokens(one.state.tokens, other.state.tokens)
        assert exact.checked(other).resumed == sum(info.early_rejected for info in other.infos)
        assert exact.checked(other).violations == 0
    assert sum(exact.checked(result).resumed for result in shadowed) > 0


# --- where it is not exact it is off ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("alpha", "kappa", "expected"),
    [
        (4.0, 4.0, True),
        (4.0, 1.0, True),
        (4.0, 2.0, True),
        (1.0, 1.0, True),
        (4.0, 0.99, False),
        (4.0, 4.01, False),
        (1.0, 1.5, False),
    ],
)
def test_it_is_exact_if_and_only_if_kappa_is_from_one_to_alpha(
    alpha: float, kappa: float, expected: bool
) -> None:
    assert is_exact(alpha, ProposalLaw(kappa)) is expected


@pytest.mark.parametrize(("alpha", "law"), INEXACT.values(), ids=list(INEXACT))
def test_outside_of_its_range_it_is_off(alpha: float, law: ProposalLaw) -> None:
    config = config_of(law, exact.ENTROPY, early=True, alpha=alpha)
    assert not config.rejects_early
    for seed in SEEDS:
        early = run(config, seed)
        whole = run(config_of(law, exact.ENTROPY, early=False, alpha=alpha), seed)
        assert_same_chain(early, whole)
        assert early.usage == whole.usage
        assert not any(info.early_rejected for info in early.infos)


@pytest.mark.parametrize(("alpha", "law"), INEXACT.values(), ids=list(INEXACT))
def test_control_switched_on_outside_of_its_range_it_rejects_wrongly(
    alpha: float, law: ProposalLaw, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mh, "is_exact", lambda *_: True)
    config = config_of(law, exact.UNIFORM, early=True, alpha=alpha)
    results = exact.run_chains(LONG, config, exact.seeds(0, 100), shadow=True)
    assert sum(exact.checked(result).violations for result in results) > 3


def test_a_state_outside_of_the_support_is_never_rejected_early() -> None:
    law = ProposalLaw(1.4, top_k=2)
    config = config_of(law, exact.UNIFORM, early=True)
    draft = (1 + int(np.argmin(LONG.probs(())[1:])), 1, 2, 3)
    tokens = LONG.score(draft, law)
    assert not exact.reachable(LONG, law, draft)
    last_outside = max(t for t in range(len(draft)) if tokens.log_q[t] == -math.inf)
    state = ChainState(tokens, finished=False, stage=1)
    rules = {}
    for seed in range(60):
        proposal = mh.propose(config, Key(seed), state)
        rules[proposal.cut] = proposal.call.rules
    assert set(rules) == {0, 1, 2, 3}
    assert all((found == ()) == (m <= last_outside) for m, found in rules.items())


# --- the flag is a hint, the chain decides ------------------------------------------------------------


class HastyEngine:
    """Stops every proposal that may be stopped after its first token, lost or not."""

    def __init__(self, model: TabularModel) -> None:
        self._engine = TabularEngine(model)
        self._model = model

    async def generate(self, call: ContinuationCall) -> Continuation:
        if not call.rules or call.horizon == len(call.prefix) + 1:
            return await self._engine.generate(call)
        first = dataclasses.replace(call, horizon=len(call.prefix) + 1, rules=())
        answer = await self._engine.generate(first)
        return dataclasses.replace(answer, cut_short=not answer.finished)

    def share(self, wanted: int) -> int:
        return wanted


@pytest.mark.parametrize("cut", exact.CUTS.values(), ids=list(exact.CUTS))
def test_an_engine_that_stops_too_early_does_not_change_the_chain(cut: CutLaw) -> None:
    config = config_of(EXACT_LAWS["kappa between"], cut, early=True)
    resumed = 0
    for seed in SEEDS:
        whole = run(config_of(EXACT_LAWS["kappa between"], cut, early=False), seed)
        chain = Chain(HastyEngine(LONG), config, Key(seed), exact.AMPLE)
        hasty = asyncio.run(chain.run())
        assert_same_chain(hasty, whole)
        resumed += hasty.usage.children - whole.usage.children
    assert resumed > 0


# --- the bound, token by token ------------------------------------------------------------------------


@st.composite
def proposals(draw: st.DrawFn) -> tuple[TabularModel, MHConfig, int, int]:
    model = exact.random_model(
        draw(st.integers(0, 30)),
        vocab=draw(st.integers(2, 5)),
        horizon=draw(st.integers(2, 10)),
        concentration=draw(st.sampled_from([0.4, 3.0])),
    )
    alpha = draw(st.floats(1.0, 8.0))
    law = ProposalLaw(
        kappa=draw(st.floats(1.0, alpha)),
        top_k=draw(st.none() | st.integers(1, 4)),
        top_p=draw(st.none() | st.floats(0.3, 1.0)),
        min_p=draw(st.none() | st.floats(0.0, 0.5)),
    )
    cut: CutLaw = exact.UNIFORM
    if draw(st.booleans()):
        cut = EntropyCut(beta=draw(st.floats(0.5, 5.0)), epsilon=draw(st.floats(0.05, 1.0)))
    config = exact.make_config(
        model, alpha=alpha, law=law, cut=cut, block_size=model.horizon, early_rejection=True
    )
    return model, config, draw(st.integers(0, model.horizon - 1)), draw(st.integers(0, 2**53 - 1))


def drawn_state(model: TabularModel, config: MHConfig, key: Key, frozen: int) -> ChainState | None:
    """A state drawn from q, if it is longer than its frozen tokens."""
    call = mh.extension_call(config, key, mh.initial_state(), config.horizon)
    answer = asyncio.run(TabularEngine(model).generate(call))
    if len(answer.tokens) <= frozen:
        return None
    return ChainState(answer.tokens, answer.finished, config.stages, frozen=frozen)


@settings(derandomize=True, database=None, deadline=None, max_examples=150)
@given(proposals())
def test_the_bound_never_rises_and_every_early_rejection_is_right(
    case: tuple[TabularModel, MHConfig, int, int],
) -> None:
    model, config, frozen, seed = case
    state = drawn_state(model, config, Key(seed), frozen)
    if state is None:
        return
    proposal = mh.propose(config, Key(seed), state)
    (rule,) = proposal.call.rules
    assert isinstance(rule, EarlyRejection)
    whole = dataclasses.replace(proposal.call, rules=())
    suffix = asyncio.run(TabularEngine(model).generate(whole)).tokens
    bounds = [
        exact.running_ratio(config, state, proposal.cut, suffix.first(j)) for j in range(1, len(suffix) + 1)
    ]
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(bounds))
    monitor = RejectionMonitor(rule)
    for bound, (log_p, log_q, _, entropy, *_) in zip(bounds, suffix.rows.tolist(), strict=True):
        lost = monitor.rejects(log_p, log_q, entropy)
        distance = bound - (proposal.log_u - MARGIN)
        assert lost == (distance < 0) or abs(distance) < 1e-9
        assert not lost or bounds[-1] < proposal.log_u
