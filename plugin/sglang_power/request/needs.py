"""What a request for whole answers needs beside an engine.

Each request model says it of itself. Planning, refusal and the tools of a run read this and never the kind
of request, so that a sampler of another package is planned like one of ours. Knows no server.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

AnswerKind = Literal["number", "choice", "boxed", "regex", "continuation", "text"]

SAMPLING = ("temperature", "top_p", "top_k", "min_p")
"""SGLang's own sampling parameters that say how a token is drawn."""


@dataclass(frozen=True, slots=True)
class ForcedTokens:
    """Tokens that answers begin with.

    Args:
        field: the parameter that holds them.
        tokens: as text or as ids.
        whole: they may be a whole answer, up to the horizon and to its stop; otherwise answers go on behind
            them, so they may neither hold a stop nor fill the horizon.
    """

    field: str
    tokens: str | tuple[int, ...]
    whole: bool


@dataclass(frozen=True, slots=True)
class Wanted:
    """Something that a parameter asks for, which a server may not have.

    Args:
        field, value: the parameter, for the message.
    """

    field: str
    value: str


@dataclass(frozen=True, slots=True)
class Capped:
    """A parameter that a server limits.

    Args:
        field, value: the parameter.
        limit: the field of the server's `limits` that it may not exceed.
        count: calls at once that it makes with others, which are limited in its place; None: it alone is.
    """

    field: str
    value: int
    limit: str
    count: int | None = None

    def inside(self, parameter: str) -> Capped:
        """Return the same of a request that is a parameter of another one."""
        return replace(self, field=f"{parameter}.{self.field}")


@dataclass(frozen=True, slots=True)
class Needs:
    """Needs of one request.

    Args:
        answers: sequences that one choice of it generates at least.
        answers_field: the parameter that raises their number.
        least: so many of them will do, where the request's tokens hold no more; None: all of them.
        in_step: they grow in step and have to run at the same time, so that their number is bounded by
            `limits.max_particles` in place of `limits.max_chains`.
        quadratic: its cost grows with the square of the horizon.
        acting: those of SAMPLING that say how its tokens are drawn.
        drawn_by: the parameter whose own parameters draw instead of SAMPLING; naming truncation beside it
            would do nothing, so it is refused.
        ignores_temperature: the client's temperature is not applied, and it asked for that.
        answer: which part of a text is the answer, with `answer_regex`; None where none is read.
        equivalence: when two answers are the same; None where none are compared.
        judge: what asks for the served model's own judgement.
        reward: the reward that scores answers.
        bounded_reward: the reward, where there is one, has to declare its upper bound.
        forced: what answers begin with.
        reasoning_end: what asks where the reasoning of the served model ends.
        second_prompt: the parameter that holds the prompt of a twin, and it: the engine decodes one answer
            behind both prompts in lock step.
        deterministic: no seed has a part in its candidates, so that n choices are computed once. Greedy
            continuations are the argmax of their rows, the first of equal logits. Ties between classes of
            answers are drawn all the same: an Outcome says where one was.
        capped: parameters that the server limits.
    """

    answers: int = 1
    answers_field: str = "n"
    least: int | None = None
    in_step: bool = False
    quadratic: bool = False
    acting: tuple[str, ...] = ()
    drawn_by: str | None = None
    ignores_temperature: bool = False
    answer: AnswerKind | None = None
    answer_regex: str | None = None
    equivalence: str | None = None
    judge: Wanted | None = None
    reward: str | None = None
    bounded_reward: bool = False
    forced: ForcedTokens | None = None
    reasoning_end: Wanted | None = None
    second_prompt: tuple[str, str | list[int]] | None = None
    deterministic: bool = False
    capped: tuple[Capped, ...] = ()
