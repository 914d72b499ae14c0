"""What a sample counts for in a vote: its confidence with its sign, power weights only where they are known.

Deterministic: fixed seeds on the exact language model. Error rate 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from exact import make_config
from naive_tree import model
from selection_cases import LastDigit
from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.answers import equivalence
from sglang_power.engines.tabular import TabularEngine
from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.request import VoteRequest, parse_request
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.chain import Chain, ChainResult
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.vote import Vote
from sglang_power.types import Continuation, ProposalLaw

TABLE = model(1)
EXACT = equivalence("exact")


async def voted(weight: Any, seed: int = 3, count: int = 12, **samples: Any) -> Selection:
    """Draws at temperature 2, which are often less likely than another token."""
    asked = {"base": ProposalLaw(0.5), "tokens_each": 10**6, **samples}
    run = Vote(TabularEngine(TABLE), LastDigit(), Samples(count, TABLE.horizon, **asked), Key(seed))
    return await run.run(EXACT, weight, alpha=4.0)


# --- confidence ---------------------------------------------------------------------------------------


def sums_of_delta(selection: Selection) -> dict[str, float]:
    sums: dict[str, float] = {}
    for one in selection.candidates:
        if one.value is not None and one.delta is not None:
            sums[one.value] = sums.get(one.value, 0.0) + one.delta
    return sums


@pytest.mark.parametrize("seed", range(6))
async def test_the_class_of_largest_summed_confidence_wins_by_its_most_confident_sample(seed: int) -> None:
    selection = await voted("confidence", seed)
    sums = sums_of_delta(selection)
    assert selection.best.value == max(sums, key=lambda value: sums[value])
    inside = [one.delta for one in selection.candidates if one.value == selection.best.value]
    assert selection.best.delta == max(delta for delta in inside if delta is not None)
    reported = {one["representative"]: one["weight"] for one in selection.classes if one["representative"]}
    assert reported == pytest.approx(sums)
    assert selection.scores == tuple(one.delta for one in selection.candidates)
    assert "ess" not in selection.notes


async def test_negative_confidences_decide() -> None:
    """So that the test above can fail: without the negative ones another class would win."""
    winners = []
    for seed in range(6):
        selection = await voted("confidence", seed)
        sums: dict[str, float] = {}
        for one in selection.candidates:
            if one.value is not None:
                sums[one.value] = sums.get(one.value, 0.0) + max(one.delta or 0.0, 0.0)
        winners.append((selection.best.value, max(sums, key=lambda value: sums[value])))
    assert any(right != clamped for right, clamped in winners)


# --- power weights ------------------------------------------------------------------------------------

CHAIN = make_config(TABLE, alpha=4.0, steps=10)
ROOM = 10**4


async def ends_of_chains(count: int, tokens_each: int, max_steps: int | None = None) -> list[ChainResult]:
    """The chains of a vote, run on their own."""
    budget = Budget(tokens_each, max_steps)
    return [await Chain(TabularEngine(TABLE), CHAIN, Key(3, i), budget).run() for i in range(count)]


async def test_chains_that_ran_to_their_end_are_weighed() -> None:
    selection = await voted("power", base=CHAIN, tokens_each=ROOM)
    assert selection.scores == pytest.approx([0.0] * 12)
    assert (selection.stopped_by, selection.notes["ess"]) == ("completed", pytest.approx(12.0))
    assert {one.note for one in selection.candidates} == {None}


async def test_without_room_for_a_single_step_there_are_no_weights() -> None:
    """Such ends are draws at a token's temperature of 1/alpha, which is no power of the sequence's law."""
    with pytest.raises(UnsupportedError, match="max_total_tokens ended every sample") as caught:
        await voted("power", base=CHAIN, tokens_each=TABLE.horizon)
    assert caught.value.field == "weight"
    counted = await voted("count", base=CHAIN, tokens_each=TABLE.horizon)
    assert counted.stopped_by == "max_total_tokens"
    assert {one.note for one in counted.candidates} == {None}, "a count needs no law"


async def test_chains_that_a_limit_ended_weigh_nothing_and_say_so() -> None:
    tokens_each = sorted(one.usage.decoded for one in await ends_of_chains(12, ROOM))[6]
    ends = await ends_of_chains(12, tokens_each)
    left_out = [one.stopped_by == "max_total_tokens" for one in ends]
    assert 2 <= sum(left_out) <= 10, "control: some of both"
    selection = await voted("power", base=CHAIN, tokens_each=tokens_each)
    assert [one.tokens.ids for one in selection.candidates] == [one.state.tokens.ids for one in ends]
    assert [score is None for score in selection.scores] == left_out
    assert [one.note is not None for one in selection.candidates] == left_out
    assert selection.stopped_by == "max_total_tokens"
    assert selection.notes["ess"] == pytest.approx(12 - sum(left_out))
    for one in selection.classes:
        if one["representative"] is None:
            continue
        assert (one["weight"] == 0.0) == all(left_out[i] for i in one["members"])


async def test_a_cap_on_steps_keeps_the_weights() -> None:
    """Steps of the last stage leave the target as it is, however few they are."""
    steps = CHAIN.steps * CHAIN.stages - 1
    selection = await voted("power", base=CHAIN, tokens_each=ROOM, max_steps=steps)
    ended = {one.stopped_by for one in await ends_of_chains(12, ROOM, steps)}
    assert "max_steps" in ended
    assert selection.stopped_by == "max_steps"
    assert None not in selection.scores


class Late(TabularEngine):
    """The deadline cuts every second draw behind its first token."""

    calls = 0

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls += 1
        one = await super().generate(call)
        if self.calls % 2:
            return one
        return dataclasses.replace(one, tokens=one.tokens.first(1), finished=False, cut_short=True)


async def test_a_draw_that_the_deadline_cut_weighs_nothing() -> None:
    samples = Samples(8, TABLE.horizon, ProposalLaw(1.0), tokens_each=ROOM, deadline=clock.now() + 3600.0)
    selection = await Vote(Late(TABLE), LastDigit(), samples, Key(3)).run(EXACT, "power", alpha=4.0)
    assert [score is None for score in selection.scores] == [False, True] * 4
    assert selection.stopped_by == "deadline_ms"


@pytest.mark.parametrize(
    ("base", "field"),
    [
        ({"schedule": "paper"}, "base.schedule"),
        ({"lookback_blocks": 2}, "base.lookback_blocks"),
        ({"top_k": 2}, "base.top_k"),
        ({"top_p": 0.9}, "base.top_p"),
        ({"min_p": 0.1}, "base.min_p"),
        ({"proposal_policy": {"sampler": "top_n_sigma", "n": 1.0}}, "base.proposal_policy"),
    ],
)
def test_chains_off_their_target_are_not_weighed(base: dict[str, Any], field: str) -> None:
    asked = {"sampler": "vote", "base": {"sampler": "power", **base}}
    parse_request(asked)
    with pytest.raises(RequestError) as caught:
        parse_request({**asked, "weight": "power"})
    assert caught.value.field == field
    parse_request({**asked, "weight": "power", "base": {"sampler": "power", "top_p": 1.0, "top_k": -1}})


@pytest.mark.parametrize("weight", ["count", "confidence"])
def test_alpha_belongs_to_power_weights(weight: str) -> None:
    with pytest.raises(RequestError, match=rf"alpha=3\.0: not used with weight='{weight}'"):
        parse_request({"sampler": "vote", "weight": weight, "alpha": 3.0})
    with pytest.raises(RequestError, match=r"alpha=3\.0: unknown parameter"):
        parse_request({"sampler": "best_of", "alpha": 3.0})
    assert "alpha" not in VoteRequest.model_validate({"weight": weight}).echo()
    assert VoteRequest(weight="power", alpha=3.0).echo()["alpha"] == 3.0
