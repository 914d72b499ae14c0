"""Whoever answers after the arm, a shadow or the default, answers the request as it came."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from enrolled_runs import NONE, POLICY, Json, Sglang, StubService, drained, experiment, run_of
from fastapi import HTTPException
from sglang.srt.managers.schedule_policy import SchedulePolicy
from sglang_power.errors import RequestError
from sglang_power.experiments.sections import Shadow
from sglang_power.sglang_host.experiments.shadows import Shadows, check_shadow


class ShadowService(StubService):
    """One whose shadows really run."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 3_599.0  # a whole hour of something else's is about to begin
        self.shadows = Shadows(clock=lambda: self.now)

    async def settle(self) -> None:
        """Wait until all shadows have run."""
        await asyncio.gather(*self.shadows._tasks)


async def served(sglang: Sglang, each: Any, **asked: Any) -> tuple[ShadowService, Any]:
    """One request with its shadows: the service, and what the client got."""
    service = ShadowService()
    (response,) = await drained(service, run_of(service, sglang, each=each, **asked))
    await service.settle()
    return service, response


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize(("arm", "shadow"), [(NONE, POLICY), (POLICY, NONE), (POLICY, POLICY), (NONE, NONE)])
async def test_a_shadow_answers_the_request_as_it_came(n: int, arm: Json, shadow: Json) -> None:
    """A policy leaves its parameters and its seed in the request, and n > 1 makes lists of its fields."""
    service, response = await served(Sglang(), experiment(shadows=(shadow,)), params={"n": n}, sampler=arm)
    answers = response if n > 1 else [response]
    assert [one["text"] for one in answers] == n * ["plain" if arm is NONE else "policy"]
    ((run,), (line,)) = service.shadow_lines, service.lines
    assert (line.outcome, run.outcome) == ("ok", "ok")
    assert run.same_text is (arm is shadow)
    text = "plain" if shadow is NONE else "policy"
    assert run.tokens.decoded == n * len(text)
    assert line.tokens.decoded == sum(len(one["text"]) for one in answers), "without its shadow's"


async def test_shadows_that_fail_reach_nobody() -> None:
    sglang = Sglang(HTTPException(503, "full"))
    service, response = await served(sglang, experiment(shadows=(POLICY, NONE)), params={"n": 2})
    assert [one["text"] for one in response] == ["plain", "plain"]
    assert [(line.arm, line.outcome) for line in service.shadow_lines] == [
        ("shadow0", "error"),
        ("shadow1", "ok"),
    ]


async def test_shadows_have_a_name_and_a_priority_of_their_own() -> None:
    sglang = Sglang()
    each = experiment(shadows=(NONE,), shadow={"tokens_per_hour": 1000, "priority": -70})
    await served(sglang, each)
    user, shadow = sglang.asked
    assert (user.priority, shadow.priority) == (None, -70)
    assert shadow.rid.startswith("shadow-")
    assert (user.log_metrics, shadow.log_metrics) == (True, False)


@pytest.mark.parametrize(("low_first", "users", "nearest"), [(False, 0, -11), (True, 0, 11), (True, -5, 6)])
def test_where_a_shadow_is_accepted_sglang_puts_users_first(
    low_first: bool, users: int, nearest: int
) -> None:
    """By SGLang's own order of its queue, the shadow having come first."""
    server_args = SimpleNamespace(
        enable_priority_scheduling=True,
        disable_priority_preemption=False,
        default_priority_value=users,
        priority_scheduling_preemption_threshold=10,
        schedule_low_priority_values_first=low_first,
    )
    sign = 1 if low_first else -1
    arm = experiment(shadows=(NONE,)).arm("shadow0")
    check_shadow(arm, Shadow(tokens_per_hour=1, priority=nearest), server_args)
    queue = [
        SimpleNamespace(priority=priority, time_stats=SimpleNamespace(wait_queue_entry_time=at))
        for at, priority in enumerate((nearest, users))
    ]
    SchedulePolicy._sort_by_priority_and_fcfs(queue, sign)
    assert [one.priority for one in queue] == [users, nearest]
    with pytest.raises(RequestError, match=f"Set it to {nearest}"):
        check_shadow(arm, Shadow(tokens_per_hour=1, priority=nearest - sign), server_args)


async def test_what_one_experiment_spends_is_not_anothers() -> None:
    """Each may decode one token in the hour: its first shadow runs, and decodes five."""
    service = ShadowService()
    for name in ("a", "a", "b", "a", "b"):
        each = experiment(name=name, shadows=(NONE,), shadow={"tokens_per_hour": 1})
        await drained(service, run_of(service, Sglang(), each=each))
        await service.settle()
    assert [line.experiment for line in service.lines] == ["a", "a", "b", "a", "b"]
    assert [line.experiment for line in service.shadow_lines] == ["a", "b"]


async def test_a_turn_of_a_session_has_no_shadow() -> None:
    service, sglang = ShadowService(), Sglang()
    run = run_of(service, sglang, each=experiment(shadows=(NONE,)), session_params={"id": "s"})
    await drained(service, run)
    await service.settle()
    assert [line.outcome for line in service.lines] == ["ok"]
    assert len(sglang.asked) == 1


async def test_a_budget_is_for_each_hour_since_the_beginning() -> None:
    service = ShadowService()
    each = experiment(shadows=(NONE,), shadow={"tokens_per_hour": 1})
    ran = []
    for passed in (0.0, 3_599.0, 1.0, 3_599.0):
        service.now += passed
        await drained(service, run_of(service, Sglang(), each=each))
        await service.settle()
        ran.append(len(service.shadow_lines))
    assert ran == [1, 1, 2, 2]


async def test_the_default_answers_the_request_as_it_came() -> None:
    sglang = Sglang(HTTPException(503, "full"))
    service, response = await served(
        sglang, experiment("default_sampler"), params={"n": 2, "temperature": 0.5}, sampler=POLICY
    )
    assert [one["text"] for one in response] == ["plain", "plain"]
    assert [line.outcome for line in service.lines] == ["fallback"]
    assert [one.sampling_params for one in sglang.asked[-2:]] == 2 * [{"n": 2, "temperature": 0.5}]
