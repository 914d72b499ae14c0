"""The sampler `lookahead` on the exact language model: its law, what runs together, budgets, aborts, reports.

Seeds are fixed, so a rerun repeats its outcome. With fresh ones a right sampler would fail a G-test here with
probability 1e-3.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from exact import NARROW, g_test, normalised, random_model, seeds
from exact_lookahead import answers_law, enumerated_block
from exact_tools import ExactTools
from selection_cases import AbortedAfter, LastDigit
from sglang_power import clock
from sglang_power.algorithms import lookahead
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError, ParticlesDiedError
from sglang_power.request import LookaheadRequest
from sglang_power.rng import Key
from sglang_power.samplers.base import Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.lookahead import LookaheadSampler
from sglang_power.types import LAUNCH_STEPS, Continuation, Tokens, Usage

KEPT, REJECTED = 1e-3, 1e-6
AMPLE = Budget(10**9)
L = NARROW.horizon
BASE: dict[str, Any] = {"alpha": 2.5, "candidates": 3, "rollouts": 2, "block_size": 2, "rollout_tokens": 2}


def asked(**changes: Any) -> LookaheadRequest:
    return LookaheadRequest(**{**BASE, **changes})


async def outcome(
    request: LookaheadRequest,
    *,
    key: Key = Key(1),  # noqa: B008  (frozen)
    engine: TabularEngine | None = None,
    budget: Budget = AMPLE,
    observed: list[tuple[Tokens, Mapping[str, Any]]] | None = None,
) -> Outcome:
    engine = TabularEngine(NARROW) if engine is None else engine
    observer = None if observed is None else lambda tokens, told: observed.append((tokens, told))
    tools = ExactTools(engine, LastDigit(), key, engine.model.horizon, budget, observer=observer)
    found = await LookaheadSampler().run(request, tools)
    json.dumps({**found.headline, **found.report, **found.params}, allow_nan=False)
    assert found.law == "approximate"
    return found


# --- law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{"rollout_tokens": 1}, {"proposal_temperature": 1.3}], ids=str)
async def test_answers_follow_the_enumerated_law(changes: dict[str, Any]) -> None:
    """With two candidates and two rollouts the law is known, short rollouts included."""
    model = random_model(3, vocab=3, horizon=3)
    request = asked(**{"candidates": 2, "block_size": 1, "proposal_temperature": 1.0, **changes})
    config = request.lookahead_config(model.horizon)
    law = answers_law(model, config, lambda prefix: enumerated_block(model, config, prefix))
    found = [await outcome(request, key=key, engine=TabularEngine(model)) for key in seeds(100, 600)]
    p = g_test([each.tokens.ids for each in found], law)
    print("p", p)
    assert p > KEPT
    assert g_test([each.tokens.ids for each in found], normalised(_target(model))) < REJECTED


def _target(model: TabularModel) -> dict[tuple[int, ...], float]:
    return dict(zip(model.sequences(), model.power_law(2.5).tolist(), strict=True))


@pytest.mark.parametrize("looks", [True, False])
async def test_many_candidates_and_rollouts_are_near_the_target(
    looks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without rollouts it is a low temperature of blocks: the control, by the same test."""
    if not looks:
        monkeypatch.setattr(lookahead, "rollout_calls", lambda *_: {})
    request = asked(candidates=12, rollouts=3, rollout_tokens=L, proposal_temperature=1.0)
    found = [await outcome(request, key=key) for key in seeds(7, 300)]
    p = g_test([each.tokens.ids for each in found], normalised(_target(NARROW)))
    print("p", p)
    assert (p > KEPT) if looks else (p < REJECTED)


# --- calls --------------------------------------------------------------------------------------------


class Watching(TabularEngine):
    """Counts calls, and those that run at once; may end them in another order."""

    def __init__(self, model: TabularModel = NARROW, *, disorder: bool = False) -> None:
        super().__init__(model)
        self.calls: list[ContinuationCall] = []
        self.running = 0
        self.bunches: list[int] = []
        self._disorder = disorder

    async def generate(self, call: ContinuationCall) -> Continuation:
        if self.running == 0:
            self.bunches.append(0)
        self.calls.append(call)
        self.running += 1
        self.bunches[-1] += 1
        for _ in range(call.seed % 7 if self._disorder else 1):
            await asyncio.sleep(0)
        self.running -= 1
        return await super().generate(call)


