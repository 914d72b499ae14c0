"""The words of the prose model's texts: people, places, things in four languages, and sentence patterns.

Owns tables only; `corpus` makes texts of them. Names and translations bring accents, Greek, Chinese
characters and emoji into ordinary sentences. `SIGNS` and `PICTURES` are whole Unicode ranges: most of their
characters are too rare to become tokens of their own, so a sample spells them in two tokens or more.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = [
    "ADJECTIVES",
    "ENDINGS",
    "EVENTS",
    "LANGUAGES",
    "OPENINGS",
    "PEOPLE",
    "PICTURES",
    "PLACES",
    "SIGNS",
    "SPEECH",
    "THINGS",
    "TIMES",
    "VIEWS",
    "Thing",
]


class Thing(NamedTuple):
    """A noun, its colour, and what other languages call it."""

    english: str
    colour: str
    french: str
    greek: str
    chinese: str
    emoji: str


LANGUAGES: Final = ("French", "Greek", "Chinese", "emoji")
"""In lower case, each is a field of `Thing`."""

THINGS: Final = (
    Thing("moon", "white", "lune", "φεγγάρι", "月", "🌙"),
    Thing("sea", "blue", "mer", "θάλασσα", "海", "🌊"),
    Thing("star", "white", "étoile", "αστέρι", "星", "⭐"),
    Thing("fire", "red", "feu", "φωτιά", "火", "🔥"),
    Thing("tree", "green", "arbre", "δέντρο", "树", "🌳"),
    Thing("book", "brown", "livre", "βιβλίο", "书", "📖"),
    Thing("cat", "black", "chat", "γάτα", "猫", "🐈"),
    Thing("dog", "brown", "chien", "σκύλος", "狗", "🐕"),
    Thing("fish", "silver", "poisson", "ψάρι", "鱼", "🐟"),
    Thing("bird", "blue", "oiseau", "πουλί", "鸟", "🐦"),
    Thing("house", "white", "maison", "σπίτι", "房子", "🏠"),
    Thing("bridge", "grey", "pont", "γέφυρα", "桥", "🌉"),
    Thing("river", "green", "rivière", "ποτάμι", "河", "🏞️"),
    Thing("mountain", "grey", "montagne", "βουνό", "山", "⛰️"),
    Thing("rain", "grey", "pluie", "βροχή", "雨", "🌧️"),
    Thing("snow", "white", "neige", "χιόνι", "雪", "❄️"),
    Thing("sun", "yellow", "soleil", "ήλιος", "太阳", "☀️"),
    Thing("flower", "red", "fleur", "λουλούδι", "花", "🌸"),
    Thing("bread", "brown", "pain", "ψωμί", "面包", "🍞"),
    Thing("tea", "green", "thé", "τσάι", "茶", "🍵"),
    Thing("letter", "white", "lettre", "γράμμα", "信", "✉️"),
    Thing("lamp", "yellow", "lampe", "λάμπα", "灯", "💡"),
    Thing("boat", "red", "bateau", "βάρκα", "船", "⛵"),
    Thing("door", "green", "porte", "πόρτα", "门", "🚪"),
    Thing("key", "silver", "clé", "κλειδί", "钥匙", "🔑"),
    Thing("clock", "brown", "horloge", "ρολόι", "钟", "⏰"),
    Thing("train", "black", "train", "τρένο", "火车", "🚆"),
    Thing("peach", "pink", "pêche", "ροδάκινο", "桃子", "🍑"),
    Thing("lemon", "yellow", "citron", "λεμόνι", "柠檬", "🍋"),
    Thing("horse", "black", "cheval", "άλογο", "马", "🐎"),
    Thing("bear", "brown", "ours", "αρκούδα", "熊", "🐻"),
    Thing("cloud", "white", "nuage", "σύννεφο", "云", "☁️"),
)

SIGNS: Final = tuple(chr(code) for code in range(0x4E00, 0x5200))
"""A thousand Chinese characters, three bytes each."""

PICTURES: Final = tuple(chr(code) for code in range(0x1F300, 0x1F650))
"""Three blocks of emoji, four bytes each."""

PEOPLE: Final = (
    *["Mira", "Noor", "Anton", "Zoë", "Søren", "Élodie", "Łukasz", "Jürgen", "Inês", "Björn", "Åsa", "Çağla"],
    *[
        "Ελένη",
        "Νίκος",
        "Αλέξης",
        "美咲",
        "健太",
        "小明",
        "丽华",
        "José",
        "Thảo",
        "Siobhán",
        "Dvořák",
        "Ruth",
    ],
)

PLACES: Final = (
    *["Kyoto", "Málaga", "Göteborg", "Αθήνα", "東京", "São Paulo", "上海", "Zürich", "Kraków", "Reykjavík"],
    *["Θεσσαλονίκη", "Lisbon", "Besançon", "İzmir", "Cork", "京都"],
)

ADJECTIVES: Final = (
    *["rusty", "quiet", "small", "bright", "heavy", "strange", "gentle", "broken", "golden", "tiny", "tall"],
    *["cold", "warm", "hollow", "hidden", "lonely", "patient", "round", "salty", "sleepy", "soft", "wild"],
)

TIMES: Final = (
    *["In the morning", "At noon", "In the evening", "At night", "A week later", "The next day", "Soon"],
    *["Before dawn", "After the storm", "In winter", "One summer", "That autumn", "Much later", "Suddenly"],
)

OPENINGS: Final = (
    "{person} lived in {place}, near a {adjective} {thing}.",
    "There once was a {adjective} {thing} in {place}, and {person} knew it well.",
    "Nobody in {place} had ever seen a {thing} as {adjective} as the one that {person} found.",
    "{person} and {other} met in {place}, beside the {adjective} {thing}.",
)
"""First sentences of stories. The slots of all patterns are filled by `corpus`."""

EVENTS: Final = (
    "{time}, {person} looked for the {thing}.",
    "{time}, {other} came with a {adjective} {thing}.",
    "{time}, {person} walked from {place} to the {adjective} {thing}.",
    "{person} thought of the {thing} and smiled.",
    "{person} gave the {thing} to {other}, who was glad.",
    "{other} did not know what to do with a {adjective} {thing}.",
    "The {thing} was {adjective}, and so was the {second}.",
    "{time}, the {thing} was gone, but the {second} was still there.",
    "They carried the {thing} past the {second} and down to the water.",
    "{person} wrote a {adjective} letter to {other} about the {thing}.",
    "It was {adjective} in {place}, as it always was.",
    "{time}, they found a {second} under the {adjective} {thing}.",
    "{other} laughed, because the {thing} looked like a {second}.",
    "Then it rained, and the {thing} turned {adjective}.",
)

SPEECH: Final = (
    '"Where is the {thing}?" asked {person}.',
    '"It is {adjective}," said {other}.',
    '"I would rather have a {second}," said {person}.',
    "“We should go to {place},” said {other} — and they went.",
    '"Listen," {person} whispered. "The {thing}!"',
    "“{emoji}!” wrote {other}.",
)

ENDINGS: Final = (
    "And the {thing} stayed with {person}.",
    "That is the whole story of the {thing}. {emoji}",
    "{person} never saw the {thing} again.",
    "Since then there has been a {thing} in {place}.",
)

VIEWS: Final = (
    "The {thing} of {place} is {adjective} and {colour}.",
    "In {place} they call it “{french}”.",
    "A Greek traveller wrote “{greek}” on the wall beside it.",
    "Its sign is {chinese}.",
    "From far away it looks like a {adjective} {second}.",
    "{person} drew it with a {colour} pen. {emoji}",
    "Nobody knows how old it is.",
    "{time} it is {adjective}, and people stop to look at it.",
)
"""Sentences of descriptions, all about one thing."""
