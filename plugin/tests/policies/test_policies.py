"""Every registered policy against its law: single rows, mixed batches, precision, draws, parameters; and how
policies register.

Parametrised over the registry and each policy's examples: a new policy is tested by being registered.
Deterministic; laws agree to 1e-9 in float64, frequencies of stratified draws to one stratum. Error rate 0.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sglang_power.algorithms.triggers import Trigger
from sglang_power.errors import ConfigError
from sglang_power.fields import CONFLICT, MAX_TEMPERATURE, MIN_TEMPERATURE
from sglang_power.policies import (
    Action,
    Columns,
    Context,
    Policy,
    PolicyGroup,
    Row,
    Rows,
    Shaped,
    policies,
    shape_rows,
)
from sglang_power.policies.entropix import Entropix
from sglang_power.policies.epsilon import Epsilon
from sglang_power.policies.kl_guided import KLGuided
from sglang_power.policies.standard import TopK
from sglang_power.request import BranchRequest
from sglang_power.types import FloatArray
from sglang_power_kernels import sample_rows
from sglang_power_kernels.testing import NoHostReads, exact_law

AGREEMENT = 1e-9
SINGLE_PRECISION = 1e-4
DRAWS = 2000

KINDS = list(policies().values())
EXAMPLES = [
    (f"{kind.name()}-{number}", kind(**example))
    for kind in KINDS
    for number, example in enumerate(kind.examples)
]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name())
each_example = pytest.mark.parametrize(
    "policy", [policy for _, policy in EXAMPLES], ids=[name for name, _ in EXAMPLES]
)


def made(name: str, **values: Any) -> Policy:
    return policies()[name].model_validate(values)


# --- rows ---------------------------------------------------------------------------------------------

SCALES = (0.0, 0.01, 0.3, 1.0, 2.0, 3.0, 10.0, 30.0)
MASKED = (0.0, 0.2, 0.9)


def random_row(
    seed: int, vocab: int, scale: float, masked: float, ties: bool, temperature: float, ends_line: bool
) -> Row:
    """A row with its twin; `masked` is the share of impossible tokens, `ties` puts logits on a grid."""
    rng = np.random.default_rng(seed)
    logits, twin = scale * rng.standard_normal((2, vocab)) + rng.normal()
    if ties and scale:
        logits, twin = np.round(logits / scale * 2) * scale / 2, twin
    possible = rng.random(vocab) >= masked
    possible[rng.integers(vocab)] = True
    twin_possible = possible if rng.random() < 0.7 else np.roll(possible, 1)
    return Row(
        np.where(possible, logits, -np.inf),
        temperature,
        ends_line,
        np.where(twin_possible, twin, -np.inf),
    )


ROWS = st.builds(
    random_row,
    seed=st.integers(0, 2**32),
    vocab=st.integers(1, 40),
    scale=st.sampled_from(SCALES),
    masked=st.sampled_from(MASKED),
    ties=st.booleans(),
    temperature=st.floats(0.2, 3.0),
    ends_line=st.booleans(),
)


def some_rows(count: int, seed: int = 0, single: bool = False, **fixed: Any) -> list[Row]:
    """Rows as ROWS has them, without hypothesis; `single`: of logits that float32 can hold."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        drawn: dict[str, Any] = {
            "vocab": int(rng.integers(1, 41)),
            "scale": float(rng.choice(SCALES)),
            "masked": float(rng.choice(MASKED)),
            "ties": bool(rng.integers(2)),
            "temperature": float(rng.uniform(0.2, 3.0)),
            "ends_line": bool(number % 2),
        }
        rows.append(random_row(seed=1000 * seed + number, **(drawn | fixed)))
    return [in_single_precision(row) for row in rows] if single else rows


def in_single_precision(row: Row) -> Row:
    assert row.twin is not None
    logits, twin = (x.astype(np.float32).astype(np.float64) for x in (row.logits, row.twin))
    return dataclasses.replace(row, logits=logits, twin=twin)


def nudged(row: Row, noise: float, rng: np.random.Generator) -> Iterator[Row]:
    """The row with small noise, and with the opposite noise; what ties goes on to tie."""

    def step(logits: FloatArray) -> FloatArray:
        values, place = np.unique(logits, return_inverse=True)
        size = noise * (1.0 + np.abs(np.where(np.isfinite(values), values, 0.0)))
        return np.asarray((size * rng.uniform(-1.0, 1.0, len(values)))[place], dtype=np.float64)

    assert row.twin is not None
    ours, twins = step(row.logits), step(row.twin)
    for sign in (1.0, -1.0):
        yield dataclasses.replace(row, logits=row.logits + sign * ours, twin=row.twin + sign * twins)


