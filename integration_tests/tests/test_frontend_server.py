"""SGLang programs with samplers, refinement and choices through the real server, the pivot model.

A character is a token of this model, so that what is tested here is the work with ids as such; where ids and
text differ, see test_frontend_text_server.py; branches: test_frontend_branches_server.py. No test is
statistical.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import pytest
import sglang as sgl
import sglang_power.frontend as sp
from sglang_power.errors import HostError, RequestError, UnsupportedError
from sglang_power.frontend.client import Client

from integration_tests.helpers.clients import PROMPT, PROMPT_Q, raw_generate
from integration_tests.helpers.frontend import backend, decoded, encoded, ledger_of, power_of, run
from integration_tests.server import Server

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


def test_a_failure_of_the_program_reaches_whoever_reads_it(pivot_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sp.gen("x", temperature=0.5, max_tokens=4)  # power sampling has no token temperature
        s += sgl.gen("y", max_tokens=4)

    state = run(pivot_server, program)
    assert isinstance(state.error(), RequestError)
    for name in ("x", "y"):
        with pytest.raises(RequestError, match="on_temperature"):
            _ = state[name]


def test_a_server_without_the_plugin_is_refused(plain_server: Server) -> None:
    """It would drop the sampler and answer as if nothing had been asked."""

    @sgl.function
    def program(s: Any) -> None:
        s += sp.gen("x", max_tokens=4)

    state = run(plain_server, program)
    with pytest.raises(HostError, match="without sglang-power"):
        _ = state["x"]


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


def test_a_stream_tells_its_progress_before_it_has_text(pivot_server: Server) -> None:
    params = {"max_new_tokens": 48, "custom_params": {"sampler": "power", "block_size": 8, "steps": 4}}
    body = {"text": PROMPT, "sampling_params": params}
    with closing(Client(pivot_server.url)) as client:
        events = list(client.stream(body))
    progress = [event["meta_info"]["power"]["progress"] for event in events[:-1]]
    assert [one["step"] for one in progress] == sorted(one["step"] for one in progress)
    assert {event["text"] for event in events[:-1]} == {""} != {events[-1]["text"]}


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
