"""Providers of other distributions: clear answers only, and no waiting for anybody."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ab_experiments import SPACED, loaded
from openfeature import api
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import FlagNotFoundError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason
from openfeature.provider.in_memory_provider import InMemoryProvider
from purgatory.domain.model import OpenedState
from sglang_power.errors import ConfigError
from sglang_power.experiments import providers
from sglang_power.experiments.assignment import Assigned, Assigner, NotAssigned, assigner_of
from sglang_power.experiments.providers import External, installed_provider
from sglang_power.experiments.settings import Breaker, ExperimentSettings


@pytest.fixture(autouse=True)
def _no_provider_stays() -> Iterator[None]:
    yield
    api.clear_providers()


Answer = Callable[[str], FlagResolutionDetails[str]]


class Scripted(InMemoryProvider):
    """Answers as it is told to, and remembers what it was asked."""

    def __init__(self, answer: Answer) -> None:
        super().__init__({})
        self.answer = answer
        self.asked: list[str] = []

    def resolve_string_details(
        self,
        flag_key: str,
        default_value: str,  # noqa: ARG002 -- of OpenFeature's interface
        evaluation_context: EvaluationContext | None = None,  # noqa: ARG002
    ) -> FlagResolutionDetails[str]:
        self.asked.append(flag_key)
        return self.answer(flag_key)


def says(value: str, **details: Any) -> Answer:
    return lambda _flag: FlagResolutionDetails(value, **{"variant": value, **details})


def raises(error: Exception) -> Answer:
    def answer(_flag: str) -> FlagResolutionDetails[str]:
        raise error

    return answer


def hangs(release: threading.Event) -> Answer:
    """Until it is released; a good answer comes at last, which a deadline must not wait for."""

    def answer(_flag: str) -> FlagResolutionDetails[str]:
        release.wait(5)
        return FlagResolutionDetails("power", variant="power")

    return answer


def external(provider: Scripted, deadline_ms: float = 2000.0, **breaker: Any) -> Assigner:
    """Its deadline is long unless it is what a test is about."""
    assigner = Assigner(External(provider, deadline_ms, Breaker(**breaker)))
    api.set_provider_and_wait(provider, providers.DOMAIN)
    return assigner


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (says("power"), Assigned("power")),
        (says("power", reason=Reason.SPLIT), Assigned("power")),
        (says("power", reason=Reason.CACHED), Assigned("power")),
        (says("pover"), NotAssigned("unknown_arm")),
        (says("power", variant=None), NotAssigned("provider_default")),
        (says("power", reason=Reason.DEFAULT), NotAssigned("provider_default")),
        (says("power", reason=Reason.DISABLED), NotAssigned("provider_default")),
        (says("power", reason=Reason.ERROR), NotAssigned("provider_error")),
        (raises(FlagNotFoundError("none")), NotAssigned("provider_error")),
        (raises(ValueError("boom")), NotAssigned("provider_error")),
        (lambda _flag: FlagResolutionDetails(7, variant="7"), NotAssigned("provider_error")),
    ],
    ids=str,
)
async def test_only_a_clear_answer_enrols(answer: Answer, expected: Assigned | NotAssigned) -> None:
    assert await external(Scripted(answer)).assign(loaded(), "u") == expected


async def test_an_external_provider_is_asked_for_the_flags_of_the_experiment_alone() -> None:
    answers = {"holdout.year": "not_held", "namespace.chat": "exp", "exp": "power"}
    provider = Scripted(lambda flag: FlagResolutionDetails(answers[flag], variant=answers[flag]))
    assigner = external(provider)
    assert await assigner.assign(loaded(), "u") == Assigned("power")
    assert provider.asked == ["exp"]
    assert await assigner.assign(loaded(**SPACED), "u") == Assigned("power")
    answers["namespace.chat"] = "other"
    assert await assigner.assign(loaded(**SPACED), "u") == NotAssigned("namespace")
    answers["holdout.year"] = "held"
    assert await assigner.assign(loaded(**SPACED), "u") == NotAssigned("holdout")
    answers["holdout.year"] = "off"
    assert await assigner.assign(loaded(**SPACED), "u") == NotAssigned("unknown_arm")


async def test_a_provider_that_hangs_neither_blocks_the_event_loop_nor_the_request() -> None:
    release = threading.Event()
    assigner, each = external(Scripted(hangs(release)), deadline_ms=20.0, failures=100), loaded()
    count = 3 * providers.THREADS
    try:
        answers = await asyncio.gather(*(assigner.assign(each, f"u{i}") for i in range(count)))
    finally:
        release.set()
    assert answers == [NotAssigned("provider_timeout")] * count


async def test_after_failures_in_a_row_it_is_not_asked_until_the_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("purgatory.domain.model.time", SimpleNamespace(time=lambda: now[0]))
    provider, each = Scripted(raises(ValueError("down"))), loaded()
    assigner = external(provider, failures=3, reset_s=30.0)
    reasons = [await assigner.assign(each, "u") for _ in range(50)]
    assert reasons == [NotAssigned("provider_error")] * 3 + [NotAssigned("circuit_open")] * 47
    assert len(provider.asked) == 3
    now[0] += 29.9
    provider.answer = says("power")
    assert await assigner.assign(each, "u") == NotAssigned("circuit_open")
    now[0] += 0.2
    assert await assigner.assign(each, "u") == Assigned("power")
    assert await assigner.assign(each, "u") == Assigned("power")


async def test_timeouts_open_the_circuit_too() -> None:
    release = threading.Event()
    assigner = external(Scripted(hangs(release)), deadline_ms=20.0, failures=2)
    try:
        reasons = [await assigner.assign(loaded(), "u") for _ in range(3)]
    finally:
        release.set()
    assert reasons == [NotAssigned("provider_timeout")] * 2 + [NotAssigned("circuit_open")]


@pytest.mark.parametrize("answer", [says("power", reason=Reason.DEFAULT), raises(FlagNotFoundError("none"))])
async def test_flags_that_are_missing_are_no_failure_of_the_provider(answer: Answer) -> None:
    provider = Scripted(answer)
    assigner = external(provider, failures=2)
    for _ in range(6):
        await assigner.assign(loaded(), "u")
    assert len(provider.asked) == 6


async def test_clients_that_go_away_are_no_failure_of_the_provider() -> None:
    release = threading.Event()
    assigner, each = external(Scripted(hangs(release)), deadline_ms=20_000.0, failures=1), loaded()
    task = asyncio.create_task(assigner.assign(each, "u"))
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    release.set()
    assert await assigner.assign(each, "u") == Assigned("power")


async def test_an_open_circuit_keeps_no_frames() -> None:
    """Purgatory raises the same exception every time; its traceback must not grow."""
    assigner, each = external(Scripted(raises(ValueError("down"))), failures=1, reset_s=60.0), loaded()
    for _ in range(200):
        await assigner.assign(each, "u")
    opened = [one for one in gc.get_objects() if isinstance(one, OpenedState)]
    assert opened
    assert all(one.__traceback__ is None for one in opened)


def point(monkeypatch: pytest.MonkeyPatch, factory: object) -> None:
    found = [("mine", "entry point mine", factory)]
    monkeypatch.setattr(
        providers, "extensions", lambda group: found if group == providers.ENTRY_POINTS else []
    )


async def test_a_provider_of_another_distribution(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    point(monkeypatch, lambda: Scripted(says("power")))
    settings = ExperimentSettings(directory=tmp_path, log=tmp_path, provider="mine", deadline_ms=2000.0)
    assigner = assigner_of(settings)
    while (given := await assigner.assign(loaded(), "u")) == NotAssigned("provider_error"):
        await asyncio.sleep(0.01)  # it is initialised beside the server's start
    assert given == Assigned("power")


def broken() -> object:
    raise OSError("no key")


@pytest.mark.parametrize(
    ("name", "factory", "says"),
    [
        ("other", Scripted, "Installed are: embedded, mine"),
        ("mine", broken, "entry point mine: no key"),
        ("mine", lambda: "flags", "no OpenFeature provider, but 'flags'"),
    ],
)
def test_providers_that_cannot_be_had(
    monkeypatch: pytest.MonkeyPatch, name: str, factory: object, says: str
) -> None:
    point(monkeypatch, factory)
    with pytest.raises(ConfigError, match=says):
        installed_provider(name)
