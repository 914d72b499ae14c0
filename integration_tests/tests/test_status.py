"""`sglang-power check`: what it says of running servers, and its exit status."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sglang_power
from sglang_power.cli import main

from integration_tests.helpers.clients import generate, metric
from integration_tests.server import Server, free_port

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


@pytest.mark.parametrize("ending", ["/", "/v1", "/v1/"])
def test_the_url_of_openai_clients_is_fine(
    pivot_server: Server, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(capsys, pivot_server.url + ending)[0] == 0


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
    assert "runs SGLang 0.5." in err
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


def server_info(server: Server, route: str = "/server_info") -> dict[str, Any]:
    """SGLang's own description of a server."""
    told: dict[str, Any] = httpx.get(server.url + route, timeout=60).json()
    return told


@pytest.mark.parametrize("route", ["/server_info", "/get_server_info"])
def test_sglangs_own_server_info_names_the_plugin(pivot_server: Server, route: str) -> None:
    info = server_info(pivot_server, route)
    assert info["version"].startswith("0.5."), "SGLang's own fields are as ever"
    told = info["sglang_power"]
    assert told["version"] == sglang_power.__version__
    assert {"power", "cot", "branch", "vote", "best_of", "top_n_sigma", "kl_guided"} <= set(told["samplers"])
    assert {"top_a", "shortlist"} <= set(told["samplers"]), "another package's"
    assert {"top_a", "top_n_sigma"} <= set(told["policies"]) < set(told["samplers"]) - {"shortlist", "power"}
    assert told["presets"] == ["entropy", "short"]
    assert told["default"] is None
    assert len(told["hooks"]) > 5
    assert set(told["hooks"].values()) == {"live"}
    assert (told["refused"], told["status"]) == ([], "/sglang_power/status")


def test_server_info_names_the_default_of_the_served_model(default_server: Server) -> None:
    assert server_info(default_server)["sglang_power"]["default"] == "short"


def test_server_info_without_the_plugin_is_silent(plain_server: Server) -> None:
    assert "sglang_power" not in server_info(plain_server)


@pytest.mark.long
def test_several_tokenizer_workers_are_all_shown(
    matrix_server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two workers and two ranks; /server_info says the same, whichever worker is asked."""
    status, out, _ = check(capsys, matrix_server.url)
    assert status == 0
    pids = {line.split()[2] for line in out.splitlines() if line.startswith("tokenizer (pid")}
    assert len(pids) == 2
    assert sum(line.startswith("scheduler (rank") for line in out.splitlines()) == 2
    told = [server_info(matrix_server)["sglang_power"] for _ in range(8)]
    assert all(info == told[0] for info in told)
    assert set(told[0]["hooks"].values()) == {"live"}
