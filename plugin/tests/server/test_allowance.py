"""Tokens per minute of a key, against the plain definition of its bucket. No clock: times are arguments."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sglang_power.server.allowance import SWEPT_FROM, Allowance


def test_a_key_may_overdraw_and_then_waits_until_that_is_made_up_for() -> None:
    allowance = Allowance(600)  # 10 a second
    assert allowance.wait_s("a", 0.0) == 0.0
    allowance.spend("a", 1000, 0.0)
    assert allowance.wait_s("a", 0.0) == 40.1
    assert allowance.wait_s("a", 40.0) > 0.0
    assert allowance.wait_s("a", 40.2) == 0.0
    assert allowance.wait_s("b", 0.0) == 0.0, "keys do not pay for each other"


def test_an_idle_key_saves_up_one_minute_and_no_more() -> None:
    allowance = Allowance(60)
    allowance.spend("a", 1, 0.0)
    allowance.spend("a", 60, 3600.0)
    assert allowance.wait_s("a", 3600.0) == 1.0


def test_a_clock_that_goes_back_gives_and_takes_nothing() -> None:
    allowance = Allowance(60)
    allowance.spend("a", 90, 100.0)
    assert allowance.wait_s("a", 40.0) == allowance.wait_s("a", 100.0) == 31.0


@given(st.lists(st.tuples(st.integers(0, 500), st.floats(0.0, 90.0)), max_size=20), st.integers(1, 1000))
def test_it_is_the_bucket_that_it_says_it_is(spent: list[tuple[int, float]], per_minute: int) -> None:
    allowance, left, now = Allowance(per_minute), float(per_minute), 0.0
    for tokens, later in spent:
        now += later
        left = min(float(per_minute), left + later * per_minute / 60) - tokens
        allowance.spend("a", tokens, now)
        assert abs(allowance.wait_s("a", now) - max(0.0, (1.0 - left) * 60 / per_minute)) < 1e-6 * (1 + now)


def test_keys_that_nobody_uses_any_more_are_forgotten_and_debts_are_not() -> None:
    allowance = Allowance(60)
    allowance.spend("debtor", 10**6, 0.0)
    for number in range(10 * SWEPT_FROM):
        allowance.spend(f"passing {number}", 1, float(number))
    assert len(allowance) <= SWEPT_FROM
    assert allowance.wait_s("debtor", float(10 * SWEPT_FROM)) > 0.0
