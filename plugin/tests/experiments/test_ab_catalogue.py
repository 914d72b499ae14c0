"""The directory of experiments: all or nothing at the start, the last good one later."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ab_experiments import PLAIN, POWER, write
from sglang_power.errors import ConfigError, RequestError
from sglang_power.experiments.catalogue import Catalogue, Loaded, unchecked
from sglang_power.experiments.model import Arm, Experiment
from sglang_power.experiments.state import State, state_path, write_state
from sglang_power.server.config import load_config

RAMP = [{"weights": {"plain": 9000, "power": 1000}}, {"weights": {"plain": 5000, "power": 5000}}]
LOW = {"name": "chat", "first": 0, "last": 5000}
HIGH = {"name": "chat", "first": 5000, "last": 10_000}


CONFIGS = Path(__file__).parents[3] / "configs"


def test_the_shipped_experiments_fit_the_shipped_configuration() -> None:
    config = load_config(CONFIGS / "experiments.yaml")

    def check(_experiment: Experiment, arm: Arm) -> None:
        if arm.sampler != {"sampler": "none"}:
            config.resolve(arm.sampler)

    shipped = Catalogue(CONFIGS / "experiments", check)
    found = {each.experiment.name: each.experiment for each in shipped.experiments}
    assert {path.stem for path in (CONFIGS / "experiments").glob("*.yaml")} == found.keys()
    template = found["power-vs-plain"]
    assert {arm.control for arm in template.arms} == {None, "plain", "compute_matched"}
    assert config.experiments is not None
    assert CONFIGS.parent / config.experiments.directory == CONFIGS / "experiments"


def catalogue(directory: Path) -> Catalogue:
    return Catalogue(directory, unchecked)


def changes(each: Catalogue) -> list[tuple[str, str, int, bool]]:
    return [(one.experiment, one.why, one.phase, one.enrolling) for one in each.changes]


def test_all_files_are_loaded_in_order_of_names(tmp_path: Path) -> None:
    for file, name in enumerate(("b", "c", "a")):
        write(tmp_path, f"file-{file}", name=name)
    (tmp_path / "README.md").write_text("not an experiment")
    each = catalogue(tmp_path)
    assert [one.experiment.name for one in each.experiments] == ["a", "b", "c"]
    assert changes(each) == [(name, "loaded", 0, True) for name in "abc"]
    assert each.changes[0].config == each.experiments[0].config


def test_an_empty_directory_is_no_mistake(tmp_path: Path) -> None:
    assert catalogue(tmp_path).experiments == ()


def test_a_directory_that_is_missing_is_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent: .*No such file"):
        catalogue(tmp_path / "absent")


def test_every_bad_file_of_the_start_is_named(tmp_path: Path) -> None:
    write(tmp_path, name="good")
    write(tmp_path, name="bad", alpha=2.0)
    write(tmp_path, name="worse", owner=7)
    with pytest.raises(ConfigError) as caught:
        catalogue(tmp_path)
    assert "bad.yaml, line 26, field 'alpha'" in str(caught.value)
    assert "worse.yaml, line 2, field 'owner'" in str(caught.value)
    assert "good.yaml" not in str(caught.value)


def test_a_sampler_that_the_server_refuses_is_shown_in_its_arm(tmp_path: Path) -> None:
    def check(_experiment: Experiment, arm: Arm) -> None:
        if "preset" in arm.sampler:
            raise RequestError("preset", arm.sampler["preset"], "unknown preset", "Presets: fast")

    write(tmp_path, arms=[PLAIN, {**POWER, "sampler": {"preset": "slow"}}])
    with pytest.raises(
        ConfigError, match=r"line 14, field 'arms\.1\.sampler\.preset': preset='slow': unknown"
    ):
        Catalogue(tmp_path, check)


PAIRS: list[tuple[dict[str, Any], dict[str, Any], str, str]] = [
    ({"name": "same"}, {"name": "same"}, "name", "'same' is also the name"),
    ({"namespace": LOW}, {"namespace": {**HIGH, "first": 4999}}, "namespace.first", r"units \[0, 5000\)"),
    ({"namespace": {**LOW, "last": 10_000}}, {"namespace": HIGH}, "namespace.first", "experiment 'a'"),
    ({"namespace": HIGH}, {"namespace": {**LOW, "last": 5001}}, "namespace.first", r"units \[5000, 10000\)"),
    (
        {"holdout": {"name": "year", "share": 500}},
        {"holdout": {"name": "year", "share": 400}},
        "holdout.share",
        "share of 500",
    ),
]


@pytest.mark.parametrize(("one", "other", "field", "says"), PAIRS, ids=lambda value: str(value)[:20])
def test_experiments_that_contradict_each_other_name_both_files(
    tmp_path: Path, one: dict[str, Any], other: dict[str, Any], field: str, says: str
) -> None:
    write(tmp_path, **{"file": "a", "name": "a", **one})
    write(tmp_path, **{"file": "b", "name": "b", **other})
    with pytest.raises(ConfigError, match=says) as caught:
        catalogue(tmp_path)
    assert re.search(rf"b\.yaml, line \d+, field '{field}'", str(caught.value))
    assert str(tmp_path / "a.yaml") in str(caught.value)


def test_what_looks_like_a_contradiction_and_is_none(tmp_path: Path) -> None:
    write(tmp_path, name="a", namespace=LOW, holdout={"name": "year", "share": 500})
    write(tmp_path, name="b", namespace=HIGH, holdout={"name": "year", "share": 500})
    write(tmp_path, name="c", namespace={**LOW, "name": "code"}, holdout={"name": "week", "share": 9})
    assert len(catalogue(tmp_path).experiments) == 3


def test_a_reload_without_an_edit_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    each = catalogue(tmp_path)
    before = each.experiments
    assert each.reload() == []
    assert each.experiments == before
    assert each.changes == ()


def one(each: Catalogue) -> Loaded:
    (only,) = each.experiments
    return only


def test_edits_additions_and_removals_take_effect(tmp_path: Path) -> None:
    path = write(tmp_path)
    each = catalogue(tmp_path)
    write(tmp_path, alpha=0.1)
    write(tmp_path, name="new")
    assert each.reload() == []
    assert changes(each) == [("exp", "loaded", 0, True), ("new", "loaded", 0, True)]
    assert each.experiments[0].experiment.alpha == 0.1
    path.unlink()
    assert each.reload() == []
    assert changes(each) == [("exp", "removed", 0, False)]
    assert one(each).experiment.name == "new"


def test_the_kill_switch_of_the_file(tmp_path: Path) -> None:
    write(tmp_path)
    each = catalogue(tmp_path)
    config = one(each).config
    write(tmp_path, kill=True)
    each.reload()
    assert changes(each) == [("exp", "killed", 0, False)]
    assert not one(each).enrolling
    assert one(each).config == config
    write(tmp_path)
    each.reload()
    assert changes(each) == [("exp", "loaded", 0, True)]


def test_a_drain_goes_on_enrolling(tmp_path: Path) -> None:
    write(tmp_path)
    each = catalogue(tmp_path)
    before = one(each).config
    edits: list[tuple[dict[str, Any], str]] = [
        ({"drain": True}, "draining"),
        ({"drain": True, "kill": True}, "killed"),
        ({}, "loaded"),
    ]
    for fields, why in edits:
        write(tmp_path, **fields)
        each.reload()
        assert changes(each) == [("exp", why, 0, why != "killed")]
        assert one(each).enrolling is (why != "killed")
        assert one(each).config == before


@pytest.mark.parametrize(
    ("edit", "changed", "anew"),
    [
        ({"owner": "another"}, 0, ()),
        ({"alpha": 0.1}, 1, ()),
        ({"arms": [PLAIN, {**POWER, "sampler": {"sampler": "power"}}]}, 1, ("exp",)),
    ],
    ids=str,
)
def test_an_edit_that_begins_anew_is_told(
    tmp_path: Path, edit: dict[str, Any], changed: int, anew: tuple[str, ...]
) -> None:
    write(tmp_path)
    each = catalogue(tmp_path)
    assert each.begun_anew == ()
    write(tmp_path, **edit)
    assert each.reload() == []
    assert (len(each.changes), each.begun_anew) == (changed, anew)
    assert one(each).experiment.owner == edit.get("owner", "team"), "taken all the same"


def test_the_next_phase_is_no_new_beginning(tmp_path: Path) -> None:
    path = state_path(write(tmp_path, ramp=RAMP))
    each = catalogue(tmp_path)
    first = one(each).config
    write_state(path, State(phase=1))
    each.reload()
    assert each.begun_anew == ()
    assert one(each).config != first


def test_states_give_the_phase_and_kill(tmp_path: Path) -> None:
    path = state_path(write(tmp_path, ramp=RAMP))
    each = catalogue(tmp_path)
    write_state(path, State(phase=1))
    assert each.reload() == []
    assert changes(each) == [("exp", "loaded", 1, True)]
    assert one(each).phase == 1
    write_state(path, State(phase=1, killed=True, reason="guardrail"))
    each.reload()
    assert changes(each) == [("exp", "killed", 1, False)]
    path.unlink()
    each.reload()
    assert (one(each).phase, one(each).enrolling) == (0, True)


Edit = Callable[[Path], object]
BAD_EDITS: list[tuple[Edit, str]] = [
    (lambda folder: write(folder, alpha=2.0), "'alpha'"),
    (lambda folder: (folder / "exp.yaml").write_text("name: ["), r"exp\.yaml"),
    (lambda folder: (folder / "exp.yaml").write_bytes(b"\xff"), r"exp\.yaml"),
    (lambda folder: (folder / "exp.yaml").write_text(r'owner: "\ud83d"'), "surrogates not allowed"),
    (lambda folder: write(folder, "exp", name="other"), "'other' is also the name"),
    (lambda folder: write(folder, "second"), "'exp' is also the name"),
]


@pytest.mark.parametrize(("edit", "says"), BAD_EDITS)
def test_a_bad_edit_leaves_the_last_good_one_and_says_so(tmp_path: Path, edit: Edit, says: str) -> None:
    write(tmp_path)
    write(tmp_path, name="other")
    each = catalogue(tmp_path)
    before = each.experiments
    edit(tmp_path)
    (problem,) = each.reload()
    assert re.search(says, problem), problem
    assert each.experiments == before
    assert each.changes == ()


def test_a_bad_edit_does_not_hold_up_a_good_one(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, name="other")
    each = catalogue(tmp_path)
    write(tmp_path, alpha=2.0)
    write(tmp_path, name="other", alpha=0.1)
    assert len(each.reload()) == 1
    assert changes(each) == [("other", "loaded", 0, True)]


def test_a_rollback_takes_effect_beside_a_bad_edit(tmp_path: Path) -> None:
    path = write(tmp_path, ramp=RAMP)
    each = catalogue(tmp_path)
    path.write_text("name: [")
    write_state(state_path(path), State(killed=True))
    assert len(each.reload()) == 1
    assert changes(each) == [("exp", "killed", 0, False)]


def test_a_kill_takes_effect_beside_a_bad_state(tmp_path: Path) -> None:
    path = write(tmp_path)
    each = catalogue(tmp_path)
    state_path(path).write_text('{"phase":')
    write(tmp_path, kill=True)
    assert len(each.reload()) == 1
    assert changes(each) == [("exp", "killed", 0, False)]


def test_a_phase_that_the_ramp_does_not_have(tmp_path: Path) -> None:
    path = state_path(write(tmp_path, ramp=RAMP))
    write_state(path, State(phase=1))
    each = catalogue(tmp_path)
    write_state(path, State(phase=2))
    assert "'phase': 2, but" in each.reload()[0]
    assert one(each).phase == 1


def test_where_no_state_fits_the_experiment_is_out_until_one_does(tmp_path: Path) -> None:
    path = state_path(write(tmp_path, ramp=RAMP))
    write_state(path, State(phase=1))
    each = catalogue(tmp_path)
    write(tmp_path, ramp=RAMP[:1])
    assert len(each.reload()) == 1
    assert changes(each) == [("exp", "removed", 1, False)]
    write_state(path, State(phase=0))
    assert each.reload() == []
    assert changes(each) == [("exp", "loaded", 0, True)]


def test_ranges_that_two_edits_swap_together(tmp_path: Path) -> None:
    write(tmp_path, name="a", namespace=LOW)
    write(tmp_path, name="b", namespace=HIGH)
    each = catalogue(tmp_path)
    write(tmp_path, name="a", namespace=HIGH)
    write(tmp_path, name="b", namespace=LOW)
    assert each.reload() == []
    assert [one.experiment.namespace.first for one in each.experiments if one.experiment.namespace] == [
        5000,
        0,
    ]


def test_a_directory_that_vanishes_leaves_everything_as_it_was(tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    folder.mkdir()
    write(folder)
    each = catalogue(folder)
    before = each.experiments
    shutil.rmtree(folder)
    assert "No such file" in each.reload()[0]
    assert each.experiments == before
    assert each.changes == ()


def test_a_renamed_file_goes_on(tmp_path: Path) -> None:
    path = write(tmp_path)
    each = catalogue(tmp_path)
    path.rename(tmp_path / "moved.yaml")
    assert each.reload() == []
    assert each.changes == ()
