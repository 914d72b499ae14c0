"""Asks the served model questions that are answered by yes or no. Tokenizer process.

A question becomes one child request of one token, whose law is read at the tokens that spell yes and no;
the token itself is thrown away. The texts of the questions are `answers.judging`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sglang_power.answers import LLM, LlmRelation, Relation, disarmed, equivalence, right_question
from sglang_power.answers.weights import log_sum
from sglang_power.errors import HostError, UnsupportedError
from sglang_power.sglang_host.tokenizer.children import prefilled_of
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.types import Usage


@dataclass(frozen=True, slots=True)
class Readout:
    """Where the answers of a judge are read, and who wants them.

    Args:
        field, value: what the request asks for a judge by.
        yes, no: ids of the tokens that spell them.
        controls: texts that the tokenizer reads as control tokens.
    """

    field: str
    value: str
    yes: tuple[int, ...]
    no: tuple[int, ...]
    controls: frozenset[str]

    @classmethod
    def of(cls, tokenizer: Any, field: str, value: str) -> Readout:
        """The readout of a tokenizer.

        Args:
            tokenizer: of the served model.
            field, value: see the class.

        Raises:
            UnsupportedError: it has no single token for yes, or none for no.
        """
        ids = {word: _spellings(tokenizer, word) for word in ("yes", "no")}
        for word, found in ids.items():
            if not found:
                problem = f"the served model's tokenizer has no single token for {word!r}"
                raise UnsupportedError(field, value, problem, f"Use another {field}")
        added = getattr(tokenizer, "added_tokens_decoder", {}).values()
        special = {token.content for token in added if token.special}
        return cls(field, value, ids["yes"], ids["no"], frozenset({*special, *tokenizer.all_special_tokens}))


def _spellings(tokenizer: Any, word: str) -> tuple[int, ...]:
    """Tokens that are a word, alone or behind a blank, at the start of a text or of a line.

    A line's start counts because SentencePiece writes a blank before whatever starts a text.
    """
    found: set[int] = set()
    texts = itertools.product(("", "\n"), ("", " "), (word, word.capitalize(), word.upper()))
    for start, blank, spelling in texts:
        last = tokenizer.encode(start + blank + spelling, add_special_tokens=False)[-1:]
        if tokenizer.decode(last).strip().lower() == word:
            found.update(map(int, last))
    return tuple(sorted(found))


class Judge:
    """The served model, asked by child requests on one data-parallel rank.

    A model that always reasons first is asked too early: yes and no are read where its reasoning would
    begin.

    Args:
        parent: the request.
        readout: where its answers are read.
        dp_rank: of the children; None with a single rank.
    """

    def __init__(self, parent: Parent, readout: Readout, dp_rank: int | None) -> None:
        self._parent, self._readout, self._dp_rank = parent, readout, dp_rank

    async def yes(self, question: str) -> tuple[float, Usage]:
        """The probability of yes: p(yes) / (p(yes) + p(no)), each summed over its spellings.

        Args:
            question: its contents quoted, as by `answers.judging`.

        Returns:
            The probability, and what asking cost.

        Raises:
            UnsupportedError: the context has no room for the question.
            HostError: the model's logits are not numbers.
        """
        log_yes, usage = await self._log_yes(question)
        return math.exp(log_yes), usage

    async def self_evaluation(self, question: str, answer: str) -> tuple[float, Usage]:
        """Log of the probability that an answer is right (P(True), Kadavath et al., arXiv 2207.05221).

        Args:
            question: what was asked.
            answer: as the client would be given it.

        Returns:
            The log probability of yes against no, nats; and what asking cost.

        Raises:
            UnsupportedError, HostError: as `yes`.
        """
        return await self._log_yes(right_question(question, answer))

    async def _log_yes(self, question: str) -> tuple[float, Usage]:
        yes, no = self._readout.yes, self._readout.no
        child = self._parent.child(
            self._ids(question),
            1,
            routed_dp_rank=self._dp_rank,
            return_logprob=True,
            token_ids_logprob=[*yes, *no],
        )
        child.sampling_params["logit_bias"] = None  # it is meant for answers
        meta = (await self._parent.run(child))["meta_info"]
        log_p = {int(token): float(value) for value, token, _ in meta["output_token_ids_logprobs"][0]}
        if not all(math.isfinite(value) for value in log_p.values()):
            raise HostError("the model returned logits that are not numbers")
        log_yes, log_no = (log_sum(np.array([log_p[token] for token in ids])) for ids in (yes, no))
        usage = Usage.of_call(1, wasted=1, prefilled=prefilled_of(meta))
        return log_yes - float(np.logaddexp(log_yes, log_no)), usage

    def _ids(self, question: str) -> list[int]:
        """The prompt of a question: as a chat message where the model knows chats, else as a line of text."""
        manager = self._parent.manager
        tokenizer, text = manager.tokenizer, disarmed(question, self._readout.controls)
        template = getattr(tokenizer, "chat_template", None)
        if template is None:
            ids: Sequence[int] = tokenizer.encode(f"{text}\n")
        else:
            # Hybrid reasoning models would begin to reason; tokenizers may refuse options that they lack.
            options = {"enable_thinking": False} if "enable_thinking" in str(template) else {}
            message = [{"role": "user", "content": text}]
            ids = tokenizer.apply_chat_template(
                message, tokenize=True, add_generation_prompt=True, return_dict=False, **options
            )
        room = manager.context_len - manager.num_reserved_tokens - 1
        if len(ids) > room:
            problem = f"a question to the judge takes {len(ids)} tokens, the context has room for {room}"
            field, value = self._readout.field, self._readout.value
            raise UnsupportedError(field, value, problem, "Ask for shorter answers, or leave it out")
        return list(ids)


@dataclass(frozen=True, slots=True)
class SelfEvaluation:
    """An Evaluator: the served model says whether its own answers to a prompt are right.

    Args:
        judge: asks it.
        question: the prompt's text.
    """

    judge: Judge
    question: str

    async def right(self, answer: str) -> tuple[float, Usage]:
        """Return how likely the served model finds an answer right, with what asking has cost."""
        return await self.judge.self_evaluation(self.question, answer)


def relation_of(name: str, judge: Judge | None) -> Relation:
    """The equivalence of a request; `judge` is there where it needs one."""
    return equivalence(name) if judge is None or name != LLM else LlmRelation(judge)
