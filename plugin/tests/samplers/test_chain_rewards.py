"""A chain with a reward: when it asks, what a deadline, an abort and a failure do, and what is reported.

Deterministic: fixed seeds on a tabular model. Error rate 0; no timing is asserted.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import exact
import exact_tilt
import pytest
from exact_tools import power_report
from sglang_power import clock
from sglang_power.algorithms.mh import MHConfig
from sglang_power.engines.tabular import Prefix
from sglang_power.errors import ChainAbortedError, RewardError
from sglang_power.request import parse_power
from sglang_power.rewards import NamedReward
from sglang_power.rewards.base import FunctionReward
from sglang_power.rng import Key
from sglang_power.samplers import chain_report
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import ChainResult, StateReward
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer.children import Prompt
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.scoring import AnswerScorer
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import ProposalLaw, Usage
from stub_parent import StubManager

LONG = exact.random_model(3, vocab=5, horizon=12, stop_share=0.3)
PLAIN = exact.make_config(LONG, law=ProposalLaw(1.0), block_size=4, steps=4)
CONFIG = exact_tilt.tilted(PLAIN, upper_bound=None)
SEEDS = range(8)


class Asked:
    """The reward of the law tests; remembers what it was asked, and misbehaves at one call."""

    def __init__(self, at: int | None = None, *, how: str = "without") -> None:
        self.answers: list[Prefix] = []
        self._at, self._how = at, how

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        self.answers.append(tuple(ids))
        if len(self.answers) - 1 != self._at:
            return await exact_tilt.scored(ids, finished)
        if self._how == "fail":
            raise RewardError("r", "gone", "Wait")
        if self._how == "hang":
            await asyncio.Event().wait()
        return None


def run(
    reward: StateReward | None, seed: int, config: MHConfig = CONFIG, budget: Budget = exact.AMPLE
) -> ChainResult:
    return exact.run_chains(LONG, config, [Key(seed)], reward=reward, budget=budget)[0]


def test_only_whole_answers_of_the_last_stage_are_scored_each_once() -> None:
    for seed in SEEDS:
        asked = Asked()
        result = run(asked, seed)
        last = [info for info in result.infos if info.stage == CONFIG.stages]
        assert len(asked.answers) == 1 + len(last) == 5
        assert all(ids[-1] == 0 or len(ids) == LONG.horizon for ids in asked.answers)
        assert result.state.reward == exact_tilt.reward(result.state.tokens.ids)
        assert result.state.untilted_at is None


def test_infos_hold_both_terms_in_the_last_stage_and_zeros_before() -> None:
    assert CONFIG.tilt is not None
    asked = Asked()
    result = run(asked, 3)
    rewards = [exact_tilt.reward(ids) for ids in asked.answers]
    current, proposed = rewards[0], iter(rewards[1:])
    for info in result.infos:
        terms = info.terms
        if info.stage < CONFIG.stages:
            assert (terms.log_tilt_proposal, terms.log_tilt_current) == (0.0, 0.0)
            continue
        value = next(proposed)
        assert terms.log_tilt_proposal == CONFIG.tilt.weight * value
        assert terms.log_tilt_current == CONFIG.tilt.weight * current
        traced = chain_report.traced(info, CONFIG, str)
        assert (traced["log_tilt_proposal"], traced["log_tilt_current"]) == (
            terms.log_tilt_proposal,
            terms.log_tilt_current,
        )
        current = value if info.accepted else current


def test_a_weight_of_zero_is_the_chain_without_the_reward() -> None:
    for seed in SEEDS:
        tilted = run(exact_tilt.scored, seed, exact_tilt.tilted(PLAIN, weight=0.0))
        assert tilted.state.tokens.ids == run(None, seed, PLAIN).state.tokens.ids


# --- failures -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("at", [0, 2])
def test_a_failure_under_the_policy_fail_ends_the_run(at: int) -> None:
    with pytest.raises(RewardError, match="gone"):
        run(Asked(at, how="fail"), 1)


@pytest.mark.parametrize("at", [0, 1, 3])
def test_without_the_run_goes_on_by_the_power_law_alone(at: int) -> None:
    for seed in SEEDS:
        asked = Asked(at)
        result = run(asked, seed)
        assert len(asked.answers) == at + 1, "a reward that was given up is not asked again"
        assert result.stopped_by == "completed"
        last = [info for info in result.infos if info.stage == CONFIG.stages]
        assert len(last) == CONFIG.steps
        for number, info in enumerate(last):
            tilted = (info.terms.log_tilt_proposal, info.terms.log_tilt_current) != (0.0, 0.0)
            assert tilted == (number + 1 < at)
        assert result.state.untilted_at == last[max(at - 1, 0)].step
        assert chain_report.chain_law(CONFIG, result) == "approximate"
        assert chain_report.chain_law(CONFIG, run(Asked(), seed)) == "power"


def test_without_leaves_early_rejection_as_it_was() -> None:
    unbounded = dataclasses.replace(CONFIG, early_rejection=True)
    bounded = dataclasses.replace(exact_tilt.tilted(PLAIN), early_rejection=True)
    assert not unbounded.rejects_early
    assert bounded.rejects_early
    assert sum(info.early_rejected for seed in SEEDS for info in run(Asked(1), seed, unbounded).infos) == 0
    assert sum(info.early_rejected for seed in SEEDS for info in run(Asked(1), seed, bounded).infos) > 0


@pytest.mark.parametrize("at", [0, 1, 3])
def test_a_deadline_during_a_call_keeps_the_answer(at: int) -> None:
    whole = run(Asked(), 2)
    result = run(Asked(at, how="hang"), 2, budget=Budget(10_000, deadline=clock.now() + 2.0))
    assert result.stopped_by == "deadline_ms"
    last = [info for info in result.infos if info.stage == CONFIG.stages]
    assert len(last) == max(at - 1, 0)
    assert [info.accepted for info in result.infos] == [i.accepted for i in whole.infos[: len(result.infos)]]
    known = exact_tilt.reward(result.state.tokens.ids)
    assert result.state.reward == (None if at == 0 else known)
    assert (result.usage.wasted > 0) == (at > 0), "the proposal that could not be decided"


def test_a_run_that_ends_before_the_last_stage_tells_the_value_of_its_answer() -> None:
    result = run(Asked(), 1, budget=Budget(10_000, max_steps=2))
    assert result.last_stage_steps == 0
    assert result.state.reward == exact_tilt.reward(result.state.tokens.ids)


def test_the_report_tells_the_value_and_the_tilted_target() -> None:
    request = parse_power({"alpha": exact.ALPHA, "reward": "r", "reward_weight": exact_tilt.WEIGHT})
    calls = {"name": "r", "calls": 5, "failed": 0, "reason": None}

    def told(result: ChainResult) -> dict[str, Any]:
        return power_report(request, CONFIG, result, str, calls)

    result = run(Asked(), 1)
    full, value = told(result), result.state.reward
    assert value is not None
    assert full["reward"] == {**calls, "weight": exact_tilt.WEIGHT, "value": value, "dropped_at_step": None}
    assert full["log_target"] == pytest.approx(exact.ALPHA * full["log_p"] + exact_tilt.WEIGHT * value)
    assert full["params"]["reward"] == "r"
    assert full["params"]["early_rejection"] is False

    dropped = told(run(Asked(0), 1))
    assert dropped["reward"]["dropped_at_step"] is not None
    assert dropped["log_target"] == pytest.approx(exact.ALPHA * dropped["log_p"])
    assert (
        told(dataclasses.replace(result, state=dataclasses.replace(result.state, reward=None)))["log_target"]
        is None
    )


@pytest.mark.parametrize(
    ("fields", "bound", "early"),
    [
        ({}, 1.0, True),
        ({}, None, False),
        ({"reward_weight": -1.0}, 1.0, False),
        ({"reward_weight": 0}, 1.0, True),
    ],
)
def test_the_echo_says_whether_early_rejection_is_on(
    fields: dict[str, Any], bound: float | None, early: bool
) -> None:
    request = parse_power({"reward": "r", **fields})
    assert request.echo(8, bound)["early_rejection"] is early
    assert request.echo(8, bound)["reward_weight"] == fields.get("reward_weight", 1.0)
    assert parse_power({}).echo(8)["reward_weight"] is None


# --- on the host --------------------------------------------------------------------------------------


class Letters:
    """A tokenizer with one token per letter; token 0 ends."""

    eos_token_id = 0

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) - 96 for letter in text]

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join("$" if i == 0 else chr(96 + i) for i in ids)


def parent_of(text: str | None, params: dict[str, Any]) -> Parent:
    manager = StubManager(tokenizer=Letters(), model_config=SimpleNamespace(hf_eos_token_id=[0]))
    obj = SimpleNamespace(rid="x", text=text, sampling_params=params, background=False)
    parent = Parent(Host(manager, lambda *_: None, obj, None, ServerConfig()))
    parent._state = SimpleNamespace(abort_sent=False)
    return parent


def scorer_of(parent: Parent, function: Any) -> AnswerScorer:
    stop, text = StopRule.of(parent.manager, parent.params), TextRule.of(parent.manager, parent.params)
    prompt = Prompt([3, 4], {}, Usage())
    return AnswerScorer(parent, prompt, stop, text, NamedReward("r", FunctionReward("r", function)))


@pytest.mark.parametrize(("sent", "prompt"), [("as sent", "as sent"), (None, "cd")])
async def test_the_reward_reads_what_the_client_reads(sent: str | None, prompt: str) -> None:
    seen: list[tuple[str, str]] = []

    def function(prompt: str, answer: str) -> float:
        seen.append((prompt, answer))
        return 1.0

    scorer = scorer_of(parent_of(sent, {"stop": ["yz"]}), function)
    for ids, finished in [((1, 2, 0), True), ((1, 25, 26), True), ((1, 2), False)]:
        assert await scorer(ids, finished) == 1.0
    assert seen == [(prompt, "ab"), (prompt, "a")], "the last text is that of the first answer"
    assert scorer.report()["calls"] == 2


async def test_an_abort_ends_the_call() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def stuck(*_: str) -> float:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return 0.0

    parent = parent_of("p", {})
    call = asyncio.create_task(scorer_of(parent, stuck)((1,), False))
    await started.wait()
    parent.abort()
    with pytest.raises(ChainAbortedError):
        await call
    assert ended.is_set()
