"""The section `rewards` of the configuration file: defaults, mistakes with their line, names, tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from sglang_power.errors import ConfigError
from sglang_power.rewards import EndpointConfig, NamedReward, reward
from sglang_power.rewards.base import FunctionReward
from sglang_power.server import config as module
from sglang_power.server.config import ServerConfig, load_config

JUDGE = "rewards:\n  judge:\n    url: http://localhost:8000/score\n"


def load(folder: Path, text: str) -> ServerConfig:
    path = folder / "power.yaml"
    path.write_text(text)
    return load_config(path)


def test_an_endpoint_needs_a_url_only(tmp_path: Path) -> None:
    endpoint = load(tmp_path, JUDGE).rewards["judge"]
    assert endpoint.model_dump(exclude={"url"}) == {
        "timeout_s": 10.0,
        "retries": 2,
        "backoff_s": 0.1,
        "max_concurrent": 16,
        "upper_bound": None,
        "on_error": "fail",
        "headers_env": None,
    }
    assert str(endpoint.url) == "http://localhost:8000/score"


def test_a_name_gives_the_same_endpoint_with_its_policy(tmp_path: Path) -> None:
    endpoints = load(tmp_path, JUDGE + "    upper_bound: 1\n    on_error: without\n").rewards
    one, other = reward("judge", endpoints), reward("judge", endpoints)
    assert (one.name, one.upper_bound, one.on_error) == ("judge", 1.0, "without")
    assert one.reward is other.reward


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("rewards: [judge]\n", 1, "rewards"),
        ("rewards:\n  judge: {}\n", 2, "rewards.judge.url"),
        ("rewards:\n  judge:\n    url: localhost\n", 3, "rewards.judge.url"),
        ("rewards:\n  judge:\n    url: file:///etc/passwd\n", 3, "rewards.judge.url"),
        (JUDGE + "    timeout_s: 0\n", 4, "rewards.judge.timeout_s"),
        (JUDGE + "    timeout_s: .inf\n", 4, "rewards.judge.timeout_s"),
        (JUDGE + "    retries: -1\n", 4, "rewards.judge.retries"),
        (JUDGE + "    max_concurrent: 0\n", 4, "rewards.judge.max_concurrent"),
        (JUDGE + "    upper_bound: .nan\n", 4, "rewards.judge.upper_bound"),
        (JUDGE + "    on_error: ignore\n", 4, "rewards.judge.on_error"),
        (JUDGE + "    token: secret\n", 4, "rewards.judge.token"),
        (JUDGE + "    headers_env: ABSENT_TOKEN\n", 4, "rewards.judge.headers_env"),
        (JUDGE + "presets:\n  a:\n    reward: jugde\n", 6, "presets.a.reward"),
        (JUDGE + "presets:\n  a:\n    sampler: perfect\n    reward: judge\n", 7, "presets.a.reward"),
    ],
)
def test_mistakes_name_line_and_field(tmp_path: Path, text: str, line: int, field: str) -> None:
    with pytest.raises(ConfigError, match=f"line {line}, field '{field}': "):
        load(tmp_path, text)


def test_a_token_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_TOKEN", "secret")
    endpoint = load(tmp_path, JUDGE + "    headers_env: JUDGE_TOKEN\n").rewards["judge"]
    assert endpoint.headers() == {"Authorization": "Bearer secret"}
    assert "secret" not in repr(endpoint)
    assert EndpointConfig(url=endpoint.url).headers() == {}


def test_an_installed_reward_keeps_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = {"judge": NamedReward("judge", FunctionReward("judge", lambda *_: 0.0))}
    monkeypatch.setattr(module, "installed_rewards", lambda: taken)
    with pytest.raises(ConfigError, match=r"line 2, field 'rewards\.judge': .*choose another"):
        load(tmp_path, JUDGE)
