"""The sampler `smc`: an answer out of particles that grow together, by weight, by likelihood or by vote.

With several runs a draw by weight follows p(y)^alpha in the limit of runs; everything else is a choice.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from sglang_power.algorithms.resampling import log_sum
from sglang_power.errors import ChainAbortedError
from sglang_power.request import SmcRequest
from sglang_power.samplers.base import Outcome, Tools
from sglang_power.samplers.candidates import candidate
from sglang_power.samplers.choosing import by_vote
from sglang_power.samplers.particle_report import runs_headline, runs_law, runs_report
from sglang_power.samplers.particles import ParticleRuns, RunsResult
from sglang_power.samplers.report import finite
from sglang_power.samplers.selecting import Selecting
from sglang_power.samplers.tasks import gather_or_cancel
from sglang_power.types import FloatArray, Tokens, in_parallel


class SmcSampler:
    """See the module."""

    request = SmcRequest

    async def run(self, asked: SmcRequest, tools: Tools) -> Outcome:
        """Make one answer."""
        config = asked.smc_config(tools.horizon)
        runs = ParticleRuns(tools.engine, config, tools.key, tools.budget, tools.observer, runs=asked.runs)
        result = await runs.run(tools.forced)
        if asked.result == "vote":
            return await _vote(asked, tools, runs, result)
        answer = await (runs.likeliest(result) if asked.result == "argmax" else runs.drawn(result))
        result = dataclasses.replace(result, stopped_by=answer.stopped_by)
        law = runs_law(config, result, asked=asked.runs, drafted=asked.drafted)
        return Outcome(
            tokens=answer.tokens,
            finished=answer.finished,
            usage=runs.usage,
            law=law if asked.result == "sample" else "approximate",
            params=asked.in_force(tools.horizon),
            stopped_by=answer.stopped_by,
            headline=runs_headline(result),
            report={
                **runs_report(config, result),
                "log_target": finite(asked.alpha * float(answer.tokens.log_p.sum())),
            },
        )


async def _vote(asked: SmcRequest, tools: Tools, runs: ParticleRuns, result: RunsResult) -> Outcome:
    """The class of equal answers of largest weight; run k has the weight Zhat_k."""
    selecting, config = Selecting(asked, tools), asked.smc_config(tools.horizon)
    answers, log_weights = distinct_answers(result, asked.alpha)
    read = await gather_or_cancel([candidate(selecting.reader, *answer) for answer in answers])
    candidates = [found for found, _ in read]
    selection, choice = await by_vote(candidates, selecting.relation, log_weights, tools.key)
    selection = dataclasses.replace(
        selection,
        usage=runs.usage + in_parallel(usage for _, usage in read) + selection.usage,
        stopped_by=result.stopped_by,
        headline=runs_headline(result),
        notes={"vote_ess": choice.ess, **selection.notes},
    )
    outcome = await selecting.outcome(selecting.with_star(selection))
    report = {**outcome.report, **runs_report(config, result)}
    params = asked.in_force(tools.horizon)
    return dataclasses.replace(outcome, law="approximate", params=params, report=report)


def distinct_answers(result: RunsResult, alpha: float) -> tuple[list[tuple[Tokens, bool]], FloatArray]:
    """The living particles of all runs, equal ones once, with their log weight: log Zhat_k + log Wbar.

    Raises:
        ChainAbortedError: an abort left no particle with a token.
    """
    answers: dict[tuple[int, ...], tuple[Tokens, bool]] = {}
    weights: dict[tuple[int, ...], list[float]] = {}
    for state in result.states:
        for particle in state.particles:
            ids = particle.tokens.ids
            if ids and not particle.dead:
                answers.setdefault(ids, (particle.tokens, particle.finished))
                weight = state.log_z - state.log_after + particle.log_weight(alpha)
                weights.setdefault(ids, []).append(weight)
    if not answers:
        raise ChainAbortedError("aborted before any particle had a token")
    summed = [log_sum(np.array(each)) for each in weights.values()]
    return list(answers.values()), np.array(summed)
