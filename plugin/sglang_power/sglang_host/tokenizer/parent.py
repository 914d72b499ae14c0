"""The life of one parent request inside SGLang's TokenizerManager: identity, abort, child requests.

Rules that hold for SGLang 0.5.20 to 0.5.23 (sources and measurements in plugin/docs/developing.md): children
are parts of a `placeholder`; they go through the original generate_request, never while a lock of the manager
is held. Whether the client is still there is not asked here, but around the whole call (`clients`).
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import itertools
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import HTTPException
from sglang.srt.managers.io_struct import AbortReq
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    wait_exponential,
    wait_random,
)

from sglang_power import clock
from sglang_power.algorithms.engine import Recall
from sglang_power.errors import ChainAbortedError, OverloadedError, WeightsChangedError
from sglang_power.fields import UNTEMPERED
from sglang_power.sglang_host.tokenizer.host import Host, ManagerState
from sglang_power.sglang_host.tokenizer.keys import account_of, spending
from sglang_power.sglang_host.tokenizer.meter import Meter
from sglang_power.sglang_host.tokenizer.placeholder import Placeholder, part_id

T = TypeVar("T")

_NEUTRAL_PARAMS: dict[str, Any] = {
    **UNTEMPERED,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "n": 1,
}
"""Named in every child, so that neither the model's defaults nor --preferred-sampling-params act on it."""

_KEPT_PARAMS = ("stop", "stop_token_ids", "ignore_eos", "logit_bias", "skip_special_tokens")

ABORT_CHECK_S = 0.1
"""How often a chain that waits for something else than a child looks whether it was aborted."""

ABORT_REPEATS, ABORT_EVERY_S = 100, 0.01
"""For one second: longer than a chain is ever between two children, unless it waits for a slow reward."""

END_EVERY_S = 0.1
"""How often a child that is to end early is told so, until it has ended."""


class RecalledError(Exception):
    """A child that nobody waits for any more was never sent."""


