"""Samplers that choose by score report the classes of equal answers too, and the law that draws is echoed.

Deterministic: fixed seeds on the exact language model. Error rate 0.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from branch_cases import chosen
from exact_tools import selection_report
from naive_tree import model
from selection_cases import EXACT, SAMPLING, cot
from sglang_power.answers import Verdict
from sglang_power.answers.equivalence import DIFFERENT, EQUAL, FunctionRelation
from sglang_power.request import SelectionRequest, parse_request
from sglang_power.samplers.candidates import Selection
from sglang_power.samplers.choosing import with_classes
from sglang_power.samplers.evaluation import judge_notes
from sglang_power.sglang_host.host_sampling import sampling_of
from sglang_power.sglang_host.tokenizer import tools
from sglang_power.types import Usage
from stub_parent import selected

BRANCH = {"sampler": "branch", "policy": "tree", "threshold": 0.0, "max_depth": 3, "answer": "text"}
BEST_OF = {"sampler": "best_of", "samples": 8, "answer": "text"}
TABLE = model(1)
COST = Usage(decoded=1, wasted=1, prefilled=30, depth=2, children=1)


def groups(selection: Selection) -> dict[str, list[int]]:
    """Of equal texts."""
    found: dict[str, list[int]] = {}
    for i, one in enumerate(selection.candidates):
        if one.value is not None:
            found.setdefault(one.value, []).append(i)
    return found


@pytest.mark.parametrize("asked", [BEST_OF, BRANCH, {**BRANCH, "score": "power"}], ids=str)
async def test_the_classes_are_those_of_equal_answers(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, Any]
) -> None:
    selection = await selected(monkeypatch, asked)
    assert selection.reason == asked.get("score", "mean_log_p")
    found = groups(selection)
    assert len(found) > 1
    answered = sum(map(len, found.values()))
    reported = [one for one in selection.classes if one["representative"] is not None]
    assert {one["representative"]: one["members"] for one in reported} == found
    assert [one["weight"] for one in reported] == [len(one["members"]) / answered for one in reported]
    assert sum(len(one["members"]) for one in selection.classes) == len(selection.candidates)


async def test_the_equivalence_that_was_asked_for_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    one_class = FunctionRelation(lambda *_: True)
    monkeypatch.setattr(tools, "relation_of", lambda *_: one_class)
    selection = await selected(monkeypatch, {**BEST_OF, "equivalence": "math"})
    assert len(groups(selection)) > 1
    assert len([one for one in selection.classes if one["representative"] is not None]) == 1
    assert selection.comparisons > 0


async def test_classes_have_no_part_in_the_choice_and_their_cost_is_told() -> None:
    class Judged:
        """The served model calls answers of the same length the same."""

        calls = 0

        async def same(self, a: str, b: str) -> Verdict:
            Judged.calls += 1
            return dataclasses.replace(EQUAL if len(a) == len(b) else DIFFERENT, usage=COST)

    plain = await chosen(TABLE)
    scored = dataclasses.replace(plain, notes={**plain.notes, **judge_notes(COST)})
    judged = await with_classes(scored, Judged())
    calls = Judged.calls
    assert calls > 1
    assert (judged.chosen, judged.reason, judged.scores) == (plain.chosen, plain.reason, plain.scores)
    assert judged.usage == plain.usage + Usage(calls, 30 * calls, calls, calls * COST.depth, calls)
    assert judged.notes["judge"] == {
        "calls": calls + 1,
        "decoded_tokens": calls + 1,
        "prefilled_tokens": 30 * (calls + 1),
    }
    assert judged.comparisons == calls


async def test_without_an_answer_there_is_no_weight() -> None:
    plain = await chosen(TABLE)
    none = [dataclasses.replace(one, answer=None, delta=None) for one in plain.candidates]
    classified = await with_classes(dataclasses.replace(plain, candidates=tuple(none)), EXACT)
    assert {one["weight"] for one in classified.classes} == {None}


# --- the law that draws -------------------------------------------------------------------------------

POLICY = {"sampler": "top_n_sigma", "n": 1.0}
TEMPERATURE = {"temperature": 0.7}


@pytest.mark.parametrize(
    ("asked", "echoed"),
    [
        ({"sampler": "cot"}, TEMPERATURE),
        ({"sampler": "cot", "continuation_policy": POLICY}, SAMPLING),
        ({"sampler": "branch"}, TEMPERATURE),
        ({"sampler": "branch", "continuation_policy": POLICY}, SAMPLING),
        ({"sampler": "vote"}, SAMPLING),
        ({"sampler": "vote", "base": POLICY}, SAMPLING),
        ({"sampler": "vote", "base": {"sampler": "power"}}, {}),
        ({"sampler": "best_of"}, SAMPLING),
        ({"sampler": "best_of", "base": {"sampler": "power"}}, {}),
    ],
    ids=str,
)
async def test_the_temperature_is_echoed_and_the_truncation_where_it_acts(
    asked: dict[str, Any], echoed: dict[str, Any]
) -> None:
    request = parse_request(asked)
    assert isinstance(request, SelectionRequest)
    report = selection_report(request, await cot().run(), 9, SAMPLING)
    assert {key: value for key, value in report["params"].items() if key in SAMPLING} == echoed


def test_absent_sampling_parameters_have_their_neutral_values() -> None:
    neutral = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
    assert sampling_of({}) == sampling_of({"top_k": 1 << 30, "min_p": None}) == neutral
    assert sampling_of({"temperature": 0.0, "top_p": 0.5, "n": 3}) == {
        **neutral,
        "temperature": 0.0,
        "top_p": 0.5,
    }
