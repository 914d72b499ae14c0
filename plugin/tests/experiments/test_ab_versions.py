"""Which edits of a file begin a new version, and which lines of a log count for it."""

from __future__ import annotations

from typing import Any

import pytest
from ab_experiments import PLAIN, POWER, SPACED, THUMBS, document, experiment, weighted
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.records import Change
from sglang_power.experiments.versions import Versions, config_hash, legacy_hash, phases_of, rules_hash

RAMP = [{"weights": {"plain": 9000, "power": 1000}}, {"weights": {"plain": 5000, "power": 5000}}]
FAILED = {"source": "outcome", "outcomes": ["error", "lost"]}
FULL: dict[str, Any] = {
    **SPACED,
    "eligibility": {"models": ["m"], "endpoints": ["chat"]},
    "metrics": {
        "thumbs": THUMBS,
        "failed": FAILED,
        "slow": {"source": "latency", "over_ms": 5},
        "tokens": {"source": "tokens"},
    },
    "guardrails": [{"metric": "failed", "margin": 0.1}],
    "arms": [PLAIN, POWER, {"name": "s", "sampler": {"preset": "x"}, "weight": 0, "shadow": True}],
    "shadow": {"tokens_per_hour": 5},
    "ramp": RAMP,
    "qa": {"units": ["a"]},
}
WINDOWS: dict[str, Any] = {
    "kind": "switchback",
    "unit": None,
    "switchback": {"pool": "east", "window_s": 600.0},
}

NEITHER: list[dict[str, Any]] = [
    {"owner": "somebody else"},
    {"hypothesis": "another one"},
    {"kill": True},
    {"drain": True},
    {"qa": {"units": ["tester"]}},
    {"arms": [POWER, PLAIN]},
    {"unit": {"header": "X-User"}},
    {"unit": {"header": "x-user", "metadata": None}},
    {"alpha": 0.05},
    {"arms": [PLAIN, {**POWER, "sampler": {"sampler": "power", "alpha": 2}}]},
    {"ramp": [{"weights": {"plain": 5000, "power": 5000}}]},
    {"ramp": [{"weights": {"plain": 5000, "power": 5000}}, {"weights": {"plain": 1000, "power": 9000}}]},
]
RULES: list[dict[str, Any]] = [
    {"alpha": 0.1},
    {"metrics": {"thumbs": {**THUMBS, "absent": 0.5}}},
    {"metrics": {"thumbs": THUMBS, "failed": FAILED}},
    {"primary": {"metric": "thumbs", "min_effect": 0.02}},
    {"minimum_run": {"days": 1.0}},
    {"outcome_window_h": 1.0},
    {"completion_grace_s": 5.0},
    {"arms": [{**PLAIN, "control": "compute_matched"}, POWER]},
]
VERSION: list[dict[str, Any]] = [
    {"name": "other"},
    {"arms": weighted({"plain": 5000, "power": 5000})},
    {"arms": [PLAIN, {**POWER, "sampler": {"sampler": "power", "alpha": 3.0}}]},
    {"arms": [{**PLAIN, "weight": 4000}, {**POWER, "weight": 6000}]},
    {"ramp": RAMP},
    {"unit": {"field": "user"}},
    {"unit": {"metadata": "x-user"}},
    {"eligibility": {"min_max_new_tokens": 9}},
    {"on_error": "error"},
    SPACED,
    WINDOWS,
]


@pytest.mark.parametrize("edit", NEITHER, ids=str)
def test_what_neither_assigns_nor_judges_changes_nothing(edit: dict[str, Any]) -> None:
    assert config_hash(experiment(**edit)) == config_hash(experiment())
    assert rules_hash(experiment(**edit)) == rules_hash(experiment())


@pytest.mark.parametrize("edit", RULES, ids=str)
def test_rules_of_judgement_are_no_new_version(edit: dict[str, Any]) -> None:
    assert config_hash(experiment(**edit)) == config_hash(experiment())
    assert rules_hash(experiment(**edit)) != rules_hash(experiment())


def test_whatever_assigns_or_serves_is_a_new_version() -> None:
    hashes = {config_hash(experiment()), *(config_hash(experiment(**edit)) for edit in VERSION)}
    assert len(hashes) == 1 + len(VERSION)
    assert {len(each) for each in hashes} == {16}


def test_the_order_of_keys_means_nothing() -> None:
    reordered = experiment(**dict(reversed(document(**FULL).items())))
    for hashed in (config_hash, rules_hash, legacy_hash):
        assert hashed(reordered) == hashed(experiment(**FULL))


