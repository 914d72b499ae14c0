"""What clients say about an answer (POST /sglang_power/feedback): from header and body to a line of the log.

Nothing is looked up: whether the exposure and the metric exist is the report's to say. The route itself, and
reading no more of the body than is allowed, are the server's.
"""

from __future__ import annotations

import hmac
import os
import time
import uuid
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_power.errors import RequestError, TooLargeError
from sglang_power.experiments.model import Name
from sglang_power.experiments.records import Feedback, Value

KEY_VARIABLE = "SGLANG_POWER_FEEDBACK_KEY"
"""Environment variable with the bearer token; the route is off where it is unset or empty."""

ExposureId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}$")]


def exposure_id() -> str:
    """A new name for one enrolled request: a random UUID as 32 hexadecimal digits."""
    return uuid.uuid4().hex


class FeedbackBody(BaseModel):
    """What a client posts.

    Args:
        exposure_id: of the response.
        metric: a name under `metrics` in the experiment's file.
        value: in the metric's own unit.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    exposure_id: ExposureId
    metric: Name
    value: Value


def parse_feedback(body: bytes, limit: int) -> Feedback:
    """The line that a body becomes, as of now.

    Args:
        body: JSON, see FeedbackBody.
        limit: in bytes.

    Raises:
        TooLargeError: the body is longer than that.
        RequestError: it is no such JSON; the error names the field and its value.
    """
    if len(body) > limit:
        raise TooLargeError(f"feedback of {len(body)} bytes", limit, "experiments.max_feedback_bytes")
    try:
        told = FeedbackBody.model_validate_json(body)
    except ValidationError as error:
        raise _refused(error) from error
    return Feedback(at=time.time(), exposure_id=told.exposure_id, metric=told.metric, value=told.value)


def authorised(header: str | None, key: str) -> bool:
    """Whether an Authorization header carries the key, in time that tells nothing about it.

    Args:
        header: as ASGI servers decode it, from Latin-1; None where there is none.
        key: of the environment; an empty one authorises nobody.
    """
    scheme, _, token = (header or "").partition(" ")
    try:
        given = token.strip(" ").encode("latin-1")
    except UnicodeEncodeError:
        return False
    return hmac.compare_digest(given, os.fsencode(key)) and scheme.lower() == "bearer" and bool(key)


def _refused(error: ValidationError) -> RequestError:
    first: Any = error.errors(include_url=False)[0]
    field, value, problem = ".".join(map(str, first["loc"])) or "body", first["input"], first["msg"]
    if first["type"] == "missing":
        value, problem = None, "required"
    elif first["type"] == "extra_forbidden":
        problem = "unknown field"
    elif first["type"] == "json_invalid":
        value = f"{len(value)} bytes"
    hint = 'Post {"exposure_id": <of the response>, "metric": <name>, "value": <finite number>}'
    return RequestError(field, value, problem, hint)
