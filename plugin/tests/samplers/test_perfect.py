"""The sampler `perfect` around its trials: budgets, deadlines, aborts, rewards, reports, bases of others.

Deterministic: fixed seeds on the exact language model, deadlines that have passed. Error rate 0, but where a
test says otherwise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import exact
import exact_tilt
import numpy as np
import pytest
from exact_tools import ExactTools
from naive_tree import model
from perfect_cases import SteppingEngine, answers, config_of, drawn
from selection_cases import LastDigit
from sglang_power import clock
from sglang_power.algorithms import perfect
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.engines.tabular import TabularEngine
from sglang_power.errors import ChainAbortedError, RequestError
from sglang_power.frontend.laws import exponent_of
from sglang_power.request import PerfectRequest, parse_request
from sglang_power.rng import Key
from sglang_power.samplers.base import Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.perfect import PerfectSampler
from sglang_power.samplers.registry import served
from sglang_power.samplers.report import answer_report
from sglang_power.samplers.trials import Trials
from sglang_power.types import Continuation, Usage

MODEL = exact.NARROW
L = MODEL.horizon
PAST = 1.0
"""A unix time."""


def tools(key: Key, engine: Any = None, **more: Any) -> ExactTools:
    return ExactTools(SteppingEngine(MODEL) if engine is None else engine, LastDigit(), key, L, **more)


def asked(**values: Any) -> PerfectRequest:
    request = parse_request({"sampler": "perfect", **values})
    assert isinstance(request, PerfectRequest)
    return request


async def run(seed: int, engine: Any = None, budget: Budget = exact.AMPLE, **values: Any) -> Outcome:
    more = {name: values.pop(name) for name in ("strict", "reward", "reward_bound") if name in values}
    request = asked(**values, **({"reward": "r"} if "reward" in more else {}))
    return await PerfectSampler().run(request, tools(Key(seed), engine, budget=budget, **more))


# --- an accepted trial ----------------------------------------------------------------------------------


async def test_the_answer_is_the_first_accepted_trial_and_the_report_says_which() -> None:
    for seed in range(20):
        outcome = await run(seed, alpha=1.3, width=4)
        (trials,) = await asyncio.to_thread(drawn, MODEL, config_of(MODEL, 1.3, 1), [Key(seed).split(0, 2)])
        assert trials.accepted is not None
        assert outcome.tokens.ids == trials.accepted.tokens.ids
        assert (outcome.law, outcome.stopped_by) == ("perfect", "completed")
        report = outcome.report
        assert report["accepted_trial"] == trials.accepted.index
        assert report["trials"] == trials.accepted.index + 1
        assert report["acceptance_rate"] == pytest.approx(1.0 / report["trials"])
        assert report["width"] == 4
        assert report["expected_trials"] >= 1.0
        assert report["log_target"] == pytest.approx(1.3 * outcome.tokens.log_p.sum())
        assert "fallback_reason" not in report
        assert outcome.params["max_new_tokens"] == L
        json_of = answer_report(
            "perfect", outcome, seed=seed, neutralised=[], prompt_usage=Usage(), weight_version=None
        )
        assert (json_of["law"], json_of["fallback_reason"]) == ("perfect", None)


async def test_what_was_decoded_behind_the_answer_is_waste_and_depth_is_that_of_the_critical_path() -> None:
    wasted = 0
    for seed in range(40):
        engine = SteppingEngine(MODEL)
        outcome = await run(seed, engine, alpha=1.3, width=8)
        usage, trials = outcome.usage, outcome.report["trials"]
        assert engine.running == 0
        assert engine.most <= 8
        assert usage.children == len(engine.calls) >= trials
        # Of cancelled calls only the pace is known, and it takes a turn or two until one is told.
        assert abs(engine.steps - usage.decoded) <= 2 * (usage.children - trials)
        wasted += usage.wasted
        assert usage.decoded - usage.wasted >= len(outcome.tokens)
        alone = [await decoded_by(Key(seed).split(0, 2), index) for index in range(trials)]
        if trials <= 8:
            assert usage.depth == 1 + max(alone), "one launch of trials side by side"
        else:
            assert 2 + max(alone) <= usage.depth <= sum(alone) + trials
    assert wasted > 0


async def decoded_by(key: Key, index: int) -> int:
    """Tokens of a trial on its own."""
    call = perfect.trial(config_of(MODEL, 1.3), key, index).call
    return (await TabularEngine(MODEL).generate(call)).usage.decoded


async def test_a_crowded_server_narrows_the_width_and_changes_no_draw() -> None:
    for seed in range(20):
        free, crowded = SteppingEngine(MODEL), SteppingEngine(MODEL, places=3)
        whole, narrow = [await run(seed, engine, alpha=1.3, width=8) for engine in (free, crowded)]
        assert (free.most, crowded.most) == (8, 3)
        assert narrow.tokens.ids == whole.tokens.ids
        assert narrow.report == whole.report


async def test_trials_begin_in_bunches() -> None:
    """Every launch stalls all rows of a server."""

    class Bunches(SteppingEngine):
        """Tells how many calls begin in one turn of the event loop."""

        def __init__(self) -> None:
            super().__init__(MODEL)
            self.sizes: list[int] = []
            self._open = 0

        async def generate(self, call: ContinuationCall) -> Continuation:
            self._open += 1
            if self._open == 1:
                asyncio.get_running_loop().call_soon(self._close)
            return await super().generate(call)

        def _close(self) -> None:
            self.sizes.append(self._open)
            self._open = 0

    engine = Bunches()
    with pytest.raises(RequestError):
        await run(1, engine, alpha=8.0, width=8, max_trials=200, strict=True)
    assert sum(engine.sizes) == 200
    assert engine.sizes[0] == 8
    assert min(engine.sizes[:-1]) >= 4


async def test_alpha_one_takes_its_first_trial() -> None:
    outcome = await run(3, alpha=1.0)
    assert (outcome.report["accepted_trial"], outcome.law) == (0, "perfect")


# --- no trial is accepted -------------------------------------------------------------------------------


async def test_after_all_trials_it_goes_on_as_power_and_says_so() -> None:
    outcome = await run(5, alpha=4.0, max_trials=3)
    assert outcome.law == "power"
    assert outcome.report["fallback_reason"] == "none of 3 trials was accepted"
    assert (outcome.report["trials"], outcome.report["accepted_trial"]) == (3, None)
    assert outcome.report["steps"] == asked().chain.steps
    assert outcome.params["max_trials"] == 3
    plain = await run(5, alpha=4.0, max_trials=1)
    assert plain.tokens.ids == outcome.tokens.ids, "the chain has random numbers of its own"


async def test_the_fallback_shares_no_random_number_with_the_trials() -> None:
    engine = SteppingEngine(MODEL)
    await run(5, engine, alpha=4.0, max_trials=30)
    seeds = [call.seed for call in engine.calls]
    assert len(set(seeds)) == len(seeds) > 30


async def test_strict_makes_an_error_of_the_fallback() -> None:
    with pytest.raises(RequestError, match="max_trials=3: none of 3 trials was accepted") as error:
        await run(5, alpha=4.0, max_trials=3, strict=True)
    assert (error.value.field, error.value.value) == ("max_trials", 3)
    accepted = await run(5, alpha=1.3, strict=True)
    assert accepted.law == "perfect"


@pytest.mark.parametrize(("tokens", "trials"), [(L, 0), (2 * L - 1, 0), (2 * L, 1), (5 * L, 4), (900 * L, 7)])
async def test_a_budget_of_tokens_is_a_number_of_trials_fixed_beforehand(tokens: int, trials: int) -> None:
    """With room left for the fallback's answer; never more tokens than the budget."""
    for seed in range(10):
        outcome = await run(seed, budget=Budget(tokens), alpha=4.0, max_trials=7, width=3)
        assert outcome.report["trials"] == trials
        assert outcome.usage.decoded <= tokens
        assert outcome.finished or len(outcome.tokens) == L
        said = f"{tokens} tokens are {trials} trials of up to {L}, none of which was accepted"
        expected = "none of 7 trials was accepted" if trials == 7 else said
        assert outcome.report["fallback_reason"] == expected


