"""Reports of given answers: every figure by hand, in whatever order the answers came. Error rate 0."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eval_answers import arm, by_key, kept, run
from sglang_power.errors import ConfigError
from sglang_power.evaluation import page, plots, wording
from sglang_power.evaluation.controls import majority
from sglang_power.evaluation.records import Kept, Run
from sglang_power.evaluation.report import report
from sglang_power.evaluation.results import Report
from sglang_power.evaluation.table import table

ITEMS = [f"i{number}" for number in range(6)]
RIGHT = {"i0", "i1", "i2"}


def plain_answers(samples: int = 4) -> list[Kept]:
    """On half of the items two of four answers are right, and those are the likelier ones."""
    return [
        kept(
            item,
            "plain",
            sample,
            correct=item in RIGHT and sample < 2,
            value="5" if item in RIGHT and sample < 2 else f"{sample}0",
            log_p=-5.0 + (3.0 if item in RIGHT and sample < 2 else 0.0) - 0.1 * sample,
            entropy=0.1 * sample,
        )
        for item in ITEMS
        for sample in range(samples)
    ]


def power_answers() -> list[Kept]:
    return [
        kept(item, "power", correct=item != "i5", decoded=20, depth=30, blocks=((2, 1), (4, 1)))
        for item in ITEMS
    ]


def whole(**changes: Any) -> tuple[Run, list[Kept]]:
    arms = [arm("plain", 4), arm("power"), arm("greedy")]
    greedy = [kept(item, "greedy", correct=item == "i0", finish_reason="length") for item in ITEMS]
    return run(arms, ITEMS, **changes), plain_answers() + power_answers() + greedy


def made(answers: list[Kept] | None = None, **changes: Any) -> Report:
    asked, found = whole(**changes)
    return report(table(asked, by_key(answers or found)))


def test_the_first_line_is_the_correlation_of_log_p_with_being_right(tmp_path: Path) -> None:
    found = made()
    x = [answer.log_p / 10 for answer in plain_answers() if answer.log_p is not None]
    y = [float(answer.is_right) for answer in plain_answers()]
    first = found.likelihood
    assert first.mean_log_p is not None
    assert first.mean_log_p.value == pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    assert (first.arm, first.answers, first.problems) == ("plain", 24, 6)
    assert first.within_problems is not None
    line = wording.lines(found)[0]
    assert line.startswith(f"Correlation of mean log p with being right: {first.mean_log_p.value:.3f} (")
    assert "24 answers of plain to 6 problems" in line
    assert "samplers by likelihood can help here" in line
    found.write(tmp_path / "report.json")
    assert next(iter(json.loads((tmp_path / "report.json").read_text()))) == "likelihood"


def test_the_reading_follows_the_sign() -> None:
    _, answers = whole()
    turned = [answer.model_copy(update={"log_p": -10.0 - (answer.log_p or 0.0)}) for answer in answers]
    assert "can only do harm" in made(turned).likelihood.reading
    wrong = [answer.model_copy(update={"correct": False}) for answer in answers]
    assert "all wrong" in made(wrong).likelihood.reading
    unknown = [answer.model_copy(update={"log_p": None}) for answer in answers]
    assert made(unknown).likelihood.reading == "log p of these answers is not known"
    even = [answer.model_copy(update={"log_p": -5.0}) for answer in answers]
    assert "do not differ in log p" in made(even).likelihood.reading


def test_rows_by_hand() -> None:
    plain, power, greedy = made().rows
    assert plain.accuracy.value == pytest.approx(6 / 24)
    assert (plain.problems, plain.answers, plain.missing, plain.accuracy.method) == (6, 24, 0, "clustered t")
    assert power.accuracy.value == pytest.approx(5 / 6)
    assert power.accuracy.method == "Wilson"
    assert (power.decoded, power.returned, power.depth) == (20, 10, 30)
    assert power.acceptance == ((12, 6), (24, 6))
    assert plain.confidence == pytest.approx(-0.15)
    assert power.mean_log_p == pytest.approx(-0.5)
    assert greedy.finish == {"length": 6}
    assert "6 of 6 answers were cut" in "\n".join(wording.remarks(greedy))


def test_tests_are_on_the_problems_that_both_answered() -> None:
    asked, answers = whole()
    answers = [one for one in answers if (one.arm, one.item) != ("power", "i0")]
    found = {(test.arm, test.against): test.result for test in report(table(asked, by_key(answers))).tests}
    assert set(found) == {(a, b) for a in ("plain", "power", "greedy") for b in ("plain", "greedy") if a != b}
    against = found["power", "greedy"]
    assert (against.problems, against.better, against.worse, against.test) == (5, 4, 0, "McNemar, exact")
    assert against.p == pytest.approx(2 / 16)
    assert found["power", "plain"].test == "paired t over problems"


def test_controls_at_equal_tokens_by_hand() -> None:
    """20 tokens are two plain answers: the groups (0, 1) and (2, 3). On i0 to i2 the first is right."""
    vote, best = made().controls
    assert (vote.arm, vote.rule, vote.samples, vote.problems, vote.groups) == ("power", "vote", 2, 6, 12)
    for control in (vote, best):
        assert control.accuracy is not None
        assert control.accuracy.value == pytest.approx(3 / 12)
        assert control.decoded == 20
        assert control.against is not None
        assert control.against.difference.value == pytest.approx(5 / 6 - 1 / 4)
    assert vote.any_right == pytest.approx(0.5 * (1 - 1 / 6)), "a pair of two right and two wrong answers"


def test_a_control_without_enough_plain_answers_is_not_computed() -> None:
    answers = [one.model_copy(update={"decoded": 200} if one.arm == "power" else {}) for one in whole()[1]]
    vote, best = made(answers).controls
    assert (vote.samples, vote.problems, vote.accuracy, vote.against) == (20, 0, None, None)
    (line,) = wording.controlled([vote, best])
    assert "--plain-samples 20" in line


def test_a_vote_counts_classes() -> None:
    values = ["7", "5.0", None, "8", "5", "5", "7.0", "7"]
    answers = [
        kept("i", "plain", at, correct=value in ("5", "5.0"), value=value) for at, value in enumerate(values)
    ]
    assert majority(answers, "number").value == "7", "of two classes of three the one that came first"
    assert majority(answers[1:], "number").value == "5.0"
    assert majority(answers[2:3], "number").value is None


def test_pass_at_k_and_the_curve() -> None:
    found = made()
    at = {(point.arm, point.k): point.value.value for point in found.pass_at}
    assert at["plain", 1] == pytest.approx(0.25)
    assert at["plain", 2] == pytest.approx(0.5 * (1 - 1 / 6))
    assert at["plain", 4] == pytest.approx(0.5)
    assert ("plain", 8) not in at
    assert [(point.rule, point.samples) for point in found.curve] == [
        ("vote", 2),
        ("vote", 4),
        ("best_of", 2),
        ("best_of", 4),
    ]
    likeliest_of_four = found.curve[-1]
    assert likeliest_of_four.accuracy.value == pytest.approx(0.5)
    assert likeliest_of_four.decoded == 40


def test_histograms_count_every_answer() -> None:
    found = made().mean_log_p
    assert found is not None
    assert {name: sum(counts) for name, counts in found.counts.items()} == {
        "plain": 24,
        "power": 6,
        "greedy": 6,
    }
    assert found.edges[0] == pytest.approx(-0.53)
    assert found.edges[-1] == pytest.approx(-0.2)


def test_what_could_not_be_graded_does_not_count_as_right() -> None:
    answers = power_answers()
    answers[0] = kept("i0", "power", correct=None, value=None, reason="stopped after 5 seconds")
    row = made([one for one in whole()[1] if one.arm != "power"] + answers).rows[1]
    assert row.accuracy.value == pytest.approx(4 / 6)
    assert row.ungraded == {"stopped after 5 seconds": 1}
    assert "power: 1 could not be graded: stopped after 5 seconds" in wording.remarks(row)


def test_the_order_of_the_answers_changes_nothing() -> None:
    asked, answers = whole()
    mixed = list(answers)
    random.Random(1).shuffle(mixed)
    assert report(table(asked, by_key(mixed))) == report(table(asked, by_key(answers)))


def test_missing_answers_are_counted() -> None:
    asked, answers = whole()
    few = [one for one in answers if (one.arm, one.sample) != ("plain", 3)]
    found = report(table(asked, by_key(few)), ["no answer to 6 of plain: HTTP 500"])
    assert found.rows[0].missing == 6
    assert "no answer to 6 of plain: HTTP 500" in "\n".join(wording.lines(found))
    with pytest.raises(ConfigError, match="no answers to report on\nwhy"):
        report(table(asked, {}), ["why"])


def test_a_report_comes_back_from_its_file(tmp_path: Path) -> None:
    found = made()
    found.write(tmp_path / "report.json")
    read = Report.model_validate_json((tmp_path / "report.json").read_bytes())
    assert read.rows[0].accuracy.value == pytest.approx(found.rows[0].accuracy.value, rel=1e-5)
    assert (tmp_path / "report.json").stat().st_size < 50_000


def swept() -> Report:
    values: list[float | int | str] = [1, 2, 8]
    arms = [
        arm(f"power[steps={value}]", steps=value).model_copy(update={"swept": ("steps", value)})
        for value in values
    ]
    answers = [
        kept(item, each.name, correct=item < f"i{at + 2}") for at, each in enumerate(arms) for item in ITEMS
    ]
    return report(table(run(arms, ITEMS), by_key(answers)))


def test_pictures_and_the_page_show_what_there_is() -> None:
    for found in (made(), swept()):
        picture = plots.drawn(found)
        assert picture.startswith(b"\x89PNG")
        text = page.rendered(found, picture)
        assert text.count("<img") == 1
        assert "data:image/png;base64," in text
        assert "<script" not in text
        for row in found.rows:
            assert f"<td>{row.name}</td>" in text
        assert text.index("Correlation of mean log p") < text.index("<h1>")
        assert "http://" not in text
        assert "https://" not in text


def test_the_front_holds_what_is_better_than_all_that_is_cheaper() -> None:
    rows = swept().rows
    assert plots.frontier(rows) == [rows[2]], "all cost the same"
    priced = [row.model_copy(update={"decoded": price}) for row, price in zip(rows, (3, 9, 5), strict=True)]
    assert plots.frontier(priced) == [priced[0], priced[2]]


def test_strings_of_a_report_stay_strings() -> None:
    evil = "<script>alert(1)</script>\u202e$x$"
    found = made(task=evil, model=evil, command=evil, notes=(evil,), hardware=evil)
    text = page.rendered(found, plots.drawn(found))
    assert "<script>" not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;⟨U+202E⟩$x$" in text


def test_sweeps_have_a_row_each() -> None:
    assert [(row.swept, round(row.accuracy.value, 3)) for row in swept().rows] == [
        (("steps", 1), 0.333),
        (("steps", 2), 0.5),
        (("steps", 8), 0.667),
    ]
