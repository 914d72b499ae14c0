"""The law of every registered policy through the real server, one of another package (conftest.py) included.

The server's own log probabilities at temperature 1, over the whole vocabulary, go into `Policy.law`, which
gives the null hypothesis; the controls are what a mistake would draw from. First tokens of many answers are
compared by a G-test; whole answers, whose every row has a law of its own, by their probability transforms.

A new policy runs through this file by being registered, with an example and a prompt on which its law can
be told from the base law. Right policies fail one of the KEPT_TESTS tests with probability at most 1e-3 for
a fresh set of seeds (Bonferroni). Seeds are fixed and draws a function of (seed, position), so a rerun
repeats its outcome. Figures are printed; pytest -rP shows them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from sglang_power.policies import Policy, Row, policies
from sglang_power.policies.base import entropy, softmax, truncated
from sglang_power.types import FloatArray

from integration_tests.helpers.clients import raw_generate
from integration_tests.helpers.goodness_of_fit import KEPT, REJECTED, g_test
from integration_tests.helpers.third_party_policy import TopA
from integration_tests.pivot.tokenizer import VOCAB_SIZE, encode
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]
Cut = Mapping[str, float]
"""top_k, top_p, min_p of the request."""

DRAWS = 400
TEMPERATURE = 0.9

FLAT = "fARj3dw8g"
"""No problem: here the model is unsure, H = 3.5 nats, with a long tail."""

Q, R = "Q7+3*2-8:", "R7+3*2-8:"
PROMPTS = (FLAT, FLAT + "\n", Q, Q + "A", R, R + "\n")
NEWLINE = encode("\n")[0]
BLANKS = frozenset(encode(" \t"))
CLEARLY = 1e-12
"""Expected p-value of a base law that REJECTED will reject."""

CHOICES = 8
"""Answers of one request; the test server grants 16."""

IMPOSSIBLE = -1e30
"""SGLang returns log 0 as the least float32."""

KINDS: tuple[type[Policy], ...] = (*policies().values(), TopA)


def of(name: str, **values: Any) -> Policy:
    """A policy by its name."""
    return policies()[name].model_validate(values)


# --- the server ---------------------------------------------------------------------------------------


@functools.cache
def log_p(server: Server, prompt: str | tuple[int, ...]) -> FloatArray:
    """[vocab] the base law behind a prompt."""
    body: Json = {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
    answer = raw_generate(
        server,
        None,
        **body,
        sampling_params={"max_new_tokens": 1, "temperature": 1.0},
        return_logprob=True,
        top_logprobs_num=VOCAB_SIZE,
    )
    return _row(answer["meta_info"]["output_top_logprobs"][0])


def _row(ranked: Sequence[tuple[float, int, None]]) -> FloatArray:
    row = np.full(VOCAB_SIZE, -np.inf)
    for value, token, _ in ranked:
        row[token] = value if value > IMPOSSIBLE else -np.inf
    return row


def scored(server: Server, prompt: Sequence[int], answers: Sequence[Sequence[int]]) -> list[FloatArray]:
    """[tokens, vocab] for each answer: the base law of its every row, from a prefill pass."""
    responses = raw_generate(
        server,
        None,
        input_ids=[[*prompt, *answer] for answer in answers],
        sampling_params={"max_new_tokens": 0},
        return_logprob=True,
        logprob_start_len=len(prompt) - 1,
        top_logprobs_num=VOCAB_SIZE,
    )
    return [
        np.array([_row(ranked) for ranked in response["meta_info"]["input_top_logprobs"][-len(answer) :]])
        for response, answer in zip(responses, answers, strict=True)
    ]


def twin_of(policy: Policy) -> tuple[int, ...] | None:
    """Token ids of the other prompt of a policy that has one."""
    if policy.twin_prompt is None:
        return None
    _, twin = policy.twin_prompt
    return tuple(encode(twin) if isinstance(twin, str) else twin)


def row_of(server: Server, policy: Policy, prompt: str, temperature: float = TEMPERATURE) -> Row:
    """The row that an answer's first token is drawn from."""
    twin = twin_of(policy)
    return Row(
        log_p(server, prompt),
        temperature,
        prompt.endswith("\n"),
        None if twin is None else log_p(server, twin),
    )


def named(policy: Policy, seed: int) -> Json:
    """custom_params of a policy."""
    return {
        "sampler": policy.name(),
        **policy.model_dump(exclude_unset=True, exclude={"sampler"}),
        "seed": seed,
    }


