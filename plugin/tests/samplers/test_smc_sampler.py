"""The sampler `smc` on the exact language model: its law, what runs together, budgets, aborts, reports.

Laws of runs are enumerated in tests/algorithms/test_smc.py; here the running code is sampled. Seeds are
fixed, so a rerun repeats its outcome. With fresh ones a right sampler would fail a G-test here with
probability 1e-3, and the test of a mean with 1e-5.
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
from exact_smc import masses
from exact_tools import ExactTools
from selection_cases import AbortedAfter, LastDigit
from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import ChainAbortedError, ParticlesDiedError
from sglang_power.request import SmcRequest
from sglang_power.rng import Key
from sglang_power.samplers.base import Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.particle_report import runs_hint
from sglang_power.samplers.particles import ParticleRuns, RunsResult
from sglang_power.samplers.smc import SmcSampler
from sglang_power.types import Continuation, Tokens

KEPT, REJECTED = 1e-3, 1e-6
AMPLE = Budget(10**9)
L = NARROW.horizon
BASE: dict[str, Any] = {"alpha": 2.5, "particles": 4, "block_size": 2}


def asked(**changes: Any) -> SmcRequest:
    return SmcRequest(**{**BASE, **changes})


async def outcome(
    request: SmcRequest,
    *,
    key: Key = Key(1),  # noqa: B008  (frozen)
    engine: TabularEngine | None = None,
    budget: Budget = AMPLE,
    observed: list[tuple[Tokens, Mapping[str, Any]]] | None = None,
) -> Outcome:
    engine = TabularEngine(NARROW) if engine is None else engine
    draft = None if request.initial_ids is None else tuple(request.initial_ids)
    observer = None if observed is None else lambda tokens, told: observed.append((tokens, told))
    tools = ExactTools(
        engine, LastDigit(), key, engine.model.horizon, budget, forced=draft, observer=observer
    )
    found = await SmcSampler().run(request, tools)
    json.dumps({**found.headline, **found.report, **found.params}, allow_nan=False)
    return found


async def ran(request: SmcRequest, key: Key, model: TabularModel = NARROW) -> RunsResult:
    config = request.smc_config(model.horizon)
    return await ParticleRuns(TabularEngine(model), config, key, AMPLE, runs=request.runs).run()


# --- law ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"resampling": "chopthin", "proposal_temperature": 1.0},
        {"ramp": 3, "proposal_temperature": 0.7, "block_size": 1, "ess_threshold": 0.9},
    ],
    ids=str,
)
async def test_the_mean_of_the_estimates_is_the_normaliser(changes: dict[str, Any]) -> None:
    request = asked(runs=400, **changes)
    found = await ran(request, Key(7))
    whole = math.fsum(masses(NARROW, request.smc_config(L)).values())
    ratio = np.exp(np.array(found.log_z)) / whole
    error = float(ratio.std(ddof=1)) / math.sqrt(len(ratio))
    print(f"E[Zhat]/Z {ratio.mean():.4f} +- {error:.4f}, sd of log Zhat {np.std(found.log_z):.2f}")
    assert abs(float(ratio.mean()) - 1.0) < 4.4 * error


ANSWERS = 300
SHARP: dict[str, Any] = {"alpha": 4.0, "particles": 3, "proposal_temperature": 1.0, "ramp": 2}


@pytest.mark.parametrize(("runs", "kept"), [(1, False), (12, True)])
async def test_answers_follow_the_power_law_after_enough_runs(runs: int, kept: bool) -> None:
    """One run of three particles is a control: its bias is seen at the same sample size."""
    request = asked(**SHARP, runs=runs)
    pi = normalised(masses(NARROW, request.smc_config(L)))
    found = [await outcome(request, key=key) for key in seeds(50, ANSWERS)]
    assert {one.law for one in found} == {"power" if runs > 1 else "approximate"}
    p = g_test([one.tokens.ids for one in found], pi)
    print("p", p)
    assert (p > KEPT) if kept else (p < REJECTED)


async def test_drafts_from_the_target_stay_in_it() -> None:
    """One conditional run from an exact draw."""
    flat = {"alpha": 1.6, "proposal_temperature": 1.0, "ramp": 2, "block_size": 1, "ess_threshold": 0.9}
    request = asked(**flat)
    pi = normalised(masses(NARROW, request.smc_config(L)))
    drawn = np.random.default_rng(5).choice(len(pi), size=ANSWERS, p=list(pi.values()))
    drafts = [list(pi)[i] for i in drawn]
    found = [
        await outcome(asked(**flat, initial_ids=list(draft)), key=key)
        for draft, key in zip(drafts, seeds(9, ANSWERS), strict=True)
    ]
    assert {one.law for one in found} == {"power"}
    assert {one.params["resampling"] for one in found} == {"multinomial"}
    moved = sum(one.tokens.ids != draft for one, draft in zip(found, drafts, strict=True))
    print("moved", moved / ANSWERS)
    assert moved > ANSWERS / 5
    assert g_test([one.tokens.ids for one in found], pi) > KEPT
    assert g_test(drafts, pi) > KEPT


async def test_an_unfinished_draft_is_brought_to_its_end_first() -> None:
    found = await outcome(asked(initial_ids=[1, 2]), key=Key(4))
    assert found.finished or len(found.tokens) == L


# --- calls --------------------------------------------------------------------------------------------


class Watching(TabularEngine):
    """Counts calls, those that run at once, and the most tokens of a call behind each length."""

    def __init__(self, model: TabularModel = NARROW, *, disorder: bool = False) -> None:
        super().__init__(model)
        self.calls: list[ContinuationCall] = []
        self.running = self.most = 0
        self.longest: dict[int, int] = {}
        self._disorder = disorder

    async def generate(self, call: ContinuationCall) -> Continuation:
        self.calls.append(call)
        self.running += 1
        self.most = max(self.most, self.running)
        for _ in range(call.seed % 7 if self._disorder else 1):
            await asyncio.sleep(0)
        self.running -= 1
        answer = await super().generate(call)
        start = len(call.prefix)
        self.longest[start] = max(self.longest.get(start, 0), len(answer.tokens))
        return answer


async def test_all_particles_of_all_runs_of_a_block_start_at_once() -> None:
    engine = Watching()
    found = await outcome(asked(runs=3), engine=engine)
    assert engine.most == 12
    assert [call.prefix for call in engine.calls[:12]] == [()] * 12
    assert len({call.seed for call in engine.calls}) == len(engine.calls) == found.usage.children
    blocks = engine.longest.values()
    assert len(blocks) == math.ceil(L / 2)
    assert found.usage.depth == len(blocks) + sum(blocks) < found.usage.decoded


async def test_what_has_ended_is_not_started_again() -> None:
    engine = Watching()
    await outcome(asked(runs=3, block_size=1), engine=engine)
    assert not any(NARROW.ends(call.prefix) for call in engine.calls)
    assert max(len(call.prefix) for call in engine.calls) == L - 1


async def test_the_order_of_the_engines_answers_has_no_part() -> None:
    ordered = await outcome(asked(runs=3), engine=Watching())
    shuffled = await outcome(asked(runs=3), engine=Watching(disorder=True))
    assert (shuffled.tokens.ids, shuffled.report) == (ordered.tokens.ids, ordered.report)


async def test_choices_of_one_request_differ() -> None:
    first, second = [await outcome(asked(runs=2), key=Key(3, chain)) for chain in (0, 1)]
    assert first.report["log_z"] != second.report["log_z"]


# --- results ------------------------------------------------------------------------------------------


async def test_the_likeliest_particle() -> None:
    request = asked(runs=3, result="argmax")
    found, states = await outcome(request, key=Key(6)), (await ran(request, Key(6))).states
    assert found.law == "approximate"
    assert found.report["log_target"] == pytest.approx(
        2.5 * max(particle.log_p for state in states for particle in state.particles)
    )


async def test_a_vote_weighs_particles_by_weight_and_runs_by_their_estimate() -> None:
    request = asked(runs=3, result="vote", answer="text")
    found, result = await outcome(request, key=Key(6)), await ran(request, Key(6))
    assert found.law == "approximate"
    weights: dict[str, float] = {}
    for state in result.states:
        for particle in state.particles:
            if len(particle.tokens) > particle.finished:
                name = str(particle.tokens.ids[-2 if particle.finished else -1])
                log_weight = state.log_z - state.log_after + particle.log_weight(2.5)
                weights[name] = weights.get(name, 0.0) + math.exp(log_weight)
    whole = math.fsum(weights.values())
    told = {one["representative"]: one["weight"] for one in found.report["classes"] if one["representative"]}
    assert told == pytest.approx({name: weight / whole for name, weight in weights.items()})
    chosen = found.report["paths"][found.report["chosen"]["index"]]
    assert chosen["answer"] == max(told, key=lambda name: float(told[name]))
    assert len({path["text"] for path in found.report["paths"]}) == len(found.report["paths"])


async def test_a_vote_may_have_a_tree() -> None:
    found = await outcome(asked(result="vote", answer="text", return_tree=True))
    assert len(found.report["tree"]["leaves"]) == len(found.report["paths"])


async def test_what_is_told_while_it_runs_is_never_taken_back() -> None:
    shared = 0
    for key in seeds(1, 30):
        observed: list[tuple[Tokens, Mapping[str, Any]]] = []
        found = await outcome(asked(block_size=1, ess_threshold=1.0), key=key, observed=observed)
        for tokens, _ in observed:
            assert found.tokens.ids[: len(tokens)] == tokens.ids
        lengths = [len(tokens) for tokens, _ in observed]
        assert lengths == sorted(lengths)
        shared += sum(lengths[:-1])
    assert shared > 0


async def test_with_several_runs_nothing_is_certain_before_the_end() -> None:
    observed: list[tuple[Tokens, Mapping[str, Any]]] = []
    await outcome(asked(runs=2), observed=observed)
    assert {len(tokens) for tokens, _ in observed} == {0}
    assert observed[-1][1]["runs"] == 2


# --- limits -------------------------------------------------------------------------------------------


async def test_tokens_say_beforehand_how_many_runs_there_are() -> None:
    found = await outcome(asked(runs=5), budget=Budget(3 * 4 * L - 1))
    assert (found.report["runs"], found.stopped_by, found.law) == (2, "max_total_tokens", "approximate")
    whole = await outcome(asked(runs=5), budget=Budget(5 * 4 * L))
    assert (whole.report["runs"], whole.stopped_by, whole.law) == (5, "completed", "power")
    assert whole.report["log_z"][:2] == found.report["log_z"]
    assert whole.usage.decoded <= 5 * 4 * L


@pytest.mark.parametrize("result", ["sample", "argmax", "vote"])
async def test_a_deadline_leaves_an_answer(result: Any) -> None:
    reading = {"answer": "text"} if result == "vote" else {}
    request = asked(block_size=3, runs=2, result=result, **reading)
    found = await outcome(request, budget=Budget(10**6, None, clock.now() - 1.0))
    assert (found.stopped_by, found.law) == ("deadline_ms", "approximate")
    assert len(found.tokens) >= 1
    if result != "vote":
        assert found.finished or len(found.tokens) == L
        assert found.report["acceptance_rate"] is None


async def test_behind_its_deadline_a_draft_is_the_answer() -> None:
    request = asked(initial_ids=[1, 2, 1, 1, 0])
    found = await outcome(request, budget=Budget(10**6, None, clock.now() - 1.0))
    assert found.tokens.ids == (1, 2, 1, 1, 0)
    assert found.law == "approximate"


async def test_an_abort_leaves_what_there_is() -> None:
    found = await outcome(asked(runs=2), engine=AbortedAfter(NARROW, 8))
    assert (found.stopped_by, found.law) == ("abort", "approximate")
    assert 1 <= len(found.tokens) <= 2
    for result in ("sample", "vote"):
        request = asked(result=result, **({"answer": "text"} if result == "vote" else {}))
        with pytest.raises(ChainAbortedError):
            await outcome(request, engine=AbortedAfter(NARROW, 2))


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


async def test_dead_particles_are_counted_and_never_the_answer() -> None:
    found = await outcome(asked(block_size=L), engine=Broken(2))
    assert found.report["not_a_number"] == 2
    assert np.isfinite(found.tokens.log_p).all()


async def test_a_run_whose_particles_are_all_dead_is_never_accepted() -> None:
    found = await outcome(asked(block_size=L, runs=2), engine=Broken(4))
    assert found.report["log_z"][1] is None
    assert found.report["accepted"] == 0


async def test_without_a_living_particle_there_is_an_error_that_keeps_what_there_was() -> None:
    with pytest.raises(ParticlesDiedError, match=r"all 8 particles of 2 run\(s\)") as caught:
        await outcome(asked(block_size=1, runs=2, ess_threshold=0.01), engine=Broken(8))
    assert len(caught.value.partial) == 8
    assert max(map(len, caught.value.partial)) == 2


# --- hints --------------------------------------------------------------------------------------------

STEEP = random_model(44, vocab=4, horizon=6, concentration=0.4)


async def hinted(**changes: Any) -> float:
    """Share of answers with a hint."""
    request = SmcRequest(alpha=8.0, proposal_temperature=1.0, runs=8, **changes)
    return float(np.mean([runs_hint(await ran(request, key, STEEP)) is not None for key in seeds(1, 30)]))


async def test_runs_that_are_rejected_throughout_give_a_hint() -> None:
    """Where estimates differ most, one of the first 2 runs is the best of 8 in a quarter of cases."""
    few, many = await hinted(particles=1), await hinted(particles=24, block_size=2)
    print(few, many)
    assert 0.1 < few < 0.5
    assert many == 0.0


def result_of(log_z: list[float], current: tuple[int, ...]) -> RunsResult:
    return RunsResult((), tuple(log_z), current, current[-1], "completed")


@pytest.mark.parametrize(
    ("log_z", "current", "hint"),
    [
        ([0.0, -3.0, -5.0], (0,), False),  # too few
        ([0.0, -3.0, -5.0, -9.0], (0,), True),
        ([0.0, 1.0, -5.0, -9.0], (0, 1), False),
        ([0.0, 1.0, -5.0, -9.0, -3.0, -8.0], (0, 1), True),
        ([0.0, -0.1, -0.2, -0.3], (0,), False),  # chance
    ],
)
def test_when_there_is_a_hint(log_z: list[float], current: tuple[int, ...], hint: bool) -> None:
    told = runs_hint(result_of(log_z, current))
    assert (told is not None) == hint
    if told is not None:
        assert f"no run after run {current[-1] + 1} of {len(log_z)}" in told