async def test_strict_needs_no_room_for_a_fallback() -> None:
    with pytest.raises(RequestError, match=f"max_total_tokens={L}: {L} tokens are 1 trials"):
        await run(2, budget=Budget(L), alpha=4.0, strict=True)


# --- deadlines and aborts -------------------------------------------------------------------------------


async def test_behind_the_deadline_a_plain_draw_of_the_proposal_is_approximate() -> None:
    outcome = await run(1, budget=Budget(10**6, deadline=PAST), alpha=4.0)
    assert (outcome.law, outcome.stopped_by) == ("approximate", "deadline_ms")
    assert outcome.finished or len(outcome.tokens) == L
    assert (outcome.usage.children, outcome.report["trials"]) == (1, 0)


class Late(SteppingEngine):
    """Ends calls at the deadline: all of them behind `tokens` tokens, but for those of some seeds.

    Args:
        whole: indices of calls that are brought to their end.
        tokens: of the others.
    """

    def __init__(self, whole: set[int], tokens: int = 1) -> None:
        super().__init__(MODEL)
        self._whole, self._tokens, self._count = whole, tokens, 0

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._count += 1
        if call.deadline is None or self._count - 1 in self._whole:
            return await super().generate(call)
        part = await TabularEngine(MODEL).generate(call)
        short = part.tokens.first(self._tokens)
        await asyncio.sleep(0)
        ends = part.finished and len(short) == len(part.tokens)
        cut = not ends and (part.cut_short or len(short) < len(part.tokens))
        return Continuation(short, ends, cut, Usage.of_call(len(short)))


