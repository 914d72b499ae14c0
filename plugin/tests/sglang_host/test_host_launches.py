"""Children that are ready together reach the scheduler in one message, and nothing overtakes them.

SGLang is a stub that keeps its messages. Error rate 0.
"""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import (
    AbortReq,
    BatchTokenizedGenerateReqInput,
    TokenizedGenerateReqInput,
)
from sglang.srt.sampling.sampling_params import SamplingParams
from sglang_power.sglang_host import entry
from sglang_power.sglang_host.tokenizer.host import ManagerState
from sglang_power.sglang_host.tokenizer.launches import TURNS


class Manager:
    """Keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def ids(self) -> list[Any]:
        """The ids in every message."""
        return [
            [child.rid for child in message]
            if isinstance(message, BatchTokenizedGenerateReqInput)
            else message.rid
            for message in self.sent
        ]


def send(manager: Manager, message: Any) -> None:
    entry.dispatch_to_scheduler(lambda kept, sent: kept.sent.append(sent), manager, message)


def child(rid: str) -> Any:
    """A tokenized request, as far as the way to the scheduler looks at it."""
    return TokenizedGenerateReqInput(
        rid=rid,
        input_text=None,
        input_ids=None,
        input_embeds=None,
        mm_inputs=None,
        token_type_ids=None,
        sampling_params=SamplingParams(),
        return_logprob=False,
        logprob_start_len=-1,
        top_logprobs_num=0,
        token_ids_logprob=None,
        stream=False,
    )


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    manager, state = Manager(), ManagerState(max_concurrent=1, max_children=1)
    live: Any = {"a": SimpleNamespace(), "b": SimpleNamespace()}
    state.live = live
    monkeypatch.setattr(entry, "state_of", lambda *_: state)
    return manager


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_children_of_the_same_moment_are_one_message(manager: Manager) -> None:
    for rid in ("a.000001", "a.000002", "b.000001"):
        send(manager, child(rid))
    assert manager.sent == []
    await turns(TURNS + 1)
    assert manager.ids() == [["a.000001", "a.000002", "b.000001"]]


async def test_children_that_a_sampler_asks_for_in_its_next_turns_join(manager: Manager) -> None:
    async def sampler(rid: str) -> None:
        await asyncio.gather(asyncio.sleep(0))
        send(manager, child(rid))

    send(manager, child("a.000001"))
    await asyncio.gather(sampler("b.000001"), sampler("b.000002"), turns(TURNS + 1))
    assert manager.ids() == [["a.000001", "b.000001", "b.000002"]]


async def test_a_child_alone_is_no_batch(manager: Manager) -> None:
    send(manager, child("a.000001"))
    await turns(TURNS + 1)
    send(manager, child("a.000002"))
    await turns(TURNS + 1)
    assert manager.ids() == ["a.000001", "a.000002"]


async def test_an_abort_comes_behind_the_children_that_it_names(manager: Manager) -> None:
    send(manager, child("a.000001"))
    send(manager, AbortReq(rid="a."))
    assert manager.ids() == ["a.000001", "a."]
    await turns(TURNS + 1)
    assert len(manager.sent) == 2


@pytest.mark.parametrize("rid", ["c.000001", "a", "x", "", "b.c.000001"])
async def test_what_is_no_child_is_sent_at_once(manager: Manager, rid: str) -> None:
    send(manager, child(rid))
    assert manager.ids() == [rid]


async def test_a_child_is_sent_as_it_was_packed(manager: Manager) -> None:
    """SGLang unpacks its request as soon as it believes it sent."""
    request = child("a.000001")
    request.time_stats = "packed"
    send(manager, request)
    request.time_stats = "unpacked"
    await turns(TURNS + 1)
    assert manager.sent[0].time_stats == "packed"
