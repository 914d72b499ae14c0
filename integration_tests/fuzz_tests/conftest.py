"""The server of the fuzz tests, which reports whatever of a request reaches a file, a program or a socket.

`make fuzz` runs this folder and writes results/fuzz.json; SGLANG_POWER_FUZZ_BODIES says how many bodies.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration_tests import server
from integration_tests.helpers.bodies import MARK
from integration_tests.helpers.trials import Ground
from integration_tests.measured import origin
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec
from integration_tests.tests.conftest import logs, no_thread_is_left

__all__ = ["logs", "no_thread_is_left"]

BODIES = int(os.environ.get("SGLANG_POWER_FUZZ_BODIES", "20000"))
RESULTS = Path(__file__).parents[1] / "results" / "fuzz.json"
RECORD = pytest.StashKey[dict[str, Any]]()

PRESETS = {
    "short": {"sampler": "power", "block_size": 4, "steps": 1, "on_temperature": "ignore"},
    "some": {"sampler": "best_of", "samples": 2},
}
LIMITS = {
    **{"max_horizon": 64, "max_total_tokens": 600, "max_chains": 8, "max_particles": 16, "max_width": 8},
    **{"max_prefetch": 8, "max_tries": 8},
}
"""What a body may cost: the caps that an operator sets are what keeps hostile bodies cheap."""

WATCH = '''
"""Writes down every audit event that a string of a request is part of."""
import os, sys

EVENTS = {
    "open", "exec", "compile", "import", "pickle.find_class", "marshal.loads", "subprocess.Popen",
    "os.system", "os.exec", "os.posix_spawn", "os.spawn", "socket.connect", "socket.getaddrinfo",
    "socket.gethostbyname", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.link",
    "os.chmod", "os.listdir", "os.scandir", "os.truncate", "ctypes.dlopen", "ctypes.dlsym", "glob.glob",
    "urllib.Request", "tempfile.mkstemp", "shutil.rmtree",
}
MARK, OUT = os.environ["FUZZ_MARK"], os.environ["FUZZ_EVENTS"]


def watch(event, arguments):
    if event not in EVENTS:
        return
    for argument in arguments:
        text = argument.decode("latin-1") if isinstance(argument, bytes) else argument
        if MARK in (text if isinstance(text, str) else repr(text)[:2000]):
            file = os.open(OUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.write(file, (event + " " + repr(arguments)[:500] + "\\n").encode("utf-8", "backslashreplace"))
            os.close(file)


sys.addaudithook(watch)
'''


@pytest.fixture(scope="session")
def record(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What the tests found, for the record."""
    return request.config.stash.setdefault(RECORD, {"sent": Counter(), "files": Counter()})


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the record, where it is asked for and nothing failed."""
    if not session.config.getoption("--write-results") or exitstatus:
        return
    found = session.config.stash.get(RECORD, {})
    told = {
        **origin("make fuzz", ("sglang", "sglang-power", "hypothesis", "schemathesis")),
        **{kind: dict(sorted(counted.items())) for kind, counted in found.items()},
    }
    RESULTS.write_text(json.dumps(told, indent=1) + "\n")


@pytest.fixture(scope="session")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's processes write what they should not do."""
    return tmp_path_factory.mktemp("events") / "events.txt"


@pytest.fixture(scope="session")
def fuzz_server(logs: Path, events: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The pivot model with low caps, presets and experiments; its processes are watched from their start."""
    watcher = tmp_path_factory.mktemp("watcher")
    (watcher / "sitecustomize.py").write_text(WATCH)
    ground = Ground(tmp_path_factory.mktemp("ground"))
    ground.write("fuzzed")
    environment = {
        **ground.environment(presets=PRESETS, limits=LIMITS),
        "FUZZ_MARK": MARK,
        "FUZZ_EVENTS": str(events),
        "PYTHONPATH": os.pathsep.join([str(watcher), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    arguments = [
        "--page-size",
        "1",
        "--enable-metrics",
        "--log-level-http",
        "warning",
        "--served-model-name",
        "pivot",
    ]
    with server.running(ServerSpec(PIVOT_MODEL, "fuzz", arguments, environment), logs) as running:
        yield running