async def test_candidates_start_at_once_and_rollouts_of_all_of_them_too() -> None:
    engine = Watching()
    found = await outcome(asked(), engine=engine, key=Key(4))
    bunches = engine.bunches
    assert bunches[0::2] == [3] * len(bunches[0::2])
    assert set(bunches[1::2]) <= {2, 4, 6}
    report = found.report
    assert (report["candidates"], report["rollouts"]) == (sum(bunches[0::2]), sum(bunches[1::2]))
    assert len({call.seed for call in engine.calls}) == len(engine.calls) == found.usage.children


async def test_what_it_costs() -> None:
    """Depth B + H per block and two launches, K*(B + M*H) tokens; nothing behind the horizon."""
    endless = TabularModel(lambda _: np.array([0.0, 0.6, 0.4]), horizon=5)
    found = await outcome(asked(), engine=TabularEngine(endless))
    assert found.report["blocks"] == 3
    assert found.usage.depth == (2 + 2) + (2 + 1) + 1 + 5 * LAUNCH_STEPS
    assert found.usage.decoded == 3 * (2 + 2 * 2) + 3 * (2 + 2 * 1) + 3 * 1
    assert (found.usage.wasted, found.stopped_by, len(found.tokens)) == (0, "completed", 5)


async def test_the_order_of_the_engines_answers_has_no_part() -> None:
    ordered = await outcome(asked(), engine=Watching())
    shuffled = await outcome(asked(), engine=Watching(disorder=True))
    assert (shuffled.tokens.ids, shuffled.report) == (ordered.tokens.ids, ordered.report)


async def test_a_seed_repeats_its_answer_and_choices_differ() -> None:
    drawn = [await outcome(asked(), key=Key(3, chain)) for chain in (0, 0, 1, 2, 3)]
    assert (drawn[0].tokens.ids, drawn[0].report) == (drawn[1].tokens.ids, drawn[1].report)
    assert len({tuple(each.report["ess"]) for each in drawn[1:]}) == 4


async def test_it_stops_with_the_answer() -> None:
    blocks = []
    for key in seeds(1, 30):
        engine = Watching()
        found = await outcome(asked(), engine=engine, key=key)
        assert found.finished or len(found.tokens) == L
        assert found.report["blocks"] == math.ceil(len(found.tokens) / 2)
        assert found.stopped_by == "completed"
        assert not any(NARROW.ends(call.prefix) for call in engine.calls)
        blocks.append(found.report["blocks"])
    assert set(blocks) == {1, 2, 3}


async def test_a_single_candidate_is_a_draw_of_the_proposal() -> None:
    engine = Watching()
    found = await outcome(LookaheadRequest(alpha=2.5, candidates=1), engine=engine)
    assert len(engine.calls) == 1
    assert (found.usage.decoded, found.report["rollouts"]) == (len(found.tokens), 0)
    assert "rollouts" not in found.params


async def test_what_is_told_while_it_runs_is_never_taken_back() -> None:
    for key in seeds(1, 20):
        observed: list[tuple[Tokens, Mapping[str, Any]]] = []
        found = await outcome(asked(block_size=1), key=key, observed=observed)
        assert [len(tokens) for tokens, _ in observed] == list(range(1, len(found.tokens) + 1))
        assert all(found.tokens.ids[: len(tokens)] == tokens.ids for tokens, _ in observed)
        assert observed[-1][1] == {"block": found.report["blocks"], "tokens": len(found.tokens)}


async def test_what_it_reports() -> None:
    found = await outcome(asked())
    assert found.report.keys() == {
        *{"blocks", "candidates", "rollouts", "ess", "jackknife_clips", "log_target"}
    }
    assert len(found.report["ess"]) == found.report["blocks"]
    assert all(1.0 <= ess <= 3.0 + 1e-9 for ess in found.report["ess"])
    assert found.report["log_target"] == pytest.approx(2.5 * float(found.tokens.log_p.sum()))
    uneven = asked(proposal_temperature=1.0)
    clips = [(await outcome(uneven, key=key)).report["jackknife_clips"] for key in seeds(1, 60)]
    assert 0 < sum(clips) < 60