class Passing(Trials):
    """Trials whose deadline passes with the first of their calls."""

    def _expired(self) -> bool:
        return bool(self._weights) or bool(self._running)


async def late_trials(whole: set[int], key: Key) -> Trials:
    config = config_of(MODEL, 1.3, width=6, max_trials=60)
    trials = Passing(Late(whole), config, key, deadline=clock.now() + 1e6)
    await trials.run(range(6))
    return trials


async def test_an_accepted_trial_behind_an_undecided_one_is_not_known_to_be_the_answer() -> None:
    seen = {True: 0, False: 0}
    for seed in range(60):
        (reference,) = await asyncio.to_thread(drawn, MODEL, config_of(MODEL, 1.3, 1), [Key(seed)])
        assert reference.accepted is not None
        trials = await late_trials({1, 2, 3, 4, 5}, Key(seed))
        if trials.accepted is None:
            continue
        assert trials.late or trials.accepted.index == reference.accepted.index
        seen[trials.late] += 1
    assert min(seen.values()) > 3


async def test_undecided_trials_are_preferred_by_their_weight_and_brought_to_their_end() -> None:
    ended = 0
    for seed in range(20):
        trials = await late_trials(set(), Key(seed))
        best = trials.best
        if not trials.late or trials.accepted is not None or best is None:
            continue
        assert best.verdict == "undecided"
        ids, finished = await trials.completed()
        assert ids.ids[: len(best.tokens)] == best.tokens.ids
        assert finished or len(ids) == L
        assert trials.usage.wasted == len(trials._undecided) - 1
        ended += 1
    assert ended > 5


class Aborted(SteppingEngine):
    """Aborts every call behind the first ones."""

    def __init__(self, after: int) -> None:
        super().__init__(MODEL)
        self._left = after

    async def generate(self, call: ContinuationCall) -> Continuation:
        self._left -= 1
        if self._left < 0:
            raise ChainAbortedError("aborted")
        return await super().generate(call)


async def test_an_abort_leaves_what_there_was() -> None:
    with pytest.raises(ChainAbortedError):
        await run(1, Aborted(0), alpha=4.0, width=4)
    engine = Aborted(6)
    outcome = await run(1, engine, alpha=4.0, width=4)
    assert (outcome.law, outcome.stopped_by) == ("approximate", "abort")
    assert len(outcome.tokens) >= 1
    assert engine.running == 0


async def test_a_cancelled_draw_leaves_no_call_running() -> None:
    engine = SteppingEngine(MODEL)
    task = asyncio.ensure_future(run(1, engine, alpha=4.0, width=4))
    for _ in range(20):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.running == 0


# --- rewards --------------------------------------------------------------------------------------------


class Scored:
    """The reward of `exact_tilt`, of which it knows the bound; fails from some call on."""

    def __init__(self, until: int = 10**9) -> None:
        self._left = until

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        self._left -= 1
        return None if self._left < 0 else await exact_tilt.scored(ids, finished)

    def report(self) -> dict[str, Any]:
        return {"name": "r"}


