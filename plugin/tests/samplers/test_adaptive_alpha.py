"""APS: the exponent moves by its formula, rounds are chains at it, and the last one votes. Error rate 0."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import numpy as np
import pytest
from exact_tools import ExactTools
from hypothesis import given
from hypothesis import strategies as st
from selection_cases import EXACT, MODEL, AbortedAfter, L, LastDigit
from sglang_power import clock
from sglang_power.algorithms.adaptive_alpha import agreement, finished_round, gradient
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError, RequestError
from sglang_power.request import PowerRequest, VoteRequest, parse_request
from sglang_power.rng import Key
from sglang_power.samplers.adaptive import AdaptiveVote
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.samples import Samples, draw
from sglang_power.samplers.vote import VoteSampler

BASE: dict[str, Any] = {"sampler": "power", "steps": 3, "block_size": 2, "alpha": 2.0}
ASKED: dict[str, Any] = {"alpha": "adaptive", "base": BASE}

labels_of_rounds = st.lists(st.none() | st.integers(0, 2), min_size=2, max_size=8)


# --- the formula --------------------------------------------------------------------------------------


@given(labels=labels_of_rounds)
def test_agreement_is_the_share_of_the_others_with_the_same_answer(labels: list[int | None]) -> None:
    for i, (label, found) in enumerate(zip(labels, agreement(labels), strict=True)):
        others = labels[:i] + labels[i + 1 :]
        expected = 0.0 if label is None else others.count(label) / len(others)
        assert found == pytest.approx(expected)


def test_the_gradient_is_the_mean_of_centred_agreement_times_standardised_log_p() -> None:
    """Worked by hand: v = 2/3, 2/3, 2/3, 0 and log p = 0, 0, 0, -4, whose z are 1/sqrt 3 thrice, -sqrt 3."""
    agreed = np.array(agreement([0, 0, 0, 1]))
    assert gradient(agreed, np.array([0.0, 0.0, 0.0, -4.0])) == pytest.approx(0.5 / np.sqrt(3))
    assert gradient(agreed, np.array([-4.0, -4.0, -4.0, 0.0])) == pytest.approx(-0.5 / np.sqrt(3))
    assert gradient(agreed, np.full(4, -3.0)) == 0.0


def test_the_exponent_moves_by_twice_the_gradient_within_its_bounds() -> None:
    up = finished_round(4.0, [0, 0, 0, 1], np.array([0.0, 0.0, 0.0, -4.0]), 5, 10)
    assert up.next_alpha == pytest.approx(4.0 + 1.0 / np.sqrt(3))
    assert dataclasses.replace(up, alpha=7.9).next_alpha == 8.0
    assert dataclasses.replace(up, alpha=1.1, gradient=-0.4).next_alpha == 1.0


@pytest.mark.parametrize(
    ("labels", "log_p", "accepted", "left", "end"),
    [
        ([0, 0, 0, 0], [0.0, -1.0, -2.0, -9.0], 5, 8, "unanimity"),
        ([None] * 4, [0.0, -1.0, -2.0, -9.0], 5, 8, "gradient"),
        ([0, 0, 0, 1], [0.0, 0.0, 0.0, -4.0], 0, 8, "acceptance"),
        ([0, 0, 1, 1], [0.0, -1.0, -2.0, -9.0], 5, 8, "gradient"),
        ([0, 0, 0, 1], [0.0, 0.0, 0.0, -4.0], 5, 3, "budget"),
        ([0, 0, 0, 1], [0.0, 0.0, 0.0, -4.0], 5, 4, None),
    ],
)
def test_ends_are_the_published_ones(
    labels: list[int | None], log_p: list[float], accepted: int, left: int, end: str | None
) -> None:
    assert finished_round(4.0, labels, np.array(log_p), accepted, 20).end(left) == end


# --- runs ---------------------------------------------------------------------------------------------


def adaptive(seed: int, engine: TabularEngine | None = None, **samples: Any) -> AdaptiveVote:
    base = PowerRequest.model_validate(BASE).mh_config(L)
    drawn = Samples(**{"count": 12, "horizon": L, "base": base, "tokens_each": 10_000, **samples})
    return AdaptiveVote(engine or TabularEngine(MODEL), LastDigit(), drawn, Key(seed))


async def voted(seed: int, **more: Any) -> Selection:
    return await adaptive(seed, **more).run(EXACT, PowerRequest.model_validate(BASE), 4)


@pytest.mark.parametrize("seed", range(6))
async def test_every_round_is_of_chains_at_its_exponent(seed: int) -> None:
    selection = await voted(seed)
    rounds = selection.notes["adaptation"]
    assert rounds[0]["alpha"] == 2.0
    for number, one in enumerate(rounds):
        config = PowerRequest.model_validate({**BASE, "alpha": one["alpha"]}).mh_config(L)
        samples = Samples(12, L, config, tokens_each=10_000)
        for i in range(4 * number, 4 * number + 4):
            alone = await draw(TabularEngine(MODEL), samples, Key(seed).split(i, 12))
            assert alone.tokens.ids == selection.candidates[i].tokens.ids
        moved = one["alpha"] + 2.0 * one["gradient"]
        assert one["next_alpha"] == pytest.approx(min(max(moved, 1.0), 8.0))
        if number:
            assert one["alpha"] == rounds[number - 1]["next_alpha"]
    assert selection.notes["final_alpha"] == rounds[-1]["alpha"]
    assert selection.notes["rounds"] == len(rounds)
    assert selection.notes["samples_drawn"] == len(selection.candidates) == 4 * len(rounds)


async def test_the_last_round_votes() -> None:
    ends = set()
    for seed in range(40):
        selection = await voted(seed)
        ends.add(selection.notes["stopped"])
        last = selection.candidates[-4:]
        counts = Counter(one.value for one in last if one.value is not None)
        if not counts:
            continue
        assert counts[str(selection.best.value)] == max(counts.values())
        assert selection.chosen >= len(selection.candidates) - 4
        inside = [one.mean_log_p for one in last if one.value == selection.best.value]
        assert selection.best.mean_log_p == max(inside)
        assert (selection.reason == "tie") == (list(counts.values()).count(max(counts.values())) > 1)
        for one in selection.classes:
            voters = [i for i in one["members"] if i >= len(selection.candidates) - 4]
            if one["representative"] is not None:
                assert one["weight"] == pytest.approx(len(voters) / sum(counts.values()))
    assert {"budget", "gradient"} <= ends


async def test_one_seed_repeats_and_a_certain_model_ends_at_once() -> None:
    first, again = await voted(3), await voted(3)
    assert [one.tokens.ids for one in first.candidates] == [one.tokens.ids for one in again.candidates]
    assert first.notes == again.notes
    sure = TabularModel(lambda prefix: np.array([0.0, 1.0] if not prefix else [1.0, 0.0]), horizon=L)
    selection = await voted(1, engine=TabularEngine(sure))
    assert (selection.notes["stopped"], selection.notes["rounds"]) == ("unanimity", 1)


async def test_without_an_answer_in_the_last_round_all_samples_vote() -> None:
    stops = TabularModel(lambda _: np.array([1.0, 0.0]), horizon=L)
    selection = await voted(1, engine=TabularEngine(stops))
    assert (selection.reason, selection.chosen) == ("no_answer", 0)


async def test_an_abort_leaves_the_rounds_before_it() -> None:
    runs = [await voted(seed) for seed in range(20)]
    seed = next(i for i, one in enumerate(runs) if one.notes["rounds"] == 3)
    base = PowerRequest.model_validate(BASE)
    with pytest.raises(ChainAbortedError):
        await adaptive(seed, AbortedAfter(MODEL, 0)).run(EXACT, base, 4)
    late = runs[seed].usage.children - 1
    selection = await adaptive(seed, AbortedAfter(MODEL, late)).run(EXACT, base, 4)
    assert (selection.stopped_by, selection.notes["stopped"]) == ("abort", "abort")
    assert 8 <= len(selection.candidates) < 12
    assert selection.chosen >= 8 or len(selection.candidates) == 8


async def test_behind_the_deadline_no_round_begins() -> None:
    selection = await voted(1, deadline=clock.now() - 1.0)
    assert (selection.notes["rounds"], selection.stopped_by) == (1, "deadline_ms")


# --- requests -----------------------------------------------------------------------------------------


def test_published_defaults() -> None:
    asked = VoteRequest.model_validate(ASKED)
    assert (asked.samples, asked.window, asked.rule) == (12, 4, "never")
    assert asked.needs.answers == 12
    again = VoteRequest.model_validate(asked.echo())
    assert again.echo() == asked.echo()
    assert asked.echo()["alpha"] == "adaptive"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"base": None}, "alpha='adaptive': 'adaptive' moves the exponent of chains"),
        ({"base": {"sampler": "top_n_sigma", "n": 1.0}}, "alpha='adaptive': 'adaptive' moves"),
        ({"base": {"sampler": "power", "alpha": 9.0}}, "base.alpha=9.0: 'adaptive' moves"),
        ({"weight": "power"}, "alpha='adaptive': 'adaptive' is not used with other weights"),
        ({"weight": "confidence"}, "alpha='adaptive': 'adaptive' is not used with other weights"),
        ({"stopping": "decided"}, "stopping='decided': alpha='adaptive' has its own end"),
        ({"stopping": "certain"}, "stopping='certain': alpha='adaptive' has its own end"),
        ({"error": 0.1}, "error=0.1: belongs to stopping='certain'"),
        ({"window": 1}, "window=1: a round has at least 2 samples"),
        ({"window": 13}, "window=13: a round has at least 2 samples and at most all 12"),
        ({"alpha": "auto"}, "alpha='auto': "),
        ({"alpha": 0.5}, "alpha=0.5: "),
        ({"alpha": True}, "alpha=True: "),
    ],
)
def test_mistakes_name_field_and_value(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request({"sampler": "vote", **ASKED, **values})
    assert str(caught.value).startswith(message)
    assert caught.value.hint


async def test_the_response_holds_the_trace() -> None:
    asked = VoteRequest.model_validate({**ASKED, "samples": 9, "window": 3})
    tools = ExactTools(TabularEngine(MODEL), LastDigit(), Key(4), L)
    outcome = await VoteSampler().run(asked, tools)
    assert (outcome.law, outcome.params["alpha"]) == ("selection", "adaptive")
    assert len(outcome.report["paths"]) == outcome.report["samples_drawn"]
    for one in outcome.report["adaptation"]:
        assert len(one["agreement"]) == 3
        assert 0.0 <= one["acceptance_rate"] <= 1.0
