"""Extremes of every numeric parameter of every sampler: refused by name, or an end with finite numbers.

The tables are made from the request models, so that a parameter that is added is tried, too. Deterministic:
fixed seeds, budgets in tokens, no timing.
"""

from __future__ import annotations

import json
import math
import types
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import numpy as np
import orjson
import pytest
import torch
from exact_tools import ExactTools
from least_requests import REQUIRED
from pydantic import BaseModel
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.answers import EXTRACTORS
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.errors import RequestError, UnsupportedError
from sglang_power.policies import Policy, policies
from sglang_power.request import PowerRequest, WholeAnswerRequest, parse_request, samplers
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.registry import Served, served
from sglang_power.server.config import Limits
from sglang_power.sglang_host.child_params import ChildParams, Coupling
from sglang_power.sglang_host.scheduler.drawing import draw_rows
from sglang_power.sglang_host.scheduler.rows import RowBlock
from sglang_power.sglang_host.tokenizer import support
from sglang_power.sglang_host.tokenizer.plan import _check_policy_ids
from sglang_power.sglang_host.tokenizer.reading import HostReader
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule
from sglang_power.types import ProposalLaw, Tokens
from stub_parent import StubParent

L = 6
MODEL = TabularModel.random(5, vocab=4, horizon=L, concentration=0.5)
LIMITS = Limits(max_total_tokens=200)
CPU = torch.device("cpu")

INTEGERS = [sign * n for n in (0, 1, 2, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**400) for sign in (1, -1)]
FLOATS = [
    sign * x
    for x in (0.0, 5e-324, 1e-310, 1e-46, 1e-39, 1e-7, 1e-6, 0.5, 1.0, 1e3, 1e6, 1e39, 1e300, 1e308, math.inf)
    for sign in (1.0, -1.0)
]
EXTREMES: list[Any] = [*INTEGERS, *FLOATS, math.nan]

CONTEXTS: dict[str, list[dict[str, Any]]] = {
    "power": [
        {"steps": 2},
        {"steps": 2, "cut": "entropy"},
        {"steps": 2, "reward": "r"},
        {"steps": 2, "method": "auto"},
    ],
    "perfect": [{}, {"reward": "r"}],
    "lookahead": [{"candidates": 2, "rollouts": 2, "block_size": 2, "rollout_tokens": 2}],
    "smc": [
        {"particles": 3, "block_size": 2},
        {"particles": 3, "block_size": 2, "ramp": 3, "resampling": "chopthin", "runs": 2},
        {"particles": 3, "block_size": 2, "initial_ids": [1, 2]},
    ],
    "vote": [
        *({"samples": 3, "weight": weight} for weight in ("count", "power")),
        {"samples": 12, "stopping": "certain", "window": 4, "error": 0.1},
        {"samples": 4, "drop_below": 0.5, "warmup": 2},
        {"samples": 4, "window": 2, "alpha": "adaptive", "base": {"sampler": "power", "steps": 1}},
    ],
    "best_of": [{"samples": 3}, {"samples": 4, "drop_below": 0.5, "warmup": 2}],
    "branch": [{"policy": policy, "score": "power"} for policy in ("tree", "lookahead", "beam")],
    "cot": [{"k": 3}],
}
"""Requests in which the parameters act."""

IN_TEXT = {"answer": "text"}


def is_numeric(annotation: Any) -> bool:
    """Whether a field takes a number, or a list of numbers."""
    if get_origin(annotation) in (Annotated, Union, types.UnionType, list):
        return any(is_numeric(part) for part in get_args(annotation) if isinstance(part, type | object))
    return annotation in (int, float)


def numeric_fields(model: type[BaseModel]) -> list[str]:
    return [name for name, field in model.model_fields.items() if is_numeric(field.annotation)]


def lists_of_numbers(model: type[BaseModel]) -> set[str]:
    return {name for name, field in model.model_fields.items() if "list[" in str(field.annotation)}


def requests_of(sampler: str) -> list[dict[str, Any]]:
    """Right requests, on which extremes are put."""
    base = {"sampler": sampler, "seed": 3, **REQUIRED.get(sampler, {})}
    selecting = IN_TEXT if sampler in ("vote", "best_of", "branch", "cot") else {}
    return [{**base, **selecting, **context} for context in CONTEXTS.get(sampler, [{}])]


