"""Entropix that branches: its quadrant of low entropy and high varentropy forks at the pivots of family R."""

from __future__ import annotations

from typing import Any

from integration_tests.helpers.clients import HTTP
from integration_tests.pivot.problems import problems
from integration_tests.server import Server

PIVOTS: dict[str, Any] = {"entropy_threshold": 1.0, "varentropy_threshold": 0.02, "seed": 4}
"""Rows of a pivot have 0.67 nats and a varentropy of 0.04; rows of a guess 2.3 nats."""


def ask(server: Server, text: str, **custom: Any) -> dict[str, Any]:
    body = {"text": text, "sampling_params": {"max_new_tokens": 96, "custom_params": custom}}
    response = HTTP.post(server.url + "/generate", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def test_entropix_forks_where_it_explores(pivot_server: Server) -> None:
    for problem in problems("R", 4, 8):
        answer = ask(pivot_server, problem.text, sampler="entropix", explore="branch", **PIVOTS)
        report = answer["meta_info"]["power"]
        assert report["sampler"] == "entropix"
        assert report["params"]["trigger"] == "entropix_low_high"
        assert report["params"]["continuation_policy"]["sampler"] == "entropix"
        assert report["forks"] >= len(problem.operations)


def test_entropix_without_branches_draws_token_by_token(pivot_server: Server) -> None:
    report = ask(pivot_server, "R7+3*2-8:", sampler="entropix", **PIVOTS)["meta_info"]["power"]
    assert report["law"] == "policy"
    assert "forks" not in report
