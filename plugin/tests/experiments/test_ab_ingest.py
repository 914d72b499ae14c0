"""Outcomes from tables: all rows or none, and never counted twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ab_lines import CONFIG, HOUR, Lines, experiment
from sglang_power.errors import RecordError
from sglang_power.experiments.analysis.ingest import TOLD, ingest
from sglang_power.experiments.analysis.reading import UnreadableLines, lines
from sglang_power.experiments.analysis.requests import Scope, joined
from sglang_power.experiments.analysis.units import population
from sglang_power.experiments.records import Feedback, unit_hash

NOW = 100 * HOUR
FIRST, SECOND = (f"{number:012x}40008{0:015x}" for number in (1, 2))
ROW = {"exposure_id": FIRST, "metric": "thumbs", "value": 1, "at": 60}
CSV = f"exposure_id,metric,value,at\n{FIRST},thumbs,0.5,60\n{SECOND},thumbs,1,1970-01-01T01:02:00+01:00\n"
JSONL = "\n".join(
    json.dumps({"exposure_id": exposure, "metric": "thumbs", "value": value, "at": at})
    for exposure, value, at in [(FIRST, 0.5, 60), (SECOND, 1, "1970-01-01T00:02:00Z")]
)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    made = Lines()
    made.enrol("u1", "plain", 0.0, exposure_id=FIRST)
    made.enrol("u2", "power", 0.0, exposure_id=SECOND)
    return made.write(tmp_path / "log")


def table(directory: Path, content: str | bytes, name: str = "outcomes.csv") -> Path:
    path = directory / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.CSV", "\ufeff" + CSV.replace("\n", "\r\n")),
        ("a.jsonl", JSONL),
        ("a.jsonl", JSONL + "\n\n"),
    ],
)
def test_rows_become_feedback_lines(name: str, content: str, log: Path, tmp_path: Path) -> None:
    written = ingest(table(tmp_path, content, name), log, now=NOW)
    assert written.rows == 2
    found = [line for line in lines(log, UnreadableLines()) if isinstance(line, Feedback)]
    assert [(one.exposure_id, one.metric, one.value, one.at) for one in found] == [
        (FIRST, "thumbs", 0.5, 60.0),
        (SECOND, "thumbs", 1.0, 120.0),
    ]


def test_the_same_table_twice_is_counted_as_duplicates(log: Path, tmp_path: Path) -> None:
    path = table(tmp_path, CSV)
    assert ingest(path, log, now=NOW).path != ingest(path, log, now=NOW).path
    found = joined(log, Scope(experiment(), CONFIG, 0, NOW))
    assert found.excluded["duplicate_feedback"] == 2
    assert population(found).observations.columns["thumbs"].values.tolist() == [0.5, 1.0]


def test_a_corrected_table_counts_instead_of_the_one_before(log: Path, tmp_path: Path) -> None:
    """Eight times, since a coin would be right once in a while."""
    for value in (0.0, 1.0, 0.5, 0.25, 0.75, 0.125, 0.625, 0.375):
        content = f"exposure_id,metric,value,at\n{FIRST},thumbs,{value},60\n"
        ingest(table(tmp_path, content), log, now=NOW)
        found = population(joined(log, Scope(experiment(), CONFIG, 0, NOW)))
        assert found.observations.columns["thumbs"].values.tolist() == [value, 0.0]


KEY = b"key"


def visits(directory: Path) -> Path:
    """Ann asked at 100, 200 and 1,000 s, Bob at 200 s; servers' files are in no order of time."""
    made = Lines()
    for number, (unit, at) in enumerate([("ann", 1_000.0), ("bob", 200.0), ("ann", 100.0), ("ann", 200.0)]):
        exposure = f"{number:012x}40008{0:015x}"
        made.enrol(unit_hash(unit, KEY), "plain", at, exposure_id=exposure)
    return made.write(directory / "visits")


ANN_1000, BOB_200, ANN_100, ANN_200 = (f"{number:012x}40008{0:015x}" for number in range(4))


@pytest.mark.parametrize(
    ("unit", "at", "answer"),
    [
        ("ann", "100", ANN_100),
        ("ann", "149", ANN_100),
        ("ann", "151", ANN_200),
        ("ann", "260", ANN_200),
        ("ann", "261", None),
        ("ann", "939", None),
        ("ann", "1970-01-01T00:16:40Z", ANN_1000),
        ("bob", "190", BOB_200),
        ("bob", "1000", None),
        ("eve", "200", None),
        ("Ann", "100", None),
    ],
)
def test_a_unit_and_a_time_name_the_nearest_request(
    unit: str, at: str, answer: str | None, tmp_path: Path
) -> None:
    log = visits(tmp_path)
    rows = f"{unit},{at},thumbs,1,2000\n" + "bob,200,thumbs,0,2000\n"
    written = ingest(table(tmp_path, f"unit,time,metric,value,at\n{rows}"), log, now=NOW, key=KEY)
    found = [line for line in lines(log, UnreadableLines()) if isinstance(line, Feedback)]
    expected = [*([] if answer is None else [(answer, 1.0)]), (BOB_200, 0.0)]
    assert [(line.exposure_id, line.value) for line in found] == expected
    assert (written.rows, written.unmatched) == (len(expected), 2 - len(expected))


