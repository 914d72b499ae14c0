"""What stands at a URL: the base of a server's routes, and SGLang's router. Knows answers, asks nobody.

SGLang's router (sglang-router 0.3.2) forwards the routes that it knows and answers 404 to all others, the
plugin's among them. It tells itself by GET /get_server_info, without a key, and its workers by GET /workers.
"""

from __future__ import annotations

import json
from typing import Any, Final

INFO_ROUTE: Final = "/get_server_info"
"""What both the router and SGLang itself answer; SGLang's newer /server_info is unknown to the router."""

ROUTED_DEFAULT: Final = (
    "behind SGLang's router it applies to every request of /generate, and to chats that name no sampler "
    "in metadata"
)
"""What a default preset does there, since other fields are lost on the way."""

WORKERS_ROUTE: Final = "/workers"


def server_of(url: str) -> str:
    """Return a server's base URL, for one that OpenAI clients are given, too.

    >>> server_of("http://host:30000/v1/")
    'http://host:30000'
    """
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def is_router(info: str) -> bool:
    """Return whether an answer to INFO_ROUTE is the router's."""
    return bool(json_object(info).get("router_manager"))


def worker_urls(answer: str) -> list[str]:
    """Return the URLs of the servers behind the router, from its answer to WORKERS_ROUTE."""
    workers = json_object(answer).get("workers")
    each = workers if isinstance(workers, list) else []
    return [str(worker["url"]) for worker in each if isinstance(worker, dict) and "url" in worker]


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text holds; empty where it holds none."""
    try:
        told = json.loads(text)
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}
