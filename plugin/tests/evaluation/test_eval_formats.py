"""Files of tasks: published formats, users' own lines, and what is said of bad ones. Error rate 0."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from sglang_power.errors import ConfigError
from sglang_power.evaluation import catalogue
from sglang_power.evaluation.catalogue import load
from sglang_power.evaluation.formats import read_own
from sglang_power.evaluation.prompts import NEXT_QUESTION, questions


def written(folder: Path, name: str, *lines: Any) -> Path:
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_gsm8k(tmp_path: Path) -> None:
    line = {"question": "2 and 3?", "answer": "It is 2+3=<<2+3=5>>5.\n#### 1,005"}
    (item,) = load("gsm8k", written(tmp_path, "test.jsonl", line)).items
    assert (item.question, item.gold, item.kind) == ("2 and 3?", "1,005", "number")
    assert item.worked == "It is 2+3=5.\nThe answer is 1,005."


def test_math500_in_both_forms(tmp_path: Path) -> None:
    ours = [{"prompt": "x?", "answer": "\\frac{1}{2}", "source": "math", "id": "a"}]
    (tmp_path / "MATH500.json").write_text(json.dumps(ours))
    (item,) = load("math500", tmp_path / "MATH500.json").items
    assert (item.id, item.gold, item.kind) == ("a", "\\frac{1}{2}", "math")
    hub = {"problem": "x?", "answer": "2", "unique_id": "test/1.json", "level": 1}
    (other,) = load("math500", written(tmp_path, "test.jsonl", hub)).items
    assert (other.id, other.question) == ("test/1.json", "x?")


def test_humaneval_is_unpacked(tmp_path: Path) -> None:
    line = {
        "task_id": "HumanEval/0",
        "prompt": "def two():\n",
        "entry_point": "two",
        "canonical_solution": "    return 2\n",
        "test": "def check(f):\n    assert f() == 2\n",
    }
    path = tmp_path / "HumanEval.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(line).encode()))
    task = load("humaneval", path)
    assert task.items[0].gold == "def check(f):\n    assert f() == 2\n\ncheck(two)\n"
    assert task.card.stop == catalogue.CODE_ENDS


def test_gpqa_puts_options_into_an_order_that_stays(tmp_path: Path) -> None:
    head = "Record ID,Question,Correct Answer,Incorrect Answer 1,Incorrect Answer 2,Incorrect Answer 3"
    rows = [f'r{i},"Which, {i}?",right{i},wrong,"worse, much",worst' for i in range(40)]
    path = written(tmp_path, "gpqa_main.csv", head, *rows)
    items = load("gpqa", path).items
    assert items == load("gpqa", path).items
    assert {item.gold for item in items} == set("ABCD")
    for number, item in enumerate(items):
        assert f"({item.gold}) right{number}\n" in item.question + "\n"
        assert "worse, much" in item.question


def test_aime_as_its_wheel_has_it(tmp_path: Path) -> None:
    line = {"id": "aime25-0", "problem": "Find it.", "expected_answer": "070"}
    (item,) = load("aime", written(tmp_path, "test.txt", line)).items
    assert (item.id, item.gold, item.kind) == ("aime25-0", "070", "math")


def test_asdiv_leaves_out_what_is_no_number(tmp_path: Path) -> None:
    problem = '<Problem ID="{0}"><Body>b{0}</Body><Question>q?</Question><Answer>{1}</Answer></Problem>'
    answers = ["9 (apples)", "Yes", "5 (years old); 15 (years old)", "1/2 (cup)"]
    body = "".join(problem.format(number, answer) for number, answer in enumerate(answers))
    path = written(tmp_path, "ASDiv.xml", f"<Corpus><ProblemSet>{body}</ProblemSet></Corpus>")
    task = load("asdiv", path)
    assert [(item.id, item.gold) for item in task.items] == [("0", "9"), ("3", "1/2")]
    assert (task.left_out, task.items[0].question) == (2, "b0 q?")


# --- users' own ---


def test_own_lines_say_how_they_are_judged_or_it_is_seen(tmp_path: Path) -> None:
    lines = [
        {"prompt": "a", "answer": 12},
        {"prompt": "b", "answer": "C", "id": "named"},
        {"prompt": "c", "answer": "Paris"},
        {"prompt": "d", "answer": "1/2", "kind": "math"},
        {"prompt": "e", "answer": "7", "kind": "regex", "pattern": r"A(\d)"},
        {"prompt": "f", "answer": "assert f() == 1", "kind": "code"},
    ]
    items = read_own(written(tmp_path, "own.jsonl", *lines))
    assert [item.kind for item in items] == ["number", "choice", "text", "math", "regex", "code"]
    assert [item.id for item in items[:3]] == ["1", "named", "3"]
    assert all(item.raw for item in items)


GOOD = '{"prompt": "a", "answer": 1}'

BAD: dict[str, tuple[list[Any], str]] = {
    "torn": ([GOOD, '{"prompt": "b", '], "line 2: not JSON"),
    "a list": ([GOOD, "[1]"], "line 2: a JSON object is needed, not list"),
    "no answer": ([GOOD, "", {"prompt": "b"}], "line 3, field 'answer': Field required"),
    "empty prompt": ([{"prompt": "", "answer": 1}], "line 1, field 'prompt'"),
    "misspelt": ([{"prompt": "b", "answer": 1, "knd": "math"}], "line 1, field 'knd': Extra inputs"),
    "unknown kind": ([{"prompt": "b", "answer": 1, "kind": "maths"}], "line 1, field 'kind'"),
    "pattern alone": ([{"prompt": "b", "answer": 1, "pattern": "x"}], "line 1, field 'pattern': goes with"),
    "no pattern": ([{"prompt": "b", "answer": 1, "kind": "regex"}], "line 1, field 'pattern': goes with"),
    "bad pattern": (
        [{"prompt": "b", "answer": 1, "kind": "regex", "pattern": "("}],
        "line 1, field 'pattern': not a regular expression",
    ),
    "deep": (["[" * 100_000], "not JSON"),
    "twice": ([{"prompt": "b", "answer": 1, "id": "x"}] * 2, "two items have the id 'x'"),
    "empty": ([], "no items"),
}


@pytest.mark.parametrize(("lines", "problem"), BAD.values(), ids=list(BAD))
def test_a_bad_line_is_named_and_the_file_stays(tmp_path: Path, lines: list[Any], problem: str) -> None:
    path = written(tmp_path, "own.jsonl", *lines)
    before = path.read_bytes()
    with pytest.raises(ConfigError) as raised:
        read_own(path)
    assert problem in str(raised.value)
    assert str(path) in str(raised.value)
    assert path.read_bytes() == before


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    path = tmp_path / "own.jsonl"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="utf-8"):
        read_own(path)
    torn = tmp_path / "HumanEval.jsonl.gz"
    torn.write_bytes(gzip.compress(b"{}" * 1000)[:-9])
    with pytest.raises(ConfigError, match="HumanEval"):
        load("humaneval", torn)


def test_a_record_of_another_data_set_is_named(tmp_path: Path) -> None:
    path = written(
        tmp_path, "x.jsonl", {"question": "q", "answer": "#### 1"}, {"problem": "q", "answer": "1"}
    )
    with pytest.raises(ConfigError, match="line 2: its answer has no '#### number'"):
        load("gsm8k", path)
    with pytest.raises(ConfigError, match="line 1: no problem or prompt; it has question, answer"):
        load("math500", path)
    with pytest.raises(ConfigError, match="not XML"):
        load("asdiv", written(tmp_path, "ASDiv.xml", "<a>"))


def test_a_task_without_an_item_that_can_be_graded_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path, "own.jsonl", {"prompt": "a", "answer": "unknown", "kind": "number"})
    with pytest.raises(ConfigError, match=r"none of its 1 items can be graded.*'unknown'"):
        load(str(path), None)


def test_unknown_tasks_and_missing_files_are_told_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"name its file with --data\. It is at https"):
        load("gsm8k", None)
    with pytest.raises(ConfigError, match=r"neither a file, a data set \(gsm8k"):
        load("gsm9k", None)
    with pytest.raises(ConfigError, match="--data goes with a data set"):
        load("own.jsonl", tmp_path)
    with pytest.raises(ConfigError, match="Is a directory"):
        load("gsm8k", tmp_path)


def test_the_listing_says_where_to_get_each_and_its_checksum() -> None:
    text = "\n".join(catalogue.listing())
    for known in catalogue.DATA_SETS:
        assert f"  {known.name}: {known.source}" in text
        for name, digest in known.files:
            assert f"sha256 of {name}: {digest or 'none is known'}" in text
    for name in catalogue.built_in():
        assert f"  {name}: " in text


def test_a_known_checksum_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path, "ASDiv.xml", "other")
    assert catalogue.known_digest("asdiv", path) is False
    assert catalogue.known_digest("math500", path) is None
    digest = next(known for known in catalogue.DATA_SETS if known.name == "asdiv").files[0][1]
    monkeypatch.setattr(catalogue, "digest_of", lambda _: digest)
    assert catalogue.known_digest("asdiv", path) is True


# --- prompts ---


def test_prompts_of_both_routes_and_examples(tmp_path: Path) -> None:
    lines = [{"question": f"q{i}", "answer": f"w{i}\n#### {i}"} for i in range(4)]
    task = load("gsm8k", written(tmp_path, "test.jsonl", *lines))
    chat = questions(task, "chat", 0, None)
    assert chat.asked[0].prompt.startswith("q0\n\nThink step by step")
    assert (len(chat.asked), chat.stop) == (4, ())
    texts = questions(task, "completions", 2, 1)
    assert texts.asked[0].prompt == (
        "Question: q2\nAnswer: w2\nThe answer is 2.\n\n"
        "Question: q3\nAnswer: w3\nThe answer is 3.\n\nQuestion: q0\nAnswer:"
    )
    assert (len(texts.asked), texts.stop) == (1, (NEXT_QUESTION,))
    with pytest.raises(ConfigError, match="--shots 4"):
        questions(task, "completions", 4, None)


def test_functions_are_sent_as_they_are_or_in_a_block(tmp_path: Path) -> None:
    line = {"task_id": "t", "prompt": "def two():\n", "entry_point": "two", "test": "def check(f): pass"}
    task = load("humaneval", written(tmp_path, "HumanEval.jsonl", line))
    assert questions(task, "completions", 0, None).asked[0].prompt == "def two():\n"
    assert questions(task, "completions", 0, None).stop == catalogue.CODE_ENDS
    chat = questions(task, "chat", 0, None).asked[0].prompt
    assert chat.endswith("```python\ndef two():\n```")
    assert "the whole function" in chat


def test_a_card_that_is_none_is_told_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "BUILT_IN", tmp_path)
    written(tmp_path, "own.jsonl", {"prompt": "a", "answer": 1})
    assert load("own", None).card.api == "completions"
    written(tmp_path, "own.yaml", "about: mine", "max_tokns: 3")
    with pytest.raises(ConfigError, match=r"own\.yaml, line 2, field 'max_tokns'"):
        load("own", None)


def test_own_prompts_are_sent_as_they_are(tmp_path: Path) -> None:
    task = load(str(written(tmp_path, "own.jsonl", {"prompt": "a\n", "answer": 1})), None)
    apis: tuple[catalogue.Api, ...] = ("chat", "completions")
    for api in apis:
        sent = questions(task, api, 0, None)
        assert (sent.asked[0].prompt, sent.stop) == ("a\n", ())
    with pytest.raises(ConfigError, match="no worked examples"):
        questions(task, "completions", 1, None)