def test_a_switchback_may_ask_for_more_windows() -> None:
    more = {**WINDOWS, "switchback": {**WINDOWS["switchback"], "min_windows": 80}}
    assert config_hash(experiment(**more)) == config_hash(experiment(**WINDOWS))
    assert rules_hash(experiment(**more)) != rules_hash(experiment(**WINDOWS))
    other = {**WINDOWS, "switchback": {**WINDOWS["switchback"], "window_s": 900.0}}
    assert config_hash(experiment(**other)) != config_hash(experiment(**WINDOWS))


def test_the_hashes_are_the_same_in_every_process_and_release() -> None:
    """A change here separates the lines of every running experiment."""
    assert config_hash(experiment()) == "0e711afeb3b847d5"
    assert [config_hash(experiment(**FULL), phase) for phase in (0, 1)] == [
        "3f710705df46b91c",
        "32cb837142bc9f68",
    ]
    assert config_hash(experiment(**WINDOWS)) == "6be4ee13af109b26"


@pytest.mark.parametrize(
    ("edit", "was"),
    [
        ({}, "ec39855ea01c1e65"),
        ({"kill": True, "drain": True}, "ec39855ea01c1e65"),
        (FULL, "c11b8db49e7c5ab9"),
        (WINDOWS, "638a84b0effb761d"),
        ({"unit": {"field": "user"}}, "85aa621994cb42a9"),
        ({"unit": {"header": "x-user", "metadata": None}}, "ec39855ea01c1e65"),
    ],
    ids=str,
)
def test_what_the_first_releases_called_a_file(edit: dict[str, Any], was: str) -> None:
    """Written down with their code. A new field of the file belongs into `versions.ADDED`."""
    assert legacy_hash(experiment(**edit)) == was


def accepted(now: Experiment, was: Experiment) -> list[int]:
    """Phases whose lines, of the file as it was, count for the file as it is."""
    versions = Versions(now)
    return [phase for phase in range(phases_of(was)) if versions.accepts(config_hash(was, phase), phase)]


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        ([*RAMP, {"weights": {"plain": 1000, "power": 9000}}], [0, 1]),
        ([RAMP[0], {"weights": {"plain": 4000, "power": 6000}}], [0]),
        ([{"weights": {"plain": 8000, "power": 2000}}, RAMP[1]], []),
        (RAMP[:1], [0]),
    ],
)
def test_a_phase_depends_on_the_phases_before_it_only(later: list[Any], kept: list[int]) -> None:
    assert accepted(experiment(ramp=later), experiment(ramp=RAMP)) == kept


def test_lines_of_the_first_releases_count() -> None:
    versions = Versions(experiment(ramp=RAMP, drain=True))
    old = legacy_hash(experiment(ramp=RAMP))
    assert [versions.accepts(old, phase) for phase in range(3)] == [True, True, False]


def told(known: Experiment, phase: int = 0) -> Change:
    return Change(
        at=0.0,
        experiment=known.name,
        config=config_hash(known, phase),
        phase=phase,
        enrolling=True,
        why="loaded",
        rules=rules_hash(known),
        legacy=legacy_hash(known),
    )


def test_a_server_that_was_updated_hands_the_old_name_on_to_later_edits() -> None:
    """The owner is edited after the update: the lines from before it are known by the server's own line."""
    was, now = experiment(ramp=RAMP), experiment(ramp=RAMP, owner="somebody else")
    versions = Versions(now)
    assert not versions.accepts(legacy_hash(was), 0)
    versions.learn(told(was, phase=1))
    assert [versions.accepts(legacy_hash(was), phase) for phase in range(3)] == [True, True, False]


def test_a_server_with_another_version_hands_nothing_on() -> None:
    other = experiment(on_error="error")
    versions = Versions(experiment())
    versions.learn(told(other))
    versions.learn(told(experiment(ramp=RAMP), phase=1))
    assert not versions.accepts(legacy_hash(other), 0)
    assert not versions.accepts(legacy_hash(experiment(ramp=RAMP)), 0)


def test_an_earlier_file_may_be_named() -> None:
    """Edits made under the first releases: each gave the lines another name."""
    was = experiment(owner="a", ramp=RAMP)
    now = experiment(owner="b", ramp=[RAMP[0], {"weights": {"plain": 1000, "power": 9000}}])
    assert not Versions(now).accepts(legacy_hash(was), 0)
    named = Versions(now, [was, experiment(on_error="error")])
    assert [named.accepts(legacy_hash(was), phase) for phase in range(2)] == [True, False]
    assert not named.accepts(legacy_hash(experiment(on_error="error")), 0)
