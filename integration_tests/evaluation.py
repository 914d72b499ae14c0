"""Runs samplers over problems through a server and measures accuracy and cost: for the demo and `arithmetic`.

Every figure comes from counters in the responses; the controls best_of and vote get as many plain draws
per problem as make their decoded tokens at least those of the sampler behind the @.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import httpx
from scipy import stats
from sglang_power.reports import report_of
from sglang_power.types import LAUNCH_STEPS
from tqdm import tqdm

from integration_tests.pivot.problems import extract_answer, is_correct

CONCURRENCY = 64
"""Requests at a time: every problem of `make demo`. More save nothing: the server's cost is per answer."""

MAX_NEW_TOKENS = 96

Answer = dict[str, Any]


class Problem(Protocol):
    """What is asked: a prompt, of a family that progress bars name."""

    @property
    def text(self) -> str: ...

    @property
    def family(self) -> str: ...


@dataclass(frozen=True)
class Grading:
    """How answers are read.

    Args:
        is_correct: whether a text solves its problem.
        extract: what a text states; None where it states nothing.
        max_new_tokens: the longest answer.
    """

    is_correct: Callable[[Any, str], bool] = is_correct
    extract: Callable[[str], int | None] = extract_answer
    max_new_tokens: int = MAX_NEW_TOKENS


PIVOT = Grading()


@dataclass(frozen=True)
class Outcome:
    """One problem's answer and its cost in tokens."""

    correct: bool
    returned: int
    decoded: int
    prefilled: int
    depth: int
    steps: int = 0
    accepted: int = 0


@dataclass(frozen=True)
class Run:
    """One sampler on one suite."""

    sampler: str
    params: dict[str, Any]
    outcomes: tuple[Outcome, ...]
    seconds: float

    def total(self, counter: str) -> int:
        """Sum of one counter over all problems."""
        return sum(int(getattr(outcome, counter)) for outcome in self.outcomes)

    @property
    def accuracy(self) -> float:
        """Return the share of problems with the right answer."""
        return self.total("correct") / len(self.outcomes)

    def row(self, suite: str, plain: Run) -> dict[str, Any]:
        """The table row, in the names of demo.json."""
        returned, count = self.total("returned"), len(self.outcomes)
        interval = stats.binomtest(self.total("correct"), count).proportion_ci(method="wilson")
        steps = self.total("steps")
        return {
            "suite": suite,
            "sampler": self.sampler,
            "params": self.params,
            "accuracy": self.accuracy,
            "ci95": [interval.low, interval.high],
            "decoded_per_returned": self.total("decoded") / returned,
            "prefilled_per_returned": self.total("prefilled") / returned,
            "depth_per_returned": self.total("depth") / returned,
            "acceptance_rate": self.total("accepted") / steps if steps else None,
            "wall_vs_plain": self.seconds / plain.seconds,
        }


