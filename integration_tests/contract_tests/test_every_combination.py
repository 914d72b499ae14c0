"""The contract of samplers of whole answers, every promise of every sampler through every route.

`make test-contract`; `make test` runs a part of it (integration_tests/tests/test_contract.py).
"""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from integration_tests.helpers.clients import post
from integration_tests.helpers.contract import CHECKS, CONTRACT, DOORS, GENERATE, SEED, Door, endings
from integration_tests.server import Server
from integration_tests.tests.test_routes_server import (
    TOKENS,
    in_messages,
    in_ollama,
    in_ollama_chat,
    in_responses,
    in_vertex,
)

pytestmark = pytest.mark.server


@pytest.mark.parametrize("sampler", CONTRACT)
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("door", DOORS, ids=str)
def test_every_promise(pivot_server: Server, sampler: str, check: str, door: Door) -> None:
    CHECKS[check](pivot_server, CONTRACT[sampler], door)


@pytest.mark.parametrize("sampler", CONTRACT)
@pytest.mark.parametrize("route", [in_vertex, in_responses, in_messages, in_ollama, in_ollama_chat])
def test_routes_without_room_for_a_report(pivot_server: Server, sampler: str, route: Any) -> None:
    """The same answer as by /generate, and one more that is counted; what is wrong is a 400."""
    row = CONTRACT[sampler]
    custom = {**row.quick, "seed": SEED}
    expected = GENERATE.ask(pivot_server, custom, TOKENS)
    before = endings(pivot_server, row.name)
    path, body, text = route({"custom_params": custom})
    response = post(pivot_server, path, body)
    assert response.status_code == httpx.codes.OK, response.text
    assert [text(response.json())] == expected.texts
    assert (endings(pivot_server, row.name) - before).total() == 1
    path, body, _ = route({"custom_params": {**custom, "unheard_of": 1}})
    response = post(pivot_server, path, body)
    assert response.status_code == httpx.codes.BAD_REQUEST
    assert "unheard_of" in response.text
