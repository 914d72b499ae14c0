"""What `sglang-power check` says of a URL without a status: SGLang alone, its router, something else."""

from __future__ import annotations

import httpx

from sglang_power.fields import METADATA_KEY
from sglang_power.gateways import INFO_ROUTE, WORKERS_ROUTE, is_router, json_object, worker_urls
from sglang_power.routes import FEEDBACK_ROUTE, STATUS_ROUTE

REFUSED_KEY = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN)

THROUGH_ROUTER = (
    f'/v1/chat/completions    metadata {{"{METADATA_KEY}": "<JSON>"}} names a sampler; custom_params, '
    "sampler, preset and user are lost",
    "/v1/completions         every field arrives, metadata among them",
    "/generate               no field that names a sampler arrives: only the workers' default presets act",
    f"{FEEDBACK_ROUTE}  is not forwarded: post it to a worker",
)
"""Route by route, what of a request arrives at the workers."""


def without_status(client: httpx.Client, server: str) -> tuple[int, list[str]]:
    """Say what answers at a URL that has no status route.

    Args:
        client: with the key, if any.
        server: its base URL.

    Returns:
        The exit status of the command, 1 where the plugin is known to be missing and 2 where nothing is known
        of it, and what to print.

    Raises:
        httpx.HTTPError: it does not answer any more.
    """
    info = client.get(server + INFO_ROUTE)
    if info.is_success and is_router(info.text):
        return 2, _of_router(server, client.get(server + WORKERS_ROUTE))
    if info.is_success and "version" in (settings := json_object(info.text)):
        return 1, [f"{server} runs SGLang {settings['version']} without the plugin: it has no {STATUS_ROUTE}"]
    hint = "If it is a gateway, give the URLs of the servers behind it"
    return 2, [f"{server} is no SGLang server: it has neither {STATUS_ROUTE} nor {INFO_ROUTE}. {hint}"]


def wants_key(server: str, key_given: bool) -> str:
    """Return what to do where a server answers 401 or 403."""
    how = "refuses this key: give its own" if key_given else "wants a key: give it"
    return f"{server} {how} with --api-key, or in SGLANG_API_KEY"


def _of_router(server: str, answer: httpx.Response) -> list[str]:
    lines = [f"{server} is SGLang's router, which says nothing of the plugin. Check its workers, one by one:"]
    if answer.status_code in REFUSED_KEY:
        lines.append(f"  it tells their URLs to whoever has its key: {wants_key(server, False)}")
    else:
        urls = worker_urls(answer.text)
        lines += [f"  sglang-power check --url {url}" for url in urls] or ["  it has none at present"]
    return [*lines, "What reaches them through the router:", *(f"  {line}" for line in THROUGH_ROUTER)]