def extreme(model: type[BaseModel], values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The request with each of its numeric parameters at each extreme."""
    for name in numeric_fields(model):
        for number in EXTREMES:
            yield {**values, name: number}
            if name in lists_of_numbers(model):
                yield {**values, name: [number]}
                yield {**values, name: [number, number]}


def nested() -> Iterator[tuple[str, dict[str, Any]]]:
    """Samplers inside the parameters of others, at their extremes."""
    power = [one for base in CONTEXTS["power"][:2] for one in extreme(PowerRequest, base)]
    for one in power:
        if one.keys() <= {"initial_ids", "max_total_tokens", "deadline_ms", "seed"}:
            continue
        inner = {"sampler": "power", **one}
        yield "vote.base", {"sampler": "vote", **IN_TEXT, "samples": 2, "base": inner}
        yield "branch.refine", {"sampler": "branch", **IN_TEXT, "refine": inner}
    for name, kind in policies().items():
        if not kind.in_proposals or numeric_fields(kind) == ["seed"]:
            continue
        for values in extreme(kind, {"sampler": name, **REQUIRED.get(name, {})}):
            yield f"{name} in power", {"sampler": "power", "steps": 2, "proposal_policy": values}
            yield f"{name} in vote", {"sampler": "vote", **IN_TEXT, "samples": 2, "base": values}
            yield f"{name} in cot", {"sampler": "cot", **IN_TEXT, "k": 2, "continuation_policy": values}


def finite(tokens: Tokens, *, forced: bool = False) -> bool:
    """Forced tokens may lie outside of the law that the others are drawn from."""
    log_q = ~np.isnan(tokens.log_q) if forced else np.isfinite(tokens.log_q)
    return bool(np.isfinite(tokens.log_p).all() and log_q.all())


async def run(values: dict[str, Any]) -> None:
    """Run a request as the server would, on the exact model; what it says of itself is JSON.

    Raises:
        RequestError: it is refused.
    """
    request = parse_request({"seed": 3, **values})
    _check_policy_ids(SimpleNamespace(model_config=SimpleNamespace(vocab_size=4)), request)
    found = served(request)
    if isinstance(request, Policy) and (found is None or found.needs.second_prompt is not None):
        await draw_with(request)
        return
    assert found is not None
    await run_whole(found)


async def run_whole(found: Served) -> None:
    """Run a sampler of whole answers on the exact model."""
    needs, asked = found.needs, found.request
    assert isinstance(asked, WholeAnswerRequest)
    support.check_caps(LIMITS, needs.capped)
    cap = support.total_tokens_of({}, asked.max_total_tokens, LIMITS, L, 1, needs)
    forced = None if needs.forced is None else needs.forced.tokens
    if isinstance(forced, tuple) and max(forced) >= 4:
        raise RequestError("initial_ids", None, "outside of the vocabulary", "")
    # A late deadline is far enough not to act.
    deadline = None if asked.deadline_ms is None else 4e9 + asked.deadline_ms / 1000
    parent = StubParent()
    stop, text = StopRule.of(parent.manager, {}), TextRule.of(parent.manager, {})
    outcome = await found.sampler.run(
        asked,
        ExactTools(
            TabularEngine(MODEL),
            HostReader(stop, text, EXTRACTORS["text"]),
            Key(3 if asked.seed is None else asked.seed),
            L,
            Budget(cap, None, deadline),
            forced=forced if isinstance(forced, tuple) else None,
            reward=Halving() if needs.reward else None,
            reward_bound=1e300 if needs.reward else None,
        ),
    )
    assert outcome.finished or len(outcome.tokens) <= L
    assert finite(outcome.tokens, forced=forced is not None or found.name in ("cot", "branch"))
    assert outcome.usage.decoded <= cap + L + outcome.usage.children
    orjson.dumps(dict(outcome.params))
    json.dumps({**outcome.headline, **outcome.report}, allow_nan=False)


class Halving:
    """A reward of 1e300, divided by the last token."""

    async def __call__(self, ids: Sequence[int], finished: bool) -> float:  # noqa: ARG002
        return 1e300 / (1 + ids[-1])

    def report(self) -> dict[str, Any]:
        return {"name": "r"}


async def draw_with(policy: Policy) -> None:
    """By the policy's specification on the exact model, where it is of one row, and by its torch rule."""
    orjson.dumps(policy.parameters)
    draw_in_torch(ProposalLaw(1.0, policy=policy))
    if policy.in_proposals:
        law = ProposalLaw(1.0, policy=policy)
        drawn = await TabularEngine(MODEL).generate(ContinuationCall((), L, law, 7))
        assert finite(drawn.tokens)


def draw_in_torch(law: ProposalLaw) -> None:
    """In float32, over rows that are flat, steep, masked, or biased as far as requests may."""
    logits = 3.0 * torch.randn(5, 8, generator=torch.Generator().manual_seed(2))
    logits[1] = 0.0
    logits[2, 1:] = -torch.inf
    logits[3, :4] = -torch.inf
    logits[4, 2] += 1e18
    paired = law.policy is not None and "twin" in law.policy.needs  # type: ignore[attr-defined]
    coupled: list[tuple[ProposalLaw, Literal["main", "twin"] | None]] = [(law, None)]
    if paired:
        coupled = [(law, "main"), (ProposalLaw(1.0), "twin")]
    rows = [
        ChildParams(own, seed=5, origin=0, coupling=None if role is None else Coupling(str(i), role))
        for own, role in coupled
        for i in range(len(logits))
    ]
    drawn = draw_rows(
        logits.repeat(len(rows) // len(logits), 1),
        torch.zeros(len(rows), dtype=torch.int64),
        RowBlock.of(*rows).on(CPU),
        ends_line=torch.zeros(len(rows), 1, dtype=torch.bool),
        memory=torch.full((len(rows), 1), -1),
    )
    assert drawn.statistics.isfinite().all(), (law, drawn.statistics)
    assert logits.gather(1, drawn.ids[: len(logits), None]).isfinite().all()


async def refused_or_run(values: dict[str, Any]) -> bool:
    """Whether it ran."""
    refusal: RequestError | None = None
    try:
        await run(values)
    except RequestError as error:
        refusal = error
    if refusal is None:
        return True
    assert isinstance(refusal, UnsupportedError) or refusal.field.split(".")[0] in values, refusal
    return False


@pytest.mark.parametrize("sampler", samplers())
async def test_every_extreme_is_refused_by_name_or_runs_to_an_end(sampler: str) -> None:
    model, tried, ran = samplers()[sampler], 0, 0
    for values in requests_of(sampler):
        for one in extreme(model, values):
            tried += 1
            ran += await refused_or_run(one)
    assert tried == 0 or 0 < ran < tried


async def test_extremes_inside_of_other_samplers() -> None:
    ran: dict[str, list[bool]] = {}
    for name, values in nested():
        ran.setdefault(name, []).append(await refused_or_run(values))
    for name, each in ran.items():
        assert False in each, name
        assert True in each, name


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"sampler": "power", "alpha": 1e39}, "alpha"),
        ({"sampler": "power", "alpha": 1000.1}, "alpha"),
        ({"sampler": "power", "proposal_temperature": 1e-39}, "proposal_temperature"),
        ({"sampler": "power", "proposal_temperature": 1e39}, "proposal_temperature"),
        ({"sampler": "power", "top_k": 2**63}, "top_k"),
        ({"sampler": "power", "steps": 2**70}, "steps"),
        ({"sampler": "power", "deadline_ms": 10**400}, "deadline_ms"),
        ({"sampler": "power", "cut": "entropy", "cut_epsilon": 5e-324}, "cut_epsilon"),
        ({"sampler": "power", "reward": "r", "reward_weight": 1e308}, "reward_weight"),
        ({"sampler": "vote", "weight": "power", "alpha": 1e39}, "alpha"),
        ({"sampler": "vote", "base": {"sampler": "power", "alpha": 1e39}}, "base.alpha"),
        (
            {"sampler": "best_of", "base": {"sampler": "power", "proposal_temperature": 1e-39}},
            "base.proposal_temperature",
        ),
        ({"sampler": "branch", "refine": {"sampler": "power", "alpha": 1e39}}, "refine.alpha"),
        ({"sampler": "branch", "score": "power", "alpha": 1e39}, "alpha"),
        ({"sampler": "branch", "max_branches": 2**63}, "max_branches"),
        ({"sampler": "cot", "k": 2**31}, "k"),
    ],
    ids=str,
)
def test_what_no_float32_or_tensor_holds_is_refused_by_name(values: dict[str, Any], field: str) -> None:
    with pytest.raises(RequestError) as error:
        parse_request(values)
    assert error.value.field == field


@pytest.mark.parametrize(
    "law",
    [
        PowerRequest(alpha=1000.0).law,
        PowerRequest(proposal_temperature=1e-6).law,
        PowerRequest(proposal_temperature=1e6).law,
        PowerRequest(proposal_temperature=1e6, top_k=2**31 - 1, top_p=5e-324, min_p=1.0).law,
        PowerRequest(proposal_temperature=1e-6, top_k=1, top_p=5e-324, min_p=5e-324).law,
    ],
    ids=str,
)
def test_the_bounds_themselves_make_laws_of_numbers(law: ProposalLaw) -> None:
    draw_in_torch(law)
