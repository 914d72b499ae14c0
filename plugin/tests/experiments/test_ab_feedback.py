"""Feedback from clients: what is taken, what is refused and how, and who may post at all."""

from __future__ import annotations

import hmac
import json
import re
import time
from typing import Any

import pytest
from sglang_power.errors import RequestError, TooLargeError
from sglang_power.experiments import feedback
from sglang_power.experiments.feedback import authorised, exposure_id, parse_feedback

LIMIT = 4096
ID = "0123456789ab" + "4cde" + "a" + "0" * 15
GOOD: dict[str, Any] = {"exposure_id": ID, "metric": "thumbs", "value": 0.5}


def body(**changes: Any) -> bytes:
    return json.dumps({**GOOD, **changes}).encode()


def test_what_a_client_says_becomes_a_line() -> None:
    before = time.time()
    line = parse_feedback(body(), LIMIT)
    assert (line.exposure_id, line.metric, line.value) == (ID, "thumbs", 0.5)
    assert before <= line.at <= time.time()


@pytest.mark.parametrize("value", [0, 1, -3, 0.25, 1e50, -1e50])
def test_every_number_that_can_be_computed_with_is_a_value(value: float) -> None:
    assert parse_feedback(body(value=value), LIMIT).value == value


def test_exposure_ids_are_taken_back_and_never_repeat() -> None:
    names = {exposure_id() for _ in range(1000)}
    assert len(names) == 1000
    for name in names:
        assert parse_feedback(body(exposure_id=name), LIMIT).exposure_id == name


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"value": "1"}, "value='1': "),
        ({"value": True}, "value=True: "),
        ({"value": None}, "value=None: "),
        ({"value": [1]}, "value=[1]: "),
        ({"value": float("nan")}, "value=nan: "),
        ({"value": float("inf")}, "value=inf: "),
        ({"value": 1e51}, "value=1e+51: Input should be between -1e+50 and 1e+50"),
        ({"value": -1e300}, "value=-1e+300: Input should be between -1e+50 and 1e+50"),
        ({"metric": ""}, "metric='': "),
        ({"metric": "Thumbs"}, "metric='Thumbs': "),
        ({"metric": "a" * 65}, "metric='aaa"),
        ({"metric": "thumbs\n"}, r"metric='thumbs\n': "),
        ({"metric": 3}, "metric=3: "),
        ({"exposure_id": ID.upper()}, f"exposure_id='{ID.upper()}': "),
        ({"exposure_id": ID[:-1]}, f"exposure_id='{ID[:-1]}': "),
        ({"exposure_id": ID + "\n"}, f"exposure_id='{ID}\\n': "),
        ({"exposure_id": "f" * 32}, "exposure_id='ffff"),
        ({"exposure_id": None}, "exposure_id=None: "),
        ({"comment": "nice"}, "comment='nice': unknown field"),
        ({"at": 0.0}, "at=0.0: unknown field"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse_feedback(body(**changes), LIMIT)
    assert str(caught.value).startswith(told)
    assert '"exposure_id": <of the response>' in str(caught.value)


@pytest.mark.parametrize("missing", sorted(GOOD))
def test_a_missing_field_is_named(missing: str) -> None:
    rest = {name: value for name, value in GOOD.items() if name != missing}
    with pytest.raises(RequestError, match=f"^{missing}=None: required"):
        parse_feedback(json.dumps(rest).encode(), LIMIT)


NO_OBJECTS = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b"\xff\xfe",
    b"[" * 4000,
    body() + b"x",
    body(metric="\ud800"),
]


@pytest.mark.parametrize("raw", NO_OBJECTS)
def test_what_is_no_object_is_refused(raw: bytes) -> None:
    with pytest.raises(RequestError, match=r"^body="):
        parse_feedback(raw, LIMIT)


def test_a_number_beyond_floats_is_refused() -> None:
    with pytest.raises(RequestError, match=r"^value="):
        parse_feedback(body().replace(b"0.5", b"1e999"), LIMIT)


def test_the_limit_is_in_bytes_and_looked_at_first() -> None:
    exact = body()
    assert parse_feedback(exact, len(exact)).value == 0.5
    with pytest.raises(TooLargeError, match=re.escape("experiments.max_feedback_bytes")) as caught:
        parse_feedback(b"\xff" * (len(exact) + 1), len(exact))
    assert caught.value.limit == len(exact)
    assert not isinstance(caught.value, RequestError), "it would be a 400"


KEY = "s3cret key+/="


@pytest.mark.parametrize("header", [f"Bearer {KEY}", f"bearer {KEY}", f"BEARER  {KEY} "])
def test_the_key_opens(header: str) -> None:
    assert authorised(header, KEY)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        "Bearer \u2603",
        "Bearer \xe9",
        "Bearer \udcff",
        f"Bearer\t{KEY}",
    ],
)
def test_nothing_else_opens(header: str | None) -> None:
    assert not authorised(header, KEY)


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer "])
def test_an_empty_key_opens_for_nobody(header: str | None) -> None:
    assert not authorised(header, "")


def test_a_key_beyond_ascii_is_compared_as_the_bytes_that_were_sent() -> None:
    sent = "Bearer schlüssel".encode().decode("latin-1")
    assert authorised(sent, "schlüssel")
    assert not authorised("Bearer schlüssel", "schlüssel")


def test_tokens_are_compared_in_constant_time_whatever_the_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def watched(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return compare(given, key)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    for header in ("Basic x", "Bearer x", None):
        assert not authorised(header, KEY)
    assert compared == [(b"x", KEY.encode()), (b"x", KEY.encode()), (b"", KEY.encode())]


def test_the_name_of_the_key_is_part_of_the_interface() -> None:
    assert feedback.KEY_VARIABLE == "SGLANG_POWER_FEEDBACK_KEY"