def on_edge(policy: Policy, row: Row, noise: float = 1e-9, change: float = 1e-6) -> bool:
    """Whether noise changes the law by more than noise should: a token lies on a threshold."""
    law, rng = policy.law(row), np.random.default_rng(0)
    return any(
        np.abs(policy.law(other) - law).max() > change for _ in range(2) for other in nudged(row, noise, rng)
    )


def on_edge_in_single_precision(policy: Policy, row: Row) -> bool:
    return on_edge(policy, row, noise=3e-7, change=5e-5)


# --- running the rules --------------------------------------------------------------------------------

Asked = tuple[Policy | None, Row]
Arguments = tuple[torch.Tensor, torch.Tensor, tuple[PolicyGroup, ...], Context]


def arguments(batch: Sequence[Asked], dtype: torch.dtype = torch.float64) -> Arguments:
    """What `shape_rows` is given for rows and who serves them (None: nobody); first tokens of answers."""
    members: dict[type[Policy], list[int]] = defaultdict(list)
    for place, (policy, _) in enumerate(batch):
        if policy is not None:
            members[type(policy)].append(place)
    groups = tuple(
        PolicyGroup(
            kind,
            torch.tensor(places),
            kind.columns([policy for p in places if (policy := batch[p][0]) is not None], dtype),
        )
        for kind, places in members.items()
    )
    rows = [row for _, row in batch]
    context = Context(
        index=torch.zeros(len(rows), 1, dtype=torch.int64),
        ends_line=torch.tensor([[row.ends_line] for row in rows]),
        memory=torch.full((len(rows), 1), -1),
        twin=torch.tensor(np.stack([row.twin for row in rows if row.twin is not None]), dtype=dtype),
    )
    logits = torch.tensor(np.stack([row.logits for row in rows]), dtype=dtype)
    kappa = torch.tensor([1.0 / row.temperature for row in rows], dtype=dtype)
    return logits, kappa, groups, context


def shape(batch: Sequence[Asked], dtype: torch.dtype = torch.float64) -> Shaped:
    return shape_rows(*arguments(batch, dtype))


def law_of(shaped: Shaped, place: int = 0) -> FloatArray:
    """[vocab] the law of the token that a shaped row gives."""
    if shaped.forced is not None and shaped.forced[place] >= 0:
        return np.asarray(np.eye(shaped.logits.shape[1])[int(shaped.forced[place])], dtype=np.float64)
    return np.asarray(exact_law(shaped.logits[place], float(shaped.kappa[place])).numpy(), dtype=np.float64)


