"""Who joins which experiment: every reason not to, the order of experiments, testers and windows."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import pytest
from sglang_power.errors import RequestError
from sglang_power.experiments.assignment import assigner_of
from sglang_power.experiments.catalogue import Loaded
from sglang_power.experiments.enrolling import Enrolled, Enroller, Facts
from sglang_power.experiments.model import Arm, Experiment
from sglang_power.experiments.settings import ExperimentSettings
from sglang_power.experiments.state import State
from sglang_power.experiments.versions import config_hash

PLAIN = {"name": "plain", "sampler": {"sampler": "none"}, "weight": 5000, "control": "plain"}
POWER = {"name": "power", "sampler": {"sampler": "power"}, "weight": 5000}
FACTS = Facts("m", "generate", False, 8, {"x-user": "u"}, None, {}, None)
NOW = 1_000_000.0


def loaded(name: str = "e", state: State | None = None, **fields: Any) -> Loaded:
    """An experiment in force."""
    values = {
        "name": name,
        "owner": "o",
        "hypothesis": "h",
        "unit": {"header": "X-User"},
        "arms": (PLAIN, POWER),
        "metrics": {"m": {"source": "feedback", "low": 0.0, "high": 1.0, "absent": 0.0}},
        "primary": {"metric": "m", "min_effect": 0.0},
        **fields,
    }
    experiment = Experiment.model_validate(values)
    return Loaded(experiment, config_hash(experiment), State() if state is None else state)


class StubService:
    """An enroller with what it refused."""

    def __init__(self, *experiments: Loaded, key: bytes = b"key") -> None:
        settings = ExperimentSettings(directory="unused", log="unused")  # type: ignore[arg-type]
        assigner = assigner_of(settings)
        assigner.load(experiments)
        self.experiments, self.refused, self.asked = experiments, list[tuple[str, str]](), list[str]()
        self._enroller = Enroller(assigner, key, lambda one, why: self.refused.append((one.name, why)))

    async def enrol(
        self, unfit: str = "", breaks: str = "", now: float = NOW, **facts: Any
    ) -> Enrolled | None:
        """Enrol a request that every arm but one can serve; one may break when it is asked."""

        def fits(arm: Arm) -> bool:
            self.asked.append(arm.name)
            if arm.name == breaks:
                raise TypeError(f"{breaks} raises")
            return arm.name != unfit

        return await self._enroller.enrol(self.experiments, dataclasses.replace(FACTS, **facts), fits, now)


async def test_a_user_has_one_arm_and_a_hash_for_a_name() -> None:
    service = StubService(loaded())
    places = [await service.enrol(headers={"x-user": f"u{i % 20}"}) for i in range(60)]
    arms: dict[str, set[str]] = {}
    for place in places:
        assert place is not None
        arms.setdefault(place.unit, set()).add(place.arm.name)
    assert len(arms) == 20
    assert {len(each) for each in arms.values()} == {1}
    assert set.union(*arms.values()) == {"plain", "power"}
    other = StubService(loaded(), key=b"another")
    there = [await other.enrol(headers={"x-user": f"u{i}"}) for i in range(20)]
    assert {place.arm.name for place in there if place} == {"plain", "power"}
    assert arms.keys().isdisjoint({place.unit for place in there if place}), (
        "the key hashes, it does not assign"
    )


@pytest.mark.parametrize(
    ("reason", "fields", "facts"),
    [
        ("killed", {"kill": True}, {}),
        ("not_eligible", {"eligibility": {"models": ("other",)}}, {}),
        ("not_eligible", {"eligibility": {"endpoints": ("chat",)}}, {}),
        ("not_eligible", {}, {"endpoint": "/v1/responses"}),
        ("not_eligible", {"eligibility": {"min_max_new_tokens": 9}}, {}),
        ("own_sampler", {}, {"excluded": "own_sampler"}),
        ("seed", {}, {"excluded": "seed"}),
        ("greedy", {}, {"excluded": "greedy"}),
        ("batch", {}, {"excluded": "batch"}),
        ("no_unit", {}, {"headers": {}}),
        ("no_unit", {}, {"headers": {"x-user": ""}}),
        ("no_unit", {"unit": {"field": "user"}}, {}),
        ("no_unit", {"unit": {"field": "user"}}, {"user": "\ud800"}),
        ("no_unit", {"unit": {"metadata": "x-user"}}, {}),
        ("no_unit", {"unit": {"metadata": "id"}}, {"user": "u", "metadata": {"id": ""}}),
        ("no_unit", {"unit": {"metadata": "id"}}, {"metadata": {"id": 7}}),
        ("no_unit", {"unit": {"metadata": "id"}}, {"metadata": {"id": "\ud800"}}),
        ("no_unit", {"unit": {"field": "user"}}, {"metadata": {"user": "u"}}),
        ("unsupported", {}, {"unfit": "power"}),
        ("unsupported", {}, {"unfit": "plain"}),
    ],
)
async def test_every_reason_not_to_join(
    reason: str, fields: Mapping[str, Any], facts: Mapping[str, Any]
) -> None:
    service = StubService(loaded(**fields))
    assert await service.enrol(**facts) is None
    assert service.refused == [("e", reason)]
    if reason != "unsupported":
        assert not service.asked, "no arm is asked in vain"


async def test_a_rolled_back_experiment_takes_nobody() -> None:
    service = StubService(loaded(state=State(killed=True, reason="a guardrail")))
    assert await service.enrol() is None
    assert service.refused == [("e", "killed")]


async def test_a_defect_costs_an_experiment_the_request_and_nobody_an_answer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    service = StubService(loaded("a", arms=(PLAIN, {**POWER, "name": "broken"})), loaded("b"))
    place = await service.enrol(breaks="broken")
    assert place is not None
    assert place.loaded.experiment.name == "b"
    assert service.refused == [("a", "internal")]
    assert "broken raises" in caplog.text


async def test_an_open_limit_is_enough_tokens() -> None:
    assert await StubService(loaded()).enrol(max_new_tokens=None) is not None


async def test_the_first_experiment_that_fits_has_the_request() -> None:
    service = StubService(
        loaded("a", kill=True), loaded("b", unit={"field": "user"}), loaded("c"), loaded("d")
    )
    place = await service.enrol()
    assert place is not None
    assert place.loaded.experiment.name == "c"
    assert service.refused == [("a", "killed"), ("b", "no_unit")]


async def test_units_of_another_experiment_of_the_namespace_go_on_to_it() -> None:
    halves = [
        loaded(name, namespace={"name": "n", "first": at, "last": at + 5000})
        for name, at in (("a", 0), ("b", 5000))
    ]
    service = StubService(*halves)
    places = [await service.enrol(headers={"x-user": f"u{i}"}) for i in range(40)]
    assert all(place is not None for place in places)
    names = [place.loaded.experiment.name for place in places if place]
    assert set(names) == {"a", "b"}
    assert service.refused == [("a", "namespace")] * names.count("b")


@pytest.mark.parametrize("arm", ["plain", "power"])
async def test_a_tester_of_the_list_chooses_and_is_marked(arm: str) -> None:
    service = StubService(loaded(qa={"units": ("u",)}))
    place = await service.enrol(headers={"x-user": "u", "x-sglang-power-arm": arm})
    assert place is not None
    assert (place.arm.name, place.override) == (arm, True)


@pytest.mark.parametrize("unit", [{"header": "x-user"}, {"field": "user"}, {"metadata": "user_id"}], ids=str)
async def test_a_unit_has_one_arm_wherever_its_name_stands(unit: dict[str, str]) -> None:
    service, by_header = StubService(loaded(unit=unit)), StubService(loaded())
    for i in range(20):
        name = f"u{i}"
        places: dict[str, Any] = {"user": name, "headers": {"x-user": name}, "metadata": {"user_id": name}}
        place, other = await service.enrol(**places), await by_header.enrol(**places)
        assert place is not None
        assert other is not None
        assert (place.arm, place.unit) == (other.arm, other.unit)


@pytest.mark.parametrize("arm", ["plain", "power"])
async def test_a_tester_may_name_the_arm_in_metadata(arm: str) -> None:
    service = StubService(loaded(unit={"metadata": "user_id"}, qa={"units": ("u",), "metadata": "arm"}))
    place = await service.enrol(metadata={"user_id": "u", "arm": arm})
    assert place is not None
    assert (place.arm.name, place.override) == (arm, True)
    other = await service.enrol(metadata={"user_id": "v", "arm": arm})
    assert other is not None
    assert not other.override
    with pytest.raises(RequestError, match=r"metadata\.arm='neither': no served arm .*plain, power"):
        await service.enrol(metadata={"user_id": "u", "arm": "neither"})


async def test_others_do_not_choose() -> None:
    service = StubService(loaded(qa={"units": ("u",)}))
    for i in range(20):
        own = await service.enrol(headers={"x-user": f"v{i}"})
        place = await service.enrol(headers={"x-user": f"v{i}", "x-sglang-power-arm": "power"})
        assert own == place
        assert place is not None
        assert not place.override


async def test_a_tester_who_names_no_arm_is_told() -> None:
    service = StubService(loaded(qa={"units": ("u",)}))
    with pytest.raises(RequestError, match=r"x-sglang-power-arm='neither': no served arm .*plain, power"):
        await service.enrol(headers={"x-user": "u", "x-sglang-power-arm": "neither"})


async def test_a_window_has_one_arm_for_everybody_and_a_washout() -> None:
    window = {"pool": "p", "window_s": 100.0, "washout_s": 10.0}
    service = StubService(loaded(kind="switchback", unit=None, switchback=window))
    seen: dict[str, set[str]] = {}
    for i in range(2_000):
        now = NOW + i
        place = await service.enrol(now=now, headers={"x-user": f"u{i}"})
        assert place is not None
        assert place.unit == str(int(now // 100))
        assert place.washout == (now % 100 < 10)
        seen.setdefault(place.unit, set()).add(place.arm.name)
    assert len(seen) == 20
    assert {len(arms) for arms in seen.values()} == {1}
    assert set.union(*seen.values()) == {"plain", "power"}