class Evaluator:
    """Asks one server; shows one progress bar per sampler."""

    def __init__(self, client: httpx.AsyncClient, grading: Grading = PIVOT) -> None:
        self._client, self._grading = client, grading
        self._slots = asyncio.Semaphore(CONCURRENCY)

    async def plain(self, name: str, problems: Sequence[Problem], temperature: float) -> Run:
        """SGLang's own sampling at one temperature; 0 is greedy."""
        params = {"temperature": temperature}

        async def one(problem: Problem, seed: int) -> Outcome:  # noqa: ARG001  (plain draws take no seed)
            answer = await self._ask(problem, params)
            return self._pooled(problem, answer, [answer])

        return await self._run(name, params, problems, one)

    async def own(
        self, sampler: str, problems: Sequence[Problem], params: dict[str, Any], name: str | None = None
    ) -> Run:
        """A sampler of the plugin, with a seed per problem.

        Args:
            sampler, params: what is asked for.
            problems: to solve.
            name: of the row; the sampler's where absent.
        """

        async def one(problem: Problem, seed: int) -> Outcome:
            custom = {"sampler": sampler, **params, "seed": seed}
            answer = await self._ask(problem, {"custom_params": custom})
            report = report_of(answer["meta_info"].get("power"), sampler)
            return Outcome(
                correct=self._grading.is_correct(problem, answer["text"]),
                returned=len(answer["output_ids"]),
                decoded=report["decoded_tokens"],
                prefilled=report["prefilled_tokens"],
                depth=report["depth"],
                steps=report.get("steps", 0),
                accepted=report.get("accepted", 0),
            )

        return await self._run(name or sampler, params, problems, one)

    async def controls(self, problems: Sequence[Problem], plain: Run, own: Run) -> tuple[Run, Run]:
        """best_of (by likelihood) and majority vote over the same plain draws, at `own`'s decoded tokens."""
        samples = math.ceil(own.total("decoded") / plain.total("decoded"))
        cost = f" @ {own.sampler}"
        best, draws = await self.drawn("best_of" + cost, problems, samples)
        voted = tuple(
            self._pooled(problem, self._majority(drawn), drawn)
            for problem, drawn in zip(problems, draws, strict=True)
        )
        return best, Run("vote" + cost, {"samples": samples}, voted, best.seconds)

    async def drawn(
        self, name: str, problems: Sequence[Problem], samples: int
    ) -> tuple[Run, list[Sequence[Answer]]]:
        """Return the likeliest of so many plain draws per problem, and all draws, problem by problem."""
        draws: dict[str, Sequence[Answer]] = {}

        async def draw(problem: Problem, seed: int) -> Outcome:  # noqa: ARG001
            asked = (self._ask(problem, {"temperature": 1.0}, logprobs=True) for _ in range(samples))
            drawn = draws[problem.text] = await asyncio.gather(*asked)
            return self._pooled(problem, max(drawn, key=log_p), drawn)

        best = await self._run(name, {"samples": samples, "by": "log p"}, problems, draw)
        return best, [draws[problem.text] for problem in problems]

    async def _run(
        self,
        name: str,
        params: dict[str, Any],
        problems: Sequence[Problem],
        one: Callable[[Problem, int], Coroutine[Any, Any, Outcome]],
    ) -> Run:
        started = time.perf_counter()
        with tqdm(total=len(problems), desc=f"{problems[0].family} {name:16}", unit="problem") as bar:

            async def tracked(problem: Problem, seed: int) -> Outcome:
                outcome = await one(problem, seed)
                bar.update()
                return outcome

            outcomes = await asyncio.gather(*(tracked(p, seed) for seed, p in enumerate(problems)))
        return Run(name, params, tuple(outcomes), time.perf_counter() - started)

    def _pooled(self, problem: Problem, chosen: Answer, drawn: Sequence[Answer]) -> Outcome:
        """The chosen answer, with the cost of all that were drawn side by side."""
        lengths = [len(answer["output_ids"]) for answer in drawn]
        metas = [answer["meta_info"] for answer in drawn]
        return Outcome(
            correct=self._grading.is_correct(problem, chosen["text"]),
            returned=len(chosen["output_ids"]),
            decoded=sum(lengths),
            prefilled=sum(meta["prompt_tokens"] - meta["cached_tokens"] for meta in metas),
            depth=LAUNCH_STEPS + max(lengths),
        )

    def _majority(self, drawn: Sequence[Answer]) -> Answer:
        """The first draw of the most frequent answer; a draw without an answer cannot win."""
        votes = Counter(self._grading.extract(answer["text"]) for answer in drawn)
        votes.pop(None, None)
        if not votes:
            return drawn[0]
        winner = votes.most_common(1)[0][0]
        return next(answer for answer in drawn if self._grading.extract(answer["text"]) == winner)

    async def _ask(self, problem: Problem, params: dict[str, Any], *, logprobs: bool = False) -> Answer:
        body = {
            "text": problem.text,
            "sampling_params": {"max_new_tokens": self._grading.max_new_tokens, **params},
            "return_logprob": logprobs,
        }
        async with self._slots:
            response = await self._client.post("/generate", json=body)
        response.raise_for_status()
        answer: Answer = response.json()
        return answer


def log_p(answer: Answer) -> float:
    """Return the log probability of an answer that was asked for with logprobs, in nats."""
    return math.fsum(entry[0] for entry in answer["meta_info"]["output_token_logprobs"])


def mcnemar_p(first: Run, second: Run) -> float:
    """Exact paired test that `first` is right more often than `second` (one-sided sign test)."""
    pairs = [(a.correct, b.correct) for a, b in zip(first.outcomes, second.outcomes, strict=True)]
    wins, losses = pairs.count((True, False)), pairs.count((False, True))
    if wins + losses == 0:
        return 1.0
    p: float = stats.binomtest(wins, wins + losses, alternative="greater").pvalue
    return p
