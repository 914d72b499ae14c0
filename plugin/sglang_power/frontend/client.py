"""One server over HTTP, as programs need it: continue token ids, encode, decode, score, probe.

Owns the connections, one set per backend, retries and the translation of HTTP failures into this package's
errors. Knows no program. Requests have no side effects, so a lost connection is tried again.
"""

from __future__ import annotations

import json
import ssl
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import Any, Protocol

import httpx
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

from sglang_power.engines.http.wire import NEUTRAL
from sglang_power.errors import (
    HostError,
    OverloadedError,
    PowerError,
    RequestError,
    UnsupportedError,
    message_of,
)
from sglang_power.gateways import INFO_ROUTE, is_router, server_of
from sglang_power.routes import STATUS_ROUTE

Answer = dict[str, Any]
"""SGLang's response dictionary: text, output_ids, meta_info."""

WAIT = httpx.Timeout(None, connect=30.0)
"""A generation may take any time."""

PROBE_WAIT = httpx.Timeout(600.0, connect=30.0)
"""The probe stands in the server's queue as generations do, so it may take its time, too."""

ATTEMPTS = 3
IDLE_S = 3.0
"""SGLang closes idle connections after 5 s; the client must give them up first."""

LOST = (httpx.ConnectError, httpx.ReadError, httpx.RemoteProtocolError, OverloadedError)
"""What is tried again."""


class Client:
    """A running server with the plugin.

    Args:
        url: its base URL.  api_key: its key.
        verify: a file of certificates; the system's where absent.
        transport: for tests.

    Attributes:
        status: what the plugin said when it was probed.

    Raises:
        HostError: the server does not answer as one with the plugin.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        verify: str | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        self._http = httpx.Client(
            base_url=server_of(url),
            headers=headers,
            verify=True if verify is None else ssl.create_default_context(cafile=verify),
            timeout=WAIT,
            limits=httpx.Limits(keepalive_expiry=IDLE_S, max_connections=None),
            transport=transport,
        )
        self._joins = False
        try:
            self.status = self._probe()
        except PowerError:
            self.close()
            raise

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def _probe(self) -> dict[str, Any]:
        response = self._send("GET", STATUS_ROUTE, None, PROBE_WAIT)
        if response.status_code == HTTPStatus.OK:
            status: dict[str, Any] = response.json()
            return status
        why = "it runs without sglang-power. Install the plugin there"
        if response.status_code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            why = "it wants its API key. Give it with the backend"
        elif is_router(self._send("GET", INFO_ROUTE, None, PROBE_WAIT).text):
            why = "it is SGLang's router, through which /generate names no sampler. Give a worker's URL"
        told = f"{self._http.base_url} answers {STATUS_ROUTE} with HTTP {response.status_code}"
        raise HostError(f"{told}: {why}, and see `sglang-power check`")

    def generate(self, body: dict[str, Any]) -> Any:
        """POST /generate; a list of prompts gives a list of answers."""
        answer = self._post("/generate", body)
        for each in answer if isinstance(answer, list) else [answer]:
            check_finish(each)
        return answer

    def stream(self, body: dict[str, Any]) -> Iterator[Answer]:
        """Every event of a /generate stream; each holds all of the text so far."""
        try:
            with self._http.stream("POST", "/generate", json={**body, "stream": True}) as response:
                if response.status_code != HTTPStatus.OK:
                    response.read()
                    raise _failure(response)
                for line in response.iter_lines():
                    if line.startswith("data:") and line != "data: [DONE]":
                        yield _event(line.removeprefix("data:"))
        except httpx.HTTPError as error:
            raise HostError(f"the stream of {self._http.base_url} broke: {error!r}") from error

    def prompt_ids(self, text: str) -> list[int]:
        """The tokens of a prompt, which the server caches on the way."""
        answer = self.generate({"text": text, **_warming(), "return_prompt_token_ids": True})
        ids: list[int] = answer["prompt_token_ids"]
        return ids

    def warm(self, ids: Sequence[int]) -> None:
        """Have the server cache a prefix, before several requests start from it."""
        self.generate({"input_ids": list(ids), **_warming()})

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of texts that continue others: no special tokens are added.

        Raises:
            UnsupportedError: the tokenizer writes a blank in front of every text (SentencePiece with
                add_prefix_space), so ids of texts cannot be joined.
        """
        body = {"prompt": list(texts), "add_special_tokens": False}
        tokens: list[list[int]] = self._post("/tokenize", body)["tokens"]
        if not self._joins and tokens and tokens[0]:
            once, twice = self.decode([tokens[0], tokens[0] * 2])
            if twice != once * 2:
                problem = "this tokenizer writes texts in another way when they stand alone"
                raise UnsupportedError("text", texts[0], problem, "Use sgl.gen and sgl.fork with this model")
            self._joins = True
        return tokens

    def decode(self, sequences: Sequence[Sequence[int]], special: bool = False) -> list[str]:
        """Texts of token ids, with special tokens or without them."""
        full = [list(ids) for ids in sequences if len(ids)]
        body = {"tokens": full, "skip_special_tokens": not special}
        texts = iter(self._post("/detokenize", body)["text"] if full else [])
        return [next(texts) if len(ids) else "" for ids in sequences]

    def input_log_probs(
        self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]], top: int = 0
    ) -> list[dict[str, Any]]:
        """`meta_info` of a prefill pass over (prefix, continuation): base law, temperature 1.

        The last entries of its `input_token_logprobs` and `input_top_logprobs` are the continuation's.
        SGLang reports nothing for the position that it starts at, so it starts one token earlier.

        Args:
            sequences: prefixes must not be empty.
            top: alternatives per position.
        """
        answers = self.generate(
            {
                "input_ids": [[*prefix, *ids] for prefix, ids in sequences],
                **_warming(),
                "return_logprob": True,
                "logprob_start_len": [len(prefix) - 1 for prefix, _ in sequences],
                "top_logprobs_num": [top] * len(sequences),
            }
        )
        return [answer["meta_info"] for answer in answers]

    def chat(self, body: dict[str, Any]) -> dict[str, Any]:
        """POST /v1/chat/completions to the served model."""
        model = {"model": self.status["served_model"], "custom_params": NEUTRAL["custom_params"]}
        answer: dict[str, Any] = self._post("/v1/chat/completions", {**model, **body})
        return answer

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        response = self._send("POST", path, body)
        if response.status_code != HTTPStatus.OK:
            raise _failure(response)
        return response.json()

    def _send(
        self, method: str, path: str, body: dict[str, Any] | None, wait: httpx.Timeout = WAIT
    ) -> httpx.Response:
        attempts = Retrying(
            retry=retry_if_exception_type(LOST),
            stop=stop_after_attempt(ATTEMPTS),
            wait=wait_exponential(multiplier=0.1, max=2.0),
            reraise=True,
        )
        try:
            return attempts(self._once, method, path, body, wait)
        except httpx.HTTPError as error:
            raise HostError(f"{self._http.base_url}{path} cannot be reached: {error!r}") from error

    def _once(
        self, method: str, path: str, body: dict[str, Any] | None, wait: httpx.Timeout
    ) -> httpx.Response:
        response = self._http.request(method, path, json=body, timeout=wait)
        if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
            raise OverloadedError(message_of(response.text))
        return response


