"""Arguments of the frontend's functions: mistakes raise where they are written, and name the argument."""

from __future__ import annotations

from typing import Any

import pytest
import sglang as sgl
import sglang_power.frontend as sp
from sglang.lang.interpreter import StreamExecutor
from sglang_power.errors import ConfigError, RequestError
from sglang_power.frontend import _lang
from sglang_power.frontend.ledger import DrawnText, Ledger, LedgerEntry
from sglang_power.frontend.settings import BranchSettings, SelectSettings, parsed
from sglang_power.request import BestOfRequest, BranchRequest


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("alpha", {"alpha": 0.5}),
        ("alhpa", {"alhpa": 4.0}),
        ("sampler", {"sampler": "powr"}),
        ("k", {"sampler": "cot", "k": 0}),
        ("alpha", {"sampler": "none", "alpha": 2.0}),
        ("n", {"sampler": "cot", "n": 2}),
    ],
)
def test_gen_names_the_wrong_argument(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        sp.gen("x", **arguments)
    assert caught.value.field == field


def test_gen_splits_arguments_between_sglang_and_the_sampler() -> None:
    expression: Any = sp.gen("x", "top_n_sigma", n=1.2, max_tokens=7, stop=["."], top_p=0.9)
    assert expression.values == {"sampler": "top_n_sigma", "n": 1.2}
    params = expression.sampling_params
    assert (params.max_new_tokens, params.stop, params.top_p, params.n) == (7, ["."], 0.9, None)
    voted: Any = sp.vote("x", samples=3, answer="text")
    assert voted.values == {"sampler": "vote", "samples": 3, "answer": "text"}


@pytest.mark.parametrize(
    ("field", "arguments"), [("initial_ids", {"initial_ids": [1]}), ("alpha", {"alpha": 0.5})]
)
def test_refine_names_the_wrong_argument(field: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        sp.refine("x", steps=2, **arguments)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("n", {}),
        ("names", {"n": 2, "names": ["a"]}),
        ("names", {"names": ["a", "a"]}),
        ("n", {"n": 0}),
    ],
)
def test_branches_come_from_one_place(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(BranchSettings, values)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("by", {"by": "luck"}),
        ("alpha", {"by": "vote", "alpha": 2.0}),
        ("question", {"by": "logp", "question": "?"}),
        ("answer", {"by": "logp", "answer": "number"}),
        ("answer_regex", {"by": "vote", "answer": "regex"}),
        ("answer", {"by": "vote", "answer": "continuation"}),
    ],
)
def test_selection_takes_what_its_criterion_uses(field: str, values: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        parsed(SelectSettings, values)
    assert caught.value.field == field


@pytest.mark.parametrize(("other", "name"), [("logp", "mean_log_p"), ("llm", "self_evaluation")])
def test_scores_have_one_name_and_take_the_other(other: str, name: str) -> None:
    for said in (other, name):
        assert parsed(SelectSettings, {"by": said}).by == name
        assert BestOfRequest.model_validate({"score": said}).echo()["score"] == name
        assert BranchRequest.model_validate({"score": said}).echo()["score"] == name


def test_choices_need_a_power() -> None:
    with pytest.raises(RequestError, match="alpha"):
        sp.power_choices(alpha=-1.0)
    assert sp.power_choices(seed=1).alpha == 4.0


def test_hooks_are_installed_once() -> None:
    hooked = {name: getattr(StreamExecutor, name) for name in _lang.HOOKS}
    assert all(hasattr(method, "__sglang_power__") for method in hooked.values())
    _lang.install()
    assert {name: getattr(StreamExecutor, name) for name in _lang.HOOKS} == hooked


@pytest.mark.parametrize("installed", ["0.5.19", "0.5.24", "0.6.0"])
def test_other_versions_of_sglang_are_refused(monkeypatch: pytest.MonkeyPatch, installed: str) -> None:
    monkeypatch.setattr(_lang, "version", lambda _: installed)
    with pytest.raises(ConfigError, match=installed):
        _lang.install()


def test_an_interpreter_that_changed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(StreamExecutor, "fork", lambda self, count: [])  # noqa: ARG005
    with pytest.raises(ConfigError, match="does not know"):
        _lang.install()


def test_tracing_ends_the_common_prefix_at_a_branch() -> None:
    from sglang.lang.backend.base_backend import BaseBackend
    from sglang.lang.tracer import extract_prefix_by_tracing

    @sgl.function
    def program(s: Any, question: str) -> None:
        s += "Common. "
        s += sp.gen("a", max_tokens=3)
        s += question
        sp.select(sp.branch(s, 2))

    assert extract_prefix_by_tracing(program, BaseBackend()) == "Common. "


def test_a_ledger_forgets_what_the_text_no_longer_holds() -> None:
    ledger = Ledger([LedgerEntry("ab", (1, 2)), LedgerEntry("c", (3,), DrawnText("x", (3, 9), "c"))])
    assert (ledger.missing("abcd"), ledger.ids) == ("d", (1, 2, 3))
    copy = ledger.copy()
    assert (ledger.missing("abX"), ledger.ids) == ("X", (1, 2))
    assert copy.ids == (1, 2, 3)
    assert copy.draws_from(1) == [((1, 2), DrawnText("x", (3, 9), "c"))]
    assert copy.draws_from(2) == []
