"""What a request for `lookahead` may say, and what it needs of a server."""

from __future__ import annotations

from typing import Any

import pytest
from sglang_power.errors import LimitError, RequestError
from sglang_power.request import Capped, LookaheadRequest, parse_request
from sglang_power.server.config import Limits
from sglang_power.sglang_host.tokenizer import support
from sglang_power.types import ProposalLaw

DOCUMENTED = {
    "sampler": "lookahead",
    "alpha": 4.0,
    "candidates": 8,
    "rollouts": 8,
    "rollout_tokens": 192,
    "block_size": 192,
    "proposal_temperature": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "on_temperature": "refuse",
    "seed": None,
    "max_total_tokens": None,
    "deadline_ms": None,
}
"""Names and defaults as published; a change here breaks clients."""


def lookahead(**values: Any) -> LookaheadRequest:
    request = parse_request({"sampler": "lookahead", **values})
    assert isinstance(request, LookaheadRequest)
    return request


def test_names_and_defaults_are_the_documented_ones() -> None:
    assert lookahead().model_dump() == DOCUMENTED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"candidates": 0}, "candidates=0: "),
        ({"rollouts": 0}, "rollouts=0: "),
        ({"rollouts": 2.0}, "rollouts=2.0: "),
        ({"rollout_tokens": 0}, "rollout_tokens=0: "),
        ({"block_size": -1}, "block_size=-1: "),
        ({"candidates": 1, "rollouts": 2}, "rollouts=2: not used with candidates=1"),
        ({"candidates": 1, "rollout_tokens": 2}, "rollout_tokens=2: not used with candidates=1"),
        ({"candidates": 1, "block_size": 2}, "block_size=2: not used with candidates=1"),
        ({"top_k": 0}, "top_k=0: "),
        ({"lookahead_tokens": 3}, "lookahead_tokens=3: unknown parameter"),
        ({"initial_ids": [1]}, "initial_ids=[1]: unknown parameter"),
        ({"on_temperature": "no"}, "on_temperature='no': "),
    ],
    ids=str,
)
def test_mistakes_name_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        lookahead(**values)
    assert str(caught.value).startswith(message)


def test_the_configuration_of_its_run() -> None:
    config = lookahead(candidates=3, rollouts=2, block_size=8, top_k=5, top_p=1.0).lookahead_config(30)
    assert (config.candidates, config.rollouts, config.block_size, config.rollout_tokens) == (3, 2, 8, 192)
    assert (config.law, config.horizon) == (ProposalLaw(4.0, top_k=5), 30)
    assert lookahead(candidates=1).lookahead_config(300).block_size == 300
    assert lookahead(proposal_temperature=0.5).law == ProposalLaw(2.0)


def test_the_parameters_in_force_can_be_sent_again() -> None:
    for values in ({}, {"candidates": 1}, {"rollouts": 3, "min_p": 0.1, "proposal_temperature": 1.0}):
        shown = lookahead(**values).in_force(20)
        assert shown.pop("max_new_tokens") == 20
        again = lookahead(**{name: value for name, value in shown.items() if value is not None})
        assert again.in_force(20) == lookahead(**values).in_force(20)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rollouts": 9}, "rollouts=9: 72 calls at once, above this server's limit of 64"),
        ({"candidates": 9}, "candidates=9: 72 calls at once"),
        ({"candidates": 65, "rollouts": 1}, "candidates=65: 65 calls at once"),
    ],
    ids=str,
)
def test_what_runs_at_once_is_bounded_by_the_server(values: dict[str, Any], message: str) -> None:
    with pytest.raises(LimitError) as caught:
        support.check_caps(Limits(), lookahead(**values).needs.capped)
    assert str(caught.value).startswith(message)
    assert "limits.max_width" in caught.value.hint


def test_the_published_defaults_are_within_the_servers() -> None:
    assert lookahead().needs.capped == (Capped("candidates", 8, "max_width", count=64),)
    support.check_caps(Limits(), lookahead().needs.capped)
    assert lookahead(candidates=1).needs.capped == ()
    assert not lookahead().needs.quadratic
