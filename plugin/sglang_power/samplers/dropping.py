"""Draws that end once their confidence is too low: the rule's meeting with an engine. Knows no SGLang."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall, Engine
from sglang_power.algorithms.low_confidence import LowConfidence, falls_at
from sglang_power.types import Continuation, Usage


@dataclass(frozen=True, slots=True)
class Dropping:
    """Which samples are ended for their low confidence; see `algorithms.low_confidence`.

    Args:
        share: order of the quantile that the threshold is.
        warmup: the first samples, whose quantile it is; they run to their end.
        group: tokens whose mean confidence is compared.
    """

    share: float
    warmup: int
    group: int


async def generate_unless_low(
    engine: Engine, call: ContinuationCall, rule: LowConfidence
) -> tuple[Continuation, bool]:
    """Run a call up to the end of the sample, or to where a rule ends it; and whether that was the rule.

    The engine need not stop where the rule says so: its rows decide.
    """
    whole = await engine.generate(dataclasses.replace(call, rules=(rule,)))
    while True:
        at = falls_at(rule, whole.tokens.rows, ended=not whole.cut_short)
        if at is not None:
            return _first(whole, at + 1), True
        if not whole.cut_short or (call.deadline is not None and clock.now() > call.deadline):
            return whole, False
        behind = rule.behind(whole.tokens.rows)
        rest = await engine.generate(
            dataclasses.replace(call, prefix=call.prefix + whole.tokens.ids, rules=(behind,))
        )
        whole = dataclasses.replace(rest, tokens=whole.tokens + rest.tokens, usage=whole.usage + rest.usage)


def _first(whole: Continuation, kept: int) -> Continuation:
    lost = len(whole.tokens) - kept
    return dataclasses.replace(
        whole,
        tokens=whole.tokens.first(kept),
        finished=whole.finished and lost == 0,
        usage=whole.usage + Usage(wasted=lost),
    )
