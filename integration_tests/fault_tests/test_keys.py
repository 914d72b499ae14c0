"""A key that has used its tokens is answered 429, and no other; they flow back. `make test-faults`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from integration_tests import server
from integration_tests.helpers import preloaded
from integration_tests.helpers.clients import PROMPT, QUICK, eventually, metric
from integration_tests.helpers.contract import (
    CHAT,
    CHAT_STREAM,
    COMPLETIONS,
    DOORS,
    GENERATE,
    GENERATE_STREAM,
)
from integration_tests.helpers.faults import Json, ask
from integration_tests.server import PIVOT_MODEL, Server, ServerSpec

pytestmark = pytest.mark.server

HEADER = "x-key"
PER_MINUTE = 600
TOKENS = 96


@pytest.fixture(scope="module")
def keyed_server(logs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A key has so few tokens that a single request overdraws by a minute and a half."""
    config = tmp_path_factory.mktemp("keyed") / "config.yaml"
    config.write_text(
        yaml.safe_dump({"limits": {"per_key": {"tokens_per_minute": PER_MINUTE, "header": HEADER}}})
    )
    arguments = ["--page-size", "1", "--enable-metrics", "--log-level-http", "warning"]
    spec = ServerSpec(PIVOT_MODEL, "keyed", arguments, {"SGLANG_POWER_CONFIG": str(config)})
    with server.running(spec, logs, preloaded.fork) as running:
        yield running


def spending(samples: int) -> Json:
    """Of `samples` answers of 96 tokens, all of them drawn."""
    return {"sampler": "vote", "samples": samples, "stopping": "never"}


def spend(server: Server, key: str, samples: int, n: int = 1) -> None:
    body = GENERATE.body(spending(samples), TOKENS, n=n, ignore_eos=True)
    seen = ask(server, "/generate", body, headers={HEADER: key})
    assert seen.status == httpx.codes.OK, seen


def test_a_key_that_has_used_its_tokens_is_refused_and_others_are_not(keyed_server: Server) -> None:
    before = metric(keyed_server, "sglang_power_key_refusals_total")
    spend(keyed_server, "greedy", 8, n=2)
    for door in DOORS:
        seen = ask(keyed_server, door.path, door.body(QUICK, 16), headers={HEADER: "greedy"})
        if door == GENERATE_STREAM:  # its 200 was sent before anybody looked
            assert seen.status == httpx.codes.OK
            assert '"status_code":429' in seen.text.replace(" ", "")
        else:
            assert seen.status == httpx.codes.TOO_MANY_REQUESTS, (door, seen)
        assert "tokens per minute" in seen.text
        assert "greedy" not in seen.text
    assert metric(keyed_server, "sglang_power_key_refusals_total") == before + len(DOORS)
    for door in (GENERATE, COMPLETIONS, CHAT, CHAT_STREAM):
        for key in ({HEADER: f"modest {door}"}, {}):
            assert ask(keyed_server, door.path, door.body(QUICK, 16), headers=key).status == httpx.codes.OK
    plain = {"text": PROMPT, "sampling_params": {"max_new_tokens": 4}}
    assert ask(keyed_server, "/generate", plain, headers={HEADER: "greedy"}).status == httpx.codes.OK


def test_a_key_is_served_again_when_its_tokens_have_flowed_back(keyed_server: Server) -> None:
    spend(keyed_server, "patient", 8)
    refused = ask(keyed_server, "/generate", GENERATE.body(QUICK, 16), headers={HEADER: "patient"})
    assert refused.status == httpx.codes.TOO_MANY_REQUESTS, refused

    def served() -> bool:
        body = GENERATE.body(QUICK, 16)
        return ask(keyed_server, "/generate", body, headers={HEADER: "patient"}).status == httpx.codes.OK

    eventually(served, "tokens flow back")
