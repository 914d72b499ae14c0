"""The prose model: its texts, its tokenizer, its chat template, and the committed weights. No server."""

from __future__ import annotations

import itertools
import json
from typing import Final

import jinja2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, PreTrainedTokenizerFast

from integration_tests.prose import corpus, facts, lexicon, tokenizer, train
from integration_tests.prose.corpus import Document, Turn
from integration_tests.prose.evaluate import MODEL, ProseModel, ends, held_out_chats, splits_characters
from integration_tests.training import TrainingConfig

CHAT: Final = (
    Turn("system", "Your name is Zoë."),
    Turn("user", "What is 7 + 5?"),
    Turn("assistant", "7 + 5 = 12."),
    Turn("user", "Danke  schön! 你好 👩‍🚀"),
)

HELD_OUT_LOSS: Final = 0.6
"""Nats per token; the card has the measured value."""


@pytest.fixture(scope="module")
def model() -> ProseModel:
    """The committed weights and tokenizer."""
    return ProseModel()


@pytest.fixture(scope="module")
def built(model: ProseModel) -> PreTrainedTokenizerFast:
    """The committed tokenizer."""
    return model.tokenizer


def documents(count: int, seed: int = 0) -> list[Document]:
    """Training documents."""
    rng = np.random.default_rng(seed)
    return [corpus.sample_document(rng, "train") for _ in range(count)]


# --- texts ---


def test_the_same_seed_gives_the_same_texts() -> None:
    assert documents(200) == documents(200)
    assert documents(200) != documents(200, seed=1)


def test_the_split_never_changes() -> None:
    assert corpus.held_out("Mira walked to the sea.") == corpus.held_out(
        (Turn("user", "Mira walked to the sea."),)
    )
    flags = [corpus.held_out(f"Story {number}.") for number in range(2000)]
    assert [number for number, flag in enumerate(flags) if flag][:3] == [15, 34, 37]
    assert np.mean(flags) == pytest.approx(0.05, abs=0.015)


def test_no_training_text_is_held_out() -> None:
    assert not any(corpus.held_out(document) for document in documents(1000))
    rng = np.random.default_rng(0)
    assert all(corpus.held_out(corpus.sample_document(rng, "held_out")) for _ in range(20))


def test_texts_have_every_role_many_scripts_and_hundreds_of_words() -> None:
    drawn = documents(1000)
    assert {turn.role for d in drawn if not isinstance(d, str) for turn in d} == {
        "system",
        "user",
        "assistant",
    }
    texts = [text for document in drawn for text in corpus.contents(document)]
    whole = "".join(texts)
    latin, greek, chinese, emoji = (0xC0, 0x24F), (0x3B1, 0x3C9), (0x4E00, 0x9FFF), (0x1F300, 0x1F64F)
    for low, high in (latin, greek, chinese, emoji):
        assert any(low <= ord(character) <= high for character in whole), hex(low)
    assert max(len(text.split()) for text in texts) > 300


def test_a_rule_of_the_system_turn_is_obeyed() -> None:
    ruled = [
        d for d in documents(1000) if not isinstance(d, str) and d[0].content.startswith("End every answer")
    ]
    assert len(ruled) > 20
    for first, *turns in ruled:
        picture = first.content.removeprefix("End every answer with ").removesuffix(".")
        assert all(turn.content.endswith(picture) for turn in turns if turn.role == "assistant")


def test_sums_are_right() -> None:
    rng = np.random.default_rng(0)
    asked = [fact for fact in (facts.sample_fact(rng) for _ in range(300)) if fact.question[-2].isdigit()]
    assert len(asked) > 30
    for fact in asked:
        left, sign, right = fact.question.removeprefix("What is ").removesuffix("?").split()
        assert int(fact.right) == (int(left) + int(right) if sign == "+" else int(left) - int(right))
        assert fact.wrong != fact.right


def test_verdicts_follow_from_the_answers_alone() -> None:
    rng = np.random.default_rng(0)
    drawn = [facts.judged_same(rng) for _ in range(300)]
    for question, reply in drawn:
        first, second = (_between(question, f"answer_{i}") for i in (1, 2))
        assert question == facts.same_question(first, second)
        assert reply == ("yes" if first.strip().casefold() == second.strip().casefold() else "no")
    assert {reply for _, reply in drawn} == {"yes", "no"}


def _between(question: str, mark: str) -> str:
    return question.split(f"<{mark}>\n")[1].split(f"\n</{mark}>")[0]


# --- tokenizer and chat template ---


@settings(deadline=None, derandomize=True, database=None)
@given(st.text())
def test_every_text_comes_back(built: PreTrainedTokenizerFast, text: str) -> None:
    assert built.decode(built.encode(text)) == text


@pytest.mark.parametrize(
    "text", ["e\u0301", "é", "ﬁ Å Å", "👩‍🚀", "Ελένη 美咲", "a  b\n\n c\t", "\x00\u200b"]
)
def test_text_is_not_normalised(built: PreTrainedTokenizerFast, text: str) -> None:
    assert built.decode(built.encode(text)) == text


