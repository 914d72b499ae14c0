"""Policies that compare two prompts, as samplers of whole answers: an answer decoded behind both of them.

The engine of such a run continues both prompts in lock step; the policy of the law sees the rows of both.
"""

from __future__ import annotations

from sglang_power.algorithms.engine import CallAbortedError, ContinuationCall
from sglang_power.policies import Policy
from sglang_power.rng import Purpose
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.budgets import StoppedBy
from sglang_power.types import Continuation


class ContrastSampler:
    """Decode one answer behind two prompts; `request` is any policy with a second prompt."""

    request = Policy

    async def run(self, asked: Policy, tools: Tools) -> Outcome:
        """Make one answer."""
        seed = tools.key.child_seed(0, Purpose.POLICY)
        call = ContinuationCall((), tools.horizon, tools.request_law(asked), seed)
        try:
            return _outcome(asked, await tools.engine.generate(call), "completed")
        except CallAbortedError as error:
            return _outcome(asked, error.so_far, "abort")


def _outcome(policy: Policy, answer: Continuation, stopped_by: StoppedBy) -> Outcome:
    return Outcome(
        tokens=answer.tokens,
        finished=answer.finished,
        usage=answer.usage,
        law="policy",
        params=policy.parameters,
        stopped_by=stopped_by,
    )
