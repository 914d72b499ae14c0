"""One perfect draw: trials, and what follows where none is accepted. Knows neither SGLang nor HTTP.

What ends the trials must not look at them. Their number is fixed beforehand, by `max_trials` and the budget
of tokens. A deadline does look, at how long they take: what is returned behind one is approximate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, cast

from sglang_power.algorithms import perfect
from sglang_power.algorithms.engine import Engine
from sglang_power.algorithms.perfect import Judged, PerfectConfig
from sglang_power.errors import ChainAbortedError, RequestError
from sglang_power.rng import Key
from sglang_power.samplers.base import Law, Observer, Outcome, Tools
from sglang_power.samplers.budgets import Budget, StoppedBy, late
from sglang_power.samplers.chain import RejectionCheck
from sglang_power.samplers.report import finite
from sglang_power.samplers.scores import AnswerReward
from sglang_power.samplers.trials import Trials
from sglang_power.types import Tokens

Chain = Callable[[Key, Budget], Awaitable[Outcome]]
"""Makes the answer where no trial does."""


class PerfectDraw:
    """One draw; `run` is the whole life of it.

    Args:
        engine: continues the request's prompt.
        config: the algorithm.
        key: of the draw; trials and chain have different parts of it.
        budget: of the draw.
        chain: makes the answer where no trial does; None where that is an error.
        reward: scores whole answers; needed if and only if the configuration has a tilt.
        observer: told of progress.
        rejection_check: counts wrong early ends; None where nobody checks.
    """

    def __init__(
        self,
        engine: Engine,
        config: PerfectConfig,
        key: Key,
        budget: Budget,
        chain: Chain | None,
        *,
        reward: AnswerReward | None = None,
        observer: Observer | None = None,
        rejection_check: RejectionCheck | None = None,
    ) -> None:
        self._config, self._key, self._budget = config, key, budget
        self._chain, self._reward, self._observer = chain, reward, observer
        self._trials = Trials(
            engine,
            config,
            key.split(0, 2),
            budget.deadline,
            reward=reward,
            observer=None if observer is None else self._tell,
            rejection_check=rejection_check,
        )
        reserved = 0 if chain is None else config.horizon
        self._planned = perfect.affordable(config, budget.max_total_tokens, reserved)

    async def run(self) -> Outcome:
        """Draw, and fall back where no trial is accepted.

        Raises:
            RequestError: none is accepted, and there is no chain.
            ChainAbortedError: aborted before there was anything to answer with.
        """
        trials = self._trials
        try:
            await self._run_trials()
            if trials.accepted is not None:
                return self._accepted(trials.accepted)
            if trials.late or self._budget.expired():
                return self._outcome(*await trials.completed(), "approximate", late(self._budget.deadline))
        except ChainAbortedError:
            best = trials.best if trials.accepted is None else trials.accepted
            if best is None:
                raise
            return self._outcome(best.tokens, best.finished, "approximate", "abort")
        return await self._fallen()

    async def _run_trials(self) -> None:
        config, trials = self._config, self._trials
        if not config.weighs:
            await trials.run(range(self._planned))
            return
        first = min(config.width, self._planned)
        await trials.run(range(first))
        weights = trials.log_weights
        all_rejected = len(weights) == first and trials.accepted is None and not trials.late
        if all_rejected and first and perfect.worth_more(config, weights):
            await trials.run(range(first, self._planned))

    def _tell(self, ended: int) -> None:
        if self._observer is not None:
            self._observer(Tokens.EMPTY, {"trials": ended, "max_trials": self._planned})

    # --- outcomes ---

    def _accepted(self, answer: Judged) -> Outcome:
        exact = not self._trials.late and not self._trials.untilted
        stopped_by = late(self._budget.deadline) if self._trials.late else "completed"
        return self._outcome(
            answer.tokens, answer.finished, "perfect" if exact else "approximate", stopped_by
        )

    def _outcome(self, tokens: Tokens, finished: bool, law: Law, stopped_by: StoppedBy) -> Outcome:
        usage = self._trials.usage
        return Outcome(tokens, finished, usage, law, {}, stopped_by, report=self._report(tokens))

    async def _fallen(self) -> Outcome:
        if self._chain is None:
            limit, value, why = self._exhausted()
            hint = "Raise it, lower alpha, or leave strict out to go on as power"
            raise RequestError(limit, value, f"{why}, and the request is strict", hint)
        spent = self._trials.usage
        left = replace(self._budget, max_total_tokens=self._budget.max_total_tokens - spent.decoded)
        outcome = await self._chain(self._key.split(1, 2), left)
        reason = {} if self._config.weighs else {"fallback_reason": self._exhausted()[2]}
        report = {**self._counts(), **reason, **outcome.report}
        return replace(outcome, usage=spent + outcome.usage, report=report)

    def _exhausted(self) -> tuple[str, int, str]:
        """The limit that ended the trials, its value, and a sentence."""
        if self._planned == self._config.max_trials:
            return "max_trials", self._planned, f"none of {self._planned} trials was accepted"
        budget, horizon = self._budget.max_total_tokens, self._config.horizon
        why = f"{budget} tokens are {self._planned} trials of up to {horizon}, none of which was accepted"
        return "max_total_tokens", budget, why

    def _report(self, tokens: Tokens) -> dict[str, Any]:
        trials, config, answer = self._trials, self._config, self._trials.accepted
        log_target: float | None = config.alpha * float(tokens.log_p.sum())
        report = self._counts()
        if config.tilt is not None and self._reward is not None:
            value = None if answer is None else answer.reward
            report["reward"] = {
                **self._reward.report(),
                "weight": config.tilt.weight,
                "value": value,
                "dropped": trials.untilted,
            }
            factor = None if value is None or trials.untilted else config.tilt.log_factor(value)
            log_target = None if factor is None or log_target is None else log_target + factor
        report["log_target"] = None if log_target is None else finite(log_target)
        check = trials.check
        if check is not None and check.resumed:
            report["shadow"] = {"resumed": check.resumed, "violations": check.violations}
        return report

    def _counts(self) -> dict[str, Any]:
        """What a report says of trials, those up to the answer; none of them was accepted but the answer."""
        trials, weights = self._trials, self._trials.log_weights
        mean = perfect.mean_weight(weights) if weights else 0.0
        return {
            "trials": len(weights),
            "width": self._config.width,
            "accepted_trial": None if trials.accepted is None else trials.accepted.index,
            "acceptance_rate": (trials.accepted is not None) / len(weights) if weights else None,
            "expected_trials": finite(1.0 / mean) if mean else None,
        }


class _Rest:
    """The tools of a run for what follows its trials.

    Args:
        tools: of the run.
        key, budget: of what follows.
    """

    def __init__(self, tools: Tools, key: Key, budget: Budget) -> None:
        self._tools, self.key, self.budget = tools, key, budget

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tools, name)


async def drawn(
    config: PerfectConfig, tools: Tools, chain: Callable[[Tools], Awaitable[Outcome]] | None
) -> Outcome:
    """Make one answer by trials; the outcome says nothing of parameters.

    Args:
        config: the algorithm.
        tools: of the run.
        chain: makes the answer where no trial does; None where that is an error.

    Raises: as `PerfectDraw.run`.
    """

    def rest(key: Key, budget: Budget) -> Awaitable[Outcome]:
        assert chain is not None
        return chain(cast("Tools", _Rest(tools, key, budget)))

    draw = PerfectDraw(
        tools.engine,
        config,
        tools.key,
        tools.budget,
        None if chain is None else rest,
        reward=tools.reward,
        observer=tools.observer,
        rejection_check=RejectionCheck() if tools.checks_rejections else None,
    )
    return await draw.run()