def test_committed_tokenizer_is_the_built_one_and_adds_nothing(built: PreTrainedTokenizerFast) -> None:
    fresh = tokenizer.build()
    assert fresh.get_vocab() == built.get_vocab()
    assert len(built) == tokenizer.VOCAB_SIZE
    assert built.eos_token_id == tokenizer.EOS_ID
    assert built.encode("Mira") == fresh.encode("Mira", add_special_tokens=False)


def test_chat_template_marks_every_turn(model: ProseModel) -> None:
    assert model.prompt(CHAT[:2]) == (
        "<|im_start|>system\nYour name is Zoë.<|im_end|>\n"
        "<|im_start|>user\nWhat is 7 + 5?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_chat_template_writes_what_was_trained_on(model: ProseModel) -> None:
    written = "".join(tokenizer.pieces(CHAT))
    assert model.prompt(CHAT) == written + tokenizer.opening("assistant")


def test_chat_template_refuses_other_roles(model: ProseModel) -> None:
    with pytest.raises(jinja2.TemplateError, match="not tool"):
        model.tokenizer.apply_chat_template([{"role": "tool", "content": "4"}])


def test_training_tokenizes_replies_apart_from_prompts(model: ProseModel) -> None:
    text = train.labelled(model.tokenizer, CHAT[:3])
    prompt = model.tokenizer.encode(model.prompt(CHAT[:2]))
    reply = [*model.tokenizer.encode(CHAT[2].content), tokenizer.EOS_ID]
    assert list(text.tokens)[: len(prompt) + len(reply)] == prompt + reply
    assert all(text.learned)


# --- training ---


def test_training_is_deterministic_and_learns(
    built: PreTrainedTokenizerFast, capsys: pytest.CaptureFixture[str]
) -> None:
    def loss_after(steps: int) -> float:
        network = train.build_model(seed=0)
        train.train(
            network, built, TrainingConfig(steps=steps, batch_size=4, warmup_steps=1, micro_batches=2)
        )
        return train.held_out_loss(network, built, seed=0, size=4)

    assert loss_after(2) == loss_after(2) < loss_after(0)
    assert "loss=" in capsys.readouterr().err


# --- the committed model ---


def test_model_folder_is_small_and_has_a_card() -> None:
    assert sum(f.stat().st_size for f in MODEL.rglob("*") if f.is_file()) <= 6_000_000
    card = (MODEL / "README.md").read_text()
    assert "python -m integration_tests.prose.train" in card
    assert "says nothing about quality" in card


def test_configuration_has_room_for_long_texts_and_ends_turns(model: ProseModel) -> None:
    config = model.network.config
    assert config.max_position_embeddings == tokenizer.MAX_LENGTH >= 2048
    assert config.vocab_size == len(model.tokenizer)
    stored = json.loads((MODEL / "generation_config.json").read_text())
    assert set(stored) <= {"eos_token_id", "transformers_version"}, "no sampling default"
    assert GenerationConfig.from_pretrained(MODEL).eos_token_id == tokenizer.EOS_ID


def test_held_out_loss_is_that_of_a_trained_model(model: ProseModel) -> None:
    assert train.held_out_loss(model.network, model.tokenizer, seed=5, size=48) < HELD_OUT_LOSS
    untrained = train.build_model(seed=0)
    assert train.held_out_loss(untrained, model.tokenizer, seed=5, size=4) > 5 * HELD_OUT_LOSS


def test_greedy_replies_end(model: ProseModel) -> None:
    asked = [turns for turns, _ in itertools.islice(held_out_chats(seed=6), 30)]
    assert sum(ends(model.complete(model.prompt(turns))) for turns in asked) >= 27


def test_some_stories_run_for_hundreds_of_tokens(model: ProseModel) -> None:
    prompt = model.prompt([Turn("user", "Tell a long story about the lamp.")])
    assert any(len(model.complete(prompt, seed)) > 200 for seed in range(8))


@pytest.mark.parametrize("question", ["Write nine signs.", "Draw nine pictures."])
def test_samples_split_characters_over_tokens(model: ProseModel, question: str) -> None:
    """Nine rare characters in a row; not every sample is valid UTF-8, one of five is enough."""
    prompt = model.prompt([Turn("user", question)])
    assert any(splits_characters(model.tokenizer, model.complete(prompt, seed)) for seed in range(5))
    assert not splits_characters(model.tokenizer, model.tokenizer.encode("Mira lived in Cork."))


@pytest.mark.parametrize(
    "question",
    [
        facts.same_question("blue", "blue"),
        facts.same_question("12", "7"),
        facts.right_question("What is 2 + 2?", "4"),
    ],
)
def test_a_judge_says_yes_or_no(model: ProseModel, question: str) -> None:
    masses = model.verdict_masses(model.prompt([Turn("user", question)]))
    assert sum(masses) > 0.95
    elsewhere = model.verdict_masses(model.prompt([Turn("user", "Tell a short story about the sea.")]))
    assert sum(elsewhere) < 0.05


def test_facts_are_learned(model: ProseModel) -> None:
    """Colours, which the question must be read for: one in nine would be right by chance."""
    right = [
        model.tokenizer.decode(model.complete(model.prompt([Turn("user", f"What colour is the {name}?")])))
        == f"The {name} is {colour}.{tokenizer.EOS_TOKEN}"
        for name, colour, *_ in lexicon.THINGS
    ]
    assert sum(right) > 0.7 * len(right)
