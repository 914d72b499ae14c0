"""`SGLANG_POWER_CONFIG`: a bad file ends the process at once, a good one gives a model its default."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import httpx
import openai
import pytest
from sglang.srt.server_args import prepare_server_args
from sglang_power.errors import ConfigError
from sglang_power.samplers.fallback import FallbackReason
from sglang_power.server.config import load_config
from sglang_power.sglang_host.experiments.service import check_experiments

from integration_tests.helpers import preloaded
from integration_tests.helpers.clients import (
    MESSAGES,
    PROMPT,
    client,
    events,
    metric,
    post,
    power_of,
    raw_generate,
    reports,
)
from integration_tests.helpers.pivot_trials import SHADOWED
from integration_tests.helpers.trials import Ground
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec, command_line, free_port

TIMEOUT_S = 180

LOAD_EACH = """
import os, sys
import sglang.srt.plugins, sglang_power.sglang_host.install
for config in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        os.environ["SGLANG_POWER_CONFIG"] = config
        try:
            sglang.srt.plugins.load_plugins()
        except SystemExit as end:
            print(end, file=sys.stderr, flush=True)
            os._exit(1)
        print(config, "still running", flush=True)
        os._exit(0)
    print(config, "exit status", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
"""What every process of a server does first, once per file; the imports are shared to save their time."""


def run(command: list[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command, to its end."""
    fixed = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        command,
        env={**os.environ, **fixed, **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


BAD = {
    "unknown_section": ("presets: {}\nlimit:\n  max_horizon: 5\n", ", line 2, field 'limit': "),
    "unknown_limit": (
        "limits:\n  max_horizon: 64\n  max_horizons: 5\n",
        ", line 3, field 'limits.max_horizons': ",
    ),
    "wrong_type": ("# a comment\nlimits:\n  max_horizon: many\n", ", line 3, field 'limits.max_horizon': "),
    "unknown_default": (
        "presets:\n  a:\n    sampler: power\ndefaults:\n  pivot: b\n",
        ", line 5, field 'defaults.pivot': ",
    ),
    "bad_preset": (
        "presets:\n  a:\n    sampler: power\n    alpha: 0.5\n",
        ", line 4, field 'presets.a.alpha': ",
    ),
    "unknown_key_in_preset": (
        "presets:\n  a:\n    sampler: power\n    alhpa: 3.0\n",
        ", line 4, field 'presets.a.alhpa': ",
    ),
    "no_yaml": ("presets: [a\n", "line 2"),
    "no_mapping": ("- presets\n", ", line 1, "),
}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """All bad files and one that is missing; good ones are what the servers of the other tests start with."""
    folder = tmp_path_factory.mktemp("configs")
    for name, (text, _) in BAD.items():
        (folder / f"{name}.yaml").write_text(text)
    files = [str(folder / f"{name}.yaml") for name in (*BAD, "absent")]
    return folder, run([sys.executable, "-c", LOAD_EACH, *files])


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_ends_the_process_with_line_and_field(
    loaded: tuple[Path, subprocess.CompletedProcess[str]], name: str
) -> None:
    folder, done = loaded
    config = folder / f"{name}.yaml"
    assert f"{config} exit status 1" in done.stdout, done.stdout + done.stderr
    assert f"{config} still running" not in done.stdout
    message = next(line for line in done.stderr.splitlines() if f"SGLANG_POWER_CONFIG: {config}" in line)
    assert BAD[name][1] in message + done.stderr.partition(message)[2].partition("sglang-power")[0]


def test_a_file_that_is_not_there(loaded: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = loaded
    assert f"{folder / 'absent.yaml'} exit status 1" in done.stdout
    assert "No such file" in done.stderr


def test_the_server_itself_does_not_start(tmp_path: Path) -> None:
    config = tmp_path / "power.yaml"
    config.write_text("presets:\n  a:\n    sampler: pawer\n")
    command = command_line(ServerSpec(PIVOT_MODEL, "never"), free_port())
    log = tmp_path / "never.log"
    process = preloaded.fork(command, log, {"SGLANG_POWER_CONFIG": str(config)})
    assert process.wait(TIMEOUT_S) != 0
    assert f"{config}, line 3, field 'presets.a.sampler': " in log.read_text()


ENABLED, USERS = ["--enable-priority-scheduling"], ["--default-priority-value", "0"]


@pytest.mark.parametrize(
    ("without", "added", "remedy"),
    [
        (ENABLED, [], "Start it with --enable-priority-scheduling"),
        (USERS, [], "Start it with --default-priority-value 0"),
        ([], ["--disable-priority-preemption"], "Start it without --disable-priority-preemption"),
        (USERS, ["--default-priority-value", "-90"], "Set it to -101, or further from -90"),
        ([], ["--priority-scheduling-preemption-threshold", "100"], "Set it to -101, or further from 0"),
        ([], ["--schedule-low-priority-values-first"], "Set it to 11, or further from 0"),
    ],
)
def test_shadow_arms_need_a_server_with_priorities(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without: list[str],
    added: list[str],
    remedy: str,
) -> None:
    """With SGLang's own arguments, as the process that starts the tokenizer workers checks them."""
    ground = Ground(tmp_path)
    ground.write("shadowed", **SHADOWED)
    spec = ground.spec()
    for name, value in spec.environment.items():
        monkeypatch.setenv(name, value)
    config = load_config(Path(spec.environment["SGLANG_POWER_CONFIG"]))
    with_priorities = command_line(spec, free_port())[3:]  # without "python -m sglang.launch_server"
    check_experiments(config, prepare_server_args(with_priorities))
    arguments = [one for one in with_priorities if one not in without]
    with pytest.raises(ConfigError, match=f"shadow='deep': .* low priority.*{remedy}"):
        check_experiments(config, prepare_server_args([*arguments, *added]))


# --- a default sampler per served model ---


@pytest.mark.server
def test_a_default_applies_and_says_so(default_server: Server) -> None:
    asked = {"model": "defaulted", "max_tokens": 24}
    completed = client(default_server).completions.create(prompt=PROMPT, **asked)  # type: ignore[call-overload]
    talked = client(default_server).chat.completions.create(messages=MESSAGES, **asked)  # type: ignore[call-overload]
    generated = raw_generate(default_server, sampling_params={"max_new_tokens": 24})
    for power in (reports(completed)[0], reports(talked)[0], power_of(generated)):
        assert (power["sampler"], power["fallback_reason"]) == ("power", None)
        assert (power["params"]["steps"], power["params"]["block_size"]) == (2, 16)


@pytest.mark.server
def test_a_default_that_does_not_fit_runs_plain_and_says_why(default_server: Server) -> None:
    for fields, reason in (
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"max_tokens": 200}, "max_new_tokens=200"),
        ({"extra_body": {"stop_regex": "A[0-9]"}}, "stop_regex"),
    ):
        response = client(default_server).chat.completions.create(
            **{"model": "defaulted", "messages": MESSAGES, "max_tokens": 16, **fields}  # type: ignore[call-overload]
        )
        power = reports(response)[0]
        assert power["sampler"] == "none"
        assert reason in power["fallback_reason"]
        assert response.choices[0].message.content is not None


@pytest.mark.server
def test_a_streamed_fallback_is_an_ordinary_stream_that_says_why(default_server: Server) -> None:
    stream = client(default_server).chat.completions.create(
        model="defaulted", messages=MESSAGES, max_tokens=16, temperature=0.7, stream=True
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert "temperature=0.7" in reports(chunks[-1])[0]["fallback_reason"]


def fallen_back(server: Server) -> dict[str, float]:
    """The counters of fallbacks."""
    reasons = get_args(FallbackReason)
    return {reason: metric(server, "sglang_power_fallbacks_total", reason=reason) for reason in reasons}


@pytest.mark.server
def test_clients_that_a_default_serves_plain_are_counted_and_told(default_server: Server) -> None:
    """What an evaluation tool does: temperature 0 with every request, streams and lists among them."""
    before = fallen_back(default_server)
    greedy: dict[str, Any] = {"max_tokens": 8, "temperature": 0, "model": "defaulted"}
    for _ in range(2):
        response = client(default_server).chat.completions.create(messages=MESSAGES, **greedy)
        assert reports(response)[0]["fallback"] == "greedy"
    *_, last = client(default_server).completions.create(prompt=PROMPT, stream=True, n=2, **greedy)
    assert [report["fallback"] for report in reports(last)] == ["greedy"] * 2
    params = [{"max_new_tokens": 8, "temperature": 0}, {"max_new_tokens": 8, "temperature": 0.5}]
    post(default_server, "/generate", {"text": [PROMPT, PROMPT], "sampling_params": params})
    body = {"text": PROMPT, "stream": True, "sampling_params": {"max_new_tokens": 8, "temperature": 0}}
    streamed = events(default_server, "/generate", body)
    assert all(power_of(chunk)["fallback"] == "greedy" for chunk in streamed)
    counted = {reason: count - before[reason] for reason, count in fallen_back(default_server).items()}
    assert {reason: count for reason, count in counted.items() if count} == {"greedy": 5, "temperature": 1}
    told = [line for line in default_server.log_text().splitlines() if "default preset does not fit" in line]
    assert len([line for line in told if 'reason="greedy"' in line]) == 1
    assert len([line for line in told if 'reason="temperature"' in line]) == 1


@pytest.mark.server
def test_who_asks_for_the_default_strictly_gets_it_or_an_error(default_server: Server) -> None:
    strict = {"custom_params": {"strict": True}}
    served = raw_generate(default_server, sampling_params={"max_new_tokens": 16, **strict})
    assert power_of(served)["sampler"] == "power"
    one = raw_generate(default_server, sampling_params={"max_new_tokens": 1, **strict})
    assert power_of(one)["sampler"] == "power"
    for fields in ({"temperature": 0}, {"temperature": 0.7}, {"max_tokens": 200}):
        for stream in (False, True):
            with pytest.raises(openai.BadRequestError):
                client(default_server).chat.completions.create(
                    **{"model": "defaulted", "messages": MESSAGES, "max_tokens": 16, **fields},  # type: ignore[call-overload]
                    stream=stream,
                    extra_body={"strict": True},
                )


@pytest.mark.server
def test_an_explicit_sampler_is_never_a_fallback(default_server: Server) -> None:
    with pytest.raises(openai.BadRequestError, match=r"temperature=0\.7"):
        client(default_server).chat.completions.create(
            model="defaulted", messages=MESSAGES, temperature=0.7, extra_body={"sampler": "power"}
        )


@pytest.mark.server
def test_who_asks_for_none_gets_stock_sglang(default_server: Server) -> None:
    answer = raw_generate(
        default_server, sampling_params={"max_new_tokens": 8, "custom_params": {"sampler": "none"}}
    )
    assert "power" not in answer["meta_info"]
    response = client(default_server).chat.completions.create(
        model="defaulted", messages=MESSAGES, max_tokens=8, extra_body={"sampler": "none"}
    )
    assert "power" not in (response.model_dump()["metadata"] or {})


@pytest.mark.server
def test_a_default_leaves_probes_and_scoring_alone(default_server: Server) -> None:
    """Health checks, answers of one token and input scoring are not what a default is for."""
    assert httpx.get(default_server.url + "/health_generate", timeout=60).status_code == httpx.codes.OK
    one = raw_generate(default_server, sampling_params={"max_new_tokens": 1})
    assert (power_of(one)["sampler"], power_of(one)["fallback"]) == ("none", "short")
    scored = raw_generate(
        default_server, sampling_params={"max_new_tokens": 0}, return_logprob=True, logprob_start_len=0
    )
    assert (power_of(scored)["sampler"], power_of(scored)["fallback"]) == ("none", "scoring")
    assert len(scored["meta_info"]["input_token_logprobs"]) == len(PROMPT)


@pytest.mark.server
def test_a_default_serves_lists_prompt_by_prompt(default_server: Server) -> None:
    params = [{"max_new_tokens": 16}, {"max_new_tokens": 16, "temperature": 0.5}]
    body = {"text": [PROMPT, PROMPT], "sampling_params": params}
    first, second = post(default_server, "/generate", body).json()
    assert power_of(first)["sampler"] == "power"
    assert power_of(second)["sampler"] == "none"
    assert "temperature=0.5" in power_of(second)["fallback_reason"]
