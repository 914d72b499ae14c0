"""The configuration file: what it defines, and errors with file, line and field. No server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sglang_power.errors import ConfigError, RequestError
from sglang_power.request import BranchRequest, PowerRequest, VoteRequest
from sglang_power.server import config as module
from sglang_power.server.config import ENVIRONMENT_VARIABLE, Limits, ServerConfig, load_config, server_config

SHIPPED = sorted((Path(__file__).parents[3] / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    """A configuration file."""
    path = folder / "power.yaml"
    path.write_text(text)
    return path


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == ServerConfig()
    assert load_config(write(tmp_path, "# only a comment\n")) == ServerConfig()


def test_limits_are_on_by_default() -> None:
    assert ServerConfig().limits == Limits()
    assert Limits().max_horizon == 3072
    assert Limits().max_total_tokens >= Limits().max_horizon
    assert ServerConfig().diagnostics.shadow_early_rejection is False


def test_the_shipped_files_are_there() -> None:
    assert {"chat.yaml", "power-fast.yaml", "power-paper.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_file_is_valid_and_each_preset_parses(path: Path) -> None:
    config = load_config(path)
    for name in config.presets:
        request = config.resolve({"preset": name}, next(iter(config.parameters), "*"))
        if not isinstance(request, PowerRequest):
            continue
        assert request.mh_config(256).alpha == request.alpha


def test_the_paper_preset_is_the_paper() -> None:
    """Karan & Du: alpha 4, tau 1/4, blocks of 192, 10 steps."""
    config = load_config(next(path for path in SHIPPED if path.name == "power-paper.yaml"))
    request = config.resolve({"preset": next(iter(config.presets))})
    assert isinstance(request, PowerRequest)
    assert (request.alpha, request.tau, request.block_size, request.steps) == (4.0, 0.25, 192, 10)


BAD: list[tuple[str, int, str, str]] = [
    ("limit: {}\n", 1, "limit", "Extra inputs"),
    ("presets: {}\nlimits:\n  max_horizons: 5\n", 3, "limits.max_horizons", "Extra inputs"),
    ("\n\nlimits:\n  max_horizon: many\n", 4, "limits.max_horizon", "'many'"),
    ("limits:\n  max_horizon: 0\n", 2, "limits.max_horizon", "got 0"),
    ("limits:\n  max_horizon: 12.5\n", 2, "limits.max_horizon", "12.5"),
    ("limits:\n  busy_retries: -1\n", 2, "limits.busy_retries", "-1"),
    ("limits:\n  busy_backoff_s: .nan\n", 2, "limits.busy_backoff_s", "nan"),
    ("diagnostics:\n  shadow_early_rejection: 1\n", 2, "diagnostics.shadow_early_rejection", "got 1"),
    ("kernels:\n  sampling: cuda\n", 2, "kernels.sampling", "'cuda'"),
    ("presets: [a, b]\n", 1, "presets", "dict"),
    ("presets:\n  a: power\n", 2, "presets.a", "'power'"),
    ("presets:\n  a:\n    sampler: pawer\n", 3, "presets.a.sampler", "unknown sampler"),
    ("presets:\n  a:\n    alpha: 3.0\n    alhpa: 3.0\n", 4, "presets.a.alhpa", "unknown parameter"),
    ("presets:\n  a:\n    alpha: 0.5\n", 3, "presets.a.alpha", "0.5"),
    ("presets:\n  a:\n    alpha: '4'\n", 3, "presets.a.alpha", "'4'"),
    ("presets:\n  a: {sampler: power}\ndefaults:\n  m: b\n", 4, "defaults.m", "'b'"),
    ("presets:\n  a: {sampler: power}\ndefaults:\n  '*': b\n", 4, "defaults.*", "'b'"),
    ("defaults:\n  m: {sampler: power}\n", 2, "defaults.m", "sampler"),
    ("presets:\n  a: {preset: b}\n", 2, "presets.a.preset", "preset"),
    ("parameters:\n  m:\n    nucleus: {p: 1}\n", 3, "parameters.m.nucleus", "no sampler"),
    ("parameters:\n  m:\n    edt:\n      theta: -1\n", 4, "parameters.m.edt.theta", "got -1"),
    ("parameters:\n  m:\n    edt:\n      thteta: 1\n", 4, "parameters.m.edt.thteta", "Extra"),
    ("presets:\n  a: {sampler: entropix}\n", 2, "presets.a.entropy_threshold", "required"),
    (
        "presets:\n  a:\n    sampler: branch\n    refine:\n      sampler: cot\n",
        5,
        "presets.a.refine.sampler",
        "not power",
    ),
    ("- presets\n", 1, "", "presets"),
    ("just words\n", 1, "", "just words"),
]


@pytest.mark.parametrize(("text", "line", "field", "says"), BAD, ids=lambda value: str(value)[:24])
def test_mistakes_name_file_line_and_field(
    tmp_path: Path, text: str, line: int, field: str, says: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}, line {line}, field '{field}': "), message
    assert says in message


@pytest.mark.parametrize(
    ("text", "says"), [("presets: [a\n", "line 2"), ("a: b: c\n", "line 1"), ("\ta: 1\n", "line 1")]
)
def test_what_is_no_yaml_names_its_line(tmp_path: Path, text: str, says: str) -> None:
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=says) as caught:
        load_config(path)
    assert str(path) in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        load_config(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(binary)
    with pytest.raises(ConfigError):
        load_config(tmp_path)


def test_duplicate_keys_are_not_silently_merged(tmp_path: Path) -> None:
    """YAML allows no duplicate keys; the last one must not win unseen."""
    with pytest.raises(ConfigError, match="alpha"):
        load_config(write(tmp_path, "presets:\n  a:\n    alpha: 2.0\n    alpha: 3.0\n"))


CONFIG = ServerConfig(
    presets={"short": {"sampler": "power", "steps": 2}, "long": {"alpha": 2.0, "steps": 50}},
    defaults={"m": "short", "*": "long"},
)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"preset": "short"}, {"steps": 2}),
        ({"preset": "short", "steps": 7}, {"steps": 7}),
        ({"preset": "long", "sampler": "power"}, {"alpha": 2.0, "steps": 50}),
        ({"steps": 3}, {"steps": 3}),
        ({}, {}),
    ],
)
def test_a_request_is_read_on_top_of_its_preset(values: dict[str, Any], expected: dict[str, Any]) -> None:
    assert CONFIG.resolve(values) == PowerRequest(**expected)


@pytest.mark.parametrize("name", ["tall", "", 3, None, ["short"]])
def test_an_unknown_preset_lists_the_known_ones(name: object) -> None:
    with pytest.raises(RequestError, match="long, short"):
        CONFIG.resolve({"preset": name})
    with pytest.raises(RequestError, match="none are configured"):
        ServerConfig().resolve({"preset": name})


def test_defaults_go_by_served_model() -> None:
    assert CONFIG.default_for("m") == "short"
    assert CONFIG.default_for("another") == "long"
    assert ServerConfig().default_for("m") is None


def test_resolving_leaves_the_preset_alone() -> None:
    CONFIG.resolve({"preset": "short", "steps": 9})
    assert CONFIG.presets["short"] == {"sampler": "power", "steps": 2}


def test_the_environment_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, "limits: {max_chains: 3}\n")
    module.server_config.cache_clear()
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, str(path))
    try:
        assert server_config().limits.max_chains == 3
        module.server_config.cache_clear()
        monkeypatch.delenv(ENVIRONMENT_VARIABLE)
        assert server_config() == ServerConfig()
    finally:
        module.server_config.cache_clear()


THRESHOLDS = {"entropy_threshold": 1.0, "varentropy_threshold": 2.0}


def test_parameters_of_a_model_lie_below_presets_and_requests() -> None:
    config = ServerConfig(
        presets={"hot": {"sampler": "entropix", "hot_factor": 2.0}},
        parameters={
            "*": {"entropix": {**THRESHOLDS, "hot_factor": 1.1}, "power": {"alpha": 3.0}},
            "m": {"entropix": {"entropy_threshold": 5.0}},
        },
    )

    def entropix(values: dict[str, Any], model: str) -> dict[str, Any]:
        return config.resolve(values, model).model_dump(include={*THRESHOLDS, "hot_factor"})

    assert entropix({"sampler": "entropix"}, "other") == {**THRESHOLDS, "hot_factor": 1.1}
    assert entropix({"sampler": "entropix"}, "m")["entropy_threshold"] == 5.0
    assert entropix({"preset": "hot"}, "m")["hot_factor"] == 2.0
    assert entropix({"preset": "hot", "entropy_threshold": 0.5}, "m")["entropy_threshold"] == 0.5
    assert config.resolve({}, "m") == PowerRequest(alpha=3.0)
    assert config.resolve({"alpha": 2.0}, "m") == PowerRequest(alpha=2.0)


def test_a_sampler_without_its_required_parameters_says_where_to_set_them() -> None:
    with pytest.raises(RequestError, match=r"entropy_threshold.*required.*SGLANG_POWER_CONFIG"):
        ServerConfig().resolve({"sampler": "entropix"})


def test_a_preset_may_lean_on_one_model_of_the_file(tmp_path: Path) -> None:
    text = (
        "presets:\n  a: {sampler: entropix}\n"
        "parameters:\n  m:\n    entropix: {entropy_threshold: 1.0, varentropy_threshold: 1.0}\n"
    )
    config = load_config(write(tmp_path, text))
    assert config.resolve({"preset": "a"}, "m").name() == "entropix"


LAYERS = ServerConfig(
    presets={
        "ratios": {"sampler": "branch", "trigger": "ratio", "threshold": 0.8},
        "jumps": {"sampler": "branch", "trigger": "jump"},
        "entropies": {"sampler": "branch", "trigger": "entropy"},
    },
    parameters={
        "measured": {"branch": {"thresholds": {"entropy": 3.0, "jump": 2.0}}},
        "one": {"branch": {"threshold": 3.0}},
    },
)


@pytest.mark.parametrize(
    ("model", "asked", "expected"),
    [
        ("one", {"sampler": "branch"}, ("entropy", 3.0)),
        ("one", {"preset": "entropies"}, ("entropy", 3.0)),
        ("one", {"sampler": "branch", "trigger": "ratio"}, ("ratio", 0.5)),
        ("one", {"preset": "jumps"}, ("jump", 0.6)),
        ("one", {"preset": "ratios"}, ("ratio", 0.8)),
        ("one", {"preset": "ratios", "trigger": "entropy"}, ("entropy", 0.6)),
        ("one", {"preset": "ratios", "threshold": 0.3}, ("ratio", 0.3)),
        ("measured", {"sampler": "branch"}, ("entropy", 3.0)),
        ("measured", {"preset": "jumps"}, ("jump", 2.0)),
        ("measured", {"preset": "ratios"}, ("ratio", 0.8)),
        ("measured", {"sampler": "branch", "trigger": "ratio"}, ("ratio", 0.5)),
        ("another", {"sampler": "branch"}, ("entropy", 0.6)),
    ],
)
def test_a_threshold_never_acts_on_a_trigger_that_it_was_not_written_for(
    model: str, asked: dict[str, Any], expected: tuple[str, float]
) -> None:
    request = LAYERS.resolve(asked, model)
    assert isinstance(request, BranchRequest)
    assert [(trigger.name, *trigger.thresholds) for trigger in request.triggers] == [expected]


def test_what_a_stopping_rule_takes_is_dropped_with_the_rule() -> None:
    config = ServerConfig(
        presets={"sure": {"sampler": "vote", "samples": 32, "stopping": "certain", "error": 0.1, "window": 4}}
    )
    never = config.resolve({"preset": "sure", "stopping": "never"})
    assert isinstance(never, VoteRequest)
    assert (never.rule, never.samples) == ("never", 32)
    again = config.resolve({"preset": "sure", "window": 2})
    assert isinstance(again, VoteRequest)
    assert (again.rule, again.error, again.window) == ("certain", 0.1, 2)


def test_aliases_that_multiply_are_refused_before_anybody_walks_them(tmp_path: Path) -> None:
    """Eight levels of eight references each are 130 million values in 500 characters."""
    lines = ["a: &a [x, x, x, x, x, x, x, x]"]
    for name, before in zip("bcdefgh", "abcdefg", strict=True):
        lines.append(f"{name}: &{name} [{', '.join([f'*{before}'] * 8)}]")
    file = tmp_path / "bomb.yaml"
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="more than 20000 values"):
        load_config(file)


def test_a_wrong_value_is_shown_in_part_where_it_is_long(tmp_path: Path) -> None:
    file = tmp_path / "long.yaml"
    file.write_text(f"limits: {{max_horizon: {'x' * 10_000}}}")
    with pytest.raises(ConfigError, match="max_horizon") as caught:
        load_config(file)
    assert len(str(caught.value)) < 500
