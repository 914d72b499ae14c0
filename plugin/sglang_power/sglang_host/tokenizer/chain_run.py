"""One chain of a power request: drives it, streams its progress, writes its answer. Tokenizer process."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from sglang_power.algorithms.engine import Engine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState, Info
from sglang_power.errors import ChainAbortedError
from sglang_power.rng import Key
from sglang_power.samplers import report
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.chain import Chain, ChainResult
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, AnswerWriter, Outlet
from sglang_power.sglang_host.tokenizer.children import Prompt
from sglang_power.sglang_host.tokenizer.plan import PowerPlan
from sglang_power.sglang_host.tokenizer.scoring import AnswerScorer
from sglang_power.types import Usage

PROGRESS_EVERY_S = 0.2
"""A chunk that carries no new text is sent at most this often."""


@dataclass(kw_only=True)
class ChainRun:
    """Everything one chain needs; see `PromptRun`, which makes it."""

    plan: PowerPlan
    config: MHConfig
    engine: Engine
    key: Key
    budget: Budget
    writer: AnswerWriter
    prompt: Prompt
    scorer: AnswerScorer | None
    outlet: Outlet
    shadow: bool
    _accepted: int = field(default=0, init=False)
    _last_progress: float = field(default=0.0, init=False)
    _streamed: int = field(default=0, init=False)

    async def answer(self) -> Answer:
        """Run the chain to its end, or to its abort, and write what it found."""
        chain = Chain(
            self.engine,
            self.config,
            self.key,
            self.budget,
            self._observe if self.outlet.open else None,
            reward=self.scorer,
            shadow=self.shadow,
        )
        try:
            result = await chain.run(self.plan.draft)
            answer = self.writer.final(result.state.tokens, result.state.finished, self._report(result))
        except ChainAbortedError as error:
            result = chain.result("abort")
            answer = self.writer.aborted(result.state.tokens, str(error), self._report(result))
        self.writer.count(answer)
        self.outlet.send(answer)
        return answer

    def _report(self, result: ChainResult) -> dict[str, Any]:
        return report.power_report(
            self.plan.request,
            self.config,
            result,
            seed=self.key.seed,
            neutralised=self.plan.neutralised,
            prompt_usage=self.prompt.usage if self.key.chain == 0 else Usage(),
            weight_version=self.prompt.meta_info.get("weight_version"),
            decode=self.writer.decode,
            reward_calls=None if self.scorer is None else self.scorer.report(),
        )

    def _observe(self, state: ChainState, info: Info | None) -> None:
        """Stream progress, and text once no later step can change it."""
        self._accepted += info is not None and info.accepted
        now = time.perf_counter()
        committed = state.frozen
        if committed == self._streamed and now - self._last_progress < PROGRESS_EVERY_S:
            return
        self._last_progress, self._streamed = now, committed
        progress = report.progress(self.config, state.step, state.stage, self._accepted, len(state.tokens))
        power = {"sampler": self.plan.request.sampler, "progress": progress}
        self.outlet.send(self.writer.partial(state.tokens.first(committed), power))
