"""How branches find what they begin with: what is asked, and what is refused. A scripted server."""

from __future__ import annotations

from typing import Any

import pytest
import sglang_power.frontend as sp
from scripted_program import session_with
from scripted_server import EOS, answer
from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.frontend import branching

VOCABULARY = 257


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("refine", {"refine": {"sampler": "power", "steps": 4}}),
        ("return_tree", {"return_tree": False}),
        ("max_depth", {"max_depth": 2}),
        ("sampler", {"sampler": "cot"}),
        ("max_tokens", {"max_tokens": 0}),
        ("max_tokens", {"max_tokens": -3}),
        ("max_tokens", {"max_tokens": "8"}),
        ("branch_k", {"branch_k": 1}),
        ("threshold", {"threshold": "high"}),
        ("seed", {"seed": -1}),
    ],
)
def test_a_trigger_takes_what_it_is_documented_to_take(field: str, arguments: dict[str, Any]) -> None:
    nobody: Any = None
    with pytest.raises(RequestError) as caught:
        sp.branch(nobody, trigger="entropy", **arguments)
    assert caught.value.field == field


@pytest.mark.parametrize("arguments", [{"max_tokens": 8}, {"threshold": 2.0}])
def test_without_a_trigger_there_is_nothing_to_search_for(arguments: dict[str, Any]) -> None:
    nobody: Any = None
    with pytest.raises(RequestError, match="needs a trigger") as caught:
        sp.branch(nobody, 2, **arguments)
    assert caught.value.field in arguments


def refused_above_the_vocabulary(body: dict[str, Any]) -> Any:
    """As SGLang: a bias beyond the vocabulary is refused; a ranking beyond it ends the scheduler."""
    biased = [int(token) for token in body["sampling_params"].get("logit_bias") or {}]
    if any(token >= VOCABULARY for token in biased):
        return 400, f"logit_bias must has keys in [0, {VOCABULARY - 1}]"
    assert body["top_logprobs_num"] <= VOCABULARY, "the server is lost"
    return 400, "the context has no room"


@pytest.mark.parametrize(
    ("count", "error", "field"),
    [(VOCABULARY + 1, UnsupportedError, "first_tokens"), (VOCABULARY, RequestError, "request")],
)
def test_more_first_tokens_than_there_are_never_reach_the_scheduler(
    count: int, error: type[RequestError], field: str
) -> None:
    session, _ = session_with(script=refused_above_the_vocabulary)
    with pytest.raises(error) as caught:
        branching._first_tokens(session, count, [])
    assert (type(caught.value), caught.value.field) == (error, field)


def test_the_chat_templates_stops_end_a_branch_with_its_first_token() -> None:
    """With a base model the template's end of a turn is no end of the sequence."""
    turn_end, told = EOS + 5, "<|im_end|>"

    def script(body: dict[str, Any]) -> Any:
        params = body["sampling_params"]
        if isinstance(params, dict):
            return answer([65], output_top_logprobs=[[[-0.1, 65, None], [-2.5, turn_end, None]]])
        tokens = [int(token) for one in params for token in one["logit_bias"]]
        stops = [
            one["stop"] == [told] and token == turn_end for one, token in zip(params, tokens, strict=True)
        ]
        reasons = [{"type": "stop", "matched": told} if stop else None for stop in stops]
        return [answer([token], reason) for token, reason in zip(tokens, reasons, strict=True)]

    session, _ = session_with(script=script)
    first, second = branching._first_tokens(session, 2, [told])
    assert (first.text, first.ids, second.text, second.ids) == ("A", (65,), "", ())
    assert first.draw is not None
    assert second.draw is not None
    assert (first.draw.reason, second.draw.reason) == (None, {"type": "stop", "matched": told})
    assert second.draw.ids == (turn_end,)


def searched(body: dict[str, Any]) -> Any:
    """A search that found no fork, on a server that says what its trigger did."""
    ran = body["sampling_params"]["custom_params"]
    tree = {"nodes": [{"parent": None, "span": [0, 1], "ids": [65]}]}
    fired = {"firings": {"rows": 3, "fired": 2}, "hint": "Choose others"} if ran.get("seed") == 1 else {}
    return answer([65], {"type": "length", "length": 1}, power={"sampler": "branch", "tree": tree, **fired})


@pytest.mark.parametrize(("seed", "told"), [(1, {"rows": 3, "fired": 2, "hint": "Choose others"}), (2, None)])
def test_a_search_tells_what_its_trigger_did_unless_the_server_is_older(
    seed: int, told: dict[str, Any] | None
) -> None:
    session, _ = session_with(script=searched)
    values = {**branching.TRUNK, "trigger": "entropy", "seed": seed}
    prefixes, firings = branching._at_trigger(session, values, 4, [])
    assert [prefix.ids for prefix in prefixes] == [(65,)]
    assert firings == told


def test_a_trigger_without_a_default_may_take_the_servers_threshold() -> None:
    """Only the server knows whether it has one: the check here goes on to the program, which is none."""
    nobody: Any = None
    with pytest.raises(AttributeError):
        sp.branch(nobody, trigger="entropix_low_high")
    with pytest.raises(RequestError) as caught:
        sp.branch(nobody, trigger="entropix_low_high", threshold=[1.0])
    assert caught.value.field == "threshold"
