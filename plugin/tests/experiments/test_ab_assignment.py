"""Assignment by the embedded provider: golden units, holdouts, namespaces, phases."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ab_experiments import SPACED, loaded
from openfeature import api
from sglang_power.errors import ConfigError
from sglang_power.experiments.assignment import Assigned, Assigner, NotAssigned, assigner_of
from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.providers import Embedded
from sglang_power.experiments.settings import ExperimentSettings

GOLDEN = Path(__file__).parents[1] / "data" / "golden_assignment.json"


@pytest.fixture(autouse=True)
def _no_provider_stays() -> Iterator[None]:
    yield
    api.clear_providers()


def embedded(*experiments: Loaded) -> Assigner:
    assigner = Assigner(Embedded())
    assigner.load(experiments)
    return assigner


async def arms(assigner: Assigner, each: Loaded, units: list[str]) -> list[str]:
    """Each unit's arm, or its reason in parentheses."""
    given = [await assigner.assign(each, unit) for unit in units]
    return [one.arm if isinstance(one, Assigned) else f"({one.reason})" for one in given]


async def test_golden_units_keep_their_arms() -> None:
    golden = json.loads(GOLDEN.read_text())
    for name, layout in golden["layouts"].items():
        each = loaded(**layout["experiment"])
        found = await arms(embedded(each), each, golden["units"])
        assert found == layout["arms"], (
            f"{name}: units of running experiments would move to other arms. An upgrade that does so must "
            "not be taken while experiments run; never change the golden file to make this pass"
        )


def test_the_golden_units_are_what_they_say() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert len(set(golden["units"])) == 200
    assert [len(layout["arms"]) for layout in golden["layouts"].values()] == [200] * 3
    assert [len(set(layout["arms"])) for layout in golden["layouts"].values()] == [2, 3, 4]


async def test_the_same_flags_again_move_nobody() -> None:
    each, units = loaded(**SPACED), [f"u{i}" for i in range(500)]
    assigner = embedded(each)
    before = await arms(assigner, each, units)
    assigner.load([each])
    assert await arms(assigner, each, units) == before
    assert await arms(embedded(each), each, units) == before


async def test_holdout_and_namespace_come_first() -> None:
    each, units = loaded(**SPACED), [f"u{i}" for i in range(500)]
    plain = loaded()
    inside = await arms(embedded(each), each, units)
    free = await arms(embedded(plain), plain, units)
    assert {*inside} == {"plain", "power", "(holdout)", "(namespace)"}
    assert all(one in (other, "(holdout)", "(namespace)") for one, other in zip(inside, free, strict=True))


async def test_a_new_phase_takes_effect_with_the_next_load() -> None:
    ramp = [{"weights": {"plain": 10_000, "power": 0}}, {"weights": {"plain": 0, "power": 10_000}}]
    first, second = loaded(ramp=ramp), loaded(1, ramp=ramp)
    assigner = embedded(first)
    assert await assigner.assign(first, "u") == Assigned("plain")
    assigner.load([second])
    assert await assigner.assign(second, "u") == Assigned("power")


def test_the_embedded_provider_answers_without_a_pause() -> None:
    """So that no reload comes between a snapshot and its flags, and no other request before an answer."""
    each = loaded(**SPACED)
    answering = embedded(each).assign(each, "u")
    with pytest.raises(StopIteration):
        answering.send(None)


@pytest.mark.parametrize("unit", ["\ud800", "x" * 100_000, "u\0", "ü 日", "7"])
async def test_strange_units_are_assigned_or_not_but_break_nothing(unit: str) -> None:
    each = loaded()
    given = await embedded(each).assign(each, unit)
    assert given == NotAssigned("provider_default") if unit == "\ud800" else isinstance(given, Assigned)


async def test_without_a_unit_nothing_is_asked() -> None:
    each = loaded()
    with pytest.raises(ValueError, match="without a unit"):
        await embedded(each).assign(each, "")


async def test_an_experiment_that_is_not_loaded_has_no_arms() -> None:
    assert await embedded().assign(loaded(), "u") == NotAssigned("provider_error")


def test_the_embedded_provider_says_which_extra_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openfeature.contrib.tools.flagd.core", None)
    with pytest.raises(ConfigError, match=r"pip install '\.\[ab\]'"):
        Embedded()


async def test_the_default_is_embedded(tmp_path: Path) -> None:
    assigner = assigner_of(ExperimentSettings(directory=tmp_path, log=tmp_path))
    assigner.load([loaded()])
    assert isinstance(await assigner.assign(loaded(), "u"), Assigned)
