"""Leaves that are refined by power steps, on the exact model: drafts, costs, budgets, law, ends.

The law is tested by G-tests at fixed seeds, six of them, each kept above p = 1e-3 (family-wise 6e-3, once
and for all); each control is rejected below 1e-6 at the same sample size.
"""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from branch_cases import chosen, ids
from exact import chain_law, g_test, make_config, random_model, target, total_variation
from hypothesis import given, settings
from hypothesis import strategies as st
from naive_tree import SEEDS, L, Ledger, model
from selection_cases import AbortedAfter
from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.tabular import Prefix, TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError
from sglang_power.samplers.budgets import Budget
from sglang_power.types import Continuation, ProposalLaw

SMALL = random_model(8, vocab=3, horizon=4)

# --- chains ---------------------------------------------------------------------------------------


def chain(table: TabularModel, steps: int) -> MHConfig:
    return make_config(table, alpha=3.0, steps=steps, early_rejection=True)


class Calls(Ledger):
    """Remembers what was asked, and counts every token."""

    def __init__(self, table: TabularModel) -> None:
        super().__init__(table)
        self.forced: list[Prefix] = []

    async def generate(self, call: ContinuationCall) -> Continuation:
        if call.forced is not None and not call.prefix and not call.rules:
            self.forced.append(call.forced)
        return await super().generate(call)


@pytest.mark.parametrize("steps", [1, 12])
@pytest.mark.parametrize("seed", SEEDS)
async def test_every_leaf_is_the_draft_of_a_chain_and_every_token_is_counted(seed: int, steps: int) -> None:
    table = model(seed)
    engine = Calls(table)
    plain = await chosen(table, seed)
    refined = await chosen(table, seed, engine=engine, refine=chain(table, steps))
    assert [forced for forced in engine.forced if forced in ids(plain)] == ids(plain)
    reading = len(refined.candidates)
    assert refined.usage.decoded == engine.total.decoded + reading
    assert refined.usage.children == engine.total.children
    assert refined.usage.prefilled == engine.total.prefilled
    assert refined.notes["refinement"]["steps"] == steps * len(plain.candidates)
    for one in refined.candidates:
        expected = table.score(one.tokens.ids, ProposalLaw(3.0))
        np.testing.assert_allclose(one.tokens.rows, expected.rows)
        assert one.finished == table.ends(one.tokens.ids)
        assert one.finished or len(one.tokens) == L


async def test_without_a_chain_nothing_is_refined() -> None:
    selection = await chosen(model(3))
    assert "refinement" not in selection.notes
    refined = await chosen(model(3), refine=chain(model(3), 40))
    assert refined.notes["refinement"]["accepted"] > 0
    assert ids(refined) != ids(selection)


PAIR = {"policy": "tree", "max_depth": 1, "thresholds": (0.0,)}
"""Two leaves: the greedy one, and the one behind the second best first token."""


async def drawn(steps: int, count: int) -> list[tuple[Prefix, Prefix]]:
    """Both leaves after their chains, for `count` seeds."""
    conf = make_config(SMALL, alpha=2.0, steps=steps)
    runs = [await chosen(SMALL, seed, search=PAIR, refine=conf) for seed in range(count)]
    return [(one, other) for one, other in map(ids, runs)]


@pytest.mark.long
async def test_refined_leaves_approach_the_power_law() -> None:
    """After 48 steps their law is within 0.005 of p^2 in total variation; one step is a control."""
    many, few = await drawn(48, 500), await drawn(1, 500)
    drafts = ids(await chosen(SMALL, search=PAIR))
    confs = {steps: make_config(SMALL, alpha=2.0, steps=steps) for steps in (1, 48)}
    pi = target(SMALL, confs[48])
    for leaf, draft in enumerate(drafts):
        assert total_variation(chain_law(SMALL, confs[48], draft=draft), pi) < 0.005
        after = [pair[leaf] for pair in many]
        assert g_test(after, pi) > 1e-3
        assert g_test([pair[leaf] for pair in few], chain_law(SMALL, confs[1], draft=draft)) > 1e-3
        assert g_test([pair[leaf] for pair in few], pi) < 1e-6, "control: too few steps"
        assert g_test(after, target(SMALL, make_config(SMALL, alpha=3.0))) < 1e-6, "control: another power"
    joint = {(a, b): p * q for a, p in pi.items() for b, q in pi.items()}
    assert g_test(many, joint) > 1e-3, "the chains of two leaves share no random numbers"
    assert g_test([(b, b) for _, b in many], joint) < 1e-6, "control: one chain twice"


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 20), st.integers(L, 250), st.sampled_from(["tree", "lookahead", "beam"]))
async def test_the_budget_is_never_overdrawn(seed: int, cap: int, policy: str) -> None:
    engine = Calls(model(seed))
    await chosen(
        model(seed),
        engine=engine,
        budget=Budget(cap),
        search={"policy": policy, "max_depth": 3},
        refine=chain(model(seed), 4),
    )
    assert engine.total.decoded <= cap


async def test_where_no_token_is_left_the_leaves_stay_as_they_are() -> None:
    spent = Ledger(model(2))
    plain = await chosen(model(2), engine=spent)
    budget = Budget(spent.total.decoded + 1)
    refined = await chosen(model(2), budget=budget, refine=chain(model(2), 4))
    assert len(refined.candidates) <= len(plain.candidates)
    assert refined.notes["refinement"] == {"steps": 0, "accepted": 0}


# --- runs that end early ------------------------------------------------------------------------------


async def test_an_abort_leaves_the_choice_among_the_leaves_there_are() -> None:
    everything = ids(await chosen(model(2)))
    counts = set()
    for calls in range(1, 30):
        engine = AbortedAfter(model(2), calls)
        try:
            selection = await chosen(model(2), engine=engine, refine=chain(model(2), 3))
        except ChainAbortedError:
            continue
        counts.add(len(selection.candidates))
        assert selection.stopped_by == "abort"
        assert len(selection.candidates) == len(everything) or set(ids(selection)) <= set(everything)
        assert selection.scores[selection.chosen] == max(value for value in selection.scores if value)
    assert len(counts) > 1
    with pytest.raises(ChainAbortedError):
        await chosen(model(2), engine=AbortedAfter(model(2), 0))


async def test_a_deadline_is_told_and_stops_refinement() -> None:
    late = Budget(100_000, None, deadline=1.0)
    selection = await chosen(model(3), budget=late, refine=chain(model(3), 5))
    assert selection.stopped_by == "deadline_ms"
    assert selection.notes["refinement"] == {"steps": 0, "accepted": 0}
    assert [len(one.tokens) for one in selection.candidates] == [2]


class Slow(TabularEngine):
    """The deadline passes while proposals are drawn."""

    async def generate(self, call: ContinuationCall) -> Continuation:
        if call.deadline is not None and call.law == chain(self.model, 1).law:
            await asyncio.sleep(max(0.0, call.deadline - clock.now() + 0.001))
        return await super().generate(call)


async def test_a_deadline_during_refinement_is_told() -> None:
    plain = await chosen(model(3))
    budget = Budget(100_000, None, deadline=clock.now() + 0.2)
    selection = await chosen(model(3), engine=Slow(model(3)), budget=budget, refine=chain(model(3), 50))
    assert selection.stopped_by == "deadline_ms"
    assert len(selection.candidates) == len(plain.candidates)
    assert selection.notes["refinement"]["steps"] < 50 * len(plain.candidates)
