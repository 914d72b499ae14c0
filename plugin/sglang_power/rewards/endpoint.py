"""A reward behind an HTTP endpoint of the operator.

POST {"prompt": ..., "answer": ...} is answered by {"score": number}. The URL comes from the server's
configuration file only: a client can name an endpoint, never an address. Errors do not show the URL.
"""

from __future__ import annotations

import asyncio
import functools
import os
from typing import Annotated

import httpx
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError
from tenacity import AsyncRetrying, retry_if_exception, stop_after_attempt, wait_exponential, wait_random

from sglang_power.errors import ConfigError, RewardError
from sglang_power.fields import Positive, PositiveFloat, RewardBound
from sglang_power.rewards.base import REMEDY, OnError


class EndpointConfig(BaseModel):
    """One entry of the configuration section `rewards`.

    Args:
        url: where answers are scored.
        timeout_s: seconds that one attempt may take.
        retries: attempts after the first one, on timeouts, broken connections, HTTP 429 and 5xx.
        backoff_s: seconds before the first retry; they double, plus up to as many at random.
        max_concurrent: calls at once, per tokenizer process; more wait.
        upper_bound: no score is above it; early rejection needs it.
        on_error: what a call that failed for good does.
        headers_env: name of the environment variable that holds a bearer token.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    url: AnyHttpUrl
    timeout_s: PositiveFloat = 10.0
    retries: Annotated[int, Field(ge=0)] = 2
    backoff_s: PositiveFloat = 0.1
    max_concurrent: Positive = 16
    upper_bound: RewardBound | None = None
    on_error: OnError = "fail"
    headers_env: Annotated[str, Field(min_length=1)] | None = None

    def headers(self) -> dict[str, str]:
        """What every call carries.

        Raises:
            ConfigError: the environment variable of the token is not set.
        """
        if self.headers_env is None:
            return {}
        token = os.environ.get(self.headers_env)
        if not token:
            raise ConfigError(f"the environment variable {self.headers_env!r} is not set; export the token")
        return {"Authorization": f"Bearer {token}"}


class _Scored(BaseModel):
    """The endpoint's answer; what else it says is its own matter."""

    model_config = ConfigDict(strict=True)

    score: float


class Endpoint:
    """Scores by HTTP, for the event loop that first uses it.

    Args:
        name: for errors.
        config: where and how.
    """

    def __init__(self, name: str, config: EndpointConfig) -> None:
        self._name, self._config = name, config
        self._slots = asyncio.Semaphore(config.max_concurrent)

    @property
    def upper_bound(self) -> float | None:
        """Return the largest score that the operator has declared; None where none is."""
        return self._config.upper_bound

    async def score(self, prompt: str, answer: str) -> float:
        """Return the endpoint's score of an answer, after retries where they are worth it.

        Raises:
            RewardError: every attempt failed, or the answer has another shape.
        """
        backoff = self._config.backoff_s
        retrying = AsyncRetrying(
            retry=retry_if_exception(_is_transient),
            wait=wait_exponential(multiplier=backoff) + wait_random(0.0, backoff),
            stop=stop_after_attempt(self._config.retries + 1),
            reraise=True,
        )
        try:
            response: httpx.Response = await retrying(self._post, {"prompt": prompt, "answer": answer})
        except (TimeoutError, httpx.HTTPError) as error:
            raise RewardError(self._name, self._told(error), REMEDY) from error
        try:
            return _Scored.model_validate_json(response.content).score
        except ValidationError as error:
            problem = f'answered {response.text!r:.80}, not {{"score": number}}'
            raise RewardError(self._name, problem, REMEDY) from error

    async def aclose(self) -> None:
        """Close the connections; the endpoint cannot be used any more."""
        await self._client.aclose()

    @functools.cached_property
    def _client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(headers=self._config.headers(), timeout=None)

    async def _post(self, body: dict[str, str]) -> httpx.Response:
        # httpx has timeouts of single reads and writes only; this one is of the whole attempt
        async with self._slots, asyncio.timeout(self._config.timeout_s):
            response = await self._client.post(str(self._config.url), json=body)
        return response.raise_for_status()

    def _told(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            what = f"no answer within {self._config.timeout_s} s"
        elif isinstance(error, httpx.HTTPStatusError):
            what = f"HTTP {error.response.status_code}"
        else:
            what = type(error).__name__
        attempts = self._config.retries + 1 if _is_transient(error) else 1
        return f"its endpoint failed: {what} ({attempts} attempt{'s' * (attempts > 1)})"


def _is_transient(error: BaseException) -> bool:
    if isinstance(error, httpx.HTTPStatusError):
        status = error.response.status_code
        return status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR
    return isinstance(error, TimeoutError | httpx.TransportError)
