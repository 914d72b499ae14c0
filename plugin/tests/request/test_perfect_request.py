"""Requests for `perfect`, and for `power` with trials: defaults, what contradicts exact draws. No server."""

from __future__ import annotations

from typing import Any

import pytest
from sglang_power.errors import LimitError, RequestError
from sglang_power.request import Capped, Needs, PerfectRequest, VoteRequest, parse_request
from sglang_power.server.config import Limits
from sglang_power.sglang_host.tokenizer import support

Json = dict[str, Any]

PERFECT: Json = {"sampler": "perfect"}
AUTO: Json = {"sampler": "power", "method": "auto"}

DOCUMENTED = {
    "on_temperature": "refuse",
    "sampler": "perfect",
    "alpha": 4.0,
    "max_trials": 1024,
    "width": 16,
    "seed": None,
    "max_total_tokens": None,
    "deadline_ms": None,
    "reward": None,
    "reward_weight": None,
}
"""Names and defaults as published; a change here breaks clients."""


def test_names_and_defaults_are_the_documented_ones() -> None:
    request = parse_request(PERFECT)
    assert isinstance(request, PerfectRequest)
    assert request.model_dump() == DOCUMENTED
    assert request.echo(9).keys() == (DOCUMENTED.keys() - {"sampler", "seed", "on_temperature"}) | {
        "max_new_tokens"
    }


BAD: list[tuple[Json, str]] = [
    ({**PERFECT, "top_p": 0.9}, "top_p=0.9: a truncated proposal misses answers"),
    ({**PERFECT, "top_k": 5}, "top_k=5: "),
    ({**PERFECT, "min_p": 0.05}, "min_p=0.05: "),
    ({**PERFECT, "proposal_temperature": 1.0}, "proposal_temperature=1.0: unknown parameter"),
    ({**PERFECT, "steps": 3}, "steps=3: unknown parameter"),
    ({**PERFECT, "width": 0}, "width=0: "),
    ({**PERFECT, "max_trials": 0}, "max_trials=0: "),
    ({**PERFECT, "alpha": 0.5}, "alpha=0.5: "),
    ({**PERFECT, "reward_weight": 1.0}, "reward_weight=1.0: belongs to a reward"),
    ({**PERFECT, "reward": "r", "reward_weight": -0.5}, "reward_weight=-0.5: with a weight below 0"),
    ({**AUTO, "method": "both"}, "method='both': "),
    ({**AUTO, "top_p": 0.9}, "top_p=0.9: not used with method='auto'"),
    ({**AUTO, "top_k": 4}, "top_k=4: "),
    ({**AUTO, "min_p": 0.1}, "min_p=0.1: "),
    ({**AUTO, "proposal_policy": {"sampler": "edt"}}, "proposal_policy="),
    ({**AUTO, "proposal_policy": {"sampler": "top_n_sigma", "n": 1.0}}, "proposal_policy="),
    ({**AUTO, "proposal_temperature": 0.5}, "proposal_temperature=0.5: "),
    ({**AUTO, "lookback_blocks": 2}, "lookback_blocks=2: "),
    ({**AUTO, "schedule": "paper"}, "schedule='paper': "),
    ({**AUTO, "initial_text": "x"}, "initial_text='x': "),
    ({**AUTO, "initial_ids": [1]}, "initial_ids=[1]: "),
    ({**AUTO, "reward": "r", "reward_weight": -1.0}, "reward_weight=-1.0: "),
    ({"sampler": "vote", "base": {**PERFECT, "top_p": 0.5}}, "base.top_p=0.5: "),
    ({"sampler": "vote", "base": {**PERFECT, "reward": "r"}}, "base.reward='r': not a parameter here"),
    ({"sampler": "vote", "base": {**PERFECT, "widths": 3}}, "base.widths=3: unknown parameter"),
    ({"sampler": "branch", "refine": AUTO}, "refine.method='auto': a leaf is a draft"),
    ({"sampler": "branch", "refine": PERFECT}, "refine.sampler='perfect': "),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=[message for _, message in BAD])
def test_what_contradicts_exact_draws_is_refused_by_name_with_a_hint(values: Json, message: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_request(values)
    assert str(error.value).startswith(message)
    assert error.value.hint


def test_what_keeps_every_token_is_no_truncation() -> None:
    """Clients name it with every request."""
    for neutral in ({"top_p": 1.0}, {"top_p": 1, "top_k": -1}, {"top_k": 1 << 30}, {"min_p": 0}):
        assert parse_request({**PERFECT, **neutral}) == parse_request(PERFECT)
        parse_request({**AUTO, **neutral, "top_k": -1})


def test_the_proposal_temperature_of_the_trials_may_be_named() -> None:
    for alpha in (1.0, 3.0, 7.0):
        parse_request({**AUTO, "alpha": alpha, "proposal_temperature": 1.0 / alpha})


def needs_of(values: Json) -> Needs:
    """Return the needs of a request of a sampler of whole answers."""
    needs = parse_request(values).needs
    assert isinstance(needs, Needs)
    return needs


def test_trials_side_by_side_are_needs_with_the_servers_cap() -> None:
    needs = needs_of({**PERFECT, "width": 65})
    assert needs.capped == (Capped("width", 65, "max_width"),)
    assert (needs.quadratic, needs.bounded_reward) == (True, True)
    assert Capped("method", 16, "max_width") in needs_of(AUTO).capped
    assert "max_width" not in {each.limit for each in needs_of({"sampler": "power"}).capped}
    vote = parse_request({"sampler": "vote", "base": {**PERFECT, "width": 70}})
    assert isinstance(vote, VoteRequest)
    assert vote.needs.capped == (Capped("base.width", 70, "max_width"),)
    assert vote.needs.drawn_by == "base"
    support.check_caps(Limits(), [Capped("width", 64, "max_width")])
    with pytest.raises(LimitError, match=r"width=65: .* limit of 64.* limits\.max_width"):
        support.check_caps(Limits(), needs.capped)