def frequencies(shaped: Shaped, place: int = 0) -> FloatArray:
    """[vocab] of the real sampler's draws, one from each of DRAWS equal strata of [0, 1)."""
    ids = sample_rows(
        shaped.logits[place].expand(DRAWS, -1),
        kappa=shaped.kappa[place].expand(DRAWS),
        uniforms=(torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS,
    )
    if shaped.forced is not None:
        ids = torch.where(shaped.forced[place] >= 0, shaped.forced[place], ids)
    counts = torch.bincount(ids, minlength=shaped.logits.shape[1])
    return np.asarray(counts.double().numpy() / DRAWS, dtype=np.float64)


def apart(one: FloatArray, other: FloatArray) -> float:
    """The largest difference of one token's probability."""
    return float(np.abs(one - other).max())


# --- the law ------------------------------------------------------------------------------------------


@each_example
@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(row=ROWS)
def test_the_rule_gives_the_law(policy: Policy, row: Row) -> None:
    assume(not on_edge(policy, row))
    law = policy.law(row)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    assert apart(law_of(shape([(policy, row)])), law) < AGREEMENT


@each_example
def test_few_rows_are_left_out_as_knife_edges(policy: Policy) -> None:
    assert sum(on_edge(policy, row) for row in some_rows(100)) <= 10


def test_control_a_row_on_a_threshold_is_a_knife_edge() -> None:
    p = np.array([0.6, 0.25, 0.15])
    row = Row(np.log(p), twin=np.log(p))
    assert on_edge(Epsilon(epsilon=0.25), row)
    assert on_edge(made("top_p", p=0.85), row)
    assert not on_edge(Epsilon(epsilon=0.24), row)


class OneMore(TopK):
    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        return super().act(rows, {"k": params["k"] + 1})


class Untempered(Epsilon):
    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        return super().act(dataclasses.replace(rows, kappa=torch.ones_like(rows.kappa)), params)


class Reversed(KLGuided):
    @classmethod
    def act(cls, rows: Rows, params: Columns) -> Action:
        assert rows.twin is not None
        return super().act(dataclasses.replace(rows, logits=rows.twin, twin=rows.logits), params)


@pytest.mark.parametrize("wrong", [OneMore(k=5), Untempered(epsilon=0.02), Reversed(ids_without=[0])])
def test_control_a_rule_that_is_slightly_wrong_is_caught(wrong: Policy) -> None:
    assert any(apart(law_of(shape([(wrong, row)])), wrong.law(row)) > 1e-3 for row in some_rows(60))


@each_example
def test_single_precision_gives_nearly_the_same_law(policy: Policy) -> None:
    rows = [row for row in some_rows(60, seed=1, single=True) if not on_edge_in_single_precision(policy, row)]
    assert len(rows) >= 45
    for row in rows:
        difference = law_of(shape([(policy, row)], torch.float32)) - policy.law(row)
        assert 0.5 * np.abs(difference).sum() < SINGLE_PRECISION


@each_kind
def test_policies_of_full_support_never_cut_and_the_others_do(kind: type[Policy]) -> None:
    def cuts(policy: Policy, row: Row) -> bool:
        shaped = shape([(policy, row)])
        forced = shaped.forced is not None and int(shaped.forced[0]) >= 0
        return forced or not np.array_equal(shaped.logits[0].numpy(), row.logits)

    cutting = any(cuts(kind(**example), row) for example in kind.examples for row in some_rows(20))
    assert cutting is not kind.full_support


# --- batches ------------------------------------------------------------------------------------------


def mixed_batch(per_policy: int = 2, vocab: int = 30) -> list[Asked]:
    """Rows of every example of every policy, and rows that nobody serves, shuffled."""
    served: list[Policy | None] = [policy for _, policy in EXAMPLES for _ in range(per_policy)]
    asked = served + [None] * 10
    rows = some_rows(len(asked), seed=2, vocab=vocab)
    order = np.random.default_rng(3).permutation(len(asked))
    return [(asked[place], rows[place]) for place in order]


def test_rows_of_a_mixed_batch_get_what_they_get_alone() -> None:
    batch = mixed_batch()
    given = arguments(batch)
    before = given[0].clone(), given[1].clone()
    together = shape_rows(*given)
    assert torch.equal(given[0], before[0])
    assert torch.equal(given[1], before[1])
    assert together.forced is not None
    assert together.memory is not None
    for place, asked in enumerate(batch):
        alone = shape([asked])
        assert torch.equal(together.logits[place], alone.logits[0])
        torch.testing.assert_close(together.kappa[place], alone.kappa[0], rtol=1e-12, atol=0.0)
        assert int(together.forced[place]) == (-1 if alone.forced is None else int(alone.forced[0]))
        assert int(together.memory[place]) == (-1 if alone.memory is None else int(alone.memory[0]))


def test_rows_that_nobody_serves_stay_as_they_are() -> None:
    batch = mixed_batch()
    logits, kappa, _, _ = given = arguments(batch)
    shaped = shape_rows(*given)
    plain = torch.tensor([policy is None for policy, _ in batch])
    assert torch.equal(shaped.logits[plain], logits[plain])
    assert torch.equal(shaped.kappa[plain], kappa[plain])
    assert shaped.forced is not None
    assert shaped.memory is not None
    assert bool((shaped.forced[plain] == -1).all())
    assert bool((shaped.memory[plain] == -1).all())


def test_a_batch_without_policies_is_passed_on() -> None:
    logits, kappa, groups, context = arguments([(None, row) for row in some_rows(3, vocab=5)])
    shaped = shape_rows(logits, kappa, groups, context)
    assert shaped.logits is logits
    assert shaped.kappa is kappa
    assert shaped.forced is None
    assert shaped.memory is None


@each_kind
def test_actions_have_the_documented_shapes(kind: type[Policy]) -> None:
    batch: list[Asked] = [(kind(**kind.examples[-1]), row) for row in some_rows(3, vocab=7)]
    logits, kappa, (group,), context = arguments(batch, torch.float32)
    rows = Rows(logits, kappa[:, None], context.index, context.ends_line, context.memory, context.twin)
    action = kind.act(rows, group.params)
    for values, width, dtype in (
        (action.kappa, 1, torch.float32),
        (action.keep, 7, torch.bool),
        (action.forced, 1, torch.int64),
        (action.memory, 1, torch.int64),
    ):
        assert values is None or (values.shape == (3, width) and values.dtype == dtype)
    assert (action.memory is not None) == ("memory" in kind.needs)
    shaped = shape_rows(logits, kappa, (group,), context)
    assert shaped.logits.shape == (3, 7)
    assert shaped.kappa.shape == (3,)
    assert shaped.forced is None or shaped.forced.shape == (3,)
    assert shaped.memory is None or shaped.memory.shape == (3, 1)


def test_no_policy_reads_the_device() -> None:
    """On CUDA every read would wait for the stream."""
    given = arguments(mixed_batch(), torch.float32)
    with NoHostReads():
        shape_rows(*given)


@each_kind
def test_a_policy_reads_what_it_needs_and_proposals_have_it(kind: type[Policy]) -> None:
    assert kind.needs <= {"ends_line", "memory", "twin"}
    assert not (kind.in_proposals and kind.needs & {"memory", "twin"})


# --- edges --------------------------------------------------------------------------------------------


def edge_rows() -> list[Row]:
    """One token; one possible token; flat; two best; far apart; huge; at extreme temperatures."""
    patterns = ([0.0], [-np.inf, 3.0, -np.inf], [1.0] * 9, [5.0, 5.0, -90.0], [0.0, -500.0], [1e4, -1e4, 0.1])
    return [
        Row(np.array(pattern), temperature, ends_line, np.array(pattern[::-1]))
        for pattern in patterns
        for temperature in (1e-6, 1.0, 1e3)
        for ends_line in (False, True)
    ]


def assert_drawable(policy: Policy, row: Row) -> None:
    """In single precision: a temperature, a kept set, and a token that the base law allows."""
    shaped = shape([(policy, row)], torch.float32)
    least, most = 0.999 / MAX_TEMPERATURE, 1.001 / MIN_TEMPERATURE
    assert least <= float(shaped.kappa[0]) <= most
    assert bool(torch.isfinite(shaped.logits[0]).any())
    assert not bool(torch.isnan(shaped.logits).any())
    uniforms = torch.tensor([0.0, 0.5, 1.0 - 1e-9], dtype=torch.float64)
    drawn = sample_rows(shaped.logits.expand(3, -1), kappa=shaped.kappa.expand(3), uniforms=uniforms)
    assert bool((drawn >= 0).all())
    assert np.isfinite(row.logits[drawn.numpy()]).all()


@each_example
def test_something_can_be_drawn_from_every_row(policy: Policy) -> None:
    for row in edge_rows():
        assert_drawable(policy, row)
        assert policy.law(row).sum() == pytest.approx(1.0)


@each_kind
def test_something_can_be_drawn_at_every_valid_parameter(kind: type[Policy]) -> None:
    """Also at those that are 0 or infinite in float32."""
    rows = edge_rows()[::5] + some_rows(4, seed=4)
    for field in parameter_fields(kind, int) + parameter_fields(kind, float):
        for value in (1e-300, 1e-30, 1.0 - 1e-15, 1e30, 1e300, 1, 2**31 - 1):
            try:
                policy = kind(**{**kind.examples[0], field: value})
            except ValidationError:
                continue
            for row in rows:
                assert_drawable(policy, row)


# --- draws --------------------------------------------------------------------------------------------


def draw_rows() -> list[Row]:
    return some_rows(6, seed=5, single=True, vocab=24, scale=2.0, masked=0.2, temperature=0.8)


@each_example
def test_draws_follow_the_law(policy: Policy) -> None:
    rows = [row for row in draw_rows() if not on_edge_in_single_precision(policy, row)]
    assert len(rows) >= 4
    for row in rows:
        shaped = shape([(policy, row)], torch.float32)
        assert apart(frequencies(shaped), policy.law(row)) <= 1.0 / DRAWS


@each_kind
def test_control_draws_do_not_follow_the_law_without_the_policy(kind: type[Policy]) -> None:
    differences = [
        apart(frequencies(shape([(kind(**example), row)], torch.float32)), law_of(shape([(None, row)])))
        for example in kind.examples
        for row in draw_rows()
    ]
    assert max(differences) > 1.0 / DRAWS


# --- parameters ---------------------------------------------------------------------------------------


def parameter_fields(kind: type[Policy], annotation: type) -> list[str]:
    """Names of the policy's own fields of exactly this type."""
    fields = kind.model_fields.items()
    return [name for name, field in fields if field.annotation is annotation and name != "sampler"]


def out_of_range(kind: type[Policy], name: str) -> list[float]:
    """Values just outside of each declared bound."""
    outside = {"gt": 0, "ge": -1, "lt": 0, "le": 1}
    return [
        getattr(constraint, bound) + step
        for constraint in kind.model_fields[name].metadata
        for bound, step in outside.items()
        if getattr(constraint, bound, None) is not None
    ]


def errors_of(kind: type[Policy], values: dict[str, Any]) -> list[Any]:
    with pytest.raises(ValidationError) as caught:
        kind(**values)
    return list(caught.value.errors())


def assert_refused(kind: type[Policy], field: str, value: object) -> None:
    for error in errors_of(kind, {**kind.examples[0], field: value}):
        assert error["loc"][0] == field, (value, error)


@each_kind
def test_every_example_is_a_valid_request(kind: type[Policy]) -> None:
    for example in kind.examples:
        policy = kind.model_validate({"sampler": kind.name(), **example, "seed": 2**64 - 1})
        assert policy.parameters.keys() >= example.keys()
        assert policy.parameters | dict(example) == policy.parameters
        assert policy.parameters.keys().isdisjoint({"sampler", "seed"})
        again = kind.model_validate(policy.parameters)
        assert again.parameters == policy.parameters, "the scheduler builds it from its parameters"
        with pytest.raises(ValidationError, match="frozen"):
            policy.seed = 1


def test_names_are_those_of_the_registry() -> None:
    assert {name: kind.name() for name, kind in policies().items()} == {name: name for name in policies()}
    assert policies().keys() >= {"greedy", "typical", "edt", "adapt", "kl_guided", "entropix", "min_k"}


@each_kind
def test_unknown_keys_and_other_names_are_refused(kind: type[Policy]) -> None:
    example = dict(kind.examples[0])
    (unknown,) = errors_of(kind, {**example, "unheard_of": 1})
    assert (unknown["type"], unknown["loc"]) == ("extra_forbidden", ("unheard_of",))
    assert_refused(kind, "sampler", "another")


@each_kind
def test_numbers_that_are_none_or_out_of_range_are_refused(kind: type[Policy]) -> None:
    for field in parameter_fields(kind, float) + parameter_fields(kind, int):
        beyond = out_of_range(kind, field)
        assert beyond, f"{field} has no range"
        for value in ["1", None, [1], True, math.nan, math.inf, -math.inf, *beyond]:
            assert_refused(kind, field, value)
    for field in parameter_fields(kind, int):
        for number in (1.0, 1.5, 10**400):
            assert_refused(kind, field, number)
    for field in parameter_fields(kind, bool):
        for word in (1, 0.0, "true", None):
            assert_refused(kind, field, word)
    for seed in (-1, 2**64, 1.0, "1", True):
        assert_refused(kind, "seed", seed)


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("kl_guided", {"ids_without": []}, "ids_without"),
        ("kl_guided", {"ids_without": [1, -1]}, "ids_without"),
        ("kl_guided", {"ids_without": [1.0]}, "ids_without"),
        ("kl_guided", {"prompt_without": ""}, "prompt_without"),
        ("kl_guided", {"prompt_without": ["a"]}, "prompt_without"),
        ("entropix", {"insert_ids": [-1]}, "insert_ids"),
        ("entropix", {"insert_ids": "a"}, "insert_ids"),
        ("entropix", {"explore": "fork"}, "explore"),
    ],
)
def test_lists_and_words_are_checked(name: str, values: dict[str, Any], field: str) -> None:
    assert_refused(policies()[name], field, values[field])


