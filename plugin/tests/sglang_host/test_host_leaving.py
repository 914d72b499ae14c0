"""Who leaves, and who is aborted: one look a second around every call, and ids that end what runs below them.

SGLang is a stub; a look is due at once. Error rate 0.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from enrolled_runs import NONE, POLICY, STOP, StubService, answer, drained, replay, run_of
from sglang.srt.managers.io_struct import AbortReq, GenerateReqInput
from sglang_power.errors import RequestError
from sglang_power.policies.top_n_sigma import TopNSigma
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host import entry
from sglang_power.sglang_host.experiments.enrolled import EnrolledRun
from sglang_power.sglang_host.tokenizer import clients
from sglang_power.sglang_host.tokenizer.clients import GONE, attended
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.orchestrator import respond
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.placeholder import Placeholder
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, PolicyPlan
from sglang_power.sglang_host.tokenizer.token_checks import check_rids

Json = dict[str, Any]
ABORTED = {"type": "abort", "message": "by its id"}


class Client:
    """An HTTP request whose client is there for some looks.

    Args:
        stays: how many.
    """

    def __init__(self, stays: int) -> None:
        self._stays = stays
        self.url = SimpleNamespace(path="/generate")
        self.scope: Json = {}

    async def is_disconnected(self) -> bool:
        self._stays -= 1
        return self._stays < 0


class Sglang:
    """TokenizerManager and scheduler: rows run until an abort names a prefix of their ids.

    Attributes:
        aborts: what was sent to the scheduler.
        asked: ids of the rows that began.
    """

    def __init__(self) -> None:
        self.rid_to_state: Json = {}
        self.server_args = SimpleNamespace(
            weight_version="default",
            tokenizer_worker_num=1,
            preferred_sampling_params=None,
            incremental_streaming_output=False,
        )
        self.enable_metrics = self.incremental_streaming_output = False
        self.aborts: list[str] = []
        self.asked: list[str] = []
        self._running: dict[str, asyncio.Event] = {}

    def _init_req_state(self, obj: Any, _: object = None) -> None:
        assert obj.rid not in self.rid_to_state
        self.rid_to_state[obj.rid] = SimpleNamespace(abort_sent=False)

    def _dispatch_to_scheduler(self, message: AbortReq) -> None:
        assert message.rid is not None
        self.aborts.append(message.rid)
        for rid, ended in self._running.items():
            if rid.startswith(message.rid):
                ended.set()

    async def generate_request(self, _: object, obj: Any, __: object = None) -> AsyncIterator[Any]:
        obj.normalize_batch_and_arguments()
        self._init_req_state(obj)
        self.asked.append(obj.rid)
        self._running[obj.rid] = asyncio.Event()
        try:
            caches = obj.sampling_params.get("max_new_tokens") == 0
            if not caches:
                await self._until_ended(obj.rid)
            yield answer("ab", {"type": "length"} if caches else ABORTED, meta={"id": obj.rid})
        except BaseException:
            self._dispatch_to_scheduler(AbortReq(rid=obj.rid))
            raise
        finally:
            del self.rid_to_state[obj.rid], self._running[obj.rid]

    async def _until_ended(self, rid: str) -> None:
        await self._running[rid].wait()

    def abort_request(self, _: object, rid: str = "", abort_all: bool = False) -> None:
        """SGLang's own."""
        if abort_all or rid in self.rid_to_state:
            self._dispatch_to_scheduler(AbortReq(rid=rid))


def host_of(sglang: Sglang, obj: GenerateReqInput, request: Client | None = None) -> Host:
    return Host(sglang, sglang.generate_request, obj, request, ServerConfig())


def policy(n: int) -> PolicyPlan:
    return PolicyPlan(TopNSigma(), n)


def asking(text: Any = "p", rid: Any = "job1", n: int = 1, **fields: Any) -> GenerateReqInput:
    return GenerateReqInput(text=text, rid=rid, sampling_params={"n": n}, **fields)


async def until_running(sglang: Sglang, count: int) -> None:
    """Wait until rows run, those of prompts that are cached not counted."""
    for _ in range(1000):
        await asyncio.sleep(0)
        if len(sglang._running) >= count:
            return
    raise AssertionError(f"{sglang.asked} began")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look is due."""
    monkeypatch.setattr(clients, "CLIENT_CHECK_S", 0.0)


# --- cancellations that a result overtakes ------------------------------------------------------------


class Overtaking(Sglang):
    """A row's answer is there in the very moment in which the wait for it is cancelled.

    Attributes:
        asked_on: ids of the rows whose answer was taken as if nothing had been cancelled.
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked_on: list[str] = []

    async def generate_request(self, manager: object, obj: Any, request: object = None) -> AsyncIterator[Any]:
        rows = super().generate_request(manager, obj, request)
        async with contextlib.aclosing(rows) as responses:  # type: ignore[type-var]  # a generator in fact
            async for response in responses:
                yield response
                self.asked_on.append(obj.rid)

    async def _until_ended(self, rid: str) -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await super()._until_ended(rid)


