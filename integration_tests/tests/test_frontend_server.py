"""SGLang programs with samplers, branches and choices through the real server, the pivot model.

A character is a token of this model, so that what is tested here is the work with ids as such; where ids and
text differ, see test_frontend_text_server.py. No test is statistical.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sglang as sgl
import sglang_power.frontend as sp
from sglang_power.errors import RequestError, UnsupportedError

from integration_tests.server import Server
from integration_tests.tests.clients import PROMPT, PROMPT_Q, raw_generate
from integration_tests.tests.frontend import backend, decoded, encoded, ledger_of, power_of

pytestmark = pytest.mark.server

SAMPLERS: dict[str, dict[str, Any]] = {
    "power": {"block_size": 16, "steps": 2},
    "cot": {"k": 3},
    "branch": {"branch_k": 2, "max_depth": 1},
    "vote": {"samples": 2},
    "best_of": {"samples": 2},
    "top_n_sigma": {"n": 1.5},
    "greedy": {},
}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_runs_beside_sglangs_own_primitives(pivot_server: Server, sampler: str) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT_Q
        s += sp.gen("answer", sampler, max_tokens=24, **SAMPLERS[sampler])
        s += "\n" + PROMPT_Q
        s += sgl.gen("next", max_tokens=4)
        s += sgl.select("digit", ["1", "2"])

    state = program.run(backend=backend(pivot_server))
    assert power_of(state, "answer")["sampler"] == sampler
    assert state.text() == PROMPT_Q + state["answer"] + "\n" + PROMPT_Q + state["next"] + state["digit"]
    ledger = ledger_of(state)
    assert (ledger.text, decoded(pivot_server, ledger.ids)) == (state.text(), state.text())
    before = len(encoded(pivot_server, PROMPT_Q + state["answer"] + "\n" + PROMPT_Q))
    assert state.get_meta_info("next")["prompt_tokens"] == before


def test_none_opts_out_and_reports_no_sampler(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT
        s += sp.gen("answer", "none", max_tokens=4, temperature=0.0)

    state = program.run(backend=backend(pivot_server))
    plain = raw_generate(pivot_server, PROMPT, sampling_params={"max_new_tokens": 4, "temperature": 0})
    assert state["answer"] == plain["text"]


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


def run(server: Server, program: Any, prompt: str = PROMPT, **settings: Any) -> Any:
    """A program behind a prompt, to its end."""

    @sgl.function
    def whole(s: Any) -> None:
        s += prompt
        program.func(s)

    state = whole.run(backend=backend(server), **settings)
    state.sync()
    return state


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


def test_a_failure_of_the_program_reaches_whoever_reads_it(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sp.gen("x", temperature=0.5, max_tokens=4)  # power sampling has no token temperature
        s += sgl.gen("y", max_tokens=4)

    state = run(pivot_server, program)
    assert isinstance(state.error(), RequestError)
    for name in ("x", "y"):
        with pytest.raises(RequestError, match="proposal_temperature"):
            _ = state[name]


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
        group += sgl.gen("answer", max_tokens=40, temperature=0.0)
        s["answers"] = [branch["answer"] for branch in group]
        s["selected"] = sp.select(group)

    state = run(pivot_server, program)
    assert len(state["leads"]) == (3 if fires else 1)
    if fires:
        assert len({lead[:-1] for lead in state["leads"]}) == 1 < len({lead[-1] for lead in state["leads"]})
    else:
        greedy = raw_generate(pivot_server, sampling_params={"max_new_tokens": 40, "temperature": 0})["text"]
        assert state["leads"] == state["answers"] == [greedy]
    assert state["answer"] == state["answers"][int(state["selected"].name)]


def test_refining_starts_from_the_last_segment_and_replaces_it(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a", max_tokens=48, temperature=0.0)
        s["draft"] = s["a"]
        s += sp.refine("a", steps=6, seed=2)
        s += "\n" + sgl.gen("b", max_tokens=3)
        s["refined"] = s["a"]

    state = run(pivot_server, program)
    report = power_of(state, "a")
    assert (report["params"]["draft"], report["steps"], report["params"]["max_new_tokens"]) == (True, 6, 48)
    assert state.text() == f"{PROMPT}{state['refined']}\n{state['b']}"
    assert decoded(pivot_server, ledger_of(state).ids) == state.text()


def test_a_variable_that_is_refined_is_never_read_too_early(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a", max_tokens=24) + sp.refine("a", steps=3, seed=2)
        s["read"] = s["a"]

    state = run(pivot_server, program)
    assert power_of(state, "a")["params"]["draft"]
    assert state.text() == PROMPT + state["read"]


def test_only_what_was_generated_last_can_be_refined(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.gen("a", max_tokens=4) + sp.gen("b", "none", max_tokens=4) + sp.refine("a", steps=2)

    error = run(pivot_server, program).error()
    assert isinstance(error, RequestError)
    assert (error.field, error.value) == ("name", "a")


def test_streams_hold_every_event_of_a_chain(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT + sp.gen("answer", max_tokens=48, block_size=8, steps=4)
        s += sgl.gen("more", max_tokens=6)

    async def read() -> tuple[str, list[dict[str, Any]], Any]:
        state = program.run(backend=backend(pivot_server), stream=True)
        text = ""
        metas: list[dict[str, Any]] = []
        async for piece, meta in state.text_async_iter("answer", return_meta_data=True):
            text, metas = text + piece, [*metas, meta]
        return text, metas, state

    text, metas, state = asyncio.run(read())
    assert text == state["answer"]
    assert metas[-1]["power"]["sampler"] == "power"
    assert "".join(state.text_iter()) == state.text() == PROMPT + state["answer"] + state["more"]


def test_a_selection_reaches_the_readers_of_a_stream(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += PROMPT_Q
        group = sp.branch(s, 2)
        group += sgl.gen("answer", max_tokens=12)
        sp.select(group)
        s += "\n" + sgl.gen("more", max_tokens=3)

    state = program.run(backend=backend(pivot_server), stream=True)
    assert "".join(state.text_iter()) == f"{PROMPT_Q}{state['answer']}\n{state['more']}"


def test_batches_run_and_trace_their_common_prefix(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any, problem: str) -> None:
        s += "Q1+1*1-0:A2.\n" * 6
        s += problem
        group = sp.branch(s, 2)
        group += sp.gen("answer", block_size=8, steps=1, max_tokens=12)
        sp.select(group, by="logp")

    problems = [{"problem": f"Q{n}+3*2-8:"} for n in range(3)]
    states = program.run_batch(problems, backend=backend(pivot_server), num_threads=3)
    for state, problem in zip(states, problems, strict=True):
        assert state.text() == "Q1+1*1-0:A2.\n" * 6 + problem["problem"] + state["answer"]
        assert power_of(state, "answer")["sampler"] == "power"


def test_choices_are_drawn_by_their_power(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sp.gen("first", "none", max_tokens=1, temperature=0.0)
        for seed in range(4):
            for name, alpha in (("mild", 1.0), ("sharp", 1000.0)):
                fork = s.fork(1)[0]
                method = sp.power_choices(alpha=alpha, seed=seed)
                fork += sgl.select("digit", ["1", "2", "33"], choices_method=method)
                s[f"{name}{seed}"] = (fork["digit"], fork.get_meta_info("digit"))

    state = run(pivot_server, program)
    log_p = state["sharp0"][1]["power"]["log_p"]
    assert {state[f"sharp{seed}"][0] for seed in range(4)} == {["1", "2", "33"][log_p.index(max(log_p))]}
    assert len(state["mild0"][1]["input_token_logprobs"][2]) == 2


def test_images_are_refused(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sp.gen("a", "none", max_tokens=1)
        s += sgl.image("/nonexistent.png")

    error = run(pivot_server, program).error()
    assert isinstance(error, UnsupportedError)
    assert error.field == "image"
