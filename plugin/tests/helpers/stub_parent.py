"""A request whose children are scripted, and what they draw."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from letters import Letters
from sglang_power.answers import EXTRACTORS
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.request import parse_request
from sglang_power.rewards import NamedReward
from sglang_power.rewards.base import FunctionReward
from sglang_power.rng import Key
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.registry import served
from sglang_power.samplers.selecting import Selecting
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer import answer_run, tools
from sglang_power.sglang_host.tokenizer.answer_plan import AnswerPlan
from sglang_power.sglang_host.tokenizer.answer_run import AnswerRun
from sglang_power.sglang_host.tokenizer.children import Prompt
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.judge import Readout
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.types import Tokens, Usage

L = 6


MODEL = TabularModel.random(7, vocab=4, horizon=L, concentration=2.0)


PROMPT = Prompt([3, 4], {"cached_tokens": 0}, Usage.of_call(0, prefilled=2))


class Speller(Letters):
    """One token per letter; other characters are letter z."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [ord(letter) - 96 if letter.islower() else 26 for letter in text]


class StubManager:
    """What a parent reads of SGLang's TokenizerManager."""

    def __init__(self, **attributes: Any) -> None:
        vars(self).update(attributes)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


class StubParent(Parent):
    """A parent without a manager of SGLang; its children fail once it is aborted."""

    def __init__(self, *_: Any) -> None:
        manager = StubManager(
            tokenizer=Speller(),
            model_config=SimpleNamespace(hf_eos_token_id=[0]),
            incremental_streaming_output=False,
            server_args=SimpleNamespace(dp_size=1, weight_version="default"),
            context_len=500,
            num_reserved_tokens=0,
            max_req_input_len=494,
            enable_metrics=False,
        )
        obj: Any = SimpleNamespace(rid="r", text="p", sampling_params={"max_new_tokens": L}, background=False)
        obj.return_logprob = obj.return_prompt_token_ids = obj.log_metrics = False
        obj.routed_dp_rank = obj.custom_labels = None
        super().__init__(Host(manager, lambda *_: None, obj, None, ServerConfig()))
        self._state = SimpleNamespace(abort_sent=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def child(self, input_ids: list[int] | None, max_new_tokens: int, **_: Any) -> Any:
        return SimpleNamespace(input_ids=input_ids, sampling_params={"max_new_tokens": max_new_tokens})

    async def run(self, child: Any, *_: Any) -> dict[str, Any]:
        self.check_abort()
        raise AssertionError(child)


REWARD = NamedReward("r", FunctionReward("r", lambda *_: 1.0))


READOUT = Readout("equivalence", "llm", (1,), (2,), frozenset())


def plan_of(asked: dict[str, Any], chains: int = 1, reward: NamedReward = REWARD) -> AnswerPlan:
    found = served(parse_request(asked))
    assert found is not None
    return AnswerPlan(
        sampler=found.sampler,
        request=found.request,
        name=found.name,
        needs=found.needs,
        chains=chains,
        forced=None,
        extractor=None if asked.get("answer") == "continuation" else EXTRACTORS["text"],
        reasoning_end=None,
        max_horizon=None,
        neutralised=[],
        readout=None if found.needs.judge is None else READOUT,
        reward=reward if "reward" in asked else None,
    )


TOKENS = Tokens.of([1, 2], np.zeros((2, 7)))


def on_the_exact_model(monkeypatch: pytest.MonkeyPatch, engine: TabularEngine, parent: Parent) -> None:
    """Let the runs of a request take place there, in a slot that is always free."""

    async def prepared(_: Parent) -> Prompt:
        return PROMPT

    @asynccontextmanager
    async def place(*_: Any) -> AsyncIterator[None]:
        yield

    monkeypatch.setattr(answer_run, "ChildEngine", lambda *_, **__: engine)
    monkeypatch.setattr(tools, "ChildEngine", TabularEngine)
    monkeypatch.setattr(TabularEngine, "behind", lambda self, _: self, raising=False)
    monkeypatch.setattr(TabularEngine, "room", 100, raising=False)
    monkeypatch.setattr(answer_run, "Parent", lambda *_: parent)
    monkeypatch.setattr(answer_run, "prepare_prompt", prepared)
    monkeypatch.setattr(AnswerRun, "_place", place)


def run_of(parent: Parent, plan: AnswerPlan) -> AnswerRun:
    return AnswerRun(Host(parent.manager, lambda: None, parent.obj, None, ServerConfig()), plan)


async def selected(
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, Any],
    *,
    parent: Parent | None = None,
    engine: TabularEngine | None = None,
    deadline: float | None = None,
    reward: NamedReward = REWARD,
    key: Key = Key(3),  # noqa: B008  (frozen)
) -> Selection:
    """One selection on the exact language model, as its sampler finished it."""
    parent = StubParent() if parent is None else parent
    engine = TabularEngine(MODEL) if engine is None else engine
    on_the_exact_model(monkeypatch, engine, parent)
    finished: list[Selection] = []
    finish = Selecting.finished

    async def recorded(selecting: Selecting, selection: Selection) -> Selection:
        finished.append(await finish(selecting, selection))
        return finished[-1]

    monkeypatch.setattr(Selecting, "finished", recorded)
    plan = plan_of(asked, reward=reward)
    run = run_of(parent, plan)
    run._deadline = deadline
    prompts = await run._prompts()
    await plan.sampler.run(plan.request, run._tools(prompts, key, None, lambda *_: None))
    monkeypatch.setattr(Selecting, "finished", finish)
    return finished[-1]


DRAWN = {"sampler": "best_of", "samples": 4, "answer": "text"}