@pytest.mark.parametrize(
    ("text", "n", "plans"),
    [("p", 1, [policy(1)]), ("p", 3, [policy(3)]), (["p", "q"], 1, [policy(1), PlainPlan()])],
)
async def test_a_cancelled_call_ends_whatever_its_rows_say(text: Any, n: int, plans: Any) -> None:
    sglang = Overtaking()

    async def call() -> list[Any]:
        return [each async for each in respond(host_of(sglang, asking(text, n=n)), plans)]

    task = asyncio.ensure_future(call())
    await until_running(sglang, n * len(plans))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sglang.asked_on == []
    assert sglang.rid_to_state == {}


async def test_a_cancelled_chain_asks_for_no_other_child() -> None:
    sglang, obj = Overtaking(), asking()
    obj.normalize_batch_and_arguments()
    with Parent(host_of(sglang, obj)) as parent:
        task = asyncio.ensure_future(parent.run(parent.child([1], 4)))
        await until_running(sglang, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# --- clients that leave -------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "n", "plans"),
    [
        ("p", 1, [policy(1)]),
        ("p", 3, [policy(3)]),
        (["p", "q"], 1, [policy(1), PlainPlan()]),
        (["p", "q"], 2, [policy(2), PlainPlan()]),
    ],
)
async def test_all_rows_of_a_client_that_has_gone_end(text: Any, n: int, plans: Any, stream: bool) -> None:
    sglang = Sglang()
    host = host_of(sglang, asking(text, n=n, stream=stream), Client(3))
    with pytest.raises(ValueError, match=GONE):
        async for _ in respond(host, plans):
            pass
    assert sglang.rid_to_state == {}
    assert sglang._running == {}
    assert host.state.live == {}
    assert host.state.parts == {}


@pytest.mark.usefixtures("impatient")
async def test_a_client_of_a_busy_stream_is_looked_for_between_its_chunks() -> None:
    chunks = replay(*[answer("a", index=0) for _ in range(20)])
    responses = attended(host_of(Sglang(), asking(), Client(5)), chunks())
    with pytest.raises(ValueError, match=GONE):
        [chunk async for chunk in responses]


@pytest.mark.parametrize("request_of", [None, Client(0)])
async def test_nobody_looks_for_the_client_of_an_engine_or_of_a_background_request(
    request_of: Client | None,
) -> None:
    obj = asking(background=request_of is not None)
    responses = replay(answer("a", STOP))()
    assert attended(host_of(Sglang(), obj, request_of), responses) is responses
    assert len([response async for response in responses]) == 1


async def test_answers_of_those_that_stay_pass_through_and_errors_do() -> None:
    host = host_of(Sglang(), asking(), Client(99))
    failing = replay(answer("a"), answer("b", STOP), RuntimeError("a defect"))
    responses = attended(host, failing())
    assert [(await anext(responses))["text"] for _ in range(2)] == ["a", "b"]
    with pytest.raises(RuntimeError, match="a defect"):
        await anext(responses)


