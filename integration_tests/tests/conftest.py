"""One server per configuration for the whole session; a test that needs none starts none.

Most are forked from a process with SGLang's modules imported (`helpers.preloaded`).
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration_tests import server
from integration_tests.helpers import preloaded
from integration_tests.helpers.trials import MAIN, PLAIN, SHORTLISTED, Ground, Trials
from integration_tests.law_model import write_law_model
from integration_tests.server import PIVOT_MODEL, PROSE_MODEL, Server, ServerSpec

CONFIGS = Path(__file__).parents[2] / "configs"
HELPERS = Path(__file__).parents[1] / "helpers"
TEST_CONFIG = Path(__file__).parent / "server.yaml"
THREAD_END_S = 30.0


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """The interpreter would wait for such a thread at its end, for ever if it waits for work."""
    before = set(threading.enumerate())
    yield
    deadline = time.monotonic() + THREAD_END_S
    while left := [one for one in set(threading.enumerate()) - before if not one.daemon]:
        assert time.monotonic() < deadline, f"threads that do not end: {left}"
        gc.collect()  # programs that failed are held by their tracebacks
        time.sleep(0.05)


@pytest.fixture(scope="session")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the servers' logs."""
    return tmp_path_factory.mktemp("servers")


@pytest.fixture(scope="session")
def third_party(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with an installed distribution that brings a policy, rewards and a sampler."""
    folder = tmp_path_factory.mktemp("third_party")
    shutil.copy(HELPERS / "third_party_policy.py", folder / "top_a_policy.py")
    shutil.copy(HELPERS / "third_party_reward.py", folder / "worked_steps_reward.py")
    shutil.copy(HELPERS / "third_party_sampler.py", folder / "shortlist_sampler.py")
    info = folder / "top_a_policy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: top-a-policy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[sglang_power.policies]\ntop_a = top_a_policy:TopA\n"
        "[sglang_power.rewards]\nworked_steps = worked_steps_reward:worked_steps\n"
        "worked_steps_stuck = worked_steps_reward:stuck\n"
        "brevity = shortlist_sampler:brevity\n"
        "[sglang_power.samplers]\nshortlist = shortlist_sampler:ShortlistSampler\n"
    )
    return folder


def with_third_party(folder: Path) -> dict[str, str]:
    """Environment variables of a server beside which the distribution in `folder` is installed."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {"PYTHONPATH": path}


@pytest.fixture(scope="session")
def pivot_server(logs: Path, third_party: Path) -> Iterator[Server]:
    """The pivot model, page size 1, the presets of server.yaml, metrics, another package's extensions."""
    spec = ServerSpec(
        PIVOT_MODEL,
        "pivot",
        ["--page-size", "1", "--enable-metrics", "--enable-cache-report", "--tool-call-parser", "qwen25"],
        {"SGLANG_POWER_CONFIG": str(TEST_CONFIG), **with_third_party(third_party)},
    )
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="module")
def changing_server(logs: Path) -> Iterator[Server]:
    """The pivot model with a reasoning parser, whose weights tests may change."""
    arguments = ["--page-size", "1", "--enable-metrics", "--reasoning-parser", "qwen3"]
    spec = ServerSpec(PIVOT_MODEL, "changing", arguments, {"SGLANG_POWER_CONFIG": str(TEST_CONFIG)})
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="session")
def plain_server(logs: Path) -> Iterator[Server]:
    """The pivot model on SGLang without the plugin: the reference for requests that ask for nothing.

    SGLANG_PLUGINS filters platform plugins too, so it names the CPU platform and nothing else.
    """
    arguments = ["--page-size", "1", "--enable-metrics", "--enable-cache-report"]
    spec = ServerSpec(PIVOT_MODEL, "plain", arguments, {"SGLANG_PLUGINS": "torch_cpu"})
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="session")
def default_server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A model with a default preset, a generation config that truncates, and a short queue."""
    model = tmp_path_factory.mktemp("defaulted") / "model"
    shutil.copytree(PIVOT_MODEL, model)
    generation = json.loads((model / "generation_config.json").read_text())
    generation |= {"do_sample": True, "temperature": 0.6, "top_p": 0.5, "top_k": 5, "repetition_penalty": 1.1}
    (model / "generation_config.json").write_text(json.dumps(generation))
    arguments = [
        *["--page-size", "1", "--max-running-requests", "2", "--max-queued-requests", "2"],
        "--enable-metrics",
    ]
    spec = ServerSpec(model, "defaulted", arguments, {"SGLANG_POWER_CONFIG": str(TEST_CONFIG)})
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="session")
def prose_ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """The experiments of the prose server: an arm with another package's sampler."""
    ground = Ground(tmp_path_factory.mktemp("prose"))
    ground.write("shortlist", arms=[{**PLAIN, "weight": 0}, SHORTLISTED])
    return ground


@pytest.fixture(scope="session")
def prose_server(logs: Path, prose_ground: Ground, third_party: Path) -> Iterator[Server]:
    """The prose model: chat roles, long texts, prompts that are prefilled in chunks, pages of 16 tokens.

    Another package's extensions are installed, and a preset and an experiment use its sampler.
    """
    arguments = [
        *["--page-size", "16", "--chunked-prefill-size", "64", "--max-running-requests", "32"],
        "--enable-cache-report",
    ]
    presets = {"shortlisted": SHORTLISTED["sampler"]}
    environment = prose_ground.environment(presets=presets) | with_third_party(third_party)
    spec = ServerSpec(PROSE_MODEL, "prose", arguments, environment)
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="module")  # its data-parallel controller keeps a core busy as long as it lives
def matrix_server(logs: Path) -> Iterator[Server]:
    """The pivot model with everything else that the support matrix names, at once."""
    arguments = [
        *["--page-size", "16", "--tokenizer-worker-num", "2", "--dp-size", "2"],
        *["--sampling-backend", "power", "--chunked-prefill-size", "16", "--enable-metrics"],
    ]
    cores = f"0-{(os.cpu_count() or 1) - 1}"
    environment = {
        "SGLANG_TEST_RETRACT": "1",
        "SGLANG_TEST_RETRACT_INTERVAL": "30",
        "SGLANG_CPU_OMP_THREADS_BIND": f"{cores}|{cores}",  # two ranks on a machine with one NUMA node
    }
    spec = ServerSpec(PIVOT_MODEL, "matrix", arguments, environment)
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="session")
def law_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model small enough to enumerate every answer."""
    return write_law_model(tmp_path_factory.mktemp("law") / "model")


@pytest.fixture(scope="session")
def law_server(logs: Path, law_model: Path) -> Iterator[Server]:
    """The law model; early rejection is checked in shadow mode."""
    spec = ServerSpec(
        law_model,
        "law",
        ["--page-size", "1", "--max-running-requests", "64"],
        {"SGLANG_POWER_CONFIG": str(Path(__file__).parent / "law.yaml")},
    )
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


@pytest.fixture(scope="session")
def one_trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trials]:
    """Behind `trials`, which brings it back after a test that killed it."""
    ground = Ground(tmp_path_factory.mktemp("trials"))
    ground.write("main", arms=MAIN)
    one = Trials(ground)
    yield one
    one.stop()


@pytest.fixture
def trials(one_trials: Trials) -> Trials:
    """Two tokenizer workers and the experiment `main`; others come while the server runs."""
    one_trials.revive()
    return one_trials
