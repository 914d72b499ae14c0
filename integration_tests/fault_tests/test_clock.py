"""A machine whose clock is set, an hour on and two hours back: deadlines and chains do not notice.

The server runs under libfaketime, which leaves the monotonic clock alone, as setting a clock does.
`make test-faults`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import httpx
import libfaketime
import pytest

from integration_tests import server
from integration_tests.helpers.clients import LONG, QUICK, eventually, generate, power_of
from integration_tests.helpers.contract import GENERATE
from integration_tests.helpers.faults import ask, at_work, clients, idle
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(platform.machine() != "x86_64", reason="the library is built for x86-64 only"),
]

LIBRARY = Path(libfaketime.__file__).parent / "vendor" / "libfaketime" / "src" / "libfaketime.so.1"


class Clock:
    """What a server takes the time for.

    Args:
        file: that its library reads at every look at the clock.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set("+0")

    def set(self, shift: str) -> None:
        """Shift it against the machine's own."""
        half = self._file.with_suffix(".half")
        half.write_text(shift)
        half.replace(self._file)

    @property
    def environment(self) -> dict[str, str]:
        """Variables of a process that goes by it."""
        return {
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> Clock:
    return Clock(tmp_path_factory.mktemp("clock") / "shift")


@pytest.fixture(scope="module")
def shifted(clock: Clock, logs: Path) -> Iterator[Server]:
    """Started as users do: its library has to be there when its processes begin."""
    arguments = ["--page-size", "1", "--enable-metrics"]
    spec = ServerSpec(PIVOT_MODEL, "shifted", arguments, clock.environment)
    with server.running(spec, logs) as running:
        yield running


@pytest.mark.parametrize("shift", ["+3600", "-7200", "+0"])
def test_a_clock_that_is_set_moves_no_deadline(shift: str, clock: Clock, shifted: Server) -> None:
    """A request with a minute is neither late when an hour is skipped, nor has it an hour more."""
    generous = GENERATE.body({**LONG, "max_steps": 12, "deadline_ms": 300_000}, 96, ignore_eos=True)
    brief = GENERATE.body({**LONG, "steps": 2**20, "deadline_ms": 4000}, 96, ignore_eos=True)
    began = time.monotonic()
    with clients([partial(ask, shifted, "/generate", body) for body in (generous, brief)]) as ended:
        eventually(lambda: at_work(shifted)["requests"] == 2, "both run")
        clock.set(shift)
        first, second = ended()
    took = time.monotonic() - began
    assert first.status == second.status == httpx.codes.OK, (first, second)
    assert power_of(json.loads(first.text))["stopped_by"] == "max_steps"
    assert power_of(json.loads(second.text))["stopped_by"] == "deadline_ms"
    assert took < 110, "two hours more"
    idle(shifted)
    assert power_of(generate(shifted, **QUICK))["stopped_by"] == "completed"


def test_control_the_server_goes_by_that_clock(clock: Clock, shifted: Server) -> None:
    """Else the test above says nothing."""
    clock.set("+86400")
    generate(shifted, **QUICK)
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 86_400))
    assert f"[{tomorrow}" in shifted.log_text()
    clock.set("+0")
