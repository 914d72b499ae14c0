"""Rewards without HTTP: foreign functions, the check of every score, the Scorer, names and configuration.

Deterministic; error rate 0. Endpoints: test_reward_endpoint. Chains: test_chain_rewards, test_law_rewards.
"""

from __future__ import annotations

import asyncio
import functools
import math
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from pydantic import AnyHttpUrl
from sglang_power.errors import ConfigError, PowerError, RequestError, RewardError
from sglang_power.request import parse_request
from sglang_power.rewards import EndpointConfig, NamedReward, OnError, Scorer, installed_rewards, reward
from sglang_power.rewards.base import FunctionReward
from sglang_power.sglang_host.tokenizer.orchestrator import STATUS

Function = Callable[[str, str], object]


def named(function: Function, upper_bound: float | None = None, on_error: OnError = "fail") -> NamedReward:
    return NamedReward("r", FunctionReward("r", function, upper_bound), on_error)


# --- foreign functions --------------------------------------------------------------------------------


async def test_a_plain_function_leaves_the_event_loop_free_and_a_coroutine_function_stays_on_it() -> None:
    threads: list[int] = []

    def plain(prompt: str, answer: str) -> float:
        threads.append(threading.get_ident())
        return len(prompt) + len(answer)

    async def asynchronous(prompt: str, answer: str) -> float:
        return plain(prompt, answer)

    class Asynchronous:
        async def __call__(self, prompt: str, answer: str) -> float:
            return plain(prompt, answer)

    async_like: list[Function] = [asynchronous, functools.partial(asynchronous), Asynchronous()]
    for function in [plain, *async_like]:
        assert await named(function).score("ab", "c") == 3.0
    off_loop, *on_loop = threads
    assert off_loop != threading.get_ident()
    assert set(on_loop) == {threading.get_ident()}


async def test_a_plain_function_may_return_something_to_wait_for() -> None:
    async def later() -> float:
        return 2.0

    def function(*_: str) -> Awaitable[float]:
        return later()

    assert await named(function).score("p", "a") == 2.0


def raising(error: Exception) -> Function:
    def function(*_: str) -> float:
        raise error

    return function


def raising_asynchronously(error: Exception) -> Function:
    async def function(*_: str) -> float:
        raise error

    return function


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raising(ValueError("no such luck")), "ValueError: no such luck"),
        (raising(StopIteration("at a thread's end")), "StopIteration: at a thread's end"),
        (raising_asynchronously(OSError("gone")), "OSError: gone"),
        (raising_asynchronously(TimeoutError()), "TimeoutError"),
        (lambda _: 0.0, "TypeError"),
    ],
)
async def test_what_a_function_raises_is_a_reward_error(function: Function, says: str) -> None:
    with pytest.raises(RewardError, match=f"^reward 'r': raised {says}") as caught:
        await named(function).score("p", "a")
    assert str(caught.value).endswith(caught.value.hint)


@pytest.mark.parametrize("score", [1, -2.5, True, np.float32(0.5), np.int64(3), 0.0])
async def test_numbers_are_scores(score: float) -> None:
    value = await named(lambda *_: score).score("p", "a")
    assert value == score
    assert type(value) is float


@pytest.mark.parametrize(
    ("score", "says"),
    [
        (math.nan, "scored nan, which is not finite"),
        (math.inf, "scored inf, which is not finite"),
        (1e301, "which is not finite, or larger than"),
        (10**400, "which is not finite, or larger"),
        (-math.inf, "scored -inf, which is not finite"),
        (None, "scored None, which is not a number"),
        ("0.5", "scored '0.5', which is not a number"),
        ([1.0], "not a number"),
        (1j, "not a number"),
        (1.25, "scored 1.25, above its declared upper_bound 1.0"),
    ],
)
async def test_other_scores_are_errors_that_say_so(score: object, says: str) -> None:
    with pytest.raises(RewardError, match=says):
        await named(lambda *_: score, upper_bound=1.0).score("p", "a")


async def test_the_bound_itself_may_be_reached() -> None:
    assert await named(lambda *_: 1.0, upper_bound=1.0).score("p", "a") == 1.0


def test_a_reward_error_has_a_status() -> None:
    assert STATUS[RewardError] == 502
    assert issubclass(RewardError, PowerError)


# --- the scorer ---------------------------------------------------------------------------------------


class Gate:
    """An asynchronous reward that answers when it is opened, and counts how often it is asked."""

    def __init__(self, failing: frozenset[str] = frozenset()) -> None:
        self.open, self.asked, self._failing = asyncio.Event(), 0, failing

    async def __call__(self, _: str, answer: str) -> float:
        self.asked += 1
        await self.open.wait()
        if answer in self._failing:
            raise ValueError(f"cannot score {answer}")
        return float(len(answer))


