"""The request model: defaults, ranges, and errors that name field, value and remedy. No server."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from sglang_power.algorithms.cuts import EntropyCut, UniformCut
from sglang_power.errors import PowerError, RequestError
from sglang_power.request import PowerRequest, parse_power, parse_request, samplers

DOCUMENTED = {
    "on_temperature": "refuse",
    "sampler": "power",
    "alpha": 4.0,
    "proposal_temperature": None,
    "proposal_policy": None,
    "block_size": 192,
    "steps": 10,
    "cut": "uniform",
    "cut_beta": 4.0,
    "cut_epsilon": 0.1,
    "method": "chain",
    "schedule": "exact",
    "early_rejection": True,
    "seed": None,
    "initial_text": None,
    "initial_ids": None,
    "max_steps": None,
    "max_total_tokens": None,
    "deadline_ms": None,
    "lookback_blocks": None,
    "top_p": None,
    "top_k": None,
    "min_p": None,
    "reward": None,
    "reward_weight": None,
    "return_trace": False,
    "prefetch": 1,
    "tries": 1,
    "start": "stages",
    "particles": 16,
}
"""Names and defaults as published; a change here breaks clients."""


def test_names_and_defaults_are_the_documented_ones() -> None:
    assert parse_request({}).model_dump() == DOCUMENTED
    assert parse_request({"sampler": "power"}) == parse_request({})


def test_every_sampler_is_a_frozen_model_that_forbids_unknown_keys() -> None:
    for name, model in samplers().items():
        assert issubclass(model, BaseModel)
        assert model.model_fields["sampler"].default == name
        assert (model.model_config["extra"], model.model_config["frozen"]) == ("forbid", True)
        assert model.model_config["strict"] is True


BAD: list[tuple[dict[str, Any], str]] = [
    ({"sampler": "annealing"}, "sampler='annealing': unknown sampler. Use one of: power, "),
    ({"sampler": None}, "sampler=None: "),
    ({"sampler": ["power"]}, "sampler=['power']: "),
    ({"beta": 2}, "beta=2: unknown parameter. Known parameters: alpha, "),
    ({"Alpha": 2}, "Alpha=2: unknown parameter"),
    ({"alpha": 0.999}, "alpha=0.999: "),
    ({"alpha": math.nan}, "alpha=nan: "),
    ({"alpha": math.inf}, "alpha=inf: "),
    ({"alpha": "4"}, "alpha='4': "),
    ({"alpha": True}, "alpha=True: "),
    ({"alpha": None}, "alpha=None: "),
    ({"alpha": 10**400}, "alpha=1000"),
    ({"proposal_temperature": 0.0}, "proposal_temperature=0.0: "),
    ({"proposal_temperature": -math.inf}, "proposal_temperature=-inf: "),
    ({"block_size": 0}, "block_size=0: "),
    ({"block_size": 192.0}, "block_size=192.0: "),
    ({"block_size": True}, "block_size=True: "),
    ({"steps": 0}, "steps=0: "),
    ({"cut": "Uniform"}, "cut='Uniform': "),
    ({"cut_beta": 0}, "cut_beta=0: "),
    ({"cut_epsilon": 0.0}, "cut_epsilon=0.0: "),
    ({"cut_epsilon": 1.01}, "cut_epsilon=1.01: "),
    ({"schedule": ""}, "schedule='': "),
    ({"early_rejection": 1}, "early_rejection=1: "),
    ({"seed": -1}, "seed=-1: "),
    ({"seed": 2**64}, f"seed={2**64}: "),
    ({"seed": "1"}, "seed='1': "),
    ({"initial_text": ""}, "initial_text='': "),
    ({"initial_text": ["a"]}, "initial_text=['a']: "),
    ({"initial_ids": []}, "initial_ids=[]: "),
    ({"initial_ids": (1, 2)}, "initial_ids=(1, 2): "),
    ({"initial_ids": [1, -1]}, "initial_ids.1=-1: "),
    ({"initial_ids": [1, 2.0]}, "initial_ids.1=2.0: "),
    ({"initial_ids": [1], "initial_text": "a"}, "initial_ids=[1]: "),
    ({"max_steps": 0}, "max_steps=0: "),
    ({"max_total_tokens": 0}, "max_total_tokens=0: "),
    ({"deadline_ms": 0}, "deadline_ms=0: "),
    ({"deadline_ms": 1.5}, "deadline_ms=1.5: "),
    ({"lookback_blocks": 0}, "lookback_blocks=0: "),
    ({"lookback_blocks": 2, "schedule": "paper"}, "lookback_blocks=2: "),
    ({"lookback_blocks": 2, "initial_text": "a"}, "lookback_blocks=2: "),
    ({"lookback_blocks": 2, "initial_ids": [1]}, "lookback_blocks=2: "),
    ({"top_p": 0.0}, "top_p=0.0: "),
    ({"top_p": 1.5}, "top_p=1.5: "),
    ({"top_k": 0}, "top_k=0: "),
    ({"top_k": -2}, "top_k=-2: "),
    ({"top_k": 1.0}, "top_k=1.0: "),
    ({"min_p": -0.1}, "min_p=-0.1: "),
    ({"reward": ""}, "reward='': "),
    ({"reward": 3}, "reward=3: "),
    ({"reward": "r", "reward_weight": math.inf}, "reward_weight=inf: "),
    ({"reward": "r", "reward_weight": math.nan}, "reward_weight=nan: "),
    ({"reward": "r", "reward_weight": "1"}, "reward_weight='1': "),
    ({"reward_weight": 1.0}, "reward_weight=1.0: belongs to a reward"),
    ({"reward": "r", "schedule": "paper"}, "reward='r': acts in the last stage"),
    ({"return_trace": "yes"}, "return_trace='yes': "),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:30])
def test_mistakes_name_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_request(values)
    error = caught.value
    assert str(error).startswith(message)
    assert error.field.partition(".")[0] in {"sampler", *values}
    assert error.problem
    assert error.hint
    assert str(error).endswith(error.hint)
    assert "None" not in error.hint, "a remedy of no default names none"


def test_a_request_error_is_what_sglang_turns_into_400() -> None:
    assert issubclass(RequestError, ValueError)
    assert issubclass(RequestError, PowerError)


def test_long_values_are_cut_short_in_messages() -> None:
    with pytest.raises(RequestError) as caught:
        parse_request({"cut": "x" * 5000})
    assert len(str(caught.value)) < 300


valid = st.fixed_dictionaries(
    {},
    optional={
        "alpha": st.floats(1.0, 64.0) | st.integers(1, 64),
        "proposal_temperature": st.none() | st.floats(0.01, 10.0),
        "block_size": st.integers(1, 4096),
        "steps": st.integers(1, 100),
        "cut": st.sampled_from(["uniform", "entropy"]),
        "cut_beta": st.floats(0.1, 10.0),
        "cut_epsilon": st.floats(0.001, 1.0),
        "early_rejection": st.booleans(),
        "seed": st.none() | st.integers(0, 2**64 - 1),
        "max_steps": st.none() | st.integers(1, 1000),
        "max_total_tokens": st.none() | st.integers(1, 10**6),
        "deadline_ms": st.none() | st.integers(1, 10**6),
        "lookback_blocks": st.none() | st.integers(1, 8),
        "top_p": st.none() | st.floats(0.01, 1.0),
        "top_k": st.none() | st.just(-1) | st.integers(1, 1000),
        "min_p": st.none() | st.floats(0.0, 1.0),
        "return_trace": st.booleans(),
    },
)
horizons = st.integers(1, 4096)


@given(valid, horizons)
def test_what_is_echoed_can_be_sent_again(values: dict[str, Any], horizon: int) -> None:
    """The echoed parameters describe the same chain as the request did."""
    request = parse_power(values)
    echoed = request.echo(horizon)
    again = {key: value for key, value in echoed.items() if key not in ("max_new_tokens", "draft")}
    config, repeated = request.mh_config(horizon), parse_power(again).mh_config(horizon)
    assert repeated.law.kappa == pytest.approx(config.law.kappa)
    assert (repeated.law.top_k, repeated.law.top_p, repeated.law.min_p) == (
        config.law.top_k,
        config.law.top_p,
        config.law.min_p,
    )
    for name in ("alpha", "horizon", "block_size", "steps", "cut", "schedule", "lookback_blocks"):
        assert getattr(repeated, name) == getattr(config, name)


@given(valid)
def test_the_echo_holds_every_parameter_but_drafts_and_the_seed(values: dict[str, Any]) -> None:
    request = parse_power(values)
    hidden = {"sampler", "seed", "initial_text", "initial_ids", "return_trace", "on_temperature", "particles"}
    assert request.echo(100).keys() == (DOCUMENTED.keys() - hidden) | {"max_new_tokens", "draft"}
    assert request.echo(100)["proposal_temperature"] == request.tau


@given(st.floats(1.0, 64.0))
def test_the_proposal_temperature_defaults_to_one_over_alpha(alpha: float) -> None:
    request = parse_power({"alpha": alpha})
    assert request.law.kappa == alpha, "exactly, so that early rejection stays exact"
    assert request.tau == 1.0 / alpha
    assert request.echo(8)["early_rejection"] is True


@pytest.mark.parametrize(
    ("tau", "exact"), [(0.25, True), (0.5, True), (1.0, True), (0.2, False), (1.1, False)]
)
def test_early_rejection_is_echoed_where_it_is_really_on(tau: float, exact: bool) -> None:
    """Exact if and only if 1 <= kappa <= alpha."""
    assert parse_power({"proposal_temperature": tau}).echo(8)["early_rejection"] is exact
    off = parse_power({"proposal_temperature": tau, "early_rejection": False})
    assert off.echo(8)["early_rejection"] is False


@pytest.mark.parametrize("keeps_all", [{"top_p": 1.0}, {"top_k": -1}, {"min_p": 0.0}, {}])
def test_a_truncation_that_keeps_everything_is_none(keeps_all: dict[str, Any]) -> None:
    assert not parse_power(keeps_all).law.truncated


@pytest.mark.parametrize("cuts", [{"top_p": 0.99}, {"top_k": 50}, {"min_p": 0.01}])
def test_a_truncation_is_a_truncation(cuts: dict[str, Any]) -> None:
    assert parse_power(cuts).law.truncated


def test_cut_laws() -> None:
    assert parse_power({}).cut_law == UniformCut()
    assert parse_power({"cut": "entropy", "cut_beta": 2, "cut_epsilon": 0.5}).cut_law == EntropyCut(2.0, 0.5)


@given(st.integers(1, 500), horizons)
def test_a_block_is_never_longer_than_the_horizon(block_size: int, horizon: int) -> None:
    config = parse_power({"block_size": block_size}).mh_config(horizon)
    assert config.block_size == min(block_size, horizon)
    assert config.stage_horizon(config.stages) == horizon


def test_drafts_are_named_but_not_repeated() -> None:
    assert parse_power({"initial_text": "secret"}).echo(8)["draft"] is True
    assert "secret" not in str(parse_power({"initial_text": "secret"}).echo(8))
    assert parse_power({}).echo(8)["draft"] is False


def test_requests_cannot_be_changed() -> None:
    request = PowerRequest()
    with pytest.raises(ValueError, match="frozen"):
        request.alpha = 2.0


def test_a_name_that_is_no_unicode_is_refused_like_any_other() -> None:
    with pytest.raises(RequestError, match=r"parameters='\\ud83d'"):
        parse_request({"sampler": "power", "\ud83d": 1})
