"""A request of which only parts run in SGLang: its id, and what an abort of that id ends. Tokenizer process.

A placeholder under the id in TokenizerManager.rid_to_state keeps graceful shutdown waiting and the id taken.
Ids of parts extend it by a fixed-width number, because the scheduler aborts by prefix: an abort that comes to
another tokenizer worker reaches them, and "job1." is no prefix of a part of "job10".
"""

from __future__ import annotations

import copy
from typing import Any, Self

from sglang.srt.managers.io_struct import AbortReq

from sglang_power.sglang_host.tokenizer.host import Host


def part_id(rid: str, number: int) -> str:
    """Return the id of a numbered part of a request."""
    return f"{rid}.{number:06d}"


def parent_id(rid: str) -> str:
    """Return the id of the request that an id names a part of; any other id gives no request's."""
    return rid.rpartition(".")[0]


def part_of(obj: Any, number: int, **params: Any) -> Any:
    """Return a part of a request as a request of its own, with sampling parameters that differ from its."""
    part = copy.copy(obj)
    part.rid = part_id(obj.rid, number)
    part.sampling_params = {**obj.sampling_params, **params}
    return part


class Placeholder:
    """Holds the id of a request for the time of a with-block.

    Args:
        host: the call, for one prompt whose GenerateReqInput is normalised.
    """

    def __init__(self, host: Host) -> None:
        self._host, self.manager, self.obj = host, host.manager, host.obj
        self._state: Any = None

    def __enter__(self) -> Self:
        self.manager._init_req_state(self.obj, self._host.request)
        self._state = self.manager.rid_to_state[self.obj.rid]
        self._host.state.live[self.obj.rid] = self
        return self

    def __exit__(self, *_: object) -> None:
        self._host.state.live.pop(self.obj.rid, None)
        if self.manager.rid_to_state.get(self.obj.rid) is self._state:
            del self.manager.rid_to_state[self.obj.rid]

    @property
    def aborted(self) -> bool:
        """Whether an abort has named this request."""
        return self._state is not None and bool(self._state.abort_sent)

    def abort(self) -> None:
        """End the request before its next part."""
        self._state.abort_sent = True
        self._host.state.governor.dismiss(self.obj.rid)

    def abort_parts(self) -> None:
        """End the request, and its running parts in the scheduler, but no other request."""
        if self.aborted:
            return
        self.abort()
        self.manager._dispatch_to_scheduler(AbortReq(rid=f"{self.obj.rid}."))
        if self.manager.enable_metrics:
            collector = self.manager.metrics_collector
            collector.observe_one_aborted_request(collector.labels)