async def test_who_cancels_the_call_cancels_what_serves_it() -> None:
    sglang = Sglang()
    responses = respond(host_of(sglang, asking(), Client(99)), [policy(1)])
    task = asyncio.ensure_future(anext(responses))
    await until_running(sglang, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sglang.rid_to_state == {}
    assert sglang.aborts == ["job1"]


# --- experiments --------------------------------------------------------------------------------------


def with_client(run: EnrolledRun, client: Client) -> EnrolledRun:
    object.__setattr__(run._host, "request", client)
    run._host.request.state = SimpleNamespace()
    return run


@pytest.mark.parametrize("sampler", [NONE, POLICY])
@pytest.mark.parametrize(("stays", "outcome"), [(0, "disconnect"), (1, "ok")])
async def test_an_answer_that_nobody_waits_for_any_more_is_a_loss_in_every_arm(
    sampler: Json, stays: int, outcome: str
) -> None:
    """It is whole before the first look of the second."""
    service = StubService()
    run = run_of(service, replay(answer("ab", STOP)), sampler=sampler)
    run._place.arm.sampler.update(sampler)
    await drained(service, with_client(run, Client(stays)))
    assert [(line.outcome, line.reason) for line in service.lines] == [(outcome, None)]
    assert ("shadows" in service.order) == (outcome == "ok")


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("sampler", [NONE, POLICY])
async def test_a_client_that_leaves_before_the_answer_is_a_loss_in_every_arm(sampler: Json) -> None:
    async def endless(*_: object) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield

    service = StubService()
    with pytest.raises(ValueError, match=GONE):
        await drained(service, with_client(run_of(service, endless, sampler=sampler), Client(2)))
    assert [line.outcome for line in service.lines] == ["disconnect"]


# --- aborts -------------------------------------------------------------------------------------------


async def aborted(sglang: Sglang, host: Host, plans: Any, rid: str, rows: int) -> list[Any]:
    """The answers to a call that is aborted once so many rows run."""
    task = asyncio.ensure_future(anext(respond(host, plans)))
    await until_running(sglang, rows)
    entry.abort_request(sglang.abort_request, sglang, rid)
    response = await asyncio.wait_for(task, 30)
    return response if isinstance(response, list) else [response]


@pytest.mark.parametrize(
    ("text", "n", "plans", "ids"),
    [
        ("p", 1, [policy(1)], ["job1"]),
        ("p", 3, [policy(3)], ["job1_0"] * 3),
        (["p", "q"], 1, [policy(1), PlainPlan()], ["job1_0", "job1_1"]),
        (["p", "q"], 2, [policy(2), PlainPlan()], ["job1_0"] * 2 + ["job1_1"] * 2),
    ],
)
async def test_an_abort_by_the_clients_id_ends_every_answer(
    text: Any, n: int, plans: Any, ids: list[str]
) -> None:
    sglang = Sglang()
    other = asyncio.ensure_future(anext(respond(host_of(sglang, asking(rid="job10", n=2)), [policy(2)])))
    await until_running(sglang, 2)
    answers = await aborted(sglang, host_of(sglang, asking(text, n=n)), plans, "job1", 2 + len(ids))
    assert [each["meta_info"]["finish_reason"] for each in answers] == [ABORTED] * len(ids)
    assert [each["meta_info"]["id"] for each in answers] == ids
    if ids != ["job1"]:  # SGLang's own message about it, which the scheduler reads as a prefix
        assert not other.done(), "the id of another call begins alike"
    other.cancel()
    await asyncio.gather(other, return_exceptions=True)
    assert sglang.rid_to_state == {}


async def test_each_prompt_of_a_list_keeps_the_id_that_the_client_gave_it() -> None:
    sglang = Sglang()
    host = host_of(sglang, asking(["p", "q"], rid=["mine", "yours"]))
    task = asyncio.ensure_future(anext(respond(host, [policy(1), PlainPlan()])))
    await until_running(sglang, 2)
    assert sorted(sglang.asked) == ["mine", "yours"]
    entry.abort_request(sglang.abort_request, sglang, "yours")
    await asyncio.sleep(0)
    assert not task.done()
    entry.abort_request(sglang.abort_request, sglang, "mine")
    assert [each["meta_info"]["id"] for each in await task] == ["mine", "yours"]


async def test_an_abort_while_the_prompt_is_cached_leaves_no_sample_to_run() -> None:
    sglang = Sglang()
    began = sglang.generate_request

    async def aborting(manager: object, obj: Any, request: object) -> AsyncIterator[Any]:
        entry.abort_request(sglang.abort_request, sglang, "job1")
        async for response in began(manager, obj, request):
            yield response

    host = Host(sglang, aborting, asking(n=2), None, ServerConfig())
    answers = await anext(respond(host, [policy(2)]))
    assert [each["meta_info"]["finish_reason"]["type"] for each in answers] == ["abort"] * 2
    assert [each["meta_info"]["power"]["sampler"] for each in answers] == ["top_n_sigma"] * 2
    assert len(sglang.asked) == 1


def test_between_two_children_only_the_request_of_that_id_is_told() -> None:
    sglang = Sglang()
    one, ten = (host_of(sglang, SimpleNamespace(rid=rid)) for rid in ("job1", "job10"))
    with Placeholder(one) as first, Placeholder(ten) as second:
        for _ in range(2):
            entry.abort_request(sglang.abort_request, sglang, "job1")
        assert (first.aborted, second.aborted) == (True, False)
        assert sglang.aborts == ["job1."], "SGLang's own message would be job10's, too, and one is enough"
        entry.abort_request(sglang.abort_request, sglang, abort_all=True)
        assert second.aborted
    assert one.state.live == {}
    assert sglang.rid_to_state == {}


def test_a_second_call_of_an_id_does_not_take_it_from_the_first() -> None:
    state = host_of(Sglang(), asking()).state
    with state.known_as("job1", ["job1_0"]):
        with state.known_as("job1", ["job1_0"]):
            pass
        assert state.parts == {"job1": ["job1_0"]}
    assert state.parts == {}


@pytest.mark.parametrize(
    ("prompt", "rid", "n"),
    [
        ({"text": "p"}, ["a"], 1),
        ({"input_ids": [1, 2]}, ["a", "b"], 1),
        ({"text": "p"}, ["a", "b"], 2),
        ({"text": ["p", "q"]}, ["a"], 1),
        ({"input_ids": [[1], [2]]}, ["a", "a"], 1),
    ],
)
def test_ids_that_sglang_cannot_use_are_refused_by_name(prompt: Json, rid: list[str], n: int) -> None:
    with pytest.raises(RequestError, match="rid="):
        check_rids(GenerateReqInput(rid=rid, **prompt), n)


@pytest.mark.parametrize(
    ("prompt", "rid", "n"),
    [
        ({"text": "p"}, "a", 2),
        ({"text": "p"}, ["a"], 2),
        ({"text": ["p"]}, ["a"], 1),
        ({"text": ["p", "q"]}, "a", 1),
        ({"input_ids": [[1], [2]]}, ["a", "b"], 2),
    ],
)
def test_ids_that_sglang_takes_are_taken(prompt: Json, rid: Any, n: int) -> None:
    check_rids(GenerateReqInput(rid=rid, **prompt), n)
