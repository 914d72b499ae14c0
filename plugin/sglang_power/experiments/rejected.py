"""The last edit of experiments that was not taken, for whoever asks what a process has in force. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict


class RejectedEdit(TypedDict):
    """What a process says of an edit that it did not take.

    at: unix time at which its problems were first seen.
    problems: with file, line and field.
    corrected: whether a later reading of the directory found nothing wrong.
    """

    at: float
    problems: list[str]
    corrected: bool


class RejectedEdits:
    """Remembers the last edit that was not taken.

    Attributes:
        last: see RejectedEdit; None where every edit was taken.
    """

    def __init__(self) -> None:
        self.last: RejectedEdit | None = None

    def read(self, problems: Sequence[str], at: float) -> None:
        """Take note of one reading of the directory, and of what was wrong with it."""
        if self.last is not None and not problems:
            self.last["corrected"] = True
        elif problems and (self.last is None or self.last["corrected"] or self.last["problems"] != problems):
            self.last = RejectedEdit(at=at, problems=list(problems), corrected=False)
