"""`sglang-power check`: what it says of running servers, and its exit status."""

from __future__ import annotations

import httpx
import pytest
import sglang_power
from sglang_power.cli import main

from integration_tests.server import Server, free_port
from integration_tests.tests.clients import generate, metric

pytestmark = pytest.mark.server


def check(capsys: pytest.CaptureFixture[str], url: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of the command."""
    status = main(["check", "--url", url])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_a_live_server(pivot_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = check(capsys, pivot_server.url)
    assert status == 0
    lines = out.splitlines()
    assert lines[-1] == "power sampling is live"
    assert any(line.startswith("SGLang 0.5.") for line in lines)
    assert any(line.startswith("tokenizer") and sglang_power.__version__ in line for line in lines)
    assert any(line.startswith("scheduler") and sglang_power.__version__ in line for line in lines)
    assert "missing" not in out
    assert any("short" in line for line in lines if line.startswith("presets"))
    assert any("refused by this configuration: nothing" in line for line in lines)


def test_a_trailing_slash_is_fine(pivot_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(capsys, pivot_server.url + "/")[0] == 0


def test_it_counts_the_work_of_the_kernels(pivot_server: Server) -> None:
    """The scheduler's own report travels through a probe child."""

    def drawn() -> int:
        processes = httpx.get(pivot_server.url + "/sglang_power/status", timeout=60).json()["processes"]
        scheduler = next(process for process in processes if process["role"] == "scheduler")
        return sum(count for name, count in scheduler["kernels"].items() if name.endswith("sample_rows"))

    before = drawn()
    decoded = generate(pivot_server, seed=80)["meta_info"]["power"]["decoded_tokens"]
    assert drawn() - before >= decoded


def test_a_default_is_shown(default_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = check(capsys, default_server.url)
    assert status == 0
    assert "default: short" in out


def test_a_server_without_the_plugin(plain_server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = check(capsys, plain_server.url)
    assert (status, out) == (1, "")
    assert "without the plugin" in err


def test_nothing_listens(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, err = check(capsys, f"http://127.0.0.1:{free_port()}")
    assert (status, out) == (2, "")
    assert "does not answer" in err


def test_the_status_leaves_no_trace_in_the_metrics(pivot_server: Server) -> None:
    """Probe children are not users' requests."""
    before = metric(pivot_server, "sglang:num_requests_total")
    assert httpx.get(pivot_server.url + "/sglang_power/status", timeout=60).status_code == httpx.codes.OK
    assert metric(pivot_server, "sglang:num_requests_total") == before
