"""Prompts that SGLang answers itself, and what their answers say of it in `meta_info.power`.

That is why a default preset was not applied, or the statistics of the rows. Tokenizer process.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any

from sglang_power.request import STATISTICS
from sglang_power.samplers.report import fallback_report, plain_report
from sglang_power.sglang_host.child_params import REPORTED
from sglang_power.sglang_host.tokenizer.answer_writer import Answer, Emit
from sglang_power.sglang_host.tokenizer.body import Fields
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.openai import notes_of
from sglang_power.sglang_host.tokenizer.places import NESTED
from sglang_power.sglang_host.tokenizer.plan import PlainPlan, Plan
from sglang_power.sglang_host.tokenizer.statistics import AnswerStatistics


def mark(obj: Any, plans: Sequence[Plan]) -> None:
    """Ask the scheduler for the statistics of the prompts that want them and that SGLang answers.

    Args:
        obj: a GenerateReqInput that is not normalised yet; where none of its prompts wants them, its
            parameters stay the same object.
        plans: one for each of its sampling parameters.
    """
    wanted = [isinstance(plan, PlainPlan) and plan.statistics for plan in plans]
    if not any(wanted):
        return
    params = obj.sampling_params
    if isinstance(params, list):
        pairs = zip(params, wanted, strict=True)
        obj.sampling_params = [_marked(each) if marked else each for each, marked in pairs]
    else:
        obj.sampling_params = _marked(params or {})


def _marked(params: Mapping[str, Any]) -> Fields:
    """Return sampling parameters with the mark; what SGLang itself reads in `custom_params` stays."""
    custom = params.get("custom_params")
    kept = custom if isinstance(custom, dict) else {}
    kept = {key: value for key, value in kept.items() if key not in (STATISTICS, NESTED)}
    return {**params, "custom_params": {**kept, "sampler": REPORTED}}


def statistics_for(host: Host) -> AnswerStatistics:
    """Return what collects the statistics of one answer to a call."""
    return AnswerStatistics(bool(host.obj.stream and host.manager.incremental_streaming_output))


async def annotated(
    responses: AsyncIterator[Any], host: Host, plans: Sequence[PlainPlan]
) -> AsyncIterator[Any]:
    """Yield SGLang's own responses to a call, with what its answers say.

    Args:
        responses: one answer, or the list of all of them, or chunks with an `index`.
        host: the call.
        plans: one for all prompts, or one for each; an answer's place tells its prompt.
    """
    notes = notes_of(host.obj)
    collected: dict[int, AnswerStatistics] = {}
    async with aclosing(responses) as source:  # type: ignore[type-var]  # an async generator in fact
        async for response in source:
            answers = response if isinstance(response, list) else [response]
            samples = samples_of(host.obj)
            for place, answer in enumerate(answers):
                index = answer.get("index", place)
                plan = plans[0 if len(plans) == 1 else index // samples]
                if plan.says_something:
                    if plan.statistics and index not in collected:
                        collected[index] = statistics_for(host)
                    _say(plan, answer, collected.get(index))
                    if notes is not None:
                        notes.takes(index, answer)
            yield response


def _say(plan: PlainPlan, answer: Answer, statistics: AnswerStatistics | None) -> None:
    if plan.fallback is not None:
        answer["meta_info"]["power"] = fallback_report(plan.fallback)
    elif statistics is not None:
        answer["meta_info"]["power"] = {**plain_report(), "statistics": statistics.of(answer)}


async def one_answer(host: Host, plan: PlainPlan, rid: str, emit: Emit | None, index: int) -> Answer:
    """Return one answer of SGLang's own, under the id of its prompt.

    Args:
        host: the call, for one answer to one prompt.
        plan: of the prompt.
        rid: the prompt's id.
        emit: takes every chunk of a stream.
        index: of the answer in the call.
    """
    answer: Answer = {}
    statistics = statistics_for(host) if plan.statistics else None
    async with aclosing(host.responses(host.obj)) as responses:
        async for answer in responses:
            answer["meta_info"]["id"] = rid
            _say(plan, answer, statistics)
            if emit is not None:
                emit(index, answer)
    return answer


def samples_of(obj: Any) -> int:
    """Return n of a call, before or after SGLang has made a list of its parameters."""
    params = obj.sampling_params
    first = (params[0] if isinstance(params, list) else params) or {}
    return first.get("n") or 1
