"""SGLang programs where token ids and text differ: the prose model's byte-level BPE, in chats.

Draws are seeded, so that every run sees the same splits. No test is statistical.
"""

from __future__ import annotations

from typing import Any

import pytest
import sglang as sgl
import sglang_power.frontend as sp
from sglang_power.errors import RequestError

from integration_tests.helpers.frontend import backend, decoded, encoded, ledger_of, power_of
from integration_tests.server import Server

pytestmark = pytest.mark.server

QUESTION = "What is the Chinese word for cat?"

SPLIT = "�"

TURN_END = "<|im_end|>"

HOT = 4.0
"""Nearly any token, so pieces of characters too."""


def sampled(name: str, seed: int, max_tokens: int, temperature: float = 1.0) -> Any:
    """Draws that are the same in every run."""
    return sp.gen(name, "temperature", value=temperature, seed=seed, max_tokens=max_tokens)


def test_branches_that_end_inside_a_character_return_the_servers_text(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(QUESTION) + sgl.assistant_begin()
        s += sp.gen("opening", "none", max_tokens=1, temperature=0.0)
        group = sp.branch(s, 12)
        for step in range(4):
            group += lambda name, step=step: sampled(f"part{step}", 100 * step + int(name), 2, HOT)
        s["start"] = len(s.text())
        s["branches"] = [(branch.text(), ledger_of(branch).ids) for branch in group if branch.text()]
        s["parts"] = [[branch[f"part{step}"] for step in range(4)] for branch in group]

    state = program.run(backend=backend(prose_server))
    start = len(ledger_of(state).ids)
    assert any(part.endswith(SPLIT) for parts in state["parts"] for part in parts[:-1]), "nothing was split"
    for text, ids in state["branches"]:
        assert text[state["start"] :] == decoded(prose_server, ids[start:])


def test_ids_are_the_servers_and_not_those_of_the_text(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(QUESTION) + sgl.assistant_begin()
        group = sp.branch(s, 6)
        group += lambda name: sampled("thought", int(name), 12, HOT)
        group += sgl.gen("answer", max_tokens=2)
        found = [(one["thought"], ledger_of(one).pieces[1], one.get_meta_info("answer")) for one in group]
        s["found"], s["front"] = found, len(ledger_of(s).ids)

    state = program.run(backend=backend(prose_server))
    differ = 0
    for text, piece, meta in state["found"]:
        assert piece.draw.text == text
        assert meta["prompt_tokens"] == state["front"] + len(piece.ids)
        differ += list(piece.ids) != encoded(prose_server, text)
    assert differ > 0, "control: SGLang's way, to tokenize the text again, gives other tokens here"


def test_a_turn_that_ends_by_itself_ends_once(prose_server: Server) -> None:
    """Its end is a token that the model draws and a text that the template writes."""
    turns = 3

    @sgl.function
    def program(s: Any) -> None:
        for turn in range(turns):
            s += sgl.user(QUESTION)
            s += sgl.assistant(sp.gen(f"answer{turn}", "none", max_tokens=256, temperature=0.0))

    state = program.run(backend=backend(prose_server))
    reasons = [state.get_meta_info(f"answer{turn}")["finish_reason"] for turn in range(turns)]
    assert {reason.get("matched") for reason in reasons} == {TURN_END}, "as a string, and not as the token"
    ledger = ledger_of(state)
    ids = [*ledger.ids, *encoded(prose_server, ledger.missing(state.text()))]
    (end,) = encoded(prose_server, TURN_END)
    assert ids.count(end) == state.text().count(TURN_END) >= 2 * turns


def test_a_stop_inside_a_token_leaves_the_servers_text(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(QUESTION) + sgl.assistant_begin()
        group = sp.branch(s, 4)
        group += lambda name: sp.gen(
            "a", "temperature", value=1.0, seed=int(name), max_tokens=40, stop=["e", "i"]
        )
        group += " and " + sgl.gen("b", max_tokens=2)
        s["branches"] = [(one["a"], one["b"], one.text(), one.get_meta_info("a")) for one in group]
        s["texts"] = [ledger_of(one).text for one in group]
        s["front"] = s.text()

    state = program.run(backend=backend(prose_server))
    stopped = [meta["finish_reason"].get("matched") in ("e", "i") for *_, meta in state["branches"]]
    assert any(stopped)
    for (a, b, text, _), known in zip(state["branches"], state["texts"], strict=True):
        assert text == f"{state['front']}{a} and {b}" == known


def test_nested_branches_keep_roles_and_messages(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.system("You are kind.") + sgl.user(QUESTION)
        outer = sp.branch(s, names=["left", "right"])
        for branch in outer:
            branch += sgl.assistant_begin()
            inner = sp.branch(branch, first_tokens=2)
            inner += sgl.gen("answer", max_tokens=8)
            sp.select(inner, by="logp")
            branch += sgl.assistant_end()
        s["selected"] = sp.select(outer, by="logp")
        s += sgl.user("And dog?") + sgl.assistant(sp.gen("next", block_size=4, steps=1, max_tokens=6))

    state = program.run(backend=backend(prose_server))
    assert [message["role"] for message in state.messages()] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert state.messages()[2]["content"] == state["answer"].lstrip()
    assert state.text().endswith(f"<|im_start|>assistant\n{state['next']}<|im_end|>\n")
    assert power_of(state, "next")["sampler"] == "power"
    assert ledger_of(state).text == state.text()[: len(ledger_of(state).text)]


def test_a_branch_that_left_its_role_cannot_be_merged(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(QUESTION) + sgl.assistant_begin()
        group = sp.branch(s, 2)
        group += sgl.gen("a", max_tokens=2)
        group["1"] += sgl.assistant_end() + sgl.user("More?") + sgl.assistant_begin()
        with pytest.raises(RequestError, match="role"):
            sp.select(group)

    assert program.run(backend=backend(prose_server)).error() is None


def test_the_model_judges_branches_and_equal_answers(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(QUESTION) + sgl.assistant_begin()
        judged = sp.branch(s, 2)
        judged += lambda name: sampled("a", int(name), 4)
        s["judged"] = sp.select(judged, by="llm", of="a", question=QUESTION)
        voted = sp.branch(s, 3)
        voted += lambda name: sampled("b", int(name), 2)
        s["voted"] = sp.select(voted, by="vote", answer="text", equivalence="llm", seed=1)

    state = program.run(backend=backend(prose_server))
    scores = state["judged"].scores
    assert all(0.0 < score < 1.0 for score in scores.values())
    assert state["judged"].name == max(scores, key=scores.get)
    assert set(state["voted"].scores.values()) <= {1.0, 2.0, 3.0}


def test_a_draft_from_before_the_first_expression_is_refined(prose_server: Server) -> None:
    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user(QUESTION) + sgl.assistant_begin()
        s += sgl.gen("a", max_tokens=12)
        s["draft"] = s["a"]
        s += sp.refine("a", steps=2, seed=1)
        s += sgl.assistant_end()

    state = program.run(backend=backend(prose_server))
    assert state.error() is None
    assert power_of(state, "a")["params"]["draft"] is True
    assert state.text().endswith(f"<|im_start|>assistant\n{state['a']}<|im_end|>\n")