class ServerEndpoint(Protocol):
    """What is read of SGLang's backend."""

    base_url: str
    api_key: str | None
    verify: str | None


class Clients:
    """One client per backend, so that a server is probed once; closed when its backend is gone.

    Nobody waits for the probe of another backend. Who asks while one is under way shares what comes of it.
    """

    def __init__(self) -> None:
        self._known: weakref.WeakKeyDictionary[ServerEndpoint, Future[Client]] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def of(self, endpoint: ServerEndpoint) -> Client:
        """The backend's client; a probe that failed is tried again by whoever asks next."""
        mine: Future[Client] = Future()
        with self._lock:
            known = self._known.setdefault(endpoint, mine)
        if known is mine:
            self._connect(endpoint, mine)
        return known.result()

    def _connect(self, endpoint: ServerEndpoint, outcome: Future[Client]) -> None:
        try:
            client = Client(endpoint.base_url, endpoint.api_key, endpoint.verify)
        except BaseException as error:  # whatever it is, the others must not wait for ever
            with self._lock:
                del self._known[endpoint]
            outcome.set_exception(error)
            raise
        weakref.finalize(endpoint, client.close)
        outcome.set_result(client)


def check_finish(answer: Answer) -> None:
    """Raises HostError for an answer that the server gave up."""
    reason = answer["meta_info"].get("finish_reason") or {}
    if reason.get("type") == "abort":
        raise HostError(f"the server gave the request up: {reason.get('message')}")


def _warming() -> dict[str, Any]:
    return {"sampling_params": {**NEUTRAL, "max_new_tokens": 0}}


def _event(data: str) -> Answer:
    event: Answer = json.loads(data)
    if "error" in event:
        raise RequestError("request", "/generate", message_of(data), "The server refused it")
    check_finish(event)
    return event


def _failure(response: httpx.Response) -> Exception:
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return OverloadedError(message_of(response.text))
    if response.status_code < HTTPStatus.INTERNAL_SERVER_ERROR:
        return RequestError("request", response.url.path, message_of(response.text), "The server refused it")
    return HostError(f"HTTP {response.status_code} of {response.url.path}: {message_of(response.text)}")