def test_entropix_that_branches_is_a_branch_request() -> None:
    values = {"entropy_threshold": 0.5, "varentropy_threshold": 1.5, "seed": 3}
    assert policies()["entropix"].model_validate(values).branching is None
    branching = policies()["entropix"].model_validate({**values, "explore": "branch"}).branching
    assert branching is not None
    request = BranchRequest(**branching)
    assert request.triggers == (Trigger("entropix_low_high", (0.5, 1.5)),)
    assert request.seed == 3
    law = request.continuation_policy
    assert law == policies()["entropix"].model_validate({**values, "seed": None})


@pytest.mark.parametrize(
    ("name", "values", "missing"),
    [
        ("temperature", {}, {"value"}),
        ("top_k", {}, {"k"}),
        ("top_p", {}, {"p"}),
        ("min_p", {}, {"p"}),
        ("entropix", {"hot_factor": 2.0}, {"entropy_threshold", "varentropy_threshold"}),
    ],
)
def test_what_has_no_default_is_required(name: str, values: dict[str, Any], missing: set[str]) -> None:
    errors = errors_of(policies()[name], values)
    assert {error["loc"][0] for error in errors} == missing
    assert {error["type"] for error in errors} == {"missing"}


@pytest.mark.parametrize(
    ("name", "values", "field"),
    [
        ("typical", {"margin": 0.5}, "margin"),
        ("typical", {"mass": 0.5, "margin": 0.5}, "margin"),
        ("typical", {"one_sided": True, "mass": 0.9}, "mass"),
        ("dynatemp", {"t_min": 2.0, "t_max": 1.9}, "t_min"),
        ("dynatemp", {"t_max": 0.1}, "t_max"),
        ("adapt", {"hot": 0.7, "cold": 0.7}, "hot"),
        ("adapt", {"cold": 1.1}, "cold"),
        ("kl_guided", {}, "prompt_without"),
        ("kl_guided", {"prompt_without": "a", "ids_without": [1]}, "ids_without"),
        (
            "entropix",
            {
                "entropy_threshold": 1.0,
                "varentropy_threshold": 1.0,
                "explore": "branch",
                "insert_ids": [1],
            },
            "insert_ids",
        ),
    ],
)
def test_fields_that_do_not_go_together_name_one_and_a_remedy(
    name: str, values: dict[str, Any], field: str
) -> None:
    (error,) = errors_of(policies()[name], values)
    assert error["type"] == CONFLICT
    assert error["ctx"]["field"] == field
    assert error["msg"] == error["ctx"]["problem"] != ""
    assert error["ctx"]["hint"]


