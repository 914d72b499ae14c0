"""`branch` through the real server: token ledger, reported tree, greedy decoding as its limit, scores.

What it is for is in test_branch_pivot.py, its doors and bad input in test_branch_doors.py; that the tree does
not depend on the server's configuration in test_support_matrix.py.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

from integration_tests.helpers.clients import (
    EOS,
    PROMPT,
    generate,
    power_of,
    raw_generate,
    together,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

Json = dict[str, Any]

_fresh = itertools.count(271)


def fresh_prompt() -> str:
    """A prompt that no test has asked before."""
    number = next(_fresh)
    return f"R{number % 10}-{number // 10 % 10}+{number // 100 % 10}*{number % 7}-3*2:"


def params(sampling: Json | None = None, **branch: Any) -> Json:
    """Sampling parameters of a request."""
    return {"max_new_tokens": 48, **(sampling or {}), "custom_params": {"sampler": "branch", **branch}}


def ask(server: Server, prompt: str = PROMPT, sampling: Json | None = None, **branch: Any) -> Any:
    """One answer with its tree, or a list of n."""
    return raw_generate(server, prompt, sampling_params=params(sampling, return_tree=True, **branch))


def nodes_of(answer: Json) -> list[Json]:
    """The nodes of the tree that an answer was chosen from."""
    nodes: list[Json] = power_of(answer)["tree"]["nodes"]
    return nodes


TREE: Json = {"policy": "tree", "max_depth": 2}
SEARCHES: list[Json] = [
    {},
    TREE,
    {**TREE, "branch_k": 4, "trigger": ["ratio", "jump"], "threshold": [0.3, None]},
    {"policy": "beam", "beam": 2},
    {"policy": "tree", "trigger": "quantile", "max_branches": 6},
    {**TREE, "continuation_policy": {"sampler": "top_n_sigma", "n": 1.5}, "seed": 3},
    {**TREE, "branch_tokens": "drawn", "branch_k": 3, "seed": 5},
    {"policy": "lookahead", "max_total_tokens": 60},
]

# --- the ledger ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_every_token_is_counted_once(pivot_server: Server, search: Json) -> None:
    """At page size 1 the prompt is computed once; each child computes the last token before its own again."""
    answer = ask(pivot_server, fresh_prompt(), **search)
    power, meta, nodes = power_of(answer), answer["meta_info"], nodes_of(answer)
    shown = sum(len(node["ids"]) for node in nodes)
    assert power["decoded_tokens"] == shown + power["wasted_tokens"]
    assert power["wasted_tokens"] >= power["forks"], "the token that ranks branches is thrown away"
    prompt = meta["prompt_tokens"] - meta["cached_tokens"]
    assert power["prefilled_tokens"] == prompt + power["children"] - 1
    assert (power["sampler"], power["law"]) == ("branch", "selection")
    assert power["stopped_by"] == next(iter(power["capped_by"]), "completed")
    assert ("hint" in power) == (3 * power["firings"]["fired"] > power["firings"]["rows"])
    assert power["forks"] == sum(node["fate"] == "forked" for node in nodes)
    assert power["branches"] == len(nodes) - 1
    assert len(answer["output_ids"]) == meta["completion_tokens"] <= power["depth"] - 2


@pytest.mark.parametrize("search", SEARCHES, ids=str)
def test_the_tree_spells_every_path_and_the_answer(pivot_server: Server, search: Json) -> None:
    answer = ask(pivot_server, **search)
    power, nodes = power_of(answer), nodes_of(answer)

    def spelled(number: int | None) -> list[int]:
        if number is None:
            return []
        above = spelled(nodes[number]["parent"])
        assert nodes[number]["span"] == [len(above), len(above) + len(nodes[number]["ids"])]
        return [*above, *nodes[number]["ids"]]

    leaves = [spelled(leaf) for leaf in power["tree"]["leaves"]]
    assert [len(leaf) for leaf in leaves] == [path["tokens"] for path in power["paths"]]
    chosen = power["chosen"]["index"]
    assert leaves[chosen] == answer["output_ids"]
    assert nodes[power["tree"]["leaves"][chosen]]["fate"] == "chosen"
    assert answer["text"] == power["paths"][chosen]["text"]
    scores = [path["score"] for path in power["paths"]]
    assert scores[chosen] == max(scores)


SAMPLING: list[Json] = [
    {},
    {"max_new_tokens": 7},
    {"min_new_tokens": 30},
    {"ignore_eos": True},
    {"stop": [";A"]},
    {"stop_token_ids": [61]},
    {"logit_bias": {"121": 2.0}},
    {"no_stop_trim": True, "stop": "A"},
]


@pytest.mark.parametrize("sampling", SAMPLING, ids=str)
def test_a_trigger_that_never_fires_is_greedy_decoding(pivot_server: Server, sampling: Json) -> None:
    plain = raw_generate(pivot_server, sampling_params={"max_new_tokens": 48, "temperature": 0.0, **sampling})
    answer = ask(pivot_server, sampling=sampling, threshold=1e9)
    assert (answer["text"], answer["output_ids"]) == (plain["text"], plain["output_ids"])
    assert answer["meta_info"]["finish_reason"] == plain["meta_info"]["finish_reason"]
    power = power_of(answer)
    assert (power["forks"], power["wasted_tokens"], len(power["paths"])) == (0, 0, 1)
    assert power["decoded_tokens"] == power["depth"] - 2 == len(plain["output_ids"])
    assert power["children"] == 2, "the prompt and the one path"


def test_a_seed_repeats_its_draws_and_greedy_searches_need_none(pivot_server: Server) -> None:
    drawn: Json = {**TREE, "branch_tokens": "drawn", "branch_k": 4, "trigger": "entropy", "threshold": 1.0}
    trees = [shape(ask(pivot_server, **drawn, seed=seed)) for seed in (1, 1, 2)]
    assert trees[0] == trees[1]
    assert trees[0] != trees[2]
    assert shape(ask(pivot_server, seed=1)) == shape(ask(pivot_server, seed=2))


def test_other_requests_do_not_change_the_tree(pivot_server: Server) -> None:
    """Spans, ids and triggers; log probabilities differ in their last digits with the batch."""
    alone = [shape(ask(pivot_server, **search)) for search in SEARCHES]
    noise = [functools.partial(generate, pivot_server, seed=seed) for seed in range(6)]
    calls = [functools.partial(ask, pivot_server, **search) for search in SEARCHES]
    loaded = together([*noise, *calls])[len(noise) :]
    assert [shape(answer) for answer in loaded] == alone


def shape(answer: Json) -> list[Any]:
    """What forked where and why, and what grew behind it."""
    names = ("parent", "span", "ids", "trigger", "fate", "cap")
    return [[node[name] for name in names] for node in nodes_of(answer)]


# --- scores -------------------------------------------------------------------------------------------


def test_the_vote_counts_leaves(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, **TREE, score="vote", equivalence="exact", seed=2))
    values = [path["answer"] for path in power["paths"]]
    counts = {value: values.count(value) for value in values if value is not None}
    weights = {one["representative"]: one["weight"] for one in power["classes"] if one["representative"]}
    assert weights == {value: pytest.approx(n / len(values)) for value, n in counts.items()}
    assert counts[values[power["chosen"]["index"]]] == max(counts.values())
    assert power["chosen"]["reason"] in ("largest", "tie")
    assert power["params"]["equivalence"] == "exact"


@pytest.mark.parametrize("policy", ["tree", "beam"])
def test_confidence_is_that_of_the_answers_tokens(pivot_server: Server, policy: str) -> None:
    power = power_of(ask(pivot_server, policy=policy, max_depth=2, score="confidence"))
    confidences = [path["confidence"] for path in power["paths"]]
    assert [path["score"] for path in power["paths"]] == confidences
    assert confidences[power["chosen"]["index"]] == max(one for one in confidences if one is not None)
    assert power["chosen"]["reason"] == "confidence"


def test_power_scores_are_alpha_times_log_p(pivot_server: Server) -> None:
    power = power_of(ask(pivot_server, **TREE, score="power", alpha=2.0))
    assert [path["score"] for path in power["paths"]] == [
        pytest.approx(2.0 * path["log_p"]) for path in power["paths"]
    ]
    assert power["log_p"] == pytest.approx(max(path["log_p"] for path in power["paths"]))


def test_leaves_are_refined_by_power_steps(pivot_server: Server) -> None:
    plain = power_of(ask(pivot_server, **TREE))
    refine: Json = {"sampler": "power", "steps": 2}
    answer = ask(pivot_server, **TREE, refine=refine, seed=4)
    again = ask(pivot_server, **TREE, refine=refine, seed=4)
    power = power_of(answer)
    leaves = len(plain["paths"])
    assert len(power["paths"]) == leaves
    assert power["refinement"]["steps"] == 2 * leaves
    assert power["refinement"]["accepted"] > 0
    assert [path["text"] for path in power["paths"]] != [path["text"] for path in plain["paths"]]
    assert [path["text"] for path in power["paths"]] == [path["text"] for path in power_of(again)["paths"]]
    assert power["decoded_tokens"] > plain["decoded_tokens"] + sum(path["tokens"] for path in plain["paths"])
    assert power["params"]["refine"]["steps"] == 2


def test_log_probabilities_are_those_of_the_chosen_leaf(pivot_server: Server) -> None:
    answer = raw_generate(pivot_server, sampling_params=params(), return_logprob=True)
    entries = answer["meta_info"]["output_token_logprobs"]
    assert [entry[1] for entry in entries] == answer["output_ids"]
    assert sum(entry[0] for entry in entries) == pytest.approx(power_of(answer)["log_p"], abs=1e-3)
    assert answer["output_ids"][-1] == EOS


# --- triggers and caps --------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.3, 50.0])
def test_the_report_says_first_how_often_the_trigger_fired_and_what_was_refused(
    pivot_server: Server, threshold: float
) -> None:
    """The rows of the one path that is kept are those of the tree, whatever was drawn behind them."""
    asked: Json = {"policy": "tree", "threshold": threshold, "max_branches": 2, "return_rows": True}
    power = power_of(ask(pivot_server, **asked))
    entropies = [path["rows"]["entropy"] for path in power["paths"]]
    assert [len(column) for column in entropies] == [path["tokens"] for path in power["paths"]]
    assert list(power)[:2] == ["sampler", "capped_by"]
    forks = power["forks"]
    assert forks == (threshold < 1)
    refused = sum(cap["refused"] for cap in power["capped_by"].values())
    assert power["firings"]["fired"] == forks + refused
    assert (refused > 0) == (threshold < 1)
    if refused:
        position = power["capped_by"]["max_branches"]["position"]
        assert any(len(column) > position and column[position] > threshold for column in entropies)
        assert power["stopped_by"] == "max_branches"
