"""What samplers ask the served model about its own answers. Knows neither SGLang nor HTTP."""

from __future__ import annotations

from typing import Any, Protocol

from sglang_power.types import Usage


class Evaluator(Protocol):
    """Says how likely an answer to the request's prompt is right; `sglang_host.judge` has one."""

    async def right(self, answer: str) -> tuple[float | None, Usage]:
        """Log probability that the answer is right, nats, at most 0, None where that is unknown; the cost."""
        ...


def judge_notes(usage: Usage) -> dict[str, Any]:
    """The report's entry about the judge, from what asking it cost; none where it was not asked."""
    if not usage.children:
        return {}
    tokens = {"decoded_tokens": usage.decoded, "prefilled_tokens": usage.prefilled}
    return {"judge": {"calls": usage.children, **tokens}}


def added_notes(notes: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Two lots of the report's entries as one; what the judge cost is added up."""
    both = {**notes, **more}
    if "judge" in notes and "judge" in more:
        both["judge"] = {name: count + more["judge"][name] for name, count in notes["judge"].items()}
    return both