def test_the_ids_and_the_prompt_that_the_host_has_to_know() -> None:
    assert KLGuided(prompt_without="a").twin_prompt == ("prompt_without", "a")
    by_ids = KLGuided(ids_without=[3, 4])
    assert (by_ids.twin_prompt, by_ids.token_ids) == (("ids_without", [3, 4]), {"ids_without": [3, 4]})
    inserting = Entropix(entropy_threshold=1.0, varentropy_threshold=1.0, insert_ids=[5])
    assert inserting.token_ids == {"insert_ids": [5]}
    assert Entropix(entropy_threshold=1.0, varentropy_threshold=1.0).insert_ids == []


# --- what single policies do --------------------------------------------------------------------------


def test_adapt_is_hot_on_the_first_token_of_a_line() -> None:
    policy = made("adapt", hot=2.0, cold=0.5)
    row = Row(np.array([0.0, 1.0]), temperature=0.5, twin=np.zeros(2))
    shaped = shape([(policy, dataclasses.replace(row, ends_line=True)), (policy, row)])
    assert shaped.kappa.tolist() == [1.0, 4.0]


def test_kl_guided_without_a_twin_has_no_temperature_and_leaves_others_theirs() -> None:
    policy = KLGuided(ids_without=[0])
    row = Row(np.array([0.0, 1.0, -np.inf]), 0.5, twin=np.full(3, np.nan))
    same = dataclasses.replace(row, twin=row.logits)
    shaped = shape([(policy, row), (policy, same), (None, row)])
    assert math.isnan(float(shaped.kappa[0]))
    assert shaped.kappa[1:].tolist() == [2.0, 2.0]


