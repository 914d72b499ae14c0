"""The form of a sampler of whole answers.

A sampler is a request model, a pure algorithm and one coroutine: `run` takes a validated request and the
tools of one answer, and gives an Outcome. Everything that is the same for every sampler stands around it:
its place among others, its cached prompt, n answers, streaming, aborts, usage, metrics, experiments.
Knows neither SGLang nor HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, TypeVar

from sglang_power.algorithms.engine import RankingEngine
from sglang_power.answers import Relation
from sglang_power.policies import Policy
from sglang_power.rng import Key
from sglang_power.samplers.budgets import Budget, StoppedBy
from sglang_power.samplers.candidates import Reader
from sglang_power.samplers.evaluation import Evaluator
from sglang_power.samplers.scores import AnswerReward
from sglang_power.types import ProposalLaw, Tokens, Usage

T = TypeVar("T")
Asked = TypeVar("Asked", contravariant=True)

Law = Literal["perfect", "power", "approximate", "selection", "policy"]
"""perfect      p^alpha, times exp(lambda * R) with a reward: an independent and exact draw
power        in the limit of steps p^alpha, times exp(lambda * R) with a reward
approximate  near it: something shaped the answer that its law does not know
selection    chosen among answers
policy       tokens follow a rule row by row"""

EXACT_LAWS: tuple[Law, ...] = ("perfect", "power")
"""Of which log q is alpha * log p, but for a constant."""

COSTS = ("judge", "reward")
"""Entries of a report that count calls."""

Observer = Callable[[Tokens, Mapping[str, Any]], None]
"""Told of the tokens that nothing to come can change, and of what there is to say of the progress."""


class Tools(Protocol):
    """What the run of one answer may use; what a request does not need is None (see `request.needs`)."""

    @property
    def key(self) -> Key:
        """Key of all random numbers; answer i of n has chain i."""
        ...

    @property
    def horizon(self) -> int:
        """L, the largest number of tokens of an answer."""
        ...

    @property
    def budget(self) -> Budget:
        """Limits of this answer."""
        ...

    @property
    def engine(self) -> RankingEngine:
        """What continues the prompt; where there is a second prompt, both of them in lock step."""
        ...

    @property
    def sampling(self) -> Mapping[str, Any]:
        """SGLang's own sampling parameters of the request, those of `needs.SAMPLING`."""
        ...

    @property
    def strict(self) -> bool:
        """Whether it is an error where another sampler would have to go on."""
        ...

    @property
    def forced(self) -> tuple[int, ...] | None:
        """Ids of `Needs.forced`."""
        ...

    @property
    def reader(self) -> Reader:
        """What reads answers out of sequences; needs `Needs.answer`."""
        ...

    @property
    def relation(self) -> Relation:
        """When two answers are the same; needs `Needs.equivalence`."""
        ...

    @property
    def reward(self) -> AnswerReward | None:
        """What scores whole answers."""
        ...

    @property
    def reward_bound(self) -> float | None:
        """What the reward declares that no score is above."""
        ...

    @property
    def evaluator(self) -> Evaluator | None:
        """The served model's judgement of an answer."""
        ...

    @property
    def observer(self) -> Observer | None:
        """Told of progress; None where nobody listens."""
        ...

    @property
    def checks_rejections(self) -> bool:
        """Whether lost proposals are generated to their end, and wrong ones counted (a diagnostic)."""
        ...

    def request_law(self, policy: Policy | None = None) -> ProposalLaw:
        """Return the law of the request's own temperature and truncation, around a policy."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of ids, all at once, with its stop."""
        ...

    def behind_reasoning(self, ids: Sequence[int]) -> int | None:
        """Return the index of the token behind the end of the reasoning; needs `Needs.reasoning_end`."""
        ...

    async def watched(self, work: Coroutine[Any, Any, T]) -> T:
        """Await something that is no call of the engine; an abort or a lost client ends it."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run came to; all that the answer is written from.

    Args:
        tokens, finished: the answer.
        usage: what it cost.
        law: what it follows.
        params: the parameters in force, as they can be sent again.
        stopped_by: "completed", or the limit or the abort that ended the run.
        headline: entries of `meta_info.power` that stand at its top.
        report: further ones.
        tied: a seed drew the answer among classes of equal weight, where else none had a part.
    """

    tokens: Tokens
    finished: bool
    usage: Usage
    law: Law
    params: Mapping[str, Any]
    stopped_by: StoppedBy = "completed"
    headline: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)
    tied: bool = False

    @property
    def ended_early(self) -> bool:
        """Whether an abort or the deadline ended the run: caps of a search leave it time to answer again."""
        return self.stopped_by in ("abort", "deadline_ms")

    def copied(self, original: int) -> Outcome:
        """Return the same outcome as the answer of another choice: what it cost is told once.

        Args:
            original: index of the choice whose run it is.
        """
        report = {name: entry for name, entry in self.report.items() if name not in COSTS}
        return replace(self, usage=Usage(), report={**report, "copy_of": original})


class Sampler(Protocol[Asked]):
    """One sampler of whole answers.

    Attributes:
        request: its request model, a subclass of `request.whole.WholeAnswerRequest`, which names it.
    """

    request: type[Any]

    async def run(self, asked: Asked, tools: Tools) -> Outcome:
        """Make one answer.

        Raises:
            ChainAbortedError: aborted before there was anything to answer with.
        """
        ...
