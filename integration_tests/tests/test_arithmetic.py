"""The arithmetic task: its language, its split, its tokenizer, the weights. No server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from sglang_power.answers import EXTRACTORS
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from integration_tests import serve
from integration_tests.arithmetic import problems as language
from integration_tests.arithmetic import tokenizer, train
from integration_tests.arithmetic.problems import (
    DIGITS,
    MAX_NEW_TOKENS,
    SYMBOLS,
    Problem,
    extract_answer,
    is_correct,
    problems,
    sample_problem,
    solution,
    split_of,
)
from integration_tests.server import ARITHMETIC_MODEL

EIGHT_MB: Final = 8_000_000
EQUATION: Final = re.compile(r"(\d+)([+*])(\d+)\+(\d+)=(\d+);")


@st.composite
def drawn(draw: st.DrawFn) -> Problem:
    """Any problem of the language."""
    symbol = draw(st.sampled_from(SYMBOLS))
    low, high = DIGITS[symbol]
    numbers = st.integers(10 ** (low - 1), 10**high - 1)
    return Problem(draw(numbers), symbol, draw(numbers))


@pytest.fixture(scope="module")
def built() -> PreTrainedTokenizerFast:
    return tokenizer.build()


# --- the language ---


@pytest.mark.parametrize(
    ("problem", "worked"),
    [
        (Problem(347, "+", 86), "7+6+0=13;4+8+1=13;3+0+1=4;A433."),
        (Problem(99, "+", 9), "9+9+0=18;9+0+1=10;A108."),
        (
            Problem(23, "*", 47),
            "23*7:3*7+0=21;2*7+2=16;161;23*4:3*4+0=12;2*4+1=9;92;161+920:1+0+0=1;6+2+0=8;1+9+0=10;A1081.",
        ),
    ],
    ids=lambda value: getattr(value, "text", None),
)
def test_a_solution_is_worked_out_from_the_right(problem: Problem, worked: str) -> None:
    assert solution(problem) == worked


@given(problem=drawn())
def test_every_equation_of_a_solution_is_true_and_so_is_its_answer(problem: Problem) -> None:
    worked = solution(problem)
    equations = EQUATION.findall(worked)
    assert equations
    for first, symbol, second, carry, result in equations:
        value = int(first) + int(second) if symbol == "+" else int(first) * int(second)
        assert value + int(carry) == int(result)
    exact = problem.first + problem.second if problem.symbol == "+" else problem.first * problem.second
    assert extract_answer(worked) == problem.answer == exact
    assert is_correct(problem, worked)
    assert len(worked) + 1 <= MAX_NEW_TOKENS


@pytest.mark.parametrize(
    ("completion", "answer"),
    [("7+6+0=13;A433.", 433), ("A0433.", 433), ("7+6+0=13;", None), ("", None), ("A.", None), ("A43", 43)],
)
def test_an_answer_is_the_number_behind_the_first_a(completion: str, answer: int | None) -> None:
    assert extract_answer(completion) == answer


@given(problem=drawn())
def test_the_extractor_of_numbers_reads_a_solutions_answer(problem: Problem) -> None:
    found = EXTRACTORS["number"].extract(solution(problem))
    assert getattr(found, "value", None) == str(problem.answer)


def test_a_wrong_answer_is_wrong_however_it_was_worked_out() -> None:
    problem = Problem(347, "+", 86)
    assert not is_correct(problem, solution(problem).replace("A433", "A434"))


# --- the split ---


@given(problem=drawn())
def test_a_problem_and_its_swap_are_on_the_same_side(problem: Problem) -> None:
    assert split_of(problem) == split_of(Problem(problem.second, problem.symbol, problem.first))


def test_shares_of_the_split_are_those_stated() -> None:
    rng = np.random.default_rng(0)
    both = [
        Problem(int(a), symbol, int(b))
        for symbol in SYMBOLS
        for a, b in rng.integers(10, 100, size=(4000, 2))
    ]
    for side, share in (("held_out", 0.05), ("validation", 0.05), ("train", 0.9)):
        assert np.mean([split_of(problem) == side for problem in both]) == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("side", ["train", "validation", "held_out"])
def test_problems_are_of_the_side_that_was_asked_for(side: language.Split) -> None:
    rng = np.random.default_rng(3)
    found = [sample_problem(rng, side) for _ in range(200)]
    assert {split_of(problem) for problem in found} == {side}
    assert {problem.symbol for problem in found} == set(SYMBOLS)


def test_the_same_seed_gives_the_same_distinct_problems() -> None:
    assert problems(100, 5) == problems(100, 5)
    assert len({problem.text for problem in problems(100, 5)}) == 100
    assert problems(100, 5) != problems(100, 6)


# --- tokenizer and training ---


@given(text=st.text(max_size=20))
def test_texts_come_back_from_the_tokenizer(text: str) -> None:
    built = tokenizer.build()
    ids = built.encode(text)
    assert len(ids) == len(text.encode())
    assert built.decode(ids) == text


def test_the_solution_and_its_end_are_learned_and_the_prompt_is_not(built: PreTrainedTokenizerFast) -> None:
    problem = Problem(12, "+", 34)
    text = train.labelled(built, problem)
    learned = [token for token, is_learned in zip(text.tokens, text.learned, strict=True) if is_learned]
    assert built.decode(learned) == f"{solution(problem)}{tokenizer.EOS_TOKEN}"
    assert not any(text.learned[: len(problem.text)])


def test_no_held_out_problem_is_trained_on(built: PreTrainedTokenizerFast) -> None:
    rng = np.random.default_rng(1)
    for batch in train.sample_batches(built, rng, "train", 64, 2):
        for row in batch.input_ids.tolist():
            text = built.decode(row).partition("=")[0]
            found = re.fullmatch(r"(\d+)([+*])(\d+)", text)
            assert found is not None
            symbol: language.Symbol = "+" if found[2] == "+" else "*"
            assert split_of(Problem(int(found[1]), symbol, int(found[3]))) == "train"


def test_training_stops_when_it_is_told(built: PreTrainedTokenizerFast) -> None:
    """And the loss of the few steps falls."""
    from integration_tests import training

    model, asked = train.build_model(0), list[int]()
    config = training.TrainingConfig(steps=50, batch_size=4, micro_batches=1, warmup_steps=1)

    def enough(steps: int) -> bool:
        asked.append(steps)
        return steps == 6

    before = train.held_out_loss(model, built, seed=0, size=64)
    training.fit(model, config, lambda rng: train.sample_batches(built, rng, "train", 4, 1), enough)
    assert asked == [1, 2, 3, 4, 5, 6]
    assert train.held_out_loss(model, built, seed=0, size=64) < before


# --- the committed weights ---


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    """The committed weights, as the server on the CPU runs them."""
    return LlamaForCausalLM.from_pretrained(ARITHMETIC_MODEL, dtype=torch.float32).eval()


def test_the_weights_are_small_and_in_half_precision() -> None:
    path = ARITHMETIC_MODEL / "model.safetensors"
    assert path.stat().st_size <= EIGHT_MB
    with safe_open(path, "pt") as stored:
        assert {stored.get_tensor(name).dtype for name in stored.keys()} == {torch.bfloat16}  # noqa: SIM118


def test_the_committed_tokenizer_is_the_one_that_is_built(built: PreTrainedTokenizerFast) -> None:
    committed = AutoTokenizer.from_pretrained(ARITHMETIC_MODEL)
    for text in ("347+86=", solution(Problem(23, "*", 47)), "Zoë 🙂"):
        assert committed.encode(text) == built.encode(text)
    chat = [{"role": "user", "content": "12+34="}]
    assert committed.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == "12+34="


def test_greedy_solves_40_to_80_percent_of_held_out_problems(
    model: LlamaForCausalLM, built: PreTrainedTokenizerFast
) -> None:
    """Of 100 further problems: a share of 40 to 80% leaves 30 to 90% with a chance of 0.02 at most."""
    accuracy = train.greedy_accuracy(model, built, problems(100, seed=99))
    assert 0.3 <= accuracy <= 0.9


# --- serving it ---


def test_serve_takes_the_models_name_and_leaves_the_rest_to_sglang() -> None:
    command = serve.command_of(["--model", "arithmetic", "--page-size", "1"])
    assert command[command.index("--model-path") + 1] == str(ARITHMETIC_MODEL)
    assert command[command.index("--served-model-name") + 1] == "arithmetic"
    assert command[-2:] == ["--page-size", "1"]
    assert "pivot" in serve.command_of([])


def test_serve_says_how_to_get_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("integration_tests.real.preparing.FOLDER", tmp_path)
    with pytest.raises(SystemExit):
        serve.command_of(["--model", "gemma3"])
    assert "make real MODEL=gemma3" in capsys.readouterr().err
