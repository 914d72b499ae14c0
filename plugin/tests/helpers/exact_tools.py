"""The tools of a sampler's run on the exact language model, and reports as a server would write them."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sglang_power.algorithms.engine import RankingEngine
from sglang_power.algorithms.mh import MHConfig
from sglang_power.answers import Relation, equivalence
from sglang_power.policies import Policy
from sglang_power.request import PowerRequest, SelectionRequest
from sglang_power.rng import Key
from sglang_power.samplers.base import Observer, Outcome
from sglang_power.samplers.budgets import Budget
from sglang_power.samplers.candidates import Reader, Selection
from sglang_power.samplers.chain import ChainResult
from sglang_power.samplers.chain_report import Decode, chain_law, chain_report
from sglang_power.samplers.evaluation import Evaluator
from sglang_power.samplers.report import answer_report
from sglang_power.samplers.scores import AnswerReward
from sglang_power.samplers.selecting import Selecting
from sglang_power.types import ProposalLaw, Usage

T = TypeVar("T")

SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "min_p": 0.1}
COMMON: dict[str, Any] = {"seed": 5, "neutralised": [], "prompt_usage": Usage(), "weight_version": None}


@dataclass
class ExactTools:
    """See `samplers.base.Tools`."""

    engine: RankingEngine
    reader: Reader
    key: Key
    horizon: int
    budget: Budget = field(default_factory=lambda: Budget(1_000_000))
    relation: Relation = field(default_factory=lambda: equivalence("exact"))
    sampling: Mapping[str, Any] = field(default_factory=lambda: SAMPLING)
    strict: bool = False
    forced: tuple[int, ...] | None = None
    reward: AnswerReward | None = None
    reward_bound: float | None = None
    evaluator: Evaluator | None = None
    observer: Observer | None = None
    checks_rejections: bool = False

    def request_law(self, policy: Policy | None = None) -> ProposalLaw:
        return ProposalLaw(1.0, policy=policy)

    def decode(self, ids: Sequence[int]) -> str:
        return self.reader.text(tuple(ids), finished=False)

    def behind_reasoning(self, ids: Sequence[int]) -> int | None:
        raise AssertionError(ids)

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        return await work


class _Nothing:
    """Of a tool that a report does not use."""

    def text(self, ids: Sequence[int], finished: bool) -> str:
        return "".join(map(str, ids)) if finished else ""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(name)


def selection_report(
    request: SelectionRequest,
    selection: Selection,
    horizon: int,
    sampling: Mapping[str, Any] = SAMPLING,
    **common: Any,
) -> dict[str, Any]:
    """`meta_info.power` of a finished selection."""
    nothing: Any = _Nothing()
    tools = ExactTools(nothing, nothing, Key(1), horizon, sampling=sampling)
    outcome = Selecting(request, tools).told(selection)
    return answer_report(request.name(), outcome, **{**COMMON, **common})


def power_report(
    request: PowerRequest,
    config: MHConfig,
    result: ChainResult,
    decode: Decode,
    calls: dict[str, Any] | None = None,
    **common: Any,
) -> dict[str, Any]:
    """`meta_info.power` of a chain."""
    outcome = Outcome(
        result.state.tokens,
        result.state.finished,
        result.usage,
        chain_law(config, result),
        request.echo(config.horizon),
        result.stopped_by,
        chain_report(request, config, result, decode, calls),
    )
    return answer_report("power", outcome, **{**COMMON, **common})
