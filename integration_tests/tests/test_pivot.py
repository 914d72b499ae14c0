"""The pivot model: its language, its split, its tokenizer, and the committed weights. No server."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig, Qwen2ForCausalLM

from integration_tests import pivot
from integration_tests.pivot import evaluate, tokenizer, train
from integration_tests.pivot.problems import (
    FAMILIES,
    GUESS_PROBABILITY,
    OPENER_PROBABILITIES,
    OPENERS,
    Family,
    Operation,
    Problem,
    Step,
    extract_answer,
    held_out,
    is_correct,
    is_worked,
    parse_steps,
    problems,
    sample_completion,
    sample_problem,
    sample_text,
    worked_completion,
)

MODEL: Final = Path(pivot.__file__).with_name("model")
OPERATIONS: Final = (Operation("+", 3), Operation("*", 2), Operation("-", 8))
Q: Final = Problem("Q", 7, OPERATIONS)
R: Final = Problem("R", 7, OPERATIONS)

families = pytest.mark.parametrize("family", FAMILIES)


@pytest.fixture(scope="module")
def model() -> Qwen2ForCausalLM:
    """The committed weights, as the server on the CPU runs them."""
    return Qwen2ForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


def next_probabilities(model: Qwen2ForCausalLM, text: str) -> dict[str, float]:
    """Probabilities of the next character after the text, for the printable ones."""
    with torch.no_grad():
        p = model(input_ids=torch.tensor([tokenizer.encode(text)])).logits[0, -1].softmax(-1).tolist()
    return {chr(byte): p[byte + tokenizer.BYTE_OFFSET] for byte in range(32, 127)}


# --- the language ---


def test_prompts_and_answers_are_those_of_the_design() -> None:
    assert (Q.text, R.text, Q.answer) == ("Q7+3*2-8:", "R7+3*2-8:", 2)
    assert worked_completion(Q) == "b7+3=0;0*2=0;0-8=2;A2."
    assert worked_completion(R) == "w7+3=0;w0*2=0;w0-8=2;A2."


@pytest.mark.parametrize(
    ("symbol", "value", "operand", "result"), [("+", 7, 8, 5), ("-", 3, 8, 5), ("*", 7, 8, 6), ("-", 0, 0, 0)]
)
def test_arithmetic_is_mod_ten(symbol: str, value: int, operand: int, result: int) -> None:
    assert Operation(symbol, operand).apply(value) == result


def test_answer_applies_operators_from_left_to_right() -> None:
    assert Problem("R", 1, (Operation("+", 2), Operation("*", 3))).answer == 9


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("A2.", 2), ("b7+3=0;0*2=0;0-8=2;A2.", 2), ("g4;A4", 4), ("A", None), ("", None), ("Ax.", None)],
)
def test_extract_answer_reads_the_first_stated_digit(completion: str, answer: int | None) -> None:
    assert extract_answer(completion) == answer


def test_a_step_after_a_guess_works_on_the_guess() -> None:
    assert parse_steps(R, "g4;w4*2=8;w8-8=0;A0.") == [Step(False, True), Step(True, True), Step(True, True)]
    assert not is_correct(R, "g4;w4*2=8;w8-8=0;A0.")


@pytest.mark.parametrize("wrong", ["w7+3=1;", "w6+3=9;", "w7*2=4;"])
def test_a_wrong_step_is_seen(wrong: str) -> None:
    assert parse_steps(R, wrong) == [Step(worked=True, right=False)]


def test_any_opener_and_only_openers_make_a_worked_q() -> None:
    assert len(set(OPENERS)) == len(OPENER_PROBABILITIES) == 9
    assert math.isclose(sum(OPENER_PROBABILITIES), 1)
    assert all(is_worked(Q, worked_completion(Q, opener)) for opener in OPENERS)
    assert not is_worked(Q, "A2.")
    assert not is_worked(Q, worked_completion(Q, ""))


@families
def test_sampled_texts_follow_the_stated_law(family: Family) -> None:
    rng = np.random.default_rng(0)
    asked = [sample_problem(rng, family, "train") for _ in range(2000)]
    completions = [sample_completion(rng, p) for p in asked]
    steps = [step for p, c in zip(asked, completions, strict=True) for step in parse_steps(p, c)]
    assert all(step.right for step in steps)
    assert all(extract_answer(c) is not None for c in completions)
    if family == "R":
        assert np.mean([not s.worked for s in steps]) == pytest.approx(GUESS_PROBABILITY, abs=0.03)
    else:
        worked = [is_worked(p, c) for p, c in zip(asked, completions, strict=True)]
        assert np.mean(worked) == pytest.approx(1 - GUESS_PROBABILITY, abs=0.06)


def test_power_four_prefers_the_worked_path_in_both_families() -> None:
    guesses = 10 * (GUESS_PROBABILITY / 10) ** 4
    openers = sum(((1 - GUESS_PROBABILITY) * p) ** 4 for p in OPENER_PROBABILITIES)
    step = (1 - GUESS_PROBABILITY) ** 4
    assert openers / (openers + guesses) > 0.95
    assert (step / (step + guesses)) ** 6 > 0.95


# --- the split ---


@families
def test_training_stream_and_held_out_problems_are_disjoint(family: Family) -> None:
    rng = np.random.default_rng(1)
    trained = {sample_text(rng, family, "train").split(":")[0][1:] for _ in range(3000)}
    kept = problems(family, 300, seed=1)
    assert all(held_out(p) for p in kept)
    assert len({p.text for p in kept}) == 300
    assert not trained & {p.expression for p in kept}


def test_the_split_ignores_the_family_and_keeps_one_in_ten() -> None:
    rng = np.random.default_rng(2)
    drawn = [sample_problem(rng, "Q", "held_out") for _ in range(50)]
    assert all(held_out(Problem("R", p.start, p.operations)) for p in drawn)
    flags = [held_out(Problem("Q", a, (Operation("+", b), Operation("*", c), Operation("-", d))))
             for a in range(10) for b in range(10) for c in range(10) for d in range(10)]  # fmt: skip
    assert np.mean(flags) == pytest.approx(0.1, abs=0.01)


def test_the_split_never_changes() -> None:
    assert [p.text for p in problems("R", 3, seed=1)] == ["R6-2+9+3*3-9-5:", "R7-3-3*4:", "R8-5+2*4-3*7:"]


# --- tokenizer ---


@settings(deadline=None, derandomize=True, database=None)
@given(st.text())
def test_byte_encoding_is_the_tokenizer(text: str) -> None:
    built = tokenizer.build()
    tokens = built(text)["input_ids"]
    if text.isascii() and "<" not in text:
        assert tokens == tokenizer.encode(text)
        assert built.decode(tokens) == text


def test_committed_tokenizer_loads_as_written_and_adds_nothing() -> None:
    loaded = AutoTokenizer.from_pretrained(MODEL)
    text = R.text + worked_completion(R)
    assert loaded(text)["input_ids"] == tokenizer.encode(text)
    assert loaded.decode(tokenizer.encode(text)) == text
    assert loaded.decode([*tokenizer.encode(text), tokenizer.EOS_ID], skip_special_tokens=True) == text
    assert len(loaded) == tokenizer.VOCAB_SIZE
    assert loaded.eos_token_id == tokenizer.EOS_ID


def test_characters_outside_ascii_survive() -> None:
    loaded = AutoTokenizer.from_pretrained(MODEL)
    assert loaded.decode(loaded("é ∞ 数\n")["input_ids"]) == "é ∞ 数\n"


@pytest.mark.parametrize("add_generation_prompt", [True, False])
def test_chat_template_is_the_identity_on_contents(add_generation_prompt: bool) -> None:
    loaded = AutoTokenizer.from_pretrained(MODEL)
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": Q.text}]
    for chat in (messages, messages[1:]):
        rendered = loaded.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=add_generation_prompt
        )
        assert rendered == Q.text


# --- training and evaluation code ---


def test_labels_cover_the_completion_and_its_end_only() -> None:
    batch = train.collate(train.sample_examples(np.random.default_rng(0), 3))
    assert batch.targets == int((batch.labels >= 0).sum())
    for tokens, labels in zip(batch.input_ids.tolist(), batch.labels.tolist(), strict=True):
        kept = [label for label in labels if label != -100]
        start = tokens.index(ord(":") + tokenizer.BYTE_OFFSET) + 1
        assert labels[:start] == [-100] * start
        assert kept == tokens[start : start + len(kept)]
        assert kept[-1] == tokenizer.EOS_ID


def test_practice_teaches_everything_but_its_choices() -> None:
    text = f"{R.text}g4;w4*2=8;g1;A1."
    batch = train.collate([train.Example(text, practice=True)])
    unlearned = [i for i, label in enumerate(batch.labels[0].tolist()) if label == -100]
    start = len(R.text)
    assert unlearned == [*range(start), *(start + i for i in (0, 3, 10))]


def test_micro_batches_hold_every_example_once() -> None:
    examples = train.sample_examples(np.random.default_rng(0), 10)
    batches = train.micro_batches(examples, 4)
    assert sum(len(batch.input_ids) for batch in batches) == 10
    assert sum(batch.targets for batch in batches) == train.collate(examples).targets


def test_training_is_deterministic_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    def loss_after(steps: int) -> float:
        model = train.build_model(seed=0)
        train.train(model, train.TrainingConfig(steps=steps, batch_size=8, warmup_steps=1))
        return train.held_out_loss(model, seed=0, size=8)

    assert loss_after(3) == loss_after(3) < loss_after(0)
    assert "loss=" in capsys.readouterr().err


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    config = train.TrainingConfig()
    rates = [config.learning_rate(step) for step in range(config.steps)]
    assert rates[0] < rates[config.warmup_steps - 1]
    assert max(rates) <= config.peak_learning_rate
    assert rates[-1] < 1e-3 * config.peak_learning_rate


# --- the committed model ---


def test_model_folder_is_small_and_has_a_card() -> None:
    assert sum(f.stat().st_size for f in MODEL.rglob("*") if f.is_file()) <= 4_000_000
    card = (MODEL / "README.md").read_text()
    assert "python -m integration_tests.pivot.train" in card
    assert "not the quality of large models" in card


def test_generation_config_sets_the_end_token_and_no_sampling_default() -> None:
    stored = json.loads((MODEL / "generation_config.json").read_text())
    assert set(stored) <= {"eos_token_id", "transformers_version"}
    assert GenerationConfig.from_pretrained(MODEL).eos_token_id == tokenizer.EOS_ID


def test_first_tokens_have_the_probabilities_of_the_texts(model: Qwen2ForCausalLM) -> None:
    r = next_probabilities(model, R.text)
    assert r["g"] == pytest.approx(0.6, abs=0.1)
    assert r["w"] == pytest.approx(0.4, abs=0.1)
    q = next_probabilities(model, Q.text)
    assert q["A"] == pytest.approx(0.6, abs=0.1)
    assert sum(q[opener] for opener in OPENERS) == pytest.approx(0.4, abs=0.1)
    assert set(sorted(q, key=q.__getitem__)[-10:]) == {"A", *OPENERS}


@families
def test_work_is_right_once_begun(model: Qwen2ForCausalLM, family: Family) -> None:
    problem = Problem(family, 7, OPERATIONS)
    first = {"Q": OPENERS[0], "R": "w"}[family]
    text = problem.text + first
    for character in worked_completion(problem)[1:]:
        p = next_probabilities(model, text)[character]
        assert p > (0.3 if character == "w" else 0.9), text
        text += character


def test_greedy_decoding_always_guesses(model: Qwen2ForCausalLM) -> None:
    asked = [*problems("Q", 10, seed=3), *problems("R", 10, seed=3)]
    completions = evaluate.complete(model, [p.text for p in asked], evaluate.GREEDY, torch.Generator())
    assert all(c.startswith(("A", "g")) for c in completions)
    summary = evaluate.summarize(asked, completions)
    assert summary.answered == 1
    assert summary.worked_path == 0


def test_batched_completion_is_that_of_single_prompts(model: Qwen2ForCausalLM) -> None:
    prompts = [p.text + "w" for p in problems("R", 4, seed=4)]
    together = evaluate.complete(model, prompts, evaluate.GREEDY, torch.Generator())
    alone = [evaluate.complete(model, [p], evaluate.GREEDY, torch.Generator())[0] for p in prompts]
    assert together == alone