def test_kl_guided_halves_the_temperature_at_every_sigma_and_freezes_where_the_twin_says_never() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.75, 0.0])
    divergence = 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(p), np.log(q)
    policy = KLGuided(sigma=divergence / 3, ids_without=[0])
    never = np.array([0.0, -np.inf, 0.0])
    hardly = np.array([0.0, -900.0, -np.inf])
    asked = [Row(log_p, twin=log_q), Row(log_p, twin=never), Row(hardly, twin=never)]
    shaped = shape([(policy, row) for row in asked])
    assert shaped.kappa.tolist() == pytest.approx([8.0, 1.0 / MIN_TEMPERATURE, 1.0 / MIN_TEMPERATURE])


def test_min_k_top_k_and_greedy_keep_the_same_tokens_at_any_temperature() -> None:
    cases = [made("min_k"), TopK(k=3), made("greedy"), made("top_n_sigma")]
    for policy in cases:
        for row in some_rows(10, seed=6):
            cold, hot = (shape([(policy, dataclasses.replace(row, temperature=t))]) for t in (0.1, 10.0))
            assert torch.equal(cold.logits, hot.logits)


def test_ties_with_the_last_kept_token_are_kept() -> None:
    flat = Row(np.array([2.0, 1.0, 1.0, 1.0, -np.inf]), twin=np.zeros(5))
    for policy in (TopK(k=2), made("top_p", p=0.5), made("top_h", alpha=0.9)):
        assert torch.isfinite(shape([(policy, flat)]).logits[0]).tolist() == [True] * 4 + [False]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rounding_never_cuts_a_flat_row(dtype: torch.dtype) -> None:
    """There, thresholds of p_less and one-sided typical at margin 0 are the probability itself."""
    for policy in (made("p_less"), made("typical", one_sided=True, margin=0.0), made("eta", epsilon=0.999)):
        for vocab in range(1, 60):
            row = Row(np.full(vocab, 0.1), twin=np.zeros(vocab))
            assert bool(torch.isfinite(shape([(policy, row)], dtype).logits).all())