class Parent(Placeholder):
    """One power request (one prompt, n chains) and its child requests.

    Args:
        host: the call, for one prompt whose GenerateReqInput is normalised.

    Attributes:
        retractions: how often SGLang retracted one of its children.
        account: the key's whose tokens it uses; None where the server does not limit keys.
        answers, reports: how many answers were counted, and how many of them say what they cost.
    """

    def __init__(self, host: Host) -> None:
        super().__init__(host)
        self.account = account_of(host)
        self._meter, self._reported = Meter(spending(self.account)), Counter[str]()
        self._metered = replace(host, original=self._meter.around(host.original))
        self._limits = host.config.limits
        self.params: Mapping[str, Any] = host.obj.sampling_params
        self._numbers = itertools.count()
        self._weight_version: str | None = None
        self._updates: int | None = None
        self._late: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self.retractions = 0
        self.answers = self.reports = 0

    def check_abort(self, generated: Sequence[dict[str, Any]] = ()) -> None:
        """Raises ChainAbortedError, with what was generated, once /abort_request has named this request."""
        if self.aborted:
            raise ChainAbortedError(f"request {self.obj.rid} was aborted", generated)

    async def wait_for_slot(self, slots: asyncio.Semaphore) -> None:
        """Take a slot of the concurrency limit; keep watching for an abort meanwhile."""
        while True:
            self.check_abort()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1.0):
                    await slots.acquire()
                return

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something that is no child; an abort ends it."""
        task = asyncio.ensure_future(work)
        try:
            while not task.done():
                self.check_abort()
                await asyncio.wait([task], timeout=ABORT_CHECK_S)
            return task.result()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def child(self, input_ids: list[int] | None, max_new_tokens: int, **fields: Any) -> Any:
        """A child request object; `custom_params` and other GenerateReqInput fields by keyword."""
        child = copy.copy(self.obj)
        child.rid = part_id(self.obj.rid, next(self._numbers))
        child.stream, child.log_metrics = False, False
        child.return_logprob, child.top_logprobs_num, child.token_ids_logprob = False, 0, None
        child.logprob_start_len = -1
        child.return_prompt_token_ids = False
        if input_ids is not None:
            child.text, child.input_ids = None, input_ids
        kept = {key: self.params[key] for key in _KEPT_PARAMS if self.params.get(key) is not None}
        child.sampling_params = {
            **_NEUTRAL_PARAMS,
            **kept,
            "max_new_tokens": max_new_tokens,
            "custom_params": fields.pop("custom_params", None),
            "min_new_tokens": fields.pop("min_new_tokens", 0),
        }
        for name, value in fields.items():
            setattr(child, name, value)
        return child

    async def run(
        self, child: Any, deadline: float | None = None, recall: Recall | None = None
    ) -> dict[str, Any]:
        """Run one child to its end, to its deadline or its recall: it then answers with what it has, aborted.

        The deadline is watched here: were it each scheduler rank that looks at its own clock, ranks that
        share a batch could part.

        Args:
            child: made by `child`.
            deadline: seconds of `clock.now`; None: no limit.
            recall: ends it from outside.

        Raises:
            ChainAbortedError: the parent or the child was aborted.
            OverloadedError: the scheduler's queue stayed full for every retry.
            RecalledError: it was recalled before it was sent.
        """
        return (await self._run(child, deadline, recall))[0]

    @contextlib.contextmanager
    def _ended_early(self, rid: str, deadline: float | None, recall: Recall | None) -> Iterator[None]:
        """For the time of a with-block, end a child at its deadline or when it is recalled."""
        end = functools.partial(self._end_late, rid)
        if deadline is not None:
            wait_s = max(0.0, deadline - clock.now())
            self._timers[rid] = asyncio.get_running_loop().call_later(wait_s, end)
        try:
            with contextlib.nullcontext() if recall is None else recall.told_to(end):
                yield
        finally:
            if (timer := self._timers.pop(rid, None)) is not None:
                timer.cancel()

    def _end_late(self, rid: str) -> None:
        """End a child, until it has ended: the scheduler forgets an abort that arrives before its child."""
        self._late.add(rid)
        if (timer := self._timers.get(rid)) is not None:
            timer.cancel()
        self._timers[rid] = asyncio.get_running_loop().call_later(END_EVERY_S, self._end_late, rid)
        self.manager._dispatch_to_scheduler(AbortReq(rid=rid))

    async def run_together(self, children: Sequence[Any]) -> list[dict[str, Any]]:
        """Run children that reach the scheduler in one message, so that it can admit them in one batch."""
        return await self._run(_batch_of(children))

    async def _run(
        self, child: Any, deadline: float | None = None, recall: Recall | None = None
    ) -> list[dict[str, Any]]:
        if self._updates is None:
            self._updates = self._host.state.weight_updates
        once = functools.partial(self._run_once, child, deadline, recall)
        try:
            outs = await once()
        except HTTPException as error:
            if not _is_queue_full(error):
                raise
            outs = await self._retried(once, error)
        for out in outs:
            self.retractions += out["meta_info"].get("num_retractions") or 0
            self._check_weights(out["meta_info"])
        return outs

    async def _retried(self, once: Callable[[], Awaitable[T]], refusal: HTTPException) -> T:
        """Try again what the scheduler's full queue has refused, up to the server's number of retries.

        Raises:
            OverloadedError: all of them were refused, too.
        """
        backoff, refusals = self._limits.busy_backoff_s, [refusal]
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_queue_full),
            wait=wait_exponential(multiplier=backoff, max=5.0) + wait_random(0.0, backoff),
            stop=stop_after_attempt(self._limits.busy_retries + 1),
            reraise=True,
        )

        async def attempt() -> T:
            if refusals:  # the first one has been made
                raise refusals.pop()
            return await once()

        try:
            return await retrying(attempt)
        except HTTPException as error:
            if _is_queue_full(error):
                raise OverloadedError(f"the scheduler's queue stayed full: {error.detail}") from error
            raise

    def share(self, wanted: int) -> int:
        """Return how many children may be at work now so that other requests' need not wait, at least one."""
        return self._host.state.governor.share(wanted)

    async def _run_once(
        self, child: Any, deadline: float | None, recall: Recall | None
    ) -> list[dict[str, Any]]:
        self.check_abort()
        together = len(child.rid) if isinstance(child.rid, list) else 1
        async with self._host.state.governor.places(self.obj.rid, together):
            self.check_abort()
            if recall is not None and recall.asked:
                raise RecalledError
            if deadline is None and recall is None:
                return await self._responses(child)
            with self._ended_early(child.rid, deadline, recall):
                return await self._responses(child)

    async def _responses(self, child: Any) -> list[dict[str, Any]]:
        async with aclosing(self._metered.responses(child)) as responses:
            answer: dict[str, Any] | list[dict[str, Any]] = await anext(responses)
        outs = answer if isinstance(answer, list) else [answer]
        for out in outs:
            ended = (out["meta_info"].get("finish_reason") or {}).get("type") == "abort"
            if ended and out["meta_info"]["id"] not in self._late:
                raise ChainAbortedError(f"child {out['meta_info']['id']} was aborted", outs)
        self.check_abort(outs)
        return outs

    def count_answer(self, meta: Mapping[str, Any]) -> None:
        """Count one answer in SGLang's own request metrics, which leave out the children."""
        self.answers += 1
        if "decoded_tokens" in meta["power"]:
            self.reports += 1
            self._reported.update(
                {kind: meta["power"][f"{kind}_tokens"] for kind in ("decoded", "prefilled")}
            )
        manager, obj = self.manager, self.obj
        if not (manager.enable_metrics and obj.log_metrics):
            return
        collector = manager.metrics_collector
        labels = {**collector.labels, **(obj.custom_labels or {})}
        if manager.enable_priority_scheduling and obj.priority is not None:
            labels["priority"] = str(obj.priority)
        seconds = meta["e2e_latency"]
        collector.observe_time_to_first_token(labels, seconds, stream=obj.stream)
        collector.observe_one_finished_request(
            labels,
            meta["prompt_tokens"],
            meta["completion_tokens"],
            meta.get("cached_tokens") or 0,
            seconds,
            False,  # no grammar
            is_streaming=obj.stream,
        )

    @property
    def unreported(self) -> dict[str, int]:
        """Tokens of its children, by kind, that the answers counted so far do not report."""
        return {
            kind: max(0, count - self._reported[kind])
            for kind, count in self._meter.tokens.model_dump().items()
        }

    def _check_weights(self, meta: Mapping[str, Any]) -> None:
        """A chain never mixes weights: it fails when they are updated under it.

        The versions of a child's tokens are the scheduler's; the count of updates knows those without a
        version, of this tokenizer process.
        """
        spans = [span["version"] for span in meta.get("weight_versions") or ()]
        updated = self._host.state.weight_updates != self._updates
        for version in spans or [meta.get("weight_version")]:
            if self._weight_version is None:
                self._weight_version = version
            if updated or version != self._weight_version:
                same = version == self._weight_version
                told = (
                    "by an update without a version" if same else f"from {self._weight_version} to {version}"
                )
                raise WeightsChangedError(f"the weights changed during the chain, {told}: send it again")


def _batch_of(children: Sequence[Any]) -> Any:
    """One request object for children that differ in their ids, prompts and sampling parameters only."""
    batch = copy.copy(children[0])
    for field in ("rid", "input_ids", "sampling_params"):
        setattr(batch, field, [getattr(child, field) for child in children])
    return batch


def abort_all(state: ManagerState) -> None:
    """End every request of one TokenizerManager: SGLang's abort_all reaches running children only."""
    for live in list(state.live.values()):
        live.abort()


def abort_elsewhere(manager: Any, state: ManagerState, rid: str) -> None:
    """Repeat an abort for a request of another tokenizer worker until it must have met one of its children.

    Only the scheduler is common to both workers, and between two children it knows nothing of the chain.
    """

    async def repeat() -> None:
        for _ in range(ABORT_REPEATS):
            await asyncio.sleep(ABORT_EVERY_S)
            manager._dispatch_to_scheduler(AbortReq(rid=rid))

    task = asyncio.get_running_loop().create_task(repeat())
    state.repeating.add(task)
    task.add_done_callback(state.repeating.discard)


def _is_queue_full(error: BaseException) -> bool:
    return isinstance(error, HTTPException) and error.status_code == 503
