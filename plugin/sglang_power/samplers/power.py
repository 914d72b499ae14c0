"""The sampler `power`: the end of a Metropolis-Hastings chain, in the limit of steps a draw of p(y)^alpha."""

from __future__ import annotations

import dataclasses

from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState, Info
from sglang_power.errors import ChainAbortedError
from sglang_power.request import PowerRequest
from sglang_power.samplers.base import Observer, Outcome, Tools
from sglang_power.samplers.chain import Chain, ChainResult, RejectionCheck
from sglang_power.samplers.chain_report import chain_law, chain_report, progress
from sglang_power.samplers.perfect_draw import drawn


class PowerSampler:
    """See the module."""

    request = PowerRequest

    async def run(self, asked: PowerRequest, tools: Tools) -> Outcome:
        """Make one answer: by a chain, or by a few trials first."""
        if asked.method == "chain":
            return await self.chain(asked, tools)
        config = asked.trial_config(tools.horizon, tools.reward_bound)
        outcome = await drawn(config, tools, lambda rest: self.chain(asked, rest))
        return dataclasses.replace(outcome, params=asked.echo(tools.horizon, tools.reward_bound))

    async def chain(self, asked: PowerRequest, tools: Tools) -> Outcome:
        """Run one chain, or as much of it as the budget or an abort leaves."""
        config = asked.mh_config(tools.horizon, tools.reward_bound)
        chain = Chain(
            tools.engine,
            config,
            tools.key,
            dataclasses.replace(tools.budget, max_steps=asked.max_steps),
            None if tools.observer is None else _Progress(config, tools.observer),
            reward=tools.reward,
            rejection_check=RejectionCheck() if tools.checks_rejections else None,
        )
        try:
            result = await chain.run(tools.forced)
        except ChainAbortedError:
            result = chain.result("abort")
        return _outcome(asked, config, result, tools)


def _outcome(asked: PowerRequest, config: MHConfig, result: ChainResult, tools: Tools) -> Outcome:
    calls = None if tools.reward is None else tools.reward.report()
    return Outcome(
        tokens=result.state.tokens,
        finished=result.state.finished,
        usage=result.usage,
        law=chain_law(config, result),
        params=asked.echo(config.horizon, tools.reward_bound),
        stopped_by=result.stopped_by,
        report=chain_report(asked, config, result, tools.decode, calls),
    )


class _Progress:
    """Tells an observer how a chain goes, and the tokens that no later step can change."""

    def __init__(self, config: MHConfig, observer: Observer) -> None:
        self._config, self._observer, self._accepted = config, observer, 0

    def __call__(self, state: ChainState, info: Info | None) -> None:
        self._accepted += info is not None and info.accepted
        length = len(state.tokens)
        told = progress(self._config, state.step, state.stage, self._accepted, length)
        self._observer(state.tokens.first(state.frozen), told)
