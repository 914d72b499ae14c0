"""A metric that cannot be counted costs no answer; a mistake of ours is not hidden by that."""

from __future__ import annotations

import logging

import pytest
from sglang_power.counting import tolerant


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), IndexError("mmap slice")])
def test_a_disk_without_room_is_told_once_and_raises_nothing(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    @tolerant
    def observe(_: int) -> None:
        raise error

    with caplog.at_level(logging.ERROR, logger="sglang_power"):
        observe(1)
        observe(2)
    assert [record.getMessage() for record in caplog.records if str(error) in record.getMessage()]
    assert len(caplog.records) == 1


def test_what_can_be_counted_is_and_other_mistakes_are_raised() -> None:
    counted: list[int] = []
    tolerant(counted.append)(3)
    assert counted == [3]

    @tolerant
    def wrong() -> None:
        raise ValueError("no arm of this experiment")

    with pytest.raises(ValueError, match="no arm"):
        wrong()