def test_typical_may_leave_out_the_most_likely_token_and_one_sided_never_does() -> None:
    p = np.array([0.4, *[0.06] * 10])
    row = Row(np.log(p), twin=np.log(p))
    typical, one_sided = made("typical", mass=0.5), made("typical", one_sided=True)
    assert torch.isfinite(shape([(typical, row)]).logits[0]).tolist() == [False] + [True] * 10
    assert bool(torch.isfinite(shape([(one_sided, row)]).logits[0, 0]))


# --- entropix: quadrants and memory -------------------------------------------------------------------

SURE = [20.0] + [0.0] * 7
UNSURE = [0.0] * 8
TORN = np.log([0.95] + [0.05 / 7] * 7).tolist()
LOST = np.log([0.6] + [0.4 / 7] * 7).tolist()
"""Low H and V; high H, low V; low H, high V; high H and V."""


def entropix(**values: Any) -> Entropix:
    return Entropix(entropy_threshold=0.5, varentropy_threshold=0.5, **values)


def act(
    requests: Sequence[Entropix],
    logits: Sequence[Sequence[float]],
    index: Sequence[int],
    memory: Sequence[int],
) -> tuple[list[int], list[int], list[float]]:
    """Forced tokens, memory and kappa (asked for: 1) of one step of several requests."""
    rows = Rows(
        torch.tensor(logits, dtype=torch.float64),
        kappa=torch.ones(len(logits), 1, dtype=torch.float64),
        index=torch.tensor(index)[:, None],
        memory=torch.tensor(memory)[:, None],
    )
    action = Entropix.act(rows, Entropix.columns(requests, torch.float64))
    assert action.forced is not None
    assert action.memory is not None
    assert action.kappa is not None
    return action.forced[:, 0].tolist(), action.memory[:, 0].tolist(), action.kappa[:, 0].tolist()


def answer(request: Entropix, rows: Sequence[list[float]], repeats: int = 1) -> list[int]:
    """Forced tokens of an answer whose rows are each computed `repeats` times."""
    memory, tokens = -1, []
    for index, row in enumerate(rows):
        steps = set()
        for _ in range(repeats):
            (token,), (memory,), _ = act([request], [row], [index], [memory])
            steps.add((token, memory))
        assert len(steps) == 1, "the same index gives the same action"
        tokens.append(token)
    return tokens


def test_entropix_acts_by_quadrant() -> None:
    request = entropix(insert_ids=[7], hot_factor=2.0)
    forced, memory, kappa = act([request] * 4, [SURE, UNSURE, TORN, LOST], [0] * 4, [-1] * 4)
    assert forced == [-1, 7, -1, -1]
    assert memory == [-1, 0, -1, -1]
    assert kappa == pytest.approx([1.0 / MIN_TEMPERATURE, 1.0, 1.0, 0.5])


@pytest.mark.parametrize("repeats", [1, 2, 3])
def test_entropix_inserts_its_tokens_once_one_per_step(repeats: int) -> None:
    request = entropix(insert_ids=[5, 6, 7])
    rows = [TORN, SURE, UNSURE, UNSURE, LOST, UNSURE, SURE, UNSURE]
    assert answer(request, rows, repeats) == [-1, -1, 5, 6, 7, -1, -1, -1]


@pytest.mark.parametrize("repeats", [1, 2])
def test_an_insertion_may_begin_with_the_answer_and_outlast_it(repeats: int) -> None:
    request = entropix(insert_ids=[5, 6, 7])
    assert answer(request, [UNSURE, SURE], repeats) == [5, 6]


def test_an_answer_that_was_taken_back_further_is_computed_as_before() -> None:
    """Memory may hold an index that the request has not reached again."""
    request = entropix(insert_ids=[5, 6])
    assert act([request], [SURE], [3], [5])[:2] == ([-1], [5])
    assert act([request], [UNSURE], [5], [5])[:2] == ([5], [5])
    assert act([request], [SURE], [6], [5])[:2] == ([6], [5])
    assert act([request], [UNSURE], [7], [5])[:2] == ([-1], [5])