def first_tokens(
    server: Server, policy: Policy, prompt: str, seed: int, temperature: float = TEMPERATURE, **cut: float
) -> FloatArray:
    """[vocab] counts of the first tokens of DRAWS samples."""
    params = {"max_new_tokens": 1, "temperature": temperature, **cut}
    return counted(sampled(server, policy, prompt, DRAWS, params, seed), policy)


def sampled(
    server: Server, policy: Policy, prompt: str, count: int, params: Json, seed: int
) -> Sequence[Json]:
    """Many answers of a policy, as many to a request as the server grants, each request with its own seed."""
    assert count % CHOICES == 0
    each = [
        {**params, "n": CHOICES, "custom_params": named(policy, 1000 * seed + i)}
        for i in range(count // CHOICES)
    ]
    answers: list[Json] = raw_generate(server, [prompt] * len(each), sampling_params=each)
    return answers


def counted(answers: Sequence[Json], policy: Policy) -> FloatArray:
    """Counts of first tokens; every answer says that the policy drew it."""
    assert len(answers) == DRAWS
    reports = [answer["meta_info"]["power"] for answer in answers]
    assert {(report["sampler"], report["law"]) for report in reports} == {(policy.name(), "policy")}
    ids = [answer["output_ids"] for answer in answers]
    assert {len(one) for one in ids} == {1}
    return np.bincount([one[0] for one in ids], minlength=VOCAB_SIZE).astype(np.float64)


# --- laws ---------------------------------------------------------------------------------------------


def cut_jointly(law: FloatArray, cut: Cut) -> FloatArray:
    """top-k, top-p and min-p as documented: each measures the same law, what all of them keep stays."""
    keep = np.ones(len(law), dtype=bool)
    if "top_k" in cut:
        keep &= law >= np.sort(law)[-int(cut["top_k"])]
    if "top_p" in cut:
        keep &= np.array([law[law > p].sum() for p in law]) < cut["top_p"]
    if "min_p" in cut:
        keep &= law >= cut["min_p"] * law.max()
    return truncated(law, keep)


def cut_in_turn(law: FloatArray, cut: Cut) -> FloatArray:
    """The same one after the other, each on what the one before left."""
    for name, value in cut.items():
        law = cut_jointly(law, {name: value})
    return law


def biting(server: Server, kind: type[Policy]) -> tuple[Policy, str]:
    """An example of a policy and one of PROMPTS: of the pairs that DRAWS can tell from the base law, the one
    that leaves most to chance."""

    def interest(pair: tuple[Policy, str]) -> tuple[bool, float]:
        row = row_of(server, *pair)
        law = pair[0].law(row)
        return g_test(law * DRAWS, softmax(row.logits, row.temperature)) < CLEARLY, entropy(law)

    pairs = [(kind.model_validate(example), prompt) for example in kind.examples for prompt in PROMPTS]
    return max(pairs, key=interest)


def check(counts: FloatArray, law: FloatArray, controls: Mapping[str, FloatArray]) -> None:
    """The law is kept, every control is rejected."""
    print(f"tokens {int((counts > 0).sum())}, p {g_test(counts, law):.3f}")
    for name, control in controls.items():
        print(f"p of {name}: {g_test(counts, control):.1e}")
    assert g_test(counts, law) > KEPT / KEPT_TESTS
    assert not [name for name, control in controls.items() if g_test(counts, control) >= REJECTED]


# --- first tokens -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name())
def test_first_tokens_follow_the_law(pivot_server: Server, kind: type[Policy]) -> None:
    policy, prompt = biting(pivot_server, kind)
    print(policy, repr(prompt))
    row = row_of(pivot_server, policy, prompt)
    counts = first_tokens(pivot_server, policy, prompt, seed=100 + KINDS.index(kind))
    check(counts, policy.law(row), {"the base law": softmax(row.logits, TEMPERATURE)})


@dataclass(frozen=True)
class Composed:
    """A policy under the request's own temperature and truncation, chosen so that every control differs."""

    policy: Policy
    cut: Cut
    prompt: str
    temperature: float

    def __str__(self) -> str:
        return f"{self.policy.name()}-{'-'.join(self.cut)}"


COMPOSED = [
    Composed(of("temperature", value=2.0), {"top_k": 10, "top_p": 0.6}, Q, 1.5),
    Composed(of("edt", theta=1.0, base=0.3), {"top_k": 30, "top_p": 0.6, "min_p": 0.05}, FLAT, 2.0),
    Composed(of("edt", theta=1.0, base=0.6), {"min_p": 0.1}, FLAT, 2.0),
    Composed(of("adapt", hot=2.0, cold=0.4), {"top_p": 0.7}, FLAT, 2.0),
    Composed(of("top_h", alpha=0.9), {"top_p": 0.7}, Q + "A", 1.5),
    Composed(of("top_n_sigma", n=1.5), {"top_p": 0.7}, Q, 2.0),
    Composed(of("kl_guided", sigma=10.0, prompt_without="Q7"), {"top_p": 0.5}, FLAT, 2.0),
]


@pytest.mark.parametrize("case", COMPOSED, ids=str)
def test_temperature_then_policy_then_truncation(pivot_server: Server, case: Composed) -> None:
    policy, cut = case.policy, case.cut
    row = row_of(pivot_server, policy, case.prompt, case.temperature)
    alone, before = policy.law(row), cut_jointly(softmax(row.logits, row.temperature), cut)
    kept_before = dataclasses.replace(row, logits=np.where(before > 0, row.logits, -np.inf))
    controls = {
        "the policy alone": alone,
        "truncation alone": before,
        "truncation first": policy.law(kept_before),
    }
    if len(cut) > 1:
        controls["one after the other"] = cut_in_turn(alone, cut)
    seed = 200 + COMPOSED.index(case)
    counts = first_tokens(pivot_server, policy, case.prompt, seed, case.temperature, **cut)
    check(counts, cut_jointly(alone, cut), controls)


def test_consecutive_seeds_are_independent(pivot_server: Server) -> None:
    """A request for each draw, in one list."""
    policy = of("temperature", value=2.0)
    params = {"max_new_tokens": 1, "temperature": TEMPERATURE}
    each = [{**params, "custom_params": named(policy, seed)} for seed in range(DRAWS)]
    answers = raw_generate(pivot_server, [FLAT] * DRAWS, sampling_params=each)
    row = row_of(pivot_server, policy, FLAT)
    check(counted(answers, policy), policy.law(row), {"the base law": softmax(row.logits, TEMPERATURE)})


QUADRANTS = {
    "the most likely token": (1.5, 1.5),
    "insert": (0.6, 1.5),
    "sample": (1.5, 0.6),
    "sample hot": (0.6, 0.6),
}
"""Of entropix: its thresholds, as shares of what the row has."""


@pytest.mark.parametrize("name", QUADRANTS)
def test_every_quadrant_of_entropix(pivot_server: Server, name: str) -> None:
    logits = log_p(pivot_server, FLAT)
    p = softmax(logits)
    h = entropy(p)
    v = float(p @ (logits + h) ** 2)

    def in_quadrant(share_h: float, share_v: float) -> Policy:
        thresholds = {"entropy_threshold": h * share_h, "varentropy_threshold": v * share_v}
        return of("entropix", **thresholds, insert_ids=encode("z"), hot_factor=2.5)

    row = Row(logits, TEMPERATURE)
    laws = {other: in_quadrant(*shares).law(row) for other, shares in QUADRANTS.items()}
    counts = first_tokens(pivot_server, in_quadrant(*QUADRANTS[name]), FLAT, seed=12)
    check(counts, laws.pop(name), laws)


@pytest.mark.parametrize("prompt", [FLAT, FLAT + "\n"], ids=["within a line", "first of a line"])
def test_both_temperatures_of_adapt(pivot_server: Server, prompt: str) -> None:
    policy = of("adapt", hot=4.0, cold=0.5)
    row = row_of(pivot_server, policy, prompt)
    other = Row(row.logits, row.temperature, not row.ends_line)
    controls = {"the other temperature": policy.law(other), "the base law": softmax(row.logits, TEMPERATURE)}
    check(first_tokens(pivot_server, policy, prompt, seed=13), policy.law(row), controls)


# --- whole answers ------------------------------------------------------------------------------------

ANSWERS, LENGTH, BINS = 40, 24, 10
UNSURE = 0.3
"""Nats. Rows below say nothing of a law; which rows count depends on the tokens before them only."""


BASE = of("temperature", value=1.0)
"""The law of no policy."""


@dataclass(frozen=True)
class Whole:
    """Whole answers of a policy.

    Args:
        prompt: of all answers.
        control: what they must not follow.
        bias: of the newline's logit, so that answers have lines.
    """

    policy: Policy
    prompt: str
    control: Policy = BASE
    bias: float = 0.0

    def __str__(self) -> str:
        return self.policy.name()


WHOLE = [
    Whole(of("adapt", hot=5.0, cold=0.5), FLAT, of("temperature", value=0.5), bias=18.0),
    Whole(of("entropix", entropy_threshold=0.5, varentropy_threshold=0.05, hot_factor=3.0), R),
    Whole(of("kl_guided", sigma=3.0, prompt_without="gw"), R),
    Whole(of("top_k", k=3), R),
]


def transforms(laws: FloatArray, ids: Sequence[int], seed: int) -> FloatArray:
    """[tokens] uniform in [0, 1) if the ids are draws from the laws; NaN where a law rules its token out.

    A token takes a random place in its own share of [0, 1), tokens in order of falling probability.
    """
    places = np.random.default_rng(seed).random(len(ids))
    return np.array(
        [
            law[law > law[token]].sum() + law[token] * place if law[token] > 0 else np.nan
            for law, token, place in zip(laws, ids, places, strict=True)
        ]
    )


def uniformity(values: FloatArray) -> float:
    """p-value; 0 where a law was broken."""
    if np.isnan(values).any():
        return 0.0
    counts = np.bincount((values * BINS).astype(int).clip(0, BINS - 1), minlength=BINS)
    return g_test(counts.astype(np.float64), np.full(BINS, 1 / BINS))


def answered(server: Server, case: Whole, seed: int) -> list[list[tuple[int, Row]]]:
    """For each of ANSWERS answers its tokens, each with the row that it was drawn from."""
    prompt, twin = encode(case.prompt), twin_of(case.policy)
    params = {
        "max_new_tokens": LENGTH,
        "temperature": TEMPERATURE,
        "logit_bias": {str(NEWLINE): case.bias},
    }
    responses = sampled(server, case.policy, case.prompt, ANSWERS, params, seed)
    answers: list[list[int]] = [response["output_ids"] for response in responses]
    logits = scored(server, prompt, answers)
    twins = logits if twin is None else scored(server, twin, answers)
    bias = np.where(np.arange(VOCAB_SIZE) == NEWLINE, case.bias, 0.0)
    return [
        [
            (token, Row(row + bias, TEMPERATURE, begins_line([*prompt, *ids[:t]]), other + bias))
            for t, (token, row, other) in enumerate(zip(ids, rows, others, strict=False))
        ]
        for ids, rows, others in zip(answers, logits, twins, strict=True)
    ]


def begins_line(ids: Sequence[int]) -> bool:
    """Whether nothing but blanks follows the last newline."""
    behind = next((token for token in reversed(ids) if token not in BLANKS), None)
    return behind == NEWLINE


def p_of(policy: Policy, tokens: Sequence[tuple[int, Row]], seed: int) -> float:
    """p-value of tokens as draws from a policy; of those whose rows leave something to chance."""
    open_rows = [(token, row) for token, row in tokens if entropy(softmax(row.logits)) > UNSURE]
    laws = np.array([policy.law(row) for _, row in open_rows])
    return uniformity(transforms(laws, [token for token, _ in open_rows], seed))


@pytest.mark.parametrize("case", WHOLE, ids=str)
def test_every_token_of_whole_answers_follows_its_law(pivot_server: Server, case: Whole) -> None:
    """Decode steps, in batches whose rows finish one by one."""
    seed = 300 + WHOLE.index(case)
    tokens = [token for answer in answered(pivot_server, case, seed) for token in answer]
    lines = sum(row.ends_line for _, row in tokens)
    kept, rejected = (p_of(policy, tokens, seed) for policy in (case.policy, case.control))
    print(f"{len(tokens)} tokens, {lines} after a newline, p {kept:.3f}, control {rejected:.1e}")
    assert kept > KEPT / KEPT_TESTS
    assert rejected < REJECTED


def test_entropix_inserts_once_per_answer(pivot_server: Server) -> None:
    """Where the first row with high entropy and low varentropy is, and nowhere else."""
    without = of("entropix", entropy_threshold=0.5, varentropy_threshold=0.05, hot_factor=3.0)
    inserted = encode("5+1")
    policy = without.model_copy(update={"insert_ids": inserted})

    def inserts(row: Row) -> bool:
        return bool(policy.law(row)[inserted[0]] == 1.0)

    drawn, starts = [], []
    for answer in answered(pivot_server, Whole(policy, R), seed=310):
        start = next((i for i, (_, row) in enumerate(answer) if inserts(row)), len(answer))
        end = start + len(inserted)
        assert [token for token, _ in answer[start:end]] == inserted[: len(answer) - start]
        drawn += answer[:start] + answer[end:]
        starts.append(start)
    again = sum(inserts(row) for _, row in drawn)
    kept = p_of(without, drawn, seed=310)
    print(f"starts {sorted(set(starts))}, rows that would insert again {again}, p {kept:.3f}")
    assert len(set(starts)) > 1
    assert again > 10
    assert kept > KEPT / KEPT_TESTS


KEPT_TESTS = len(KINDS) + len(COMPOSED) + len(QUADRANTS) + len(WHOLE) + 4
