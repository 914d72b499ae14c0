"""Faults for the soak to find: a plugin of SGLang that breaks ours on purpose. Negative controls.

A distribution of this one module, whose entry point `sglang.srt.plugins` names `register`, is put on a
server's path; the environment variable says which fault it brings.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

FAULT = "SOAK_FAULT"
EVERY = 20
"""Of so many calls, one goes wrong."""

GROWTH = 256 * 1024
"""Bytes that are kept of every request."""

KEPT: list[bytearray] = []


def register() -> None:
    """Break what the environment names."""
    {"child": _keep_a_child, "state": _grow, "answer": _drop_an_answer}[os.environ[FAULT]]()


def _keep_a_child() -> None:
    """A child's place is never given back, so that it is at work for ever."""
    from sglang_power.sglang_host.tokenizer.governor import Governor

    given_back, calls = Governor._give_back, itertools.count(1)

    def give_back(self: Governor, request: str, places: int) -> None:
        given_back(self, request, places if next(calls) % EVERY else max(0, places - 1))

    Governor._give_back = give_back  # type: ignore[method-assign]


def _grow() -> None:
    """Something is kept of every request."""
    from sglang_power.sglang_host.tokenizer.placeholder import Placeholder

    entered = Placeholder.__enter__

    def enter(self: Placeholder) -> Placeholder:
        KEPT.append(bytearray(os.urandom(64) * (GROWTH // 64)))
        return entered(self)

    Placeholder.__enter__ = enter  # type: ignore[assignment, method-assign]


def _drop_an_answer() -> None:
    """Of a stream, the last chunk of a choice is lost."""
    from sglang_power.sglang_host.tokenizer.answer_writer import ChoiceStream

    sent, calls = ChoiceStream.send, itertools.count(1)

    def send(self: ChoiceStream, answer: dict[str, Any]) -> None:
        is_last = answer["meta_info"]["finish_reason"] is not None
        if not is_last or next(calls) % EVERY:
            sent(self, answer)

    ChoiceStream.send = send  # type: ignore[method-assign]