async def test_equal_answers_cost_one_call_at_the_same_time_and_later() -> None:
    gate = Gate()
    scorer = Scorer(named(gate))
    waiting = [asyncio.create_task(scorer.score("p", answer)) for answer in ("a", "bb", "a", "a")]
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(*waiting) == [1.0, 2.0, 1.0, 1.0]
    assert await scorer.score("p", "bb") == 2.0
    assert await scorer.score("another prompt", "bb") == 2.0
    assert gate.asked == 3
    assert scorer.report() == {"name": "r", "calls": 3, "failed": 0, "reason": None}


async def test_who_waits_for_a_cancelled_call_makes_his_own() -> None:
    gate = Gate()
    scorer = Scorer(named(gate))
    first, second = (asyncio.create_task(scorer.score("p", "a")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    gate.open.set()
    assert await second == 1.0
    assert first.cancelled()


async def test_the_policy_fail_raises_and_counts() -> None:
    gate = Gate(failing=frozenset({"bad"}))
    gate.open.set()
    scorer = Scorer(named(gate, on_error="fail"))
    assert await scorer.score("p", "good") == 4.0
    with pytest.raises(RewardError, match="ValueError: cannot score bad"):
        await scorer.score("p", "bad")
    report = scorer.report()
    assert (report["calls"], report["failed"]) == (2, 1)
    assert "cannot score bad" in report["reason"]


async def test_the_policy_without_gives_no_score_once_per_answer_and_tells_the_first_reason() -> None:
    gate = Gate(failing=frozenset({"bad", "worse"}))
    gate.open.set()
    scorer = Scorer(named(gate, on_error="without"))
    answers = ["bad", "good", "worse", "bad"]
    assert [await scorer.score("p", answer) for answer in answers] == [None, 4.0, None, None]
    report = scorer.report()
    assert (gate.asked, report["calls"], report["failed"]) == (3, 3, 2)
    assert "cannot score bad" in report["reason"]


# --- names --------------------------------------------------------------------------------------------

Install = Callable[[str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module, reward_<name>, with one entry point `name`."""

    def install(name: str, source: str) -> None:
        module = f"reward_{name}"
        (tmp_path / f"{module}.py").write_text(source)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[sglang_power.rewards]\n{name} = {module}:score\n")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, module, None)  # forgotten afterwards, whatever the test imports
        del sys.modules[module]
        installed_rewards.cache_clear()

    yield install
    installed_rewards.cache_clear()


PLAIN = "def score(prompt, answer): return len(answer)"
BOUNDED = f"{PLAIN}\nscore.upper_bound = 10"
OBJECT = """
class Length:
    upper_bound = 10.0

    async def score(self, prompt, answer):
        return len(answer)

score = Length()
"""


@pytest.mark.parametrize(("source", "bound"), [(PLAIN, None), (BOUNDED, 10.0), (OBJECT, 10.0)])
async def test_a_reward_of_another_distribution_is_found(
    install: Install, source: str, bound: float | None
) -> None:
    install("length", source)
    found = reward("length", {})
    assert (found.name, found.upper_bound, found.on_error) == ("length", bound, "fail")
    assert await Scorer(found).score("p", "abc") == 3.0


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("", "score"),
        ("raise RuntimeError('no such luck')", "no such luck"),
        ("score = 3", "neither a callable"),
        ("class score:\n    async def score(self, prompt, answer): ...", "neither a callable"),
        (f"{PLAIN}\nscore.upper_bound = 'high'", "upper_bound='high'"),
        (f"{PLAIN}\nscore.upper_bound = float('inf')", "upper_bound=inf"),
    ],
)
def test_a_broken_entry_point_is_named(install: Install, source: str, problem: str) -> None:
    install("broken", source)
    with pytest.raises(ConfigError, match=f"entry point broken = reward_broken:score .*{problem}"):
        installed_rewards()


def test_an_unknown_name_lists_the_known_ones_and_a_url_is_only_a_name(install: Install) -> None:
    with pytest.raises(RequestError, match="none are configured"):
        reward("length", {})
    install("length", PLAIN)
    endpoints = {"judge": EndpointConfig(url=AnyHttpUrl("http://localhost:1"))}
    for name in ("lenght", "http://localhost:1"):
        with pytest.raises(RequestError, match="Rewards of this server: judge, length") as caught:
            reward(name, endpoints)
        assert (caught.value.field, caught.value.value) == ("reward", name)


@pytest.mark.parametrize("field", ["reward_url", "url", "headers_env"])
def test_a_request_has_no_way_to_name_an_address(field: str) -> None:
    with pytest.raises(RequestError, match="unknown parameter"):
        parse_request({"reward": "judge", field: "http://169.254.169.254"})
