"""A program in front of a scripted server, as its session sees it. No interpreter, no network."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from scripted_server import EOS, Script, ScriptedServer, text_of
from sglang.lang.ir import SglSamplingParams
from sglang_power.frontend.ledger import DrawnText, LedgerEntry
from sglang_power.frontend.session import SegmentRequest, Session

BOS = EOS + 1
STOP = {"type": "stop", "matched": EOS}


@dataclass
class Program:
    """What a session touches of an executor."""

    text_: str = ""
    images_: list[Any] = field(default_factory=list)
    backend: Any = None
    ends: int = 0

    def end(self) -> None:
        self.ends += 1
        if self.backend is not None:
            self.backend.end_program(self)


def session_with(*answers: Any, script: Script | None = None) -> tuple[Session, ScriptedServer]:
    """A session whose generations are answered in order, or as a script says."""
    left = list(answers)
    fake = ScriptedServer(script or (lambda body: left.pop(0)))  # noqa: ARG005
    endpoint = SimpleNamespace(_handle_dtype_to_regex=lambda params: None, end_program=lambda s: None)  # noqa: ARG005
    return Session(endpoint, fake.client(), {}), fake


def generate(session: Session, s: Program, name: str = "x", **params: Any) -> str:
    """As the interpreter does."""
    session.asked = SegmentRequest(name, params.pop("values", None))
    text, _ = session.generate(s, SglSamplingParams(**params))
    s.text_ += text
    return text


def sent(fake: ScriptedServer) -> list[list[int]]:
    return [body["input_ids"] for body in fake.generated()]


def begun(ids: list[int], finished: bool = False) -> LedgerEntry:
    """A prefix; one that has finished drew a stop as well."""
    drawn = (*ids, EOS) if finished else tuple(ids)
    reason = STOP if finished else None
    return LedgerEntry(
        text_of(ids), tuple(ids), DrawnText(None, drawn, text_of(ids), prefix=True, reason=reason)
    )
