"""A request whose children were computed by different weights fails, however it is that they differ.

SGLang is a stub whose children say what they were computed by. Error rate 0.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.managers.io_struct import UpdateWeightFromDiskReqInput
from sglang_power.errors import WeightsChangedError
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host import entry
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from stub_parent import StubManager

Meta = dict[str, Any]
SAME: Meta = {"weight_version": "a"}


class Chain(Parent):
    """A request whose children answer in turn.

    Args:
        metas: of the answers, each behind what happens before it.
    """

    def __init__(self, *metas: Meta) -> None:
        self._metas = iter(metas)
        obj = SimpleNamespace(rid="r", sampling_params={}, background=False, log_metrics=True)
        super().__init__(Host(StubManager(), self._answer, obj, None, ServerConfig()))

    async def _answer(self, _: Any, child: Any, __: Any) -> AsyncIterator[Any]:
        meta = dict(next(self._metas))
        if meta.pop("updated", False):
            update(self.manager)
        finish = {"finish_reason": {"type": "length", "length": 1}}
        yield {"output_ids": [1], "meta_info": {"id": child.rid, **finish, **meta}}

    async def children(self, count: int) -> None:
        for _ in range(count):
            await self.run(self.child([1, 2], 1))


def update(manager: Any) -> None:
    """An update of the weights on its way to the scheduler, without a version."""
    message = UpdateWeightFromDiskReqInput(model_path="elsewhere")
    entry.dispatch_to_scheduler(lambda *_: None, manager, message)


def spans(*versions: str) -> Meta:
    """What SGLang tells of a child whose tokens have versions of their own."""
    return {**SAME, "weight_versions": [{"version": version, "start": 0, "end": 1} for version in versions]}


async def test_children_of_the_same_weights_are_one_answer() -> None:
    await Chain(SAME, SAME, SAME).children(3)
    await Chain(spans("a"), spans("a", "a")).children(2)


@pytest.mark.parametrize(
    ("metas", "told"),
    [
        ((SAME, {"weight_version": "b"}), "from a to b"),
        ((spans("a"), spans("b")), "from a to b"),
        ((spans("a", "b"),), "from a to b"),
        ((SAME, {**SAME, "updated": True}), "by an update without a version"),
        (({**SAME, "updated": True},), "by an update without a version"),
    ],
)
async def test_a_change_fails_the_request(metas: tuple[Meta, ...], told: str) -> None:
    with pytest.raises(WeightsChangedError, match=told):
        await Chain(*metas).children(len(metas))


async def test_an_update_before_the_first_child_is_none_of_its_business() -> None:
    chain = Chain(SAME)
    update(chain.manager)
    await chain.children(1)
