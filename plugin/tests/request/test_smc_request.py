"""What a request for `smc` may say, and what it needs of a server."""

from __future__ import annotations

from typing import Any

import pytest
from sglang_power.errors import LimitError, RequestError
from sglang_power.request import SmcRequest, parse_request
from sglang_power.request.needs import ForcedTokens
from sglang_power.server.config import Limits, ServerConfig
from sglang_power.sglang_host.tokenizer import support
from sglang_power.types import ProposalLaw

DOCUMENTED = {
    "sampler": "smc",
    "alpha": 4.0,
    "particles": 16,
    "runs": 1,
    "proposal_temperature": None,
    "proposal_policy": None,
    "block_size": 16,
    "ess_threshold": 0.5,
    "resampling": "systematic",
    "ramp": 0,
    "result": "sample",
    "initial_text": None,
    "initial_ids": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "answer": "number",
    "answer_regex": None,
    "equivalence": None,
    "return_tree": False,
    "return_rows": False,
    "on_temperature": "refuse",
    "seed": None,
    "max_total_tokens": None,
    "deadline_ms": None,
}
"""Names and defaults as published; a change here breaks clients."""


def smc(**values: Any) -> SmcRequest:
    request = parse_request({"sampler": "smc", **values})
    assert isinstance(request, SmcRequest)
    return request


def test_names_and_defaults_are_the_documented_ones() -> None:
    assert smc().model_dump() == DOCUMENTED


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"particles": 0}, "particles=0: "),
        ({"particles": 2.0}, "particles=2.0: "),
        ({"runs": 0}, "runs=0: "),
        ({"ess_threshold": 0.0}, "ess_threshold=0.0: "),
        ({"ess_threshold": 1.1}, "ess_threshold=1.1: "),
        ({"ramp": -1}, "ramp=-1: "),
        ({"ramp": 4, "alpha": 1.0}, "ramp=4: "),
        ({"resampling": "multinomial"}, "resampling='multinomial': "),
        ({"resampling": "chopthin", "initial_ids": [1]}, "resampling='chopthin': "),
        ({"resampling": "systematic", "initial_text": "a"}, "resampling='systematic': "),
        ({"initial_ids": [1], "initial_text": "a"}, "initial_ids=[1]: "),
        ({"initial_ids": [1], "particles": 1}, "particles=1: a single particle beside a draft is the draft"),
        ({"particles": 1, "ess_threshold": 0.3}, "ess_threshold=0.3: not used with particles=1"),
        ({"particles": 1, "resampling": "chopthin"}, "resampling='chopthin': "),
        ({"particles": 1, "block_size": 4}, "block_size=4: "),
        ({"particles": 1, "ramp": 4}, "ramp=4: "),
        ({"result": "best"}, "result='best': "),
        ({"answer": "choice"}, "answer='choice': not used with result='sample'. Set result to 'vote'"),
        ({"result": "argmax", "equivalence": "exact"}, "equivalence='exact': "),
        ({"return_rows": True}, "return_rows=True: "),
        ({"result": "vote", "answer": "regex"}, "answer_regex=None: "),
        ({"result": "vote", "answer_regex": "a"}, "answer_regex='a': "),
        ({"top_k": 0}, "top_k=0: "),
        ({"steps": 3}, "steps=3: unknown parameter"),
        ({"proposal_policy": {"sampler": "power"}}, "proposal_policy.sampler='power': "),
        ({"on_temperature": "no"}, "on_temperature='no': "),
    ],
    ids=str,
)
def test_mistakes_name_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        smc(**values)
    assert str(caught.value).startswith(message)


def test_what_it_needs() -> None:
    needs = smc(particles=8, runs=4).needs
    assert (needs.answers, needs.least, needs.answers_field, needs.in_step) == (32, 8, "particles", True)
    assert (needs.answer, needs.equivalence, needs.quadratic) == (None, None, False)
    drafted = smc(initial_ids=[3, 4]).needs
    assert drafted.forced == ForcedTokens("initial_ids", (3, 4), whole=True)
    voting = smc(result="vote", answer="choice", equivalence="llm").needs
    assert (voting.answer, voting.equivalence, voting.judge is not None) == ("choice", "llm", True)
    assert (voting.answers, voting.least) == (16, 16)


def test_the_configuration_of_its_runs() -> None:
    config = smc(particles=3, block_size=8, top_k=5, top_p=1.0, ramp=2, resampling="chopthin").smc_config(30)
    assert (config.particles, config.block_size, config.ramp, config.scheme) == (3, 8, 2, "chopthin")
    assert config.law == ProposalLaw(4.0, top_k=5)
    assert smc(block_size=100).smc_config(30).block_size == 30
    assert smc(particles=1).smc_config(30).block_size == 30
    assert smc(initial_ids=[1]).smc_config(30).scheme == "multinomial"
    assert smc(proposal_temperature=0.5).smc_config(30).law == ProposalLaw(2.0)


def test_the_parameters_in_force_can_be_sent_again() -> None:
    for values in (
        {},
        {"particles": 1, "runs": 8},
        {"result": "vote", "answer": "text", "runs": 2, "resampling": "chopthin"},
        {"proposal_policy": {"sampler": "top_n_sigma", "n": 1.5}},
    ):
        shown = smc(**values).in_force(20)
        assert shown.pop("max_new_tokens") == 20
        assert shown.pop("draft") is False
        again = smc(**{name: value for name, value in shown.items() if value is not None})
        assert again.in_force(20) == smc(**values).in_force(20)


def test_a_draft_is_echoed_as_that_only() -> None:
    shown = smc(initial_text="secret").in_force(20)
    assert (shown["draft"], shown["resampling"]) == (True, "multinomial")
    assert "secret" not in str(shown)


# --- limits -------------------------------------------------------------------------------------------


def cap(limits: Limits, n: int = 1, asked: int | None = None, **values: Any) -> int:
    return support.total_tokens_of({}, asked, limits, 10, n, smc(**values).needs)


def test_particles_are_bounded_by_a_limit_of_their_own() -> None:
    assert cap(Limits(), particles=64, runs=4) > 0
    with pytest.raises(LimitError) as caught:
        cap(Limits(), particles=128, runs=3)
    assert str(caught.value).startswith(
        "particles=128: 3 runs of 128 are 384, above this server's limits.max_particles of 256"
    )
    with pytest.raises(LimitError, match=r"particles=16: 16, 3 times are 48, above .* of 40"):
        cap(Limits(max_particles=40), n=3)
    with pytest.raises(LimitError, match=r"n=65: "):
        cap(Limits(), n=65)


def test_tokens_must_hold_one_run() -> None:
    assert cap(Limits(), asked=80, particles=8, runs=4) == 80
    with pytest.raises(LimitError, match=r"max_total_tokens=79: 8 answer\(s\) of up to 10 tokens"):
        cap(Limits(), asked=79, particles=8, runs=4)


def test_what_says_how_to_vote_goes_with_the_vote() -> None:
    """A request may ask for another result than its preset."""
    voting = {"sampler": "smc", "result": "vote", "answer": "choice"}
    config = ServerConfig(presets={"p": voting})
    kept = config.resolve({"preset": "p", "runs": 2})
    assert isinstance(kept, SmcRequest)
    assert (kept.result, kept.answer) == ("vote", "choice")
    other = config.resolve({"preset": "p", "result": "sample"})
    assert isinstance(other, SmcRequest)
    assert (other.result, other.model_fields_set & {"answer"}) == ("sample", set())
