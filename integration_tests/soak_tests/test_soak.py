"""Half an hour of mixed requests, many aborted, abandoned, late or malformed: nothing is lost or left.

`make soak`; SGLANG_POWER_SOAK_MINUTES sets another length. What is asked is a function of the seed; when it
is interrupted is not, so that every run meets other moments. Nothing here is statistical but the slope of
memory.

The controls run the same soak, shorter, on servers that are broken on purpose: each has to be found.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from integration_tests.server import Server, running
from integration_tests.soak_tests import broken
from integration_tests.soak_tests.conftest import installed, pivot_spec
from integration_tests.soak_tests.results import write
from integration_tests.soak_tests.soaking import Verdict, soak

pytestmark = pytest.mark.server

MINUTES = float(os.environ.get("SGLANG_POWER_SOAK_MINUTES", "30"))
CLIENTS = 64
SEED = 2026
CONTROL_S = 45.0


def test_nothing_is_lost_and_nothing_is_left(
    soaked: Server, router: Server, request: pytest.FixtureRequest
) -> None:
    verdict = soak(soaked, router, CLIENTS, MINUTES * 60, SEED)
    print(dict(verdict.counts))
    print(*verdict.slopes, sep="\n")
    if request.config.getoption("--write-results"):
        write(verdict, MINUTES, CLIENTS)
    assert not verdict.findings, "\n".join(verdict.findings[:20])


def _found(what: str) -> Callable[[Verdict], bool]:
    return lambda verdict: any(finding.startswith(what) for finding in verdict.findings)


def _grew(verdict: Verdict) -> bool:
    """Several times as much as any process does while it is new."""
    return verdict.slopes[0].mb_per_1000 > 100


@pytest.mark.parametrize(
    ("fault", "is_found"),
    [
        pytest.param("child", _found("left behind"), id="a child that is never released"),
        pytest.param("state", _grew, id="a state that grows"),
        pytest.param("answer", _found("a choice is missing"), id="an answer that is dropped"),
    ],
)
def test_a_broken_server_is_found_out(
    fault: str, is_found: Callable[[Verdict], bool], tmp_path: Path, third_party: Path
) -> None:
    folder = installed(Path(broken.__file__), tmp_path / "broken")
    spec = pivot_spec([third_party, folder], {broken.FAULT: fault})
    with running(spec, tmp_path) as server:
        verdict = soak(server, None, CLIENTS, CONTROL_S, SEED)
    assert is_found(verdict), (verdict.findings[:3], verdict.slopes[:2])
