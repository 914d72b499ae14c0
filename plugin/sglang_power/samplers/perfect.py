"""The sampler `perfect`: an independent and exact draw of p(y)^alpha, by trials that end once lost."""

from __future__ import annotations

from dataclasses import replace

from sglang_power.request import PerfectRequest
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.perfect_draw import drawn
from sglang_power.samplers.power import PowerSampler


class PerfectSampler:
    """Answers with the accepted trial that is first in trial order."""

    request = PerfectRequest

    async def run(self, asked: PerfectRequest, tools: Tools) -> Outcome:
        """Make one answer; go on as `power` where no trial is accepted, unless the request is strict."""

        async def chain(rest: Tools) -> Outcome:
            return await PowerSampler().chain(asked.chain, rest)

        config = asked.perfect_config(tools.horizon, tools.reward_bound)
        outcome = await drawn(config, tools, None if tools.strict else chain)
        return replace(outcome, params=asked.echo(tools.horizon))