def test_entropix_without_tokens_to_insert_never_forces() -> None:
    request = entropix()
    assert answer(request, [UNSURE, SURE, UNSURE, LOST]) == [-1] * 4
    other = entropix(insert_ids=[0, 1, 2])
    forced, _, _ = act([request, other, request], [UNSURE] * 3, [0, 1, 1], [-1, 0, 0])
    assert forced == [-1, 1, -1]


def test_insertions_of_different_requests_do_not_mix() -> None:
    short, long = entropix(insert_ids=[1]), entropix(insert_ids=[2, 3, 4])
    ours, theirs = [SURE, UNSURE, UNSURE, SURE, UNSURE], [UNSURE, SURE, UNSURE, UNSURE, LOST]
    memory = [-1, -1]
    forced = []
    for index in range(5):
        ids, memory, _ = act([short, long], [ours[index], theirs[index]], [index] * 2, memory)
        forced.append(ids)
    assert np.transpose(forced).tolist() == [answer(short, ours), answer(long, theirs)]


def test_memory_goes_to_the_rows_of_the_batch_that_it_belongs_to() -> None:
    request = entropix(insert_ids=[5, 6])
    plain = Row(np.array(UNSURE), twin=np.zeros(8))
    logits, kappa, groups, _ = arguments(
        [(None, plain), (request, plain), (TopK(k=2), plain), (request, plain)]
    )
    context = Context(torch.full((4, 1), 9), memory=torch.tensor([[3], [-1], [4], [8]]))
    shaped = shape_rows(logits, kappa, groups, context)
    assert shaped.memory is not None
    assert shaped.forced is not None
    assert shaped.memory[:, 0].tolist() == [3, 9, 4, 8]
    assert shaped.forced.tolist() == [-1, 5, -1, 6]


# --- the registry -------------------------------------------------------------------------------------

HALVED = """
from typing import Literal

from sglang_power.policies import Action, Policy
from sglang_power.policies.base import softmax


class Halved(Policy):
    sampler: Literal["{name}"] = "{name}"

    @classmethod
    def act(cls, rows, params):
        return Action(kappa=2.0 * rows.kappa)

    def law(self, row):
        return softmax(row.logits, row.temperature / 2.0)
"""

Install = Callable[[str, str, str], None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Installs a distribution of one module with one entry point `extra`."""

    def install(module: str, source: str, attribute: str) -> None:
        (tmp_path / f"{module}.py").write_text(source)
        information = tmp_path / f"{module}-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(
            f"[sglang_power.policies]\nextra = {module}:{attribute}\n"
        )
        monkeypatch.syspath_prepend(str(tmp_path))
        policies.cache_clear()

    yield install
    policies.cache_clear()


def test_a_policy_of_another_distribution_is_found(install: Install) -> None:
    install("policy_halved", HALVED.format(name="halved"), "Halved")
    found = policies()
    assert list(found)[-1] == "halved"
    assert len(found) == len(KINDS) + 1
    for row in some_rows(10):
        policy = made("halved", seed=3)
        assert apart(law_of(shape([(policy, row)])), policy.law(row)) < AGREEMENT


@pytest.mark.parametrize(
    ("module", "source", "attribute", "problem"),
    [
        ("policy_number", "Halved = 3", "Halved", "not a Policy"),
        ("policy_class", "class Halved: ...", "Halved", "not a Policy"),
        ("policy_taken", HALVED.format(name="edt"), "Halved", "the name 'edt' is in use"),
        ("policy_power", HALVED.format(name="power"), "Halved", "the name 'power' is in use"),
        ("policy_none", HALVED.format(name="none"), "Halved", "the name 'none' is in use"),
        ("policy_raises", "raise RuntimeError('no such luck')", "Halved", "no such luck"),
        ("policy_absent", "", "Halved", "Halved"),
        ("policy_imports", "import no_such_module_anywhere", "Halved", "no_such_module_anywhere"),
    ],
)
def test_a_broken_entry_point_is_named(
    install: Install, module: str, source: str, attribute: str, problem: str
) -> None:
    install(module, source, attribute)
    with pytest.raises(ConfigError, match=f"entry point extra = {module}:{attribute} .*{problem}"):
        policies()


def test_the_registry_is_as_it_was() -> None:
    assert list(policies().values()) == KINDS
