"""Scores token sequences as the client would read them, while the request lives. Tokenizer process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sglang_power.rewards import NamedReward, Scorer
from sglang_power.sglang_host.tokenizer.children import Prompt
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.stopping import StopRule, TextRule


class AnswerScorer:
    """Scores whole answers to one prompt; an abort or a lost client ends the call.

    The reward sees the prompt as the client sent it (decoded where that was ids) and the answer's text as
    the client would get it, without its stop.

    Args:
        parent: the request.
        prompt: its cached prompt.
        stop, text: when it stops and how it is decoded.
        reward: what scores.
    """

    def __init__(
        self, parent: Parent, prompt: Prompt, stop: StopRule, text: TextRule, reward: NamedReward
    ) -> None:
        self._parent, self._stop, self._text = parent, stop, text
        self._scorer = Scorer(reward)
        asked = parent.obj.text
        self._prompt = asked if isinstance(asked, str) else str(parent.manager.tokenizer.decode(prompt.ids))

    async def __call__(self, ids: Sequence[int], finished: bool) -> float | None:
        """R of a whole answer; None where the call failed and the reward's policy is to do without.

        Args:
            ids: of the answer.
            finished: it ends with a stop.

        Raises:
            RewardError: the call failed and the policy is to fail.
            ChainAbortedError: the request was aborted meanwhile.
        """
        answer = self._text.final_text(ids, self._stop.finish_reason(ids, finished))
        return await self._parent.watched(self._scorer.score(self._prompt, answer))

    def report(self) -> dict[str, Any]:
        """Return what a response says of the reward and its calls."""
        return self._scorer.report()
