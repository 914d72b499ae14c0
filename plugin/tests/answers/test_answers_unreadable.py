"""Answers that cannot be read as what they should be: classes of their own that win nothing.

Deterministic. Error rate 0.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Hashable, Sequence

import pytest
from selection_cases import MODEL, L, LastDigit, cot
from sglang_power.answers import (
    Keyed,
    Relation,
    Unreadable,
    Verdict,
    build_classes,
    choose,
    choose_by_delta,
    equivalence,
    uniform_weights,
)
from sglang_power.answers.equivalence import DIFFERENT, FunctionRelation
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.rng import Key
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.vote import Vote
from sglang_power.types import ProposalLaw

KEY = Key(7)

WRONG_KIND = [
    ("number", "I do not know", "4", "'I do not know' is not a number"),
    ("choice", "no idea?", "B", "'no idea?' is not an option letter"),
]


class Picky:
    """Tells every two answers apart, and reads no digit but those it likes."""

    def __init__(self, liked: str) -> None:
        self.liked = liked

    async def same(self, a: str, b: str) -> Verdict:
        assert {a, b} <= set(self.liked), "what cannot be read is not compared"
        return DIFFERENT

    async def unreadable(self, answer: str) -> str | None:
        return None if answer in self.liked else f"{answer} is not liked"


@pytest.mark.parametrize(("name", "wrong", "right", "reason"), WRONG_KIND)
async def test_an_answer_of_another_kind_wins_nothing_however_often_it_is_given(
    name: str, wrong: str, right: str, reason: str
) -> None:
    classes = await build_classes([wrong, wrong, wrong, right, right], equivalence(name))
    assert [(one.value, one.members) for one in classes.classes] == [
        (None, (0,)),
        (None, (1,)),
        (None, (2,)),
        (right, (3, 4)),
    ]
    assert classes.unreadable == tuple(Unreadable(sample, reason) for sample in range(3))
    assert classes.undecided == ()
    assert choose(classes, uniform_weights(5), KEY).sample == 3
    assert choose_by_delta(classes, [0.9, 0.9, 0.9, 0.1, 0.2], KEY).sample == 4


@pytest.mark.parametrize(("name", "wrong", "right", "reason"), WRONG_KIND)
async def test_with_no_answer_that_can_be_read_there_is_none(
    name: str, wrong: str, right: str, reason: str
) -> None:
    classes = await build_classes([wrong, wrong, None], equivalence(name))
    assert choose(classes, uniform_weights(3), KEY).reason == "no_answer"
    assert [one.reason for one in classes.unreadable] == [reason, reason]
    assert choose(
        await build_classes([wrong, right], equivalence("exact")), uniform_weights(2), KEY
    ).tied == (
        0,
        1,
    ), "control: any text is an answer to relations that read nothing"


def commonest(values: Sequence[str | None]) -> str:
    given = [value for value in values if value is not None]
    return max(set(given), key=given.count)


async def test_the_vote_tells_which_answers_it_could_not_read() -> None:
    async def vote(relation: Relation) -> tuple[str | None, object, Sequence[str | None]]:
        run = Vote(TabularEngine(MODEL), LastDigit(), Samples(15, L, ProposalLaw(1.0), 1000), Key(3))
        selection = await run.run(relation, "count", 1.0)
        values = [one.value for one in selection.candidates]
        return selection.best.value, selection.notes.get("unreadable"), values

    plain, unread, values = await vote(equivalence("exact"))
    assert (plain, unread) == (commonest(values), None)
    picked, told, _ = await vote(Picky("012".replace(str(plain), "")))
    assert picked != plain
    assert told == [
        {"sample": i, "reason": f"{plain} is not liked"} for i, value in enumerate(values) if value == plain
    ]


@pytest.mark.parametrize("aggregate", [True, False])
async def test_the_most_confident_path_loses_where_its_answer_cannot_be_read(aggregate: bool) -> None:
    model = TabularModel.random(2, vocab=5, horizon=5)
    best = (await cot(model=model, k=5, aggregate=aggregate).run()).best
    assert best.value is not None
    again = cot(model=model, k=5, aggregate=aggregate)
    again._relation = Picky("01234".replace(best.value, ""))
    selection = await again.run()
    assert selection.best.value not in (best.value, None)
    assert selection.reason == "largest"


# --- reading ------------------------------------------------------------------------------------------


async def test_every_answer_is_read_once_and_not_on_the_event_loop() -> None:
    read: list[tuple[str, int]] = []

    def key(answer: str) -> Hashable | None:
        read.append((answer, threading.get_ident()))
        return answer.lower()

    answers = ["a", "B", "A", "a", "b", "c", None]
    classes = await build_classes(answers, Keyed(key, "anything"))
    assert [one.members for one in classes.classes] == [(0, 2, 3), (1, 4), (5,), (6,)]
    assert [answer for answer, _ in read] == ["a", "B", "A", "b", "c"]
    assert threading.get_ident() not in {thread for _, thread in read}
    assert classes.comparisons == 0


def test_keys_make_the_same_classes_as_comparisons() -> None:
    answers = ["1/2", "0.5", "7", ".50", "7.0", "50%", "8"]
    number = equivalence("number")
    by_key = asyncio.run(build_classes(answers, number))
    compared = asyncio.run(build_classes(answers, FunctionRelation(number.same)))
    assert by_key.classes == compared.classes
    assert compared.comparisons > 0
