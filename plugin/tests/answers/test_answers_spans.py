"""Characters of tokens: against the bytes of a real byte-level BPE, a SentencePiece-like decoder, and whole
prefixes; what is not UTF-8, special tokens, cost.

Deterministic. Error rate 0.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from itertools import takewhile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sglang_power.answers import Spelled, spelled
from sglang_power.answers.extraction import Number
from sglang_power.answers.spans import CONTEXT, WINDOW, _walk
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

EOS = "<eos>"
TRAINED_ON = ["hello world, the answer is 42.", "naïve café 中文字符 😀😃", "So the answer is 12,345.67"] * 20

quick = settings(derandomize=True, database=None, deadline=None, max_examples=60)
Decode = Callable[[Sequence[int]], str]


FALLBACK = [f"<0x{byte:02X}>" for byte in range(256)]
"""Names of bytes, as Llama 2 has them."""


@functools.cache
def byte_level() -> Tokenizer:
    """A byte-level BPE: emoji and Chinese are split over tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(  # type: ignore[no-untyped-call]
        vocab_size=300, initial_alphabet=alphabet, special_tokens=[EOS], show_progress=False
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    return tokenizer


@functools.cache
def sentence_pieces() -> Tokenizer:
    """Pieces with byte fallback: the first piece loses its blank."""
    pieces = ["<unk>", EOS, *FALLBACK, "▁", "▁▁", "▁a", "▁the", "▁42", "a", "b", "4", "2", ".", "中"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<unk>", EOS])
    blanks, strip = decoders.Replace("▁", " "), decoders.Strip(" ", 1, 0)
    tokenizer.decoder = decoders.Sequence([blanks, decoders.ByteFallback(), decoders.Fuse(), strip])
    return tokenizer


def decoding(tokenizer: Tokenizer, skip: bool = True) -> Decode:
    return lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=skip))


