"""Reads one record of each data set, in the form that it is published in. Pure."""

from __future__ import annotations

import hashlib
import re
from typing import Final

import numpy as np

from sglang_power.errors import ConfigError
from sglang_power.evaluation.formats import Line
from sglang_power.evaluation.items import LETTERS, Item

_GSM8K_GOLD: Final = re.compile(r"####\s*(.+?)\s*$")
_CALCULATOR: Final = re.compile(r"<<[^>]*>>")
_UNIT: Final = re.compile(r"\s*\([^)]*\)\s*$")


def gsm8k(line: Line) -> Item:
    """Read openai/grade-school-math: question, and an answer that ends with #### and a number."""
    answer = line.text("answer")
    found = _GSM8K_GOLD.search(answer)
    if found is None:
        raise ConfigError(f"{line.where}: its answer has no '#### number'")
    steps = _CALCULATOR.sub("", answer[: found.start()]).strip()
    worked = f"{steps}\nThe answer is {found[1]}."
    return Item(
        id=line.name("id"), question=line.text("question"), gold=found[1], kind="number", worked=worked
    )


def math500(line: Line) -> Item:
    """Read MATH500: problem (or prompt) and answer."""
    gold = line.text("answer")
    return Item(
        id=line.name("unique_id", "id"),
        question=line.text("problem", "prompt"),
        gold=gold,
        kind="math",
        worked=f"The answer is $\\boxed{{{gold}}}$.",
    )


def aime(line: Line) -> Item:
    """Read AIME as sgl-eval and the hub publish it: an answer from 0 to 999."""
    gold = line.text("expected_answer", "answer", "Answer")
    return Item(
        id=line.name("id", "ID"),
        question=line.text("problem", "Problem", "question"),
        gold=gold,
        kind="math",
        worked=f"The answer is $\\boxed{{{gold}}}$.",
    )


def asdiv(line: Line) -> Item:
    """Read ASDiv: body, question and an answer with its unit in brackets."""
    gold = _UNIT.sub("", line.text("Answer"))
    question = f"{line.text('Body')} {line.text('Question')}"
    worked = f"The answer is {gold}."
    return Item(id=line.name("ID"), question=question, gold=gold, kind="number", worked=worked)


def humaneval(line: Line) -> Item:
    """Read openai/human-eval: prompt, test and entry point."""
    entry = line.text("entry_point")
    return Item(
        id=line.name("task_id"),
        question=line.text("prompt"),
        gold=f"{line.text('test')}\ncheck({entry})\n",
        kind="code",
        entry_point=entry,
        worked=str(line.values.get("canonical_solution", "")),
    )


def gpqa(line: Line) -> Item:
    """Read GPQA: the authors' CSV, whose options are put into an order that the question alone decides, or
    a question that shows its options, with the answer's letter.
    """
    if "Correct Answer" not in line.values:
        gold = line.text("answer")
        question = line.text("prompt", "question")
        return Item(id=line.name("id"), question=question, gold=gold, kind="choice", worked=_chosen(gold))
    asked = line.text("Question").strip()
    right = line.text("Correct Answer").strip()
    options = [right, *(line.text(f"Incorrect Answer {number}").strip() for number in (1, 2, 3))]
    seed = int.from_bytes(hashlib.sha256(asked.encode()).digest()[:8])
    order = np.random.default_rng(seed).permutation(len(options)).tolist()
    gold = LETTERS[order.index(0)]
    shown = "\n".join(f"({letter}) {options[at]}" for letter, at in zip(LETTERS, order, strict=True))
    name = line.name("Record ID")
    return Item(id=name, question=f"{asked}\n\n{shown}", gold=gold, kind="choice", worked=_chosen(gold))


def _chosen(letter: str) -> str:
    return f"The answer is ({letter})."
