"""Branches of SGLang programs, and the choice among them, through the real server, the pivot model."""

from __future__ import annotations

from typing import Any

import pytest
import sglang as sgl
import sglang_power.frontend as sp
from sglang_power.errors import RequestError, UnsupportedError

from integration_tests.helpers.clients import PROMPT, PROMPT_Q, raw_generate
from integration_tests.helpers.frontend import ledger_of, run
from integration_tests.server import Server

pytestmark = pytest.mark.server


@pytest.mark.parametrize("primitive", ["branch", "fork"])
def test_branches_prefill_the_shared_prefix_once(pivot_server: Server, primitive: str) -> None:
    number = "89"[primitive == "fork"]

    @sgl.function
    def program(s: Any) -> None:
        s += sp.gen("first", "none", max_tokens=1, temperature=0.0)
        s += f"{f'Q{number}+2*3-4:A5.' * 6}R7+5*5:"  # still queued where SGLang's own fork looks for text
        branches = sp.branch(s, 4) if primitive == "branch" else s.fork(4)
        for i in range(4):
            branches[i] += sgl.gen("a", max_tokens=2)
        s["metas"] = [branches[i].get_meta_info("a") for i in range(4)]

    state = run(pivot_server, program, f"R{number}+1:")
    assert len(state["metas"]) == 4
    for meta in state["metas"]:
        assert meta["cached_tokens"] >= meta["prompt_tokens"] - 1 > 80


def test_a_failing_branch_loses_nothing_of_the_others(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, names=["a", "wrong", "c"])
        for name in group.names:
            tokens = 10**6 if name == "wrong" else 6
            group[name] += sp.gen("x", block_size=8, steps=1, max_tokens=tokens)
            group[name] += ";"  # behind the failure, too
            group[name] += sgl.gen("y", max_tokens=2)
        assert list(group.errors) == ["wrong"]
        with pytest.raises(RequestError, match="max_new_tokens"):
            _ = group["wrong"]["x"]
        texts = {name: group[name].text() for name in ("a", "c")}
        s["texts"], s["selected"] = texts, sp.select(group, by=lambda branch: len(branch.text()))

    state = run(pivot_server, program)
    selected = state["selected"]
    assert state.error() is None
    assert (list(selected.scores), list(selected.errors)) == (["a", "c"], ["wrong"])
    assert state.text() == state["texts"][selected.name]


def test_when_every_branch_fails_so_does_the_selection(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, 2)
        group += sp.gen("x", max_tokens=10**6)
        with pytest.raises(RequestError, match="max_new_tokens"):
            sp.select(group)

    assert run(pivot_server, program).text() == PROMPT


@pytest.mark.parametrize("by", ["logp", "power", "vote", "confidence"])
def test_select_makes_the_program_go_on_as_the_winner(pivot_server: Server, by: str) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, 3)
        group += sgl.gen("answer", max_tokens=40)
        group += lambda name: f"\n#{name}"
        s["selected"] = sp.select(group, by=by, seed=1)
        s["winner"] = group[s["selected"].name]

    state = run(pivot_server, program, PROMPT_Q)
    winner, ledger = state["winner"], ledger_of(state)
    assert state.text() == winner.text() == f"{PROMPT_Q}{winner['answer']}\n#{state['selected'].name}"
    assert state["answer"] == winner["answer"]
    assert state.get_meta_info("answer") == winner.get_meta_info("answer")
    assert ledger.ids == ledger_of(winner).ids
    assert len(state["selected"].scores) == 3


def test_scores_are_those_of_sglangs_own_log_probabilities(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, 3)
        group += sgl.gen("answer", max_tokens=40, return_logprob=True)
        metas = {name: group[name].get_meta_info("answer") for name in group.names}
        s["metas"], s["selected"] = metas, sp.select(group, by="logp")

    state = run(pivot_server, program, PROMPT_Q)
    for name, meta in state["metas"].items():
        own = [entry[0] for entry in meta["output_token_logprobs"]]
        assert state["selected"].scores[name] == pytest.approx(sum(own) / len(own), abs=1e-3)
    assert state["selected"].name == max(state["selected"].scores, key=state["selected"].scores.get)


