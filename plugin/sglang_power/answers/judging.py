"""The served model as a judge: its questions as text, and the relation that asks them.

Contents (answers, prompts) come from clients and from models: they may hold the very marks that stand
around them, or control tokens of a chat template. Quoting makes them inert: no content can end its place
in a question or open another one. What a content says may still sway the model; no quoting prevents that.
Knows no tokenizer and no server: whoever asks brings an `Asker` (`sglang_host.judge`).
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from sglang_power.answers.equivalence import EQUAL, ComparisonOutcome, Verdict
from sglang_power.types import Usage

LLM = "llm"
"""The name of `LlmRelation` in requests."""

MAX_CONTENT = 4000
"""Characters of one content in a question; a longer one loses its middle."""

_LOOK_ALIKES = {code: f"&#{code};" for code in (0xFF1C, 0xFF1E, 0xFE64, 0xFE65, 0x226E, 0x226F)}
"""What Unicode normalisation, which some tokenizers begin with, turns into < or >: ﹤, ≯ and the like."""


class Asker(Protocol):
    """Asks a model questions that are answered by yes or no."""

    async def yes(self, question: str) -> tuple[float, Usage]:
        """The probability of yes, where yes and no are the only answers, and what asking cost."""
        ...


@dataclass(frozen=True, slots=True)
class LlmRelation:
    """Answers are the same if the model says so; asked in one order it need not agree with the other.

    Args:
        judge: the model.
    """

    judge: Asker

    async def same(self, a: str, b: str) -> Verdict:
        """Ask the model whether two answers are the same, unless they are the same string."""
        if a == b:
            return EQUAL
        probability, usage = await self.judge.yes(same_question(a, b))
        return Verdict(
            ComparisonOutcome.EQUAL if probability >= 0.5 else ComparisonOutcome.DIFFERENT, usage=usage
        )


def same_question(a: str, b: str) -> str:
    """Whether two answers to one question say the same."""
    return (
        "Two answers to the same question stand between the marks.\n"
        f"<answer_1>\n{quoted(a)}\n</answer_1>\n"
        f"<answer_2>\n{quoted(b)}\n</answer_2>\n"
        "Do they say the same? Answer yes or no."
    )


def right_question(question: str, answer: str) -> str:
    """Whether an answer is right: P(True) of Kadavath et al., arXiv 2207.05221; SED, arXiv 2405.16552."""
    return (
        "A question and an answer to it stand between the marks.\n"
        f"<question>\n{quoted(question)}\n</question>\n"
        f"<answer>\n{quoted(answer)}\n</answer>\n"
        "Is the answer right? Answer yes or no."
    )


def quoted(content: str) -> str:
    """A content as it stands in a question: cut to MAX_CONTENT, without any <, >, or what may become one.

    They are written as HTML references, as is &. Models know that form, and it can be undone
    (`html.unescape`), so contents that differ make questions that differ.
    """
    return html.escape(_cut(content), quote=False).translate(_LOOK_ALIKES)


def _cut(content: str) -> str:
    """The beginning and the end, where answers state their result, around a visible mark."""
    left_out = len(content) - MAX_CONTENT
    if left_out <= 0:
        return content
    half = MAX_CONTENT // 2
    return f"{content[:half]} [... {left_out} characters left out ...] {content[-half:]}"


def disarmed(question: str, controls: Iterable[str]) -> str:
    """A question in which no tokenizer finds a control token: the first character becomes a reference.

    Args:
        question: with quoted contents; what is left to disarm has no <, such as [INST].
        controls: what the tokenizer's control tokens look like in text.
    """
    spelled = "|".join(re.escape(control) for control in controls if control.strip())
    if not spelled:
        return question
    return re.sub(f"(?={spelled}).", lambda found: f"&#{ord(found[0])};", question, flags=re.DOTALL)
