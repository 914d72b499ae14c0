"""Samplers of whole answers that other distributions bring: what is refused, and who knows the others.

Deterministic; error rate 0.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sglang_power.errors import ConfigError, RequestError
from sglang_power.policies import policies
from sglang_power.request import parse_request, samplers
from sglang_power.request.table import BUILT_IN, installed_samplers
from sglang_power.samplers.registry import BUILT_IN as SAMPLERS
from sglang_power.samplers.registry import samplers_of_whole_answers, served
from sglang_power.server.config import load_config
from sglang_power.sglang_host import install as installing
from sglang_power.sglang_host.tokenizer import places

SAMPLER = """
from typing import Literal

from sglang_power.request import WholeAnswerRequest


class TwiceRequest(WholeAnswerRequest):
    sampler: Literal["{name}"] = "{name}"
    twists: int = 2


class Twice:
    request = TwiceRequest

    async def run(self, asked, tools): ...
"""

TWICE = SAMPLER.format(name="twice")

POLICY = """
from typing import ClassVar, Literal

from sglang_power.policies import Action, Policy


class Same(Policy):
    sampler: Literal["twice"] = "twice"

    @classmethod
    def act(cls, rows, params): return Action()

    def law(self, row): ...
"""

Install = Callable[..., None]

CACHES = (policies, installed_samplers, samplers, samplers_of_whole_answers, places.own_names)


def forget() -> None:
    """Read the entry points again."""
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module with one entry point `extra`."""

    def install(module: str, source: str, attribute: str = "Twice", group: str = "samplers") -> None:
        (tmp_path / f"{module}.py").write_text(source)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[sglang_power.{group}]\nextra = {module}:{attribute}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setitem(sys.modules, module, None)  # forgotten afterwards, whatever the test imports
        del sys.modules[module]
        forget()

    yield install
    forget()


def test_a_sampler_of_another_distribution_is_known_everywhere(install: Install, tmp_path: Path) -> None:
    install("sampler_twice", TWICE)
    asked = parse_request({"sampler": "twice", "twists": 3, "seed": 4})
    answered = served(asked)
    assert answered is not None
    assert (answered.name, type(answered.sampler).__name__) == ("twice", "Twice")
    assert "twists" in places.own_names(), "beside SGLang's own parameters"
    file = tmp_path / "config.yaml"
    file.write_text(
        "presets: {often: {sampler: twice, twists: 5}}\n"
        "defaults: {some: often}\n"
        "parameters: {some: {twice: {twists: 7}}}\n"
    )
    config = load_config(file)
    assert config.resolve({"preset": "often"}).model_dump()["twists"] == 5
    assert config.resolve({"sampler": "twice"}, "some").model_dump()["twists"] == 7
    config.check_arm({"sampler": "twice"})
    with pytest.raises(RequestError, match="twist='a': unknown parameter"):
        config.check_arm({"sampler": "twice", "twist": "a"})


@pytest.mark.parametrize(
    ("module", "source", "problem"),
    [
        ("sampler_number", "Twice = 3", "not a class with `async def run"),
        ("sampler_object", f"{TWICE}\nTwice = Twice()", "not a class with `async def run"),
        ("sampler_waits", TWICE.replace("async def run", "def run"), "not a class with `async def run"),
        ("sampler_idle", TWICE.replace("async def run", "async def go"), "not a class with `async def run"),
        (
            "sampler_mute",
            TWICE.replace("request = T", "asked = T"),
            "no subclass of WholeAnswerRequest",
        ),
        ("sampler_loose", TWICE.replace("= TwiceRequest", "= int"), "no subclass of WholeAnswerRequest"),
        ("sampler_unnamed", TWICE.replace(' = "twice"\n', "\n"), "has no default, its name"),
        ("sampler_power", SAMPLER.format(name="power"), "the name 'power' is in use"),
        ("sampler_none", SAMPLER.format(name="none"), "the name 'none' is in use"),
        ("sampler_edt", SAMPLER.format(name="edt"), "the name 'edt' is in use"),
        ("sampler_raises", "raise RuntimeError('no such luck')", "no such luck"),
        ("sampler_absent", "", "Twice"),
    ],
)
def test_a_broken_entry_point_is_named(install: Install, module: str, source: str, problem: str) -> None:
    install(module, source)
    with pytest.raises(ConfigError, match=f"entry point extra = {module}:Twice .*{problem}"):
        samplers()


def test_two_distributions_may_not_take_one_name(install: Install) -> None:
    install("sampler_first", TWICE)
    install("sampler_second", TWICE)
    with pytest.raises(ConfigError, match=r"entry point extra = sampler_.*: the name 'twice' is in use"):
        samplers()


def test_a_policy_of_another_distribution_keeps_its_name(install: Install) -> None:
    install("policy_twice", POLICY, "Same", "policies")
    install("sampler_twice", TWICE)
    with pytest.raises(ConfigError, match=r"entry point extra = sampler_twice:.*'twice' is in use"):
        samplers()


def test_a_sampler_that_cannot_be_made_ends_the_start_of_the_server(install: Install) -> None:
    install("sampler_costly", f"{TWICE}\n    def __init__(self, size): ...\n")
    with pytest.raises(
        SystemExit, match=r"cannot be installed: the sampler sampler_costly\.Twice cannot be made"
    ):
        installing.install()


def test_models_and_samplers_of_this_package_belong_together() -> None:
    assert {each.request for each in SAMPLERS} == set(BUILT_IN)
    assert list(samplers_of_whole_answers()) == [each.request for each in SAMPLERS]
