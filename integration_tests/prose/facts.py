"""Facts of the prose model, the questions about them, and the judges' questions about answers.

Owns what is true in the model's world: sums of small numbers, colours of things, words of other languages.
A fact has one short answer, so that a few sentences serve questions, yes/no questions and verdicts. Pure; the
tables are `lexicon`, and `corpus` makes chats of the exchanges.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np

from integration_tests.prose.draws import chance, pick
from integration_tests.prose.lexicon import LANGUAGES, THINGS, Thing

__all__ = [
    "Exchange",
    "Fact",
    "judged_right",
    "judged_same",
    "right_question",
    "same_question",
    "sample_fact",
    "verified",
]


_STYLES: Final[tuple[Callable[[str], str], ...]] = (str, str, str.capitalize, " {} ".format)
"""Ways to write an answer again that change nothing but capitals and outer blanks."""


class Exchange(NamedTuple):
    """A question of the user and its reply."""

    question: str
    reply: str


class Fact(NamedTuple):
    """A question with one short answer.

    Args:
        question: what is asked.
        pattern: of a full reply; the short answer goes into its slots.
        right: the short answer.
        wrong: another one of the same kind.
    """

    question: str
    pattern: str
    right: str
    wrong: str

    @property
    def exchange(self) -> Exchange:
        """The question and its full reply."""
        return Exchange(self.question, self.pattern.format(self.right))

    def short(self, truth: bool) -> str:
        """The short answer, or the wrong one."""
        return self.right if truth else self.wrong


def sample_fact(rng: np.random.Generator) -> Fact:
    """Draw a fact of one of the three kinds."""
    return pick(rng, (_sum, _colour, _translation))(rng)


def _sum(rng: np.random.Generator) -> Fact:
    """Add or subtract; some questions want the answer in a box, as LaTeX has it."""
    left, right = sorted(rng.integers(1, 11, size=2).tolist(), reverse=True)
    sign, result = ("+", left + right) if chance(rng, 0.5) else ("-", left - right)
    request, slot = (" Put the answer in a box.", r"\boxed{{{0}}}") if chance(rng, 0.3) else ("", "{0}")
    wrong = result + int(rng.integers(1, 6))
    task = f"{left} {sign} {right}"
    return Fact(
        f"What is {task}?{request}", f"{task} = {{0}}. The answer is {slot}.", str(result), str(wrong)
    )


def _colour(rng: np.random.Generator) -> Fact:
    thing, other = _two_things(rng, "colour")
    noun = thing.english
    return Fact(f"What colour is the {noun}?", f"The {noun} is {{0}}.", thing.colour, other.colour)


def _translation(rng: np.random.Generator) -> Fact:
    language = pick(rng, LANGUAGES)
    field = language.lower()
    thing, other = _two_things(rng, field)
    name = f"{'emoji of' if language == 'emoji' else f'{language} word for'} {thing.english}"
    right, wrong = str(getattr(thing, field)), str(getattr(other, field))
    return Fact(f"What is the {name}?", f"The {name} is {{0}}.", right, wrong)


def _two_things(rng: np.random.Generator, field: str) -> tuple[Thing, Thing]:
    """Draw two things that differ in a field."""
    first = pick(rng, THINGS)
    return first, pick(rng, [thing for thing in THINGS if getattr(thing, field) != getattr(first, field)])


# --- yes or no ---


def verified(rng: np.random.Generator) -> Exchange:
    """Ask whether a statement is true."""
    fact, truth = sample_fact(rng), chance(rng, 0.5)
    claim = fact.pattern.format(fact.short(truth))
    return Exchange(f"Is this true? {claim} Answer yes or no.", _verdict(truth))


def same_question(first: str, second: str) -> str:
    """Ask whether two answers to one question say the same."""
    return (
        "Two answers to the same question stand between the marks.\n"
        f"<answer_1>\n{first}\n</answer_1>\n<answer_2>\n{second}\n</answer_2>\n"
        "Do they say the same? Answer yes or no."
    )


def right_question(question: str, answer: str) -> str:
    """Ask whether an answer is right."""
    return (
        "A question and an answer to it stand between the marks.\n"
        f"<question>\n{question}\n</question>\n<answer>\n{answer}\n</answer>\n"
        "Is the answer right? Answer yes or no."
    )


def judged_same(rng: np.random.Generator) -> Exchange:
    """Judge two answers: equal but for a capital and outer blanks, or of like form and different content."""
    fact, truth = sample_fact(rng), chance(rng, 0.5)
    pattern = pick(rng, ("{0}", fact.pattern))
    restyle = pick(rng, _STYLES)
    first, second = pattern.format(fact.right), pattern.format(fact.short(truth))
    return Exchange(same_question(first, restyle(second)), _verdict(truth))


def judged_right(rng: np.random.Generator) -> Exchange:
    """Judge an answer, in short or as a sentence."""
    fact, truth = sample_fact(rng), chance(rng, 0.5)
    answer = pick(rng, ("{0}", fact.pattern)).format(fact.short(truth))
    return Exchange(right_question(fact.question, answer), _verdict(truth))


def _verdict(truth: bool) -> str:
    return "yes" if truth else "no"
