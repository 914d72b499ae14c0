"""POST /sglang_power/feedback: what was said about answers, appended to the log. Tokenizer process.

On where the server has experiments and SGLANG_POWER_FEEDBACK_KEY is set. The key is the route's own, so it is
exempt from the server's API key: whoever collects feedback need not be able to generate.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse

from sglang_power.errors import RequestError, TooLargeError
from sglang_power.experiments.feedback import KEY_VARIABLE, authorised, parse_feedback
from sglang_power.routes import FEEDBACK_ROUTE
from sglang_power.sglang_host.experiments.service import ExperimentService


def add_feedback_route(app: Any, service: ExperimentService) -> None:
    """Add the route to SGLang's application, where there is a key."""
    key = os.environ.get(KEY_VARIABLE)
    if not key:
        return

    async def feedback(request: Request) -> JSONResponse:
        return await _take(request, service, key)

    app.add_api_route(FEEDBACK_ROUTE, feedback, methods=["POST"])


def request_auth(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around SGLang's check of API keys: the feedback route checks its own."""
    if kwargs.get("path") == FEEDBACK_ROUTE and os.environ.get(KEY_VARIABLE):
        kwargs = {**kwargs, "api_key": None, "admin_api_key": None}
    return original(*args, **kwargs)


async def _take(request: Request, service: ExperimentService, key: str) -> JSONResponse:
    if not authorised(request.headers.get("authorization"), key):
        service.counters.feedback("unauthorised")
        return _refused(HTTPStatus.UNAUTHORIZED, f"Authorization: not the bearer token of {KEY_VARIABLE}")
    limit = service.settings.max_feedback_bytes
    try:
        line = parse_feedback(await _body(request, limit), limit)
    except TooLargeError as error:
        service.counters.feedback("too_large")
        return _refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, str(error))
    except RequestError as error:
        service.counters.feedback("malformed")
        return _refused(HTTPStatus.BAD_REQUEST, str(error))
    service.write(line)
    service.counters.feedback("accepted")
    return JSONResponse({"accepted": True}, HTTPStatus.ACCEPTED)


async def _body(request: Request, limit: int) -> bytes:
    """The body, or the first bytes of one that is too long: no more of it is read."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            break
    return body


def _refused(status: HTTPStatus, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message}}, status)
