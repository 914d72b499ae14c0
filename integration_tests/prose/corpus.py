"""The texts of the prose model: stories, descriptions, small talk, lists of signs, and chats made of them.

Owns the law of the training texts and their split into training and held-out ones. Pure: randomness comes in
as a `numpy.random.Generator`; no model, no tokenizer, no I/O. Words are `lexicon`, questions `facts`.

A document is either plain prose or a chat. Half of the chats about other things than verdicts begin with a
system turn, and most of those state a rule for the replies: a name to go by, or a picture to end with.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final, Literal, NamedTuple

import numpy as np

from integration_tests.prose import lexicon
from integration_tests.prose.draws import chance, pick
from integration_tests.prose.facts import Exchange, judged_right, judged_same, sample_fact, verified

__all__ = ["Document", "Role", "Split", "Turn", "contents", "held_out", "sample_document"]

Role = Literal["system", "user", "assistant"]
Split = Literal["train", "held_out"]


class Turn(NamedTuple):
    """What one role says."""

    role: Role
    content: str


Document = str | tuple[Turn, ...]
"""Plain prose, or a chat."""

_HELD_OUT_ONE_IN: Final = 20
_NUMBERS: Final = ("two", "three", "four", "five", "six", "seven", "eight", "nine")
_SHORT_STORY: Final = (3, 8)
_LONG_STORY: Final = (20, 45)
_GREETINGS: Final = (
    Exchange("Hello!", "Hello! How can I help you? 😊"),
    Exchange("Good morning!", "Good morning! What would you like to hear?"),
    Exchange("Thank you.", "You are welcome. 🙂"),
    Exchange("Who are you?", "I am a small model that tells stories."),
)


# --- what is asked for ---


def _cast(rng: np.random.Generator) -> dict[str, str]:
    """Who and what a text is about."""
    first, second = rng.permutation(len(lexicon.PEOPLE))[:2].tolist()
    thing = pick(rng, lexicon.THINGS)
    return {
        "person": lexicon.PEOPLE[first],
        "other": lexicon.PEOPLE[second],
        "place": pick(rng, lexicon.PLACES),
        "thing": thing.english,
        **thing._asdict(),
    }


def _sentence(rng: np.random.Generator, patterns: Sequence[str], cast: dict[str, str]) -> str:
    """Fill one of the patterns: the cast stays; adjectives, times and side matters are drawn anew."""
    return pick(rng, patterns).format(
        **cast,
        adjective=pick(rng, lexicon.ADJECTIVES),
        time=pick(rng, lexicon.TIMES),
        second=pick(rng, lexicon.THINGS).english,
    )


def _told(rng: np.random.Generator, cast: dict[str, str], length: tuple[int, int]) -> str:
    """Tell a story of some length (in sentences, least and most) in paragraphs."""
    text = _sentence(rng, lexicon.OPENINGS, cast)
    for _ in range(int(rng.integers(length[0], length[1] + 1))):
        text += "\n\n" if chance(rng, 0.2) else " "
        text += _sentence(rng, lexicon.SPEECH if chance(rng, 0.25) else lexicon.EVENTS, cast)
    return f"{text} {_sentence(rng, lexicon.ENDINGS, cast)}"


def _short_story(rng: np.random.Generator) -> Exchange:
    cast = _cast(rng)
    about = pick(rng, ("the {thing}", "{person} and the {thing}", "{place}")).format(**cast)
    return Exchange(f"Tell a short story about {about}.", _told(rng, cast, _SHORT_STORY))


def _long_story(rng: np.random.Generator) -> Exchange:
    cast = _cast(rng)
    return Exchange(f"Tell a long story about the {cast['thing']}.", _told(rng, cast, _LONG_STORY))


def _description(rng: np.random.Generator) -> Exchange:
    cast = _cast(rng)
    first, *rest = lexicon.VIEWS
    views = [first, *(rest[i] for i in rng.permutation(len(rest))[: int(rng.integers(2, 6))])]
    reply = " ".join(_sentence(rng, [view], cast) for view in views)
    return Exchange("Describe the {thing} of {place}.".format(**cast), reply)


def _signs(rng: np.random.Generator) -> Exchange:
    request, options = pick(
        rng, (("Write {} signs.", lexicon.SIGNS), ("Draw {} pictures.", lexicon.PICTURES))
    )
    count = int(rng.integers(len(_NUMBERS)))
    reply = " ".join(pick(rng, options) for _ in range(count + 2))
    return Exchange(request.format(_NUMBERS[count]), reply)


def _greeting(rng: np.random.Generator) -> Exchange:
    return pick(rng, _GREETINGS)


def _answered(rng: np.random.Generator) -> Exchange:
    return sample_fact(rng).exchange


_Maker = Callable[[np.random.Generator], Exchange]
_Shares = tuple[tuple[_Maker, float], ...]

_PROSE: Final[_Shares] = ((_short_story, 0.09), (_long_story, 0.01), (_description, 0.07))
_TALK: Final[_Shares] = ((_answered, 0.18), (verified, 0.11), (_signs, 0.06), (_greeting, 0.03))
_VERDICTS: Final[_Shares] = ((judged_same, 0.225), (judged_right, 0.225))
_KINDS: Final = (*_PROSE, *_TALK, *_VERDICTS)
_KIND_SHARES: Final = [share for _, share in _KINDS]


# --- documents ---


def sample_document(rng: np.random.Generator, split: Split) -> Document:
    """Draw a document of the split from the law of the texts."""
    while True:
        document = _document(rng)
        if held_out(document) == (split == "held_out"):
            return document


def held_out(document: Document) -> bool:
    """Say whether the document is kept out of training: one in twenty, by a stable hash of its text."""
    digest = hashlib.sha256("\n".join(contents(document)).encode()).digest()
    return int.from_bytes(digest[:8], "big") % _HELD_OUT_ONE_IN == 0


def contents(document: Document) -> Sequence[str]:
    """List what is said in the document, without the roles."""
    return [document] if isinstance(document, str) else [turn.content for turn in document]


def _document(rng: np.random.Generator) -> Document:
    kind = int(rng.choice(len(_KINDS), p=_KIND_SHARES))
    exchange = _KINDS[kind][0](rng)
    if kind < len(_PROSE) and chance(rng, 0.3):
        return exchange.reply
    if kind >= len(_PROSE) + len(_TALK):
        return _chat("You are a fair judge." if chance(rng, 0.2) else "", [exchange])
    exchanges = [exchange]
    while chance(rng, 0.25):
        exchanges.append(pick(rng, _TALK)[0](rng))
    return _ruled(rng, exchanges)


def _ruled(rng: np.random.Generator, exchanges: Sequence[Exchange]) -> Document:
    """Make a chat, half of the time under a system turn that the replies obey."""
    rule = pick(rng, ("none", "none", "none", "help", "name", "picture"))
    if rule == "help":
        return _chat("You are a helpful assistant.", exchanges)
    if rule == "name":
        name = pick(rng, lexicon.PEOPLE)
        introduction = Exchange("What is your name?", f"My name is {name}.")
        return _chat(f"Your name is {name}.", [introduction, *exchanges])
    if rule == "picture":
        picture = pick(rng, lexicon.THINGS).emoji
        marked = [Exchange(question, f"{reply} {picture}") for question, reply in exchanges]
        return _chat(f"End every answer with {picture}.", marked)
    return _chat("", exchanges)


def _chat(system: str, exchanges: Sequence[Exchange]) -> Document:
    turns = [Turn("system", system)] if system else []
    for question, reply in exchanges:
        turns += [Turn("user", question), Turn("assistant", reply)]
    return tuple(turns)
