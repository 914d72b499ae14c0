"""Logs are read as crashes leave them: what cannot be read is counted, another schema is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ab_lines import Lines
from sglang_power.errors import RecordError
from sglang_power.experiments.analysis.reading import KEPT, UnreadableLines, lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Four lines in two files."""
    made = Lines()
    made.request("u1", "plain", 10.0)
    made.write(tmp_path / "log", "b.jsonl")
    made.request("u2", "power", 5.0)
    return made.write(tmp_path / "log", "a.jsonl")


def append(log: Path, text: str | bytes, file: str = "b.jsonl") -> None:
    with (log / file).open("ab") as out:
        out.write(text.encode() if isinstance(text, str) else text)


def test_all_files_are_read_in_order_of_their_names(log: Path) -> None:
    (log / "notes.txt").write_text("not a log")
    unreadable = UnreadableLines()
    assert [line.at for line in lines(log, unreadable)] == [5.0, 6.0, 10.0, 11.0]
    assert unreadable == UnreadableLines()


@pytest.mark.parametrize("torn", ['{"version":1,"ty', '{"version":1,"type":"enrolment","at":1.0}', b"\xc3"])
def test_a_torn_last_line_is_counted(log: Path, torn: str | bytes) -> None:
    append(log, torn, "a.jsonl")
    append(log, torn, "b.jsonl")
    unreadable = UnreadableLines()
    assert len(list(lines(log, unreadable))) == 4
    assert (unreadable.torn, unreadable.bad) == (2, 0)


def test_a_last_line_that_only_lacks_its_end_is_whole(log: Path) -> None:
    last = (log / "a.jsonl").read_text().splitlines()[-1]
    append(log, last, "b.jsonl")
    unreadable = UnreadableLines()
    assert len(list(lines(log, unreadable))) == 5
    assert unreadable.torn == 0


@pytest.mark.parametrize(
    ("bad", "problem"),
    [
        ('{"version":1,"ty', "Invalid JSON"),
        ("[]", "b.jsonl:3: "),
        ('{"version":1,"type":"feedback","at":1.0,"exposure_id":"e","metric":"m"}', "feedback.value: "),
        ('{"version":1,"type":"feedback","at":1,"exposure_id":"e","metric":"m","value":NaN}', "value: "),
        ('{"version":1,"type":"gossip","at":1.0}', "'gossip'"),
    ],
)
def test_other_unreadable_lines_are_told_with_their_place(log: Path, bad: str, problem: str) -> None:
    append(log, bad + "\n")
    append(log, "\n")  # An empty line is nothing.
    unreadable = UnreadableLines()
    assert len(list(lines(log, unreadable))) == 4
    assert (unreadable.torn, unreadable.bad) == (0, 1)
    assert unreadable.told[0].startswith("b.jsonl:3: ")
    assert problem in unreadable.told[0]


def test_only_the_first_bad_lines_are_told(log: Path) -> None:
    append(log, "nonsense\n" * (KEPT + 5))
    unreadable = UnreadableLines()
    list(lines(log, unreadable))
    assert (unreadable.bad, len(unreadable.told)) == (KEPT + 5, KEPT)


@pytest.mark.parametrize("version", [2, 0, "1"])
def test_another_version_of_the_schema_is_refused(log: Path, version: object) -> None:
    append(log, json.dumps({"version": version, "type": "enrolment", "at": 1.0}) + "\n")
    with pytest.raises(RecordError, match=r"b\.jsonl:3: version: '.*' is not 1"):
        list(lines(log, UnreadableLines()))


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is no directory"):
        list(lines(tmp_path / "lgo", UnreadableLines()))