def test_weights_of_plain_draws_and_of_power_draws(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        plain = sp.branch(s, 3)
        plain += sgl.gen("a", max_tokens=40)
        s["plain"] = sp.select(plain, by="power", alpha=2.0, seed=5)
        powered = sp.branch(s, 3)
        powered += sp.gen("b", alpha=2.0, block_size=8, steps=1, max_tokens=8)
        s["powered"] = sp.select(powered, by="power", alpha=2.0, seed=5)
        cold = sp.branch(s, 2)
        cold += sgl.gen("c", max_tokens=8, temperature=0.5)
        with pytest.raises(UnsupportedError, match="density"):
            sp.select(cold, by="power", alpha=2.0)
        longer = sp.branch(s, 2)
        longer += {str(n): sp.gen("d", alpha=2.0, block_size=8, steps=1, max_tokens=8 + n) for n in (0, 1)}
        with pytest.raises(UnsupportedError, match="density"):
            sp.select(longer, by="power", alpha=2.0)

    state = run(pivot_server, program, PROMPT_Q)
    assert state["powered"].scores == pytest.approx({"0": 1 / 3, "1": 1 / 3, "2": 1 / 3})
    assert sum(state["plain"].scores.values()) == pytest.approx(1.0)
    assert state["powered"].ess == pytest.approx(3.0)


def test_first_tokens_begin_the_branches_answers(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, first_tokens=5)
        s["leads"] = [branch.text()[len(PROMPT_Q) :] for branch in group]
        group += sgl.gen("answer", max_tokens=40, temperature=0.0)
        s["answers"] = [branch["answer"] for branch in group]
        s["selected"] = sp.select(group, by="confidence", answer="number")

    state = run(pivot_server, program, PROMPT_Q)
    cot = {"sampler": "cot", "k": 5, "select": "max"}
    params = {"max_new_tokens": 40, "custom_params": cot}
    paths = raw_generate(pivot_server, PROMPT_Q, sampling_params=params)["meta_info"]["power"]["paths"]
    assert state["answers"] == [path["text"] for path in paths]
    assert all(text.startswith(lead) for text, lead in zip(state["answers"], state["leads"], strict=True))
    deltas = [path["confidence"] for path in paths]
    assert list(state["selected"].scores.values()) == pytest.approx(deltas, abs=1e-3)
    assert state["answer"] == state["answers"][deltas.index(max(deltas))]


def test_stops_and_limits_act_on_what_a_branch_begins_with(pivot_server: Server) -> None:
    settings: dict[str, dict[str, Any]] = {
        "stop": {"stop": ";", "max_tokens": 40},
        "limit": {"max_tokens": 3},
    }

    @sgl.function
    def program(s: Any) -> None:
        for name, asked in settings.items():
            group = sp.branch(s, trigger="entropy", threshold=50.0, max_tokens=40)
            assert ";" in group[0].text()[len(PROMPT) :]
            group += sgl.gen("answer", temperature=0.0, **asked)
            s[name] = (group[0]["answer"], group[0].get_meta_info("answer")["finish_reason"])
            s[f"{name} text"] = group[0].text()
        shaped = sp.branch(s, first_tokens=2)
        shaped += sgl.gen("digit", regex=r"\d+")
        s["errors"] = [str(error).partition("=")[0] for error in shaped.errors.values()]

    state = run(pivot_server, program)
    for name, asked in settings.items():
        params = {"max_new_tokens": asked["max_tokens"], "stop": asked.get("stop"), "temperature": 0}
        plain = raw_generate(pivot_server, sampling_params=params)
        assert state[name] == (plain["text"], plain["meta_info"]["finish_reason"])
        assert state[f"{name} text"] == PROMPT + plain["text"]
    assert state["errors"] == ["regex", "regex"]


def test_the_vocabulary_bounds_first_tokens_and_the_server_lives_on(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        with pytest.raises(UnsupportedError) as caught:
            sp.branch(s, first_tokens=100_000)
        s["field"] = caught.value.field
        s += sgl.gen("answer", max_tokens=2)

    state = run(pivot_server, program)
    assert state["field"] == "first_tokens"
    assert state["answer"]


def test_a_first_token_that_ends_the_answer_is_an_empty_answer(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, first_tokens=3)
        group += sgl.gen("answer", max_tokens=4, temperature=0.0)
        s["answers"] = [branch["answer"] for branch in group]
        s["text"] = group[0].text()
        s["selected"] = sp.select(group, by="logp")

    finished = PROMPT_Q + "A5."
    state = run(pivot_server, program, finished)
    assert state["answers"][0] == "", "the answer is over, so its most likely next token ends it"
    assert state["text"] == finished
    assert all(state["answers"][1:])
    assert state["selected"].name == "0", "its stop is the likeliest of all tokens"


@pytest.mark.parametrize(("threshold", "fires"), [(0.3, True), (50.0, False)])
def test_a_trigger_branches_where_it_fires(pivot_server: Server, threshold: float, fires: bool) -> None:
    @sgl.function
    def program(s: Any) -> None:
        group = sp.branch(s, trigger="entropy", threshold=threshold, branch_k=3, max_tokens=40)
        s["leads"] = [branch.text()[len(PROMPT) :] for branch in group]
        s["firings"] = group.firings
        group += sgl.gen("answer", max_tokens=40, temperature=0.0)
        s["answers"] = [branch["answer"] for branch in group]
        s["selected"] = sp.select(group)

    state = run(pivot_server, program)
    assert len(state["leads"]) == (3 if fires else 1)
    assert (state["firings"]["fired"] > 0) == fires
    assert state["firings"]["rows"] >= state["firings"]["fired"]
    assert (state["firings"]["hint"] is None) == (3 * state["firings"]["fired"] <= state["firings"]["rows"])
    if fires:
        assert len({lead[:-1] for lead in state["leads"]}) == 1 < len({lead[-1] for lead in state["leads"]})
    else:
        greedy = raw_generate(pivot_server, sampling_params={"max_new_tokens": 40, "temperature": 0})["text"]
        assert state["leads"] == state["answers"] == [greedy]
    assert state["answer"] == state["answers"][int(state["selected"].name)]
