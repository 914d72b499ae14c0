"""An experiment's file: what it means, and mistakes with file, line and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from ab_experiments import THUMBS, experiment, weighted, write
from sglang_power.errors import ConfigError
from sglang_power.experiments.catalogue import read_experiment
from sglang_power.experiments.state import State, read_state, state_path, write_state

LATENCY = {"source": "latency", "over_ms": 500.0}
SWITCHBACK: dict[str, Any] = {"kind": "switchback", "unit": None}
TEXT = """\
name: exp
owner: team
hypothesis: power gets more thumbs up
unit: {header: x-user}
arms:
  - name: plain
    sampler: {sampler: none}
    weight: 5000
    control: plain
  - name: power
    sampler: {sampler: power, alpha: 2.0}
    weight: 5000
metrics:
  thumbs:
    source: feedback
    low: 0.0
    high: 1.0
    absent: 0.0
  slow:
    source: latency
    over_ms: 500.0
primary: {metric: thumbs, min_effect: 0.01}
"""


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text(TEXT)
    each = read_experiment(path)
    assert each.pairs == [("power", "plain")]
    assert each.weights(0) == {"plain": 5000, "power": 5000}


RAMP = "ramp:\n  - weights: {plain: 9000, power: 1000}\n  - weights: {plain: 5000, power: %s}\n"

BAD: list[tuple[str, str, int, str, str]] = [
    ("    weight: 5000\n    control", "    weight: 4999\n    control", 5, "arms", "weights sum to 9999"),
    ("weight: 5000\nm", "weight: five\nm", 12, "arms.1.weight", "got 'five'"),
    ("weight: 5000\nm", "weight: 5000.0\nm", 12, "arms.1.weight", "got 5000.0"),
    ("weight: 5000\nm", "weight: -1\nm", 12, "arms.1.weight", "got -1"),
    (
        "{sampler: none}",
        "{sampler: none, temperature: 0.3, tpyo: 1}",
        7,
        "arms.0.sampler.temperature",
        "means nothing without a sampler",
    ),
    ("name: power", "name: plain", 5, "arms", "'plain' twice"),
    ("    control: plain\n", "", 5, "arms", "no pair of an arm and a control"),
    ("metric: thumbs", "metric: likes", 22, "primary", "metric 'likes' is not defined"),
    ("metric: thumbs", "metric: slow", 22, "primary", "load on a shared pool. Use kind: switchback"),
    ("owner: team", "owner: team\nowners: team", 3, "owners", "Extra inputs"),
    ("owner: team\n", "", 1, "owner", "Field required"),
    ("owner: team", "owner: team\nowner: me", 3, "owner", "duplicate key"),
    ("absent: 0.0", "absent: none", 18, "metrics.thumbs.absent", "got 'none'"),
    ("    absent: 0.0\n", "", 14, "metrics.thumbs.absent", "Field required"),
    ("absent: 0.0", "absent: -1.0e+51", 18, "metrics.thumbs.absent", "between -1e+50 and 1e+50"),
    ("high: 1.0", "high: 0.0", 17, "metrics.thumbs.high", "no bound above low=0.0"),
    ("source: latency", "source: latensy", 19, "metrics.slow", "'latensy'"),
    ("over_ms: 500.0", "over_ms: .inf", 21, "metrics.slow.over_ms", "finite"),
    ("unit: {header: x-user}", "unit: {}", 4, "unit.header", "none of header, field and metadata"),
    ("{header: x-user}", "{header: x-user, field: user}", 4, "unit.header", "more than one"),
    ("{header: x-user}", "{field: user, metadata: user_id}", 4, "unit.header", "more than one"),
    ("{header: x-user}", "{metadata: sglang_power}", 4, "unit.metadata", "holds a request's sampler"),
    ("{header: x-user}", "{metadata: ''}", 4, "unit.metadata", "at least 1"),
    ("unit: {header: x-user}", "unit: {header: x user}", 4, "unit.header", "'x user'"),
    ("unit: {header: x-user}\n", "", 1, "unit", "does not fit kind: unit"),
    ("name: exp", "name: Exp 1", 1, "name", "'Exp 1'"),
    ("primary:", RAMP % 4000 + "primary:", 24, "ramp.1.weights", "weights sum to 9000"),
    (
        "primary:",
        RAMP.replace("power: %s", "pover: 5000") + "primary:",
        24,
        "ramp.1.weights",
        "'pover' is no",
    ),
    ("primary:", "ramp:\n  - {weights: {plain: 10000}}\nprimary:", 23, "ramp.0.weights", "'power' is no"),
    (
        "primary:",
        "ramp:\n"
        "  - weights: {plain: 9000, power: 1000}\n"
        "  - weights: {plain: 5000, power: 5000}\n"
        "  - weights: {plain: 9000,\n"
        "              power: 1000}\n"
        "primary:",
        25,
        "ramp.2.weights.plain",
        "9000 after 9000, 5000: the arm both grows and shrinks, so it is not known which of its units "
        "stayed in it. Let each arm only grow or only shrink",
    ),
    ("primary:", "namespace: {name: a, first: 9, last: 9}\nprimary:", 22, "namespace.last", "not above"),
    ("primary:", "holdout: {name: a, share: 0}\nprimary:", 22, "holdout.share", "got 0"),
    (
        "primary:",
        "guardrails:\n  - {metric: x, margin: 1.0}\nprimary:",
        22,
        "guardrails",
        "'x' is not defined",
    ),
    (
        "primary:",
        "guardrails:\n  - {metric: thumbs, margin: 0.9}\n  - {metric: thumbs, margin: 0.05}\nprimary:",
        24,
        "guardrails.1.metric",
        "'thumbs' has a margin already",
    ),
    ("primary:", "shadow: {tokens_per_hour: 9}\nprimary:", 22, "shadow", "without shadow arms"),
    ("primary:", "kind: switchback\nprimary:", 1, "switchback", "does not fit"),
    ("primary:", "alpha: 0.5\nprimary:", 22, "alpha", "got 0.5"),
    ("primary:", "kill: 1\nprimary:", 22, "kill", "got 1"),
]


@pytest.mark.parametrize(("old", "new", "line", "field", "says"), BAD, ids=lambda value: str(value)[:24])
def test_mistakes_name_file_line_and_field(
    tmp_path: Path, old: str, new: str, line: int, field: str, says: str
) -> None:
    assert old in TEXT
    path = tmp_path / "exp.yaml"
    path.write_text(TEXT.replace(old, new, 1))
    with pytest.raises(ConfigError) as caught:
        read_experiment(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}, field '{field}': "), message
    assert says in message


NO_EXPERIMENT = ["", "- a\n", "word\n", "a: [\n", "a: &a [*a]\n", "at: 2026-13-45\n"]
NO_YAML = ["a: !!bool x\n", "a: !!timestamp x\n", "a: !!int ''\n", "a: " + "[" * 2000 + "]" * 2000]
NO_JSON = ['owner: "\\ud83d\\ude00"\n', '"\\ud83d": 1\n', "a: !!binary //79\n", "a: " + "[" * 300 + "]" * 300]


@pytest.mark.parametrize("text", [*NO_EXPERIMENT, *NO_YAML, *NO_JSON], ids=lambda text: text[:20])
def test_what_is_no_experiment_at_all(tmp_path: Path, text: str) -> None:
    path = tmp_path / "exp.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"exp\.yaml"):
        read_experiment(path)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"namespace": {"name": "chat", "first": 0, "last": 10}}, "namespace"),
        ({"holdout": {"name": "year", "share": 10}}, "holdout"),
        ({"unit": {"header": "x-user"}}, "unit"),
        ({"qa": {"units": ["alice"]}}, "qa"),
    ],
)
def test_switchbacks_have_no_units(tmp_path: Path, changes: dict[str, Any], field: str) -> None:
    windows = {"pool": "east", "window_s": 600.0}
    with pytest.raises(ConfigError, match=f"field '{field}'"):
        read_experiment(write(tmp_path, **{**SWITCHBACK, "switchback": windows, **changes}))


@pytest.mark.parametrize(
    ("weights", "turns"),
    [
        ([(9000, 500, 500), (5000, 2500, 2500), (3334, 3333, 3333)], None),
        ([(9000, 500, 500), (5000, 4500, 500), (5000, 4500, 500), (0, 4500, 5500)], None),
        ([(6000, 2000, 2000), (2000, 6000, 2000), (2000, 2000, 6000)], "ramp.2.weights.bo"),
        ([(9800, 100, 100), (5000, 0, 5000), (4000, 3000, 3000)], "ramp.2.weights.bo"),
        ([(5000, 2500, 2500), (5000, 3000, 2000), (4999, 3000, 2001)], "ramp.2.weights.power"),
    ],
)
def test_an_arm_of_a_ramp_may_not_turn_back(
    tmp_path: Path, weights: list[tuple[int, int, int]], turns: str | None
) -> None:
    names = ("plain", "bo", "power")
    ramp = [{"weights": dict(zip(names, phase, strict=True))} for phase in weights]
    path = write(tmp_path, arms=weighted(ramp[0]["weights"]), ramp=ramp)
    if turns is None:
        assert len(read_experiment(path).ramp) == len(weights)
    else:
        with pytest.raises(ConfigError, match=f"field '{turns}': .* grows and shrinks"):
            read_experiment(path)


def test_windows_of_a_switchback_stay_nowhere_so_its_arms_may_turn_back() -> None:
    ramp = [{"weights": {"plain": plain, "power": 10_000 - plain}} for plain in (9000, 5000, 9000)]
    windows = {"pool": "east", "window_s": 600.0}
    assert experiment(ramp=ramp, **SWITCHBACK, switchback=windows).weights(2)["plain"] == 9000


def test_latency_may_judge_where_arms_do_not_share_workers() -> None:
    metrics = {"thumbs": THUMBS, "slow": LATENCY}
    guardrails = [{"metric": "slow", "margin": 0.01}]
    assert experiment(metrics=metrics, guardrails=guardrails, pool="separate").pool == "separate"
    windows = {"pool": "east", "window_s": 600.0}
    assert experiment(metrics=metrics, guardrails=guardrails, **SWITCHBACK, switchback=windows)


def test_dates_are_text_where_text_is_expected(tmp_path: Path) -> None:
    """YAML reads an unquoted date as one."""
    path = tmp_path / "exp.yaml"
    path.write_text(TEXT.replace("owner: team", "owner: 2026-11-23"))
    assert read_experiment(path).owner == "2026-11-23"


def test_a_state_is_written_and_read(tmp_path: Path) -> None:
    path = state_path(tmp_path / "exp.yaml")
    assert path == tmp_path / "exp.state.json"
    assert read_state(path) == State(phase=0, killed=False)
    state = State(phase=2, killed=True, reason="errors: 0.08 over its margin", at=1.5)
    write_state(path, state)
    assert read_state(path) == state
    assert [each.name for each in tmp_path.iterdir()] == ["exp.state.json"]


def test_whoever_is_reading_a_state_reads_one_and_not_two(tmp_path: Path) -> None:
    path = state_path(tmp_path / "exp.yaml")
    write_state(path, State(phase=1))
    old = path.read_text()
    with path.open() as reader:
        write_state(path, State(phase=2))
        assert reader.read() == old


def test_a_state_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = state_path(tmp_path / "exp.yaml")
    write_state(path, State(phase=1))
    with pytest.raises(ValueError, match="surrogates"):
        write_state(path, State(phase=2, reason="\ud800"))
    assert read_state(path) == State(phase=1)
    assert [each.name for each in tmp_path.iterdir()] == ["exp.state.json"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "EOF"),
        ('{"phase": 1', "EOF"),
        ('{"phase": -1}', "'phase'"),
        ('{"phase": 1.5}', "'phase'"),
        ('{"version": 2}', "'version'"),
        ('{"kiled": true}', "'kiled'"),
        ('{"killed": "yes"}', "'killed'"),
        ("[]", "got"),
    ],
)
def test_bad_states_name_file_and_field(tmp_path: Path, text: str, says: str) -> None:
    path = state_path(tmp_path / "exp.yaml")
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_state(path)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
