"""The example programs run as they stand, and do what they say; whether they answer right is not tested."""

from __future__ import annotations

import pytest

from integration_tests.helpers.clients import PROMPT, PROMPT_Q
from integration_tests.helpers.frontend import backend, power_of
from integration_tests.programs.draft_and_refine import draft_and_refine
from integration_tests.programs.judge_by_model import judge_by_model
from integration_tests.programs.running import main
from integration_tests.programs.self_consistency import self_consistency
from integration_tests.programs.tree_of_thought import DEPTH, tree_of_thought
from integration_tests.server import Server

pytestmark = pytest.mark.server


def test_self_consistency_returns_one_of_the_answers(pivot_server: Server) -> None:
    state = self_consistency.run(PROMPT_Q, backend=backend(pivot_server))
    assert state.text() == PROMPT_Q + state["answer"]
    assert state["answer"]


def test_tree_of_thought_keeps_one_path(pivot_server: Server) -> None:
    state = tree_of_thought.run(PROMPT, backend=backend(pivot_server))
    assert state.text() == PROMPT + state["steps"]
    assert 1 < sum(f"step{depth}" in state for depth in range(DEPTH)) <= DEPTH


def test_a_draft_is_refined(pivot_server: Server) -> None:
    state = draft_and_refine.run(PROMPT, backend=backend(pivot_server))
    assert state.text() == PROMPT + state["answer"]
    report = power_of(state, "answer")
    assert (report["steps"], report["params"]["draft"]) == (20, True)


def test_the_model_judges(prose_server: Server) -> None:
    state = judge_by_model.run("What colour is the snow?", backend=backend(prose_server))
    verdict = state["verdict"]
    assert list(verdict.scores) == ["likely", "ordinary"]
    assert verdict.scores[verdict.name] == max(verdict.scores.values())
    assert state.messages()[-1] == {"role": "assistant", "content": state["answer"].lstrip()}


def test_a_program_is_a_command(
    pivot_server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["program", "--url", pivot_server.url])
    main(self_consistency, PROMPT_Q, "answer")
    assert capsys.readouterr().out.strip()
