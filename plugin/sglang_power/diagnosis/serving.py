"""Makes the moves of chains on a running server, by a request for `power` each: the kernel is the served one.

A first answer is the answer to the request as it stands, with `steps` of its own. A step is a request with
that answer as its draft (`initial_ids`), `steps: 1` and the move's seed: the server scores the draft, and
makes one step of the last stage. Cut, uniform and token draws are functions of the seed and of the position.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from sglang_power.algorithms.coupling import Move, Place
from sglang_power.engines.http.connection import Connection
from sglang_power.errors import HostError
from sglang_power.fields import UNTEMPERED
from sglang_power.prompt_files import PromptLine
from sglang_power.reports import report_of

Json: TypeAlias = dict[str, Any]

TOKENIZE_ROUTE: Final = "/v1/tokenize"


@dataclass(frozen=True)
class ChainRequest:
    """What is diagnosed: a request for `power`.

    Args:
        power: its parameters, without seed, steps and draft.
        start_steps: its steps, of the request that a chain starts with.
        max_tokens: of an answer.
        stop: strings that end it, beside the model's own stops.
    """

    power: Json
    start_steps: int
    max_tokens: int
    stop: tuple[str, ...] = ()

    def sampling(self, move: Move) -> Json:
        """Return the sampling parameters of a move."""
        asked: Json = {"steps": self.start_steps}
        if move.before is not None:
            asked = {"steps": 1, "initial_ids": list(move.before)}
        custom = {"sampler": "power", **self.power, **asked, "seed": move.seed, "strict": True}
        shown = {**UNTEMPERED, "max_new_tokens": self.max_tokens, "custom_params": custom}
        return {**shown, "stop": list(self.stop)} if self.stop else shown


async def prompt_of(connection: Connection, model: str, line: PromptLine) -> Json:
    """Return a prompt as /generate takes it; messages become ids by the served model's chat template.

    Raises:
        RequestError: the server cannot make a prompt of the messages.
    """
    if line.messages is None:
        return {"text": line.text}
    body = {"model": model, "messages": line.messages}
    told = await connection.post(TOKENIZE_ROUTE, body)
    return {"input_ids": told["tokens"]}


@dataclass
class ServedChain:
    """The chain of one prompt.

    Args:
        connection: to the server.
        prompt: as /generate takes it.
        request: what is diagnosed.

    Attributes:
        decoded: tokens that all moves have taken.
        steps, accepted: of all moves but first answers.
    """

    connection: Connection
    prompt: Json
    request: ChainRequest
    decoded: int = field(default=0, init=False)
    steps: int = field(default=0, init=False)
    accepted: int = field(default=0, init=False)

    async def make(self, move: Move) -> Place:
        """Make one move.

        Raises:
            RequestError: the server refuses the request.
            HostError: another sampler answered, a limit of the server cut the move short, or it is gone.
        """
        body = {**self.prompt, "sampling_params": self.request.sampling(move)}
        answer = await self.connection.generate(body)
        report = report_of(answer["meta_info"].get("power"), "power")
        if report["stopped_by"] != "completed":
            raise HostError(
                f"a move of a chain was ended by {report['stopped_by']}: raise the server's limit"
            )
        self.decoded += report["decoded_tokens"]
        if move.before is not None:
            self.steps += report["steps"]
            self.accepted += report["accepted"]
        return Place(_ids(answer["output_ids"]), _number(report["log_p"]))


def _ids(told: Sequence[Any]) -> tuple[int, ...]:
    return tuple(int(token) for token in told)


def _number(log_p: float | None) -> float:
    """JSON has no infinity: null stands for a probability that underflows to 0."""
    return float("-inf") if log_p is None else float(log_p)
