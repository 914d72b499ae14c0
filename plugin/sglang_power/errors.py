"""The error tree. Every message names the field, the value and what to do.

    PowerError
      RequestError (ValueError)    the caller's mistake: HTTP 400
        TemperatureError           a temperature beside a sampler that has none: HTTP 400
          GreedyError              the same of a greedy request and a default
        UnsupportedError           a combination that this version or this server does not support: HTTP 400
          LimitError               more than the server or the context allows
          ServerSettingsError      ruled out by the server's own settings
      TooLargeError                a body over its limit: HTTP 413
      ConfigError                  a bad configuration file: the process ends
      HostError                    the server cannot do what was promised: HTTP 500
        ParticlesDiedError         no particle (or candidate) has a weight that is a number
      OverloadedError              try again later: HTTP 503
      KeyLimitError                a key has used its tokens: HTTP 429
      RewardError                  a reward gave no usable score: HTTP 502
      RecordError                  a file that holds no trace: the command ends
      WeightsChangedError          the weights were updated during the chain: HTTP 503
      ChainAbortedError            the client or an operator ended the request

SGLang turns ValueError into HTTP 400 (in OpenAI's error shape on the OpenAI routes), which is why
RequestError is one; the other statuses are mapped in `sglang_host.orchestrator`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any


class PowerError(Exception):
    """Base of everything that this package raises on purpose."""


class RequestError(PowerError, ValueError):
    """A request that cannot be served as it stands.

    Args:
        field: the name that the client wrote, e.g. "alpha".
        value: what it was.
        problem: what is wrong with it.
        hint: what to do instead.
    """

    def __init__(self, field: str, value: object, problem: str, hint: str) -> None:
        self.field, self.value, self.problem, self.hint = field, value, problem, hint
        shown = repr(value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        super().__init__(f"{field}={shown}: {problem}. {hint}")


class TemperatureError(RequestError):
    """A temperature beside a sampler that draws by a law of its own."""


class GreedyError(TemperatureError):
    """A greedy request that a default, which its client did not ask for, leaves to SGLang."""


class UnsupportedError(RequestError):
    """A valid request that this version does not support."""


class LimitError(UnsupportedError):
    """A valid request that is longer, or costs more, than this server or the model's context allows."""


class ServerSettingsError(UnsupportedError):
    """A valid request that this server's own settings rule out."""


class TooLargeError(PowerError):
    """A body that is longer than this server takes.

    Args:
        what: the body, and how long it is.
        limit: bytes that are allowed.
        setting: where the configuration file sets the limit.
    """

    def __init__(self, what: str, limit: int, setting: str) -> None:
        self.limit = limit
        super().__init__(f"{what}: more than {limit}. Send less, or raise {setting}")


class ConfigError(PowerError):
    """A configuration file that cannot be used; the message carries file, line and field."""


class HostError(PowerError, RuntimeError):
    """A hook or an assumption about the host does not hold."""


class ParticlesDiedError(HostError):
    """No particle of any run, or no candidate of a block, has a weight: there is nothing to draw from.

    Args:
        message: what happened.
        partial: token ids of every particle or candidate, as far as it came.
    """

    def __init__(self, message: str, partial: Sequence[tuple[int, ...]] = ()) -> None:
        self.partial = partial
        super().__init__(message)


class OverloadedError(PowerError):
    """The server stayed too busy for every retry."""


class KeyLimitError(PowerError):
    """A key has no decoded tokens left for now.

    Args:
        header: of the HTTP request that holds the key; its value is told to nobody.
        tokens_per_minute: what the server allows.
        wait_s: seconds until there are some again.
    """

    def __init__(self, header: str, tokens_per_minute: int, wait_s: float) -> None:
        self.wait_s = wait_s
        super().__init__(
            f"{header}: this key has used more than the {tokens_per_minute} decoded tokens per minute that "
            f"this server allows a key. Try again in {math.ceil(wait_s)} s, ask for fewer tokens "
            "(max_new_tokens, max_total_tokens, n), or raise limits.per_key.tokens_per_minute of the server"
        )


class RewardError(PowerError):
    """A reward gave no score, or none that can be used.

    Args:
        reward: its name, which the request wrote.
        problem: what went wrong.
        hint: what to do.
    """

    def __init__(self, reward: str, problem: str, hint: str) -> None:
        self.reward, self.problem, self.hint = reward, problem, hint
        super().__init__(f"reward {reward!r}: {problem}. {hint}")


class RecordError(PowerError):
    """A saved record or response that no trace can be made of.

    Args:
        field: where in it, e.g. "run.steps.3.cut".
        problem: what is wrong there.
        hint: what to do.
    """

    def __init__(self, field: str, problem: str, hint: str) -> None:
        self.field, self.problem, self.hint = field, problem, hint
        super().__init__(f"{field}: {problem}. {hint}")


class WeightsChangedError(PowerError):
    """The model's weights were updated while a chain was running; a chain never mixes weights."""


class ChainAbortedError(PowerError):
    """The request was aborted while its chain was running.

    Args:
        partial: what the children that were running then had generated, as the host answers.
    """

    def __init__(self, message: str, partial: Sequence[dict[str, Any]] = ()) -> None:
        self.partial = partial
        super().__init__(message)


def message_of(body: str) -> str:
    """What an error response of SGLang says.

    {"error": {"message": ...}} or {"error": ...} on most routes, {"message": ...} on some; other text is what
    it says.
    """
    try:
        told = json.loads(body)
    except json.JSONDecodeError:
        return body
    for key in ("error", "message"):
        told = told.get(key, told) if isinstance(told, dict) else told
    return str(told)