async def test_a_bounded_reward_tilts_the_law() -> None:
    """A G-test with fixed seeds; for fresh ones it would fail with probability 1e-3."""
    config = exact_tilt.tilted(exact.make_config(MODEL, alpha=1.2), weight=1.0)
    outcomes = [
        await run(
            seed,
            alpha=1.2,
            reward_weight=1.0,
            reward=Scored(),
            reward_bound=exact_tilt.UPPER_BOUND,
        )
        for seed in range(250)
    ]
    target, untilted = exact_tilt.target(MODEL, config), exact.target(MODEL, config)
    returned = [outcome.tokens.ids for outcome in outcomes]
    assert {outcome.law for outcome in outcomes} == {"perfect"}
    assert exact.g_test(returned, target) > 1e-3
    assert exact.g_test(returned, untilted) < 1e-6
    report = outcomes[0].report["reward"]
    value = exact_tilt.reward(returned[0])
    assert report == {"name": "r", "weight": 1.0, "value": value, "dropped": False}


async def test_a_reward_that_is_given_up_makes_the_law_approximate() -> None:
    bound = exact_tilt.UPPER_BOUND
    outcome = await run(2, alpha=1.2, reward=Scored(until=0), reward_bound=bound)
    assert (outcome.law, outcome.report["reward"]["dropped"]) == ("approximate", True)
    assert outcome.report["log_target"] is None


# --- what goes by the law -------------------------------------------------------------------------------


async def test_perfect_draws_weigh_one_in_a_vote_at_the_same_alpha() -> None:
    """So do its fallbacks, whose law is power."""
    table, weights = model(1), {}
    for sampler in ("perfect", "power"):
        base = {"sampler": sampler, "alpha": 1.5, **({"max_trials": 4} if sampler == "perfect" else {})}
        if sampler == "power":
            base["method"] = "auto"
        request = parse_request({"sampler": "vote", "weight": "power", "alpha": 1.5, "base": base})
        found = served(request)
        assert found is not None
        engine = TabularEngine(table)
        outcome = await found.sampler.run(request, ExactTools(engine, LastDigit(), Key(4), table.horizon))
        assert outcome.report["ess"] == pytest.approx(8.0)
        weights[sampler] = outcome.report["classes"]
    assert weights["perfect"]


async def test_a_strict_vote_fails_with_a_sample_that_would_fall_back() -> None:
    base = {"sampler": "perfect", "alpha": 4.0, "max_trials": 1}
    request = parse_request({"sampler": "vote", "base": base})
    found = served(request)
    assert found is not None
    with pytest.raises(RequestError, match="max_trials=1"):
        await found.sampler.run(request, tools(Key(2), strict=True))


def test_segments_of_programs_have_the_power_exponent() -> None:
    params = {"params": {"alpha": 4.0}}
    for sampler in ("perfect", "power"):
        for law, exponent in (("perfect", 4.0), ("power", 4.0), ("approximate", None)):
            assert exponent_of({"sampler": sampler, "law": law, **params}, {}) == exponent
    assert exponent_of({"sampler": "perfect", "law": "perfect", "reward": {}, **params}, {}) is None


async def test_early_ends_are_checked_where_an_operator_asks() -> None:
    outcome = await PerfectSampler().run(asked(alpha=1.3), tools(Key(8), checks_rejections=True))
    plain = await run(8, alpha=1.3)
    assert outcome.tokens.ids == plain.tokens.ids
    checked = [
        (await PerfectSampler().run(asked(alpha=1.6), tools(Key(seed), checks_rejections=True))).report
        for seed in range(20)
    ]
    shadows = [report["shadow"] for report in checked if "shadow" in report]
    assert sum(shadow["resumed"] for shadow in shadows) > 20
    assert {shadow["violations"] for shadow in shadows} == {0}


async def test_the_observer_is_told_of_trials() -> None:
    told: list[Any] = []
    await PerfectSampler().run(
        asked(alpha=1.6), tools(Key(8), observer=lambda tokens, progress: told.append((tokens, progress)))
    )
    assert told
    assert all(not len(tokens) and progress["trials"] >= 1 for tokens, progress in told)


def test_answers_of_different_seeds_are_independent() -> None:
    """Successive answers repeat as often as the law says: a chain's would repeat more. Fixed seeds."""
    returned = answers(drawn(MODEL, config_of(MODEL, 1.3), exact.seeds(7_000, 400)))
    target = exact.target(MODEL, exact.make_config(MODEL, alpha=1.3))
    expected = sum(mass * mass for mass in target.values())
    repeated = np.mean([one == other for one, other in zip(returned[::2], returned[1::2], strict=True)])
    assert abs(repeated - expected) < 4.0 * (expected / 200) ** 0.5