# --- limits -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [L, 20, 21, 40, 60])
async def test_a_budget_keeps_tokens_for_the_end(cap: int) -> None:
    """A block costs at most 18 here, then 12; 3 tokens stay for the end of an answer of 5."""
    for key in seeds(1, 40):
        found = await outcome(asked(), key=key, budget=Budget(cap))
        assert found.usage.decoded <= cap
        assert found.finished or len(found.tokens) == L
        assert found.report["blocks"] == 0 if cap < 21 else found.report["blocks"] >= 1
        assert found.stopped_by == ("max_total_tokens" if cap < 21 else found.stopped_by)


async def test_the_blocks_within_a_budget_are_those_without_one() -> None:
    for key in seeds(1, 20):
        whole = await outcome(asked(), key=key)
        found = await outcome(asked(), key=key, budget=Budget(21))
        kept = found.report["blocks"]
        assert found.report["ess"] == whole.report["ess"][:kept]
        assert found.tokens.ids[:2] == whole.tokens.ids[:2]


class Late(TabularEngine):
    """From some call on, calls that have a deadline end with their first token."""

    def __init__(self, right: int) -> None:
        super().__init__(NARROW)
        self._right = right

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._right -= 1
        whole = await super().generate(call)
        if self._right >= 0 or call.deadline is None or len(whole.tokens) == 1:
            return whole
        return Continuation(whole.tokens.first(1), False, cut_short=True, usage=Usage.of_call(1))


@pytest.mark.parametrize("right", [0, 2, 3, 5])
async def test_a_deadline_leaves_an_answer(right: int) -> None:
    """In the midst of candidates or rollouts: it goes on behind the first ones, which q drew."""
    late = 0
    for key in seeds(1, 20):
        found = await outcome(asked(), key=key, engine=Late(right), budget=Budget(10**6, None, 4e9))
        assert found.finished or len(found.tokens) == L
        late += found.stopped_by == "deadline_ms"
        if found.stopped_by == "deadline_ms":
            assert found.report["blocks"] == 0
            assert found.usage.wasted >= 2  # the other candidates' first tokens, at least
            assert found.usage.decoded - found.usage.wasted == len(found.tokens)
    assert late > 5


async def test_behind_its_deadline_it_draws_from_the_proposal() -> None:
    found = await outcome(asked(), budget=Budget(10**6, None, clock.now() - 1.0))
    assert (found.stopped_by, found.report["blocks"], found.usage.children) == ("deadline_ms", 0, 1)
    assert found.finished or len(found.tokens) == L


async def test_an_abort_leaves_the_blocks_that_were_chosen() -> None:
    with pytest.raises(ChainAbortedError):
        await outcome(asked(), engine=AbortedAfter(NARROW, 4))
    whole = await outcome(asked(), key=Key(2))
    assert whole.report["blocks"] > 1
    found = await outcome(asked(), key=Key(2), engine=AbortedAfter(NARROW, 9))
    assert (found.stopped_by, found.tokens.ids) == ("abort", whole.tokens.ids[:2])


# --- numbers that are none ----------------------------------------------------------------------------


class Broken(TabularEngine):
    """Rows behind the first few calls are no numbers."""

    def __init__(self, right: int) -> None:
        super().__init__(NARROW)
        self._right = right

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._right -= 1
        answer = await super().generate(call)
        if self._right >= 0:
            return answer
        rows = np.full_like(answer.tokens.rows, math.nan)
        return Continuation(
            Tokens.of(answer.tokens.ids, rows), answer.finished, answer.cut_short, answer.usage
        )


async def test_candidates_that_are_no_numbers_are_counted_and_never_chosen() -> None:
    found = await outcome(asked(block_size=L), engine=Broken(2))
    assert found.report["not_a_number"] == 1
    assert np.isfinite(found.tokens.log_p).all()


async def test_without_a_number_there_is_an_error_that_keeps_what_there_was() -> None:
    with pytest.raises(ParticlesDiedError, match="all 3 candidates of block 0") as caught:
        await outcome(asked(), engine=Broken(0))
    assert len(caught.value.partial) == 3
