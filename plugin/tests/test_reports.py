"""No client of ours takes an answer of SGLang's own sampler for one of the sampler that it asked for."""

from __future__ import annotations

from typing import Any

import pytest
from sglang_power.errors import HostError
from sglang_power.reports import report_of

PLAIN: dict[str, Any] = {"sampler": "none", "fallback_reason": "temperature=0"}
BROKEN: list[tuple[Any, str]] = [
    (None, "without sglang-power"),
    ({}, "the server ran None"),
    (PLAIN, "because of temperature=0"),
    ({"sampler": "cot"}, "the server ran 'cot'"),
]


@pytest.mark.parametrize(("report", "problem"), BROKEN)
def test_a_missing_or_other_report_is_an_error(report: Any, problem: str) -> None:
    with pytest.raises(HostError, match=f"sampler 'power' was asked for.*{problem}"):
        report_of(report, "power")


def test_the_right_report_is_returned() -> None:
    report = {"sampler": "power", "seed": 3}
    assert report_of(report, "power") is report