def id_of(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token that there is."""
    found = tokenizer.token_to_id(token)
    assert found is not None, token
    return int(found)


def ids_of(text: str) -> list[int]:
    return list(byte_level().encode(text).ids)


def by_whole_prefixes(decode: Decode, ids: Sequence[int]) -> list[int]:
    """For each token the number of characters that the ids up to it share with the whole text."""
    text = decode(ids)
    settled = [0]
    for i in range(len(ids)):
        common = takewhile(lambda pair: pair[0] == pair[1], zip(decode(ids[: i + 1]), text, strict=False))
        settled.append(max(settled[-1], len(list(common))))
    return settled[1:]


def by_bytes(ids: Sequence[int]) -> list[tuple[int, int]]:
    """Characters whose UTF-8 bytes a token holds; for ids of a valid text without special tokens."""
    owner = [i for i, c in enumerate(decoding(byte_level())(ids)) for _ in c.encode()]
    spans, at = [], 0
    for token in ids:
        size = len(str(byte_level().id_to_token(token)))  # a character of the alphabet per byte
        spans.append((owner[at], owner[at + size - 1] + 1))
        at += size
    return spans


def assert_reaches(found: Spelled, decode: Decode, ids: Sequence[int]) -> None:
    """Spans with text end where whole prefixes settle, or cover the one character after that."""
    for (start, end), settled in zip(found.offsets, by_whole_prefixes(decode, ids), strict=True):
        assert start == end <= settled or settled <= end <= settled + 1


def assert_tiles(found: Spelled) -> None:
    """Starts and ends never fall, neighbours meet or share one character, and all of the text is covered."""
    last_start = last_end = 0
    for start, end in found.offsets:
        assert last_start <= start <= last_end <= end or start == end == last_end - 1
        assert start >= last_end - 1
        last_start, last_end = (start, end) if end > start else (last_start, last_end)
    assert last_end == len(found.text)


# --- byte-level BPE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["", "x", "the answer is 42.", "a😀b", "😀😃", "中文, naïve 𐍈", "\n\n é", "�", "a�😀�"]
)
def test_tokens_cover_the_characters_whose_bytes_they_hold(text: str) -> None:
    ids = ids_of(text)
    found = spelled(decoding(byte_level()), ids)
    assert found.text == text
    assert list(found.offsets) == by_bytes(ids)
    assert_tiles(found)


def test_an_emoji_belongs_to_every_token_that_holds_a_part_of_it() -> None:
    ids = ids_of("is 🦊!")
    found = spelled(decoding(byte_level()), ids)
    sharing = [i for i, span in enumerate(found.offsets) if span == (3, 4)]
    assert len(sharing) >= 2
    assert list(found.tokens_of((3, 4))) == sharing


@given(st.text(alphabet=st.sampled_from("ab 42.\n中文é😀𐍈�"), max_size=120))
@quick
def test_long_texts_agree_with_their_bytes(text: str) -> None:
    ids = ids_of(text)
    assert list(spelled(decoding(byte_level()), ids).offsets) == by_bytes(ids)


@given(st.lists(st.integers(0, 299), max_size=120))
@quick
def test_ids_of_no_valid_text_agree_with_whole_prefixes(ids: list[int]) -> None:
    decode = decoding(byte_level())
    found = spelled(decode, ids)
    assert_reaches(found, decode, ids)
    assert_tiles(found)


def test_special_tokens_cover_nothing_unless_they_are_shown() -> None:
    eos = id_of(byte_level(), EOS)
    ids = [eos, *ids_of("4"), eos, *ids_of("2"), eos]
    hidden = spelled(decoding(byte_level()), ids)
    assert hidden == Spelled("42", ((0, 0), (0, 1), (1, 1), (1, 2), (2, 2)))
    assert hidden.tokens_of((0, 2)) == (1, 3)
    shown = spelled(decoding(byte_level(), skip=False), ids)
    assert shown.text == f"{EOS}4{EOS}2{EOS}"
    assert shown.tokens_of((0, 1)) == (0,)


def test_a_special_token_inside_a_character_covers_nothing() -> None:
    emoji = ids_of("😀")
    ids = [emoji[0], id_of(byte_level(), EOS), *emoji[1:]]
    found = spelled(decoding(byte_level()), ids)
    assert found == Spelled("😀", ((0, 1), (0, 0), *[(0, 1)] * (len(emoji) - 1)))


def test_an_unfinished_character_is_one_replacement_that_its_tokens_share() -> None:
    ids = [*ids_of("a"), *ids_of("𐍈")[:3]]
    found = spelled(decoding(byte_level()), ids)
    assert found == Spelled("a�", ((0, 1), (1, 2), (1, 2), (1, 2)))


# --- other decoders -----------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["▁a", "▁the", "▁42", ".", "▁", "▁▁", "中", "😀", "文", EOS, "b"]), max_size=80)
)
@quick
def test_pieces_with_byte_fallback(words: list[str]) -> None:
    tokenizer = sentence_pieces()
    pieces = [
        [w] if tokenizer.token_to_id(w) is not None else [FALLBACK[b] for b in w.encode()] for w in words
    ]
    ids = [id_of(tokenizer, piece) for group in pieces for piece in group]
    found = spelled(decoding(tokenizer), ids)
    assert_tiles(found)
    at = 0
    for word, group in zip(words, pieces, strict=True):
        spans, at = found.offsets[at : at + len(group)], at + len(group)
        if len(group) > 1:
            assert len(set(spans)) == 1
            assert found.text[slice(*spans[0])] == word
        elif word != EOS:
            assert found.text[slice(*spans[0])] in (word.replace("▁", " "), word.replace("▁", " ")[1:])


@given(st.lists(st.integers(0, 268), max_size=100))
@quick
def test_any_pieces_agree_with_whole_prefixes(ids: list[int]) -> None:
    decode = decoding(sentence_pieces())
    found = spelled(decode, ids)
    assert_reaches(found, decode, ids)
    assert_tiles(found)


def test_a_decoder_that_counts_its_tokens_is_given_whole_prefixes() -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(chr(token) + "\n" * (i % 40 == 39) for i, token in enumerate(ids))

    found = spelled(decode, [ord("a")] * 100)
    assert [end - start for start, end in found.offsets] == [1 + (i % 40 == 39) for i in range(100)]


def test_a_decoder_that_rewrites_the_token_before_makes_it_share() -> None:
    def decode(ids: Sequence[int]) -> str:
        return "".join(map(chr, ids)).replace(" .", ".")

    found = spelled(decode, [*map(ord, "is 4 .")])
    assert found.text == "is 4."
    assert found.offsets[-2:] == ((4, 5), (4, 5))


def pieces_of(tokenizer: Tokenizer, characters: Sequence[Sequence[str]], *others: str) -> list[list[int]]:
    """Characters by the names of their bytes, whole and each byte alone, and other tokens."""
    whole = [[id_of(tokenizer, byte) for byte in character] for character in characters]
    return [*whole, *([i] for c in whole for i in c), *([id_of(tokenizer, other)] for other in others)]


AS_BYTES = [[FALLBACK[byte] for byte in c.encode()] for c in "😀中�"]


@pytest.mark.parametrize(
    ("tokenizer", "pieces"),
    [
        (byte_level(), pieces_of(byte_level(), ["ðŁĺĢ", "ä\u00b8Ń", "ï¿½"], "a", EOS)),
        (sentence_pieces(), pieces_of(sentence_pieces(), AS_BYTES, "▁", "▁a", "b", EOS)),
    ],
    ids=["byte level", "byte fallback"],
)
def test_tails_are_as_good_as_whole_prefixes(tokenizer: Tokenizer, pieces: list[list[int]]) -> None:
    """Broken characters with special tokens between their bytes, wherever the tail begins anew."""
    decode = decoding(tokenizer)
    rng = np.random.default_rng(3)
    silent = [*pieces[-2] * WINDOW, *pieces[-1] * 2 * WINDOW, *pieces[-3] * WINDOW]
    drawn = [rng.integers(0, len(pieces), length) for length in rng.integers(1, 100, 400)]
    for ids in [silent, *([token for i in row for token in pieces[i]] for row in drawn)]:
        text = decode(ids)
        offsets, settled = _walk(decode, ids, text, WINDOW)
        assert settled == len(text), "no need to begin again"
        assert offsets == _walk(decode, ids, text, len(ids))[0]


def test_the_cost_is_linear() -> None:
    decoded = []

    def decode(ids: Sequence[int]) -> str:
        decoded.append(len(ids))
        return decoding(byte_level())(ids)

    ids = ids_of("hello 😀 the answer is 中文 42. " * 200)
    assert len(ids) > 2000
    found = spelled(decode, ids)
    assert list(found.offsets) == by_bytes(ids)
    assert sum(decoded) <= 2 * len(ids) * (WINDOW + CONTEXT)


# --- tokens of characters -----------------------------------------------------------------------------

ROW = Spelled("abcdef", ((0, 0), (0, 2), (2, 3), (2, 3), (3, 3), (3, 6)))


@pytest.mark.parametrize(
    ("span", "tokens"),
    [
        ((0, 6), (1, 2, 3, 5)),
        ((0, 1), (1,)),
        ((1, 3), (1, 2, 3)),
        ((2, 3), (2, 3)),
        ((3, 4), (5,)),
        ((3, 3), ()),
        ((6, 9), ()),
    ],
)
def test_a_token_belongs_to_a_span_if_and_only_if_it_overlaps_it(
    span: tuple[int, int], tokens: tuple[int, ...]
) -> None:
    assert ROW.tokens_of(span) == tokens


@given(st.text(alphabet="ab4😀中", min_size=1, max_size=40), st.data())
@quick
def test_the_tokens_of_a_span_spell_it(text: str, data: st.DataObject) -> None:
    found = spelled(decoding(byte_level()), ids_of(text))
    start = data.draw(st.integers(0, len(text) - 1))
    end = data.draw(st.integers(start + 1, len(text)))
    covered = [set(range(*found.offsets[i])) for i in found.tokens_of((start, end))]
    assert set().union(*covered) >= set(range(start, end))
    assert all(one & set(range(start, end)) for one in covered)


@pytest.mark.parametrize(
    ("text", "characters"),
    [
        ("= \u2013\u0663\u0664\u066b\u0665 \u0643\u0645", "\u2013\u0663\u0664\u066b\u0665"),
        ("= \uff11\uff12\uff0e\uff15\u5143", "\uff11\uff12\uff0e\uff15"),
        ("= 12\u202f345,6 \u20ac", "12\u202f345,6"),
        ("= 2\u00bd \u6b21", "2\u00bd"),
    ],
)
def test_numbers_of_other_scripts_lie_under_their_own_tokens(text: str, characters: str) -> None:
    """What is read as ASCII is found where it stands: its tokens spell it, and none beside it."""
    found = Number().extract(text)
    assert found is not None
    assert text[slice(*found.span)] == characters
    ids = ids_of(text)
    tokens = spelled(decoding(byte_level()), ids).tokens_of(found.span)
    assert decoding(byte_level())([ids[i] for i in tokens]).strip() == characters