def test_both_kinds_of_keys_may_stand_in_one_table(tmp_path: Path) -> None:
    log = visits(tmp_path)
    rows = f"exposure_id,unit,time,metric,value,at\n{ANN_100},,,thumbs,0.25,2000\n,ann,1000,thumbs,0.5,2000\n"
    assert ingest(table(tmp_path, rows), log, now=NOW, key=KEY).rows == 2
    found = [line for line in lines(log, UnreadableLines()) if isinstance(line, Feedback)]
    assert [(line.exposure_id, line.value) for line in found] == [(ANN_100, 0.25), (ANN_1000, 0.5)]


@pytest.mark.parametrize(
    ("rows", "key", "problem"),
    [
        ("ann,100,thumbs,1,60", None, "names units, and there is no key to find them with"),
        ("ann,100,thumbs,1,60", b"another", "no row is of a request that was enrolled"),
        ("ann,,thumbs,1,60", KEY, "line 2, row: Give exposure_id, or unit and time"),
        (",100,thumbs,1,60", KEY, "line 2, row: Give exposure_id, or unit and time"),
        ("ann,yesterday,thumbs,1,60", KEY, "line 2, time: "),
    ],
)
def test_units_that_cannot_be_found_are_refused(
    rows: str, key: bytes | None, problem: str, tmp_path: Path
) -> None:
    log = visits(tmp_path)
    with pytest.raises(RecordError) as refused:
        ingest(table(tmp_path, f"unit,time,metric,value,at\n{rows}\n"), log, now=NOW, key=key)
    assert problem in str(refused.value)
    assert len(list(log.iterdir())) == 1


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (f"{FIRST},thumbs,1.797e308,60", "line 4, value: Input should be between -1e+50 and 1e+50"),
        (f"{FIRST},thumbs,nan,60", "line 4, value: Input should be a finite number"),
        (f"{FIRST},thumbs,,60", "line 4, value: Input should be a valid number"),
        (f"{FIRST},Thumbs Up,1,60", "line 4, metric: String should match"),
        ("mine,thumbs,1,60", "line 4, exposure_id: String should match"),
        (f"{FIRST},thumbs,1,yesterday", "line 4, at: "),
        (f"{FIRST},thumbs,1,2026-01-01T00:00:00", "line 4, at: Input should have timezone info"),
        (f"{FIRST},thumbs,1,1800000000", "line 4, at: 2027-01-15 08:00 has not come yet"),
        (f"{FIRST},thumbs,1,60,7", "line 4, more cells than the head"),
        (f"{FIRST},thumbs,1", "line 4, at: "),
        (f'{FIRST},"thumbs"x,1,60', "line 4, "),
    ],
)
def test_a_bad_row_is_told_with_its_line_and_nothing_is_written(
    row: str, problem: str, log: Path, tmp_path: Path
) -> None:
    before = sorted(log.iterdir())
    with pytest.raises(RecordError) as refused:
        ingest(table(tmp_path, CSV + row + "\n"), log, now=NOW)
    assert problem in str(refused.value)
    assert "Nothing was written" in str(refused.value)
    assert sorted(log.iterdir()) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "line 3, not JSON"),
        ('"x"', "line 3, row: "),
        ("[1]", "line 3, row: "),
        (json.dumps({**ROW, "value": True}), "line 3, value: Input should be a number, not a boolean"),
        (json.dumps({**ROW, "at": True}), "line 3, at: Input should be a number, not a boolean"),
    ],
)
def test_a_bad_line_of_json_is_told(text: str, problem: str, log: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=problem):
        ingest(table(tmp_path, f"{JSONL}\n{text}\n", "a.jsonl"), log, now=NOW)


def test_many_bad_rows_are_told_in_one_line(log: Path, tmp_path: Path) -> None:
    with pytest.raises(RecordError) as refused:
        ingest(table(tmp_path, CSV + "x,thumbs,1,60\n" * (TOLD + 7)), log, now=NOW)
    assert str(refused.value).count("line ") == TOLD
    assert "and 7 more bad rows" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.xlsx", CSV, "neither .csv nor .jsonl"),
        ("a.csv", CSV.splitlines()[0], "holds no outcomes"),
        ("a.csv", CSV.encode("utf-16"), "not UTF-8"),
    ],
)
def test_a_table_that_is_none_is_refused(
    name: str, content: str | bytes, problem: str, log: Path, tmp_path: Path
) -> None:
    with pytest.raises(RecordError, match=problem):
        ingest(table(tmp_path, content, name), log, now=NOW)
    assert len(list(log.iterdir())) == 1


def test_a_log_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="is no directory"):
        ingest(table(tmp_path, CSV), tmp_path / "nowhere", now=NOW)
