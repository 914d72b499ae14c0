"""Every chain is counted once, whatever ends it: abort, a client that leaves, a refusal, an error.

SGLang's generate_request is a stub; the counters are recorded in place of Prometheus. Error rate 0.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import HTTPException
from sglang_power.errors import ChainAbortedError, HostError, RequestError, RewardError
from sglang_power.policies.top_n_sigma import TopNSigma
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.server import metrics
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.tokenizer.clients import GONE
from sglang_power.sglang_host.tokenizer.endings import ending_of, endings_counted, endings_told
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.plan import PolicyPlan
from sglang_power.sglang_host.tokenizer.policy_run import PolicyRun
from stub_parent import StubManager

LEFT = ValueError(f"Request r {GONE} (type 1)")


class Recorder:
    """Stands for the Prometheus counters: (metric, labels) -> count."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()

    def __getattr__(self, name: str) -> Any:
        def labels(*values: str) -> Any:
            def inc(by: float = 1) -> None:
                self.counts[(name, *values)] += int(by)

            return SimpleNamespace(inc=inc, observe=lambda _: None)

        return SimpleNamespace(labels=labels)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    recorder = Recorder()
    monkeypatch.setattr(metrics, "_metrics", lambda: recorder)
    return recorder.counts


@pytest.mark.parametrize(
    ("error", "ending"),
    [
        (ChainAbortedError("request r was aborted"), "abort"),
        (LEFT, "disconnect"),
        (asyncio.CancelledError(), "disconnect"),
        (GeneratorExit(), "disconnect"),
        (RequestError("max_new_tokens", 9, "too large", "Ask for less"), "refused"),
        (ValueError("The input is longer than the context"), "refused"),
        (RewardError("gone", "no score", "Try again"), "error"),
        (HostError("a hook is missing"), "error"),
        (HTTPException(503, "queue full"), "error"),
        (RuntimeError("a defect"), "error"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_ended_a_request_is_read_from_its_exception(error: BaseException, ending: str) -> None:
    assert ending_of(error) == ending


async def test_who_is_cancelled_because_another_failed_has_not_lost_its_client() -> None:
    told: list[str] = []

    async def waits() -> None:
        with endings_told(told.append):
            await asyncio.sleep(60)

    async def fails() -> None:
        await asyncio.sleep(0)
        raise RewardError("gone", "no score", "Try again")

    with pytest.raises(RewardError):
        await gather_or_cancel([waits(), fails()])
    assert told == ["error"]
    task = asyncio.create_task(gather_or_cancel([waits(), waits()]))
    await asyncio.sleep(0.01)
    task.cancel()  # what a stream does when its client has gone
    with pytest.raises(asyncio.CancelledError):
        await task
    assert told == ["error", "disconnect", "disconnect"]


# --- chains -------------------------------------------------------------------------------------------


def child_of(*, decoded: int, prompt: int, cached: int) -> dict[str, Any]:
    meta = {"completion_tokens": decoded, "prompt_tokens": prompt, "cached_tokens": cached}
    return {"meta_info": {"id": "r.000000", "weight_version": "1", **meta}}


def parent_of() -> Parent:
    async def original(*_: Any) -> AsyncIterator[Any]:
        yield child_of(decoded=7, prompt=10, cached=6)

    manager = StubManager(enable_metrics=True, rid_to_state={})
    obj = SimpleNamespace(rid="r", sampling_params={}, background=False, log_metrics=False)
    parent = Parent(Host(manager, original, obj, None, ServerConfig()))
    parent._state = SimpleNamespace(abort_sent=False)
    return parent


def answered(parent: Parent, **power: Any) -> None:
    """One answer, counted as AnswerWriter does."""
    meta: dict[str, Any] = {
        "power": {"sampler": "vote", "stopped_by": "completed", **power},
        "e2e_latency": 0.1,
    }
    parent.count_answer(meta)
    metrics.observe(meta["power"], 0.1, True)


async def test_chains_without_an_answer_are_counted_with_the_tokens_of_their_children(
    counts: Counter[tuple[str, ...]],
) -> None:
    """Three chains, a child of 7 tokens each; one answers, then the client leaves."""
    parent = parent_of()

    async def left_in_the_middle() -> None:
        with endings_counted(parent, "vote", 3):
            for _ in range(3):
                await parent.run(SimpleNamespace(rid="r.000000"))
            answered(parent, decoded_tokens=7, prefilled_tokens=4)
            raise LEFT

    with pytest.raises(ValueError, match=GONE):
        await left_in_the_middle()
    assert counts == {
        ("requests", "vote", "completed"): 1,
        ("requests", "vote", "disconnect"): 2,
        ("tokens", "vote", "decoded"): 21,
        ("tokens", "vote", "prefilled"): 12,
        ("tokens", "vote", "wasted"): 0,
    }


async def test_an_aborted_answer_that_says_no_cost_is_counted_once_and_its_tokens_are(
    counts: Counter[tuple[str, ...]],
) -> None:
    parent = parent_of()
    with endings_counted(parent, "vote", 2):
        await parent.run(SimpleNamespace(rid="r.000000"))
        await parent.run(SimpleNamespace(rid="r.000000"))
        answered(parent, stopped_by="abort")
        answered(parent, decoded_tokens=7, prefilled_tokens=4)
    assert counts["requests", "vote", "abort"] == counts["requests", "vote", "completed"] == 1
    assert (counts["tokens", "vote", "decoded"], counts["tokens", "vote", "prefilled"]) == (14, 8)


async def test_answers_that_say_what_they_cost_are_the_only_count(counts: Counter[tuple[str, ...]]) -> None:
    """The report knows better what a chain wasted than what its children decoded says."""
    parent = parent_of()
    with endings_counted(parent, "vote", 1):
        await parent.run(SimpleNamespace(rid="r.000000"))
        answered(parent, decoded_tokens=5, prefilled_tokens=4, wasted_tokens=2)
    assert counts["tokens", "vote", "decoded"] == 5
    assert sum(count for (name, *_), count in counts.items() if name == "requests") == 1


# --- policies -----------------------------------------------------------------------------------------


class Manager:
    """What a run touches of a TokenizerManager."""

    enable_metrics = True

    def __init__(self) -> None:
        self.rid_to_state: dict[str, Any] = {}

    def _init_req_state(self, obj: Any, _: object) -> None:
        self.rid_to_state[obj.rid] = SimpleNamespace(abort_sent=False)


def policy_run(original: Callable[..., AsyncIterator[Any]], chains: int) -> PolicyRun:
    manager: Any = Manager()
    obj = SimpleNamespace(rid="r", sampling_params={}, stream=True, log_metrics=True, return_logprob=False)
    plan = PolicyPlan(policy=TopNSigma(), chains=chains)
    return PolicyRun(Host(manager, original, obj, None, ServerConfig()), plan)


def chunk(finish: dict[str, Any] | None) -> dict[str, Any]:
    return {"text": "a", "meta_info": {"finish_reason": finish}}


async def leaving(*_: Any) -> AsyncIterator[Any]:
    yield chunk(None)
    raise LEFT


async def whole(*_: Any) -> AsyncIterator[Any]:
    yield chunk(None)
    yield chunk({"type": "stop"})


@pytest.mark.parametrize("chains", [1, 3])
async def test_rows_whose_client_leaves_are_counted(counts: Counter[tuple[str, ...]], chains: int) -> None:
    with pytest.raises(ValueError, match=GONE):
        await policy_run(leaving, chains).answers(lambda *_: None, 0)
    assert counts == {("policies", "top_n_sigma", "disconnect"): chains}


@pytest.mark.parametrize("chains", [1, 3])
async def test_who_leaves_with_the_last_chunk_was_answered(
    counts: Counter[tuple[str, ...]], chains: int
) -> None:
    """The consumer of a stream may drop it as soon as it has the last chunk."""
    seen: list[int] = []

    def last_one_leaves(index: int, answer: dict[str, Any]) -> None:
        seen.append(index)
        if answer["meta_info"]["finish_reason"] and len(set(seen)) == chains:
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await policy_run(whole, chains).answers(last_one_leaves, 0)
    ended = counts["policies", "top_n_sigma", "stop"]
    assert ended >= 1
    assert sum(counts.values()) == chains
