"""What an answer says of the sampler that drew it, as every client should read it. Knows no server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sglang_power.errors import HostError


def report_of(report: Any, asked: str) -> Mapping[str, Any]:
    """Return the report of an answer for which a sampler was asked by name.

    SGLang drops fields that it does not know: a server without the plugin answers with HTTP 200, by its own
    sampler.

    Args:
        report: `meta_info.power` of an answer, or an entry of `metadata.power`; None where there is none.
        asked: the sampler's name.

    Raises:
        HostError: there is no report, or one of another sampler.
    """
    if not isinstance(report, Mapping):
        raise HostError(
            f"sampler {asked!r} was asked for, and the answer says of none (no `power` in its meta_info or "
            "metadata): the server runs without sglang-power, or something on the way drops the request's "
            "fields. `sglang-power check --url ...` says which"
        )
    if report.get("sampler") != asked:
        why = report.get("fallback_reason")
        because = f", because of {why}" if why else ""
        raise HostError(f"sampler {asked!r} was asked for, the server ran {report.get('sampler')!r}{because}")
    return report
