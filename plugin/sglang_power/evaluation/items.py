"""What is asked: one question with its right answer, and how an answer to it is judged. Pure."""

from __future__ import annotations

import hashlib
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict

from sglang_power.answers.equivalence import CHOICE
from sglang_power.answers.numerals import read_number

Kind: TypeAlias = Literal["number", "choice", "math", "text", "regex", "code"]
"""How answers are judged: the last number; the last option letter; what is boxed (else the last number), by
math-verify; the whole text but for capitals, blanks and quotes; a pattern's last match; tests of code."""

LETTERS = "ABCD"


class Item(BaseModel):
    """One problem.

    Args:
        id: unique in its task.
        question: the text; of a `raw` item the whole prompt, which is sent as it is.
        gold: the right answer; of code the program that runs behind the answer's.
        kind: how answers are judged.
        raw: whether the question is the whole prompt.
        worked: the answer as an example for other questions shows it.
        pattern: of kind regex.
        letters: of kind choice.
        entry_point: of kind code, the function that is to be written.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str
    question: str
    gold: str
    kind: Kind
    raw: bool = False
    worked: str = ""
    pattern: str | None = None
    letters: str = LETTERS
    entry_point: str | None = None

    @property
    def is_gradable(self) -> bool:
        """Return whether any answer could be judged right."""
        if self.kind == "number":
            return read_number(self.gold) is not None
        if self.kind == "choice":
            letter = CHOICE.key(self.gold)
            return isinstance(letter, str) and letter in self.letters
        return bool(self.gold.strip())

    @property
    def digest(self) -> str:
        """Return a hash of the question and of what is right."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()[:12]
