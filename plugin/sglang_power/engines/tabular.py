"""An exact language model on a table: the oracle that every sampler is tested against.

Owns a model whose every sequence can be enumerated, in float64, and an Engine over it that draws, cuts
short and forces tokens exactly as a server's child requests do. A public test double; knows no server.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from sglang_power import clock
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.rng import PHILOX
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Tokens, Usage

Prefix = tuple[int, ...]
Table = Callable[[Prefix], FloatArray]


class TabularModel:
    """p(v | prefix) from a function; token `eos` stops.

    Args:
        table: prefix -> probabilities [vocab] float64, summing to 1.
        horizon: L; sequences end at a stop or at L tokens.
        eos: the stop token.
    """

    def __init__(self, table: Table, *, horizon: int, eos: int = 0) -> None:
        self._table = functools.cache(table)
        self.horizon = horizon
        self.eos = eos

    @classmethod
    def random(cls, seed: int, *, vocab: int, horizon: int, concentration: float = 0.5) -> TabularModel:
        """Every row drawn from a Dirichlet law, keyed by its prefix."""

        def table(prefix: Prefix) -> FloatArray:
            rng = np.random.default_rng([seed, len(prefix), *prefix])
            return rng.dirichlet(np.full(vocab, concentration))

        return cls(table, horizon=horizon)

    def probs(self, prefix: Prefix) -> FloatArray:
        """p(. | prefix), [vocab] float64."""
        return self._table(prefix)

    def proposal(self, prefix: Prefix, law: ProposalLaw) -> FloatArray:
        """q(. | prefix), [vocab] float64: tempered, shaped by the policy, truncated in joint order."""
        p = self.probs(prefix)
        with np.errstate(divide="ignore"):
            log_p = np.log(p)
        if law.policy is None:
            weights = np.exp(law.kappa * (log_p - log_p.max()))
            tempered = weights / weights.sum()
        else:
            tempered = law.policy.token_law(log_p, 1.0 / law.kappa)
        order = np.argsort(-tempered, kind="stable")
        ranked = tempered[order]
        keep = np.ones(len(p), dtype=bool)
        if law.top_k is not None:
            keep &= tempered >= ranked[min(law.top_k, len(p)) - 1]
        if law.top_p is not None:
            before = np.cumsum(ranked) - ranked
            keep &= tempered >= ranked[before < law.top_p].min()
        if law.min_p is not None:
            keep &= tempered >= law.min_p * ranked[0]
        q = np.where(keep, tempered, 0.0)
        return np.asarray(q / q.sum(), dtype=np.float64)

    def row(self, prefix: Prefix, token: int, law: ProposalLaw) -> tuple[float, ...]:
        """The ROW_FIELDS record of drawing `token` after `prefix` from `law`."""
        p = self.probs(prefix)
        q = self.proposal(prefix, law)
        support = p[p > 0]
        surprise = -np.log(support)
        entropy = float(support @ surprise)
        varentropy = float(support @ (surprise - entropy) ** 2)
        top = np.sort(p)[::-1]
        others = np.delete(p, token).max(initial=0.0)
        with np.errstate(divide="ignore"):
            log_p, log_q = float(np.log(p[token])), float(np.log(q[token]))
        return (
            log_p,
            log_q,
            float(np.logaddexp.reduce(law.kappa * -surprise)),
            entropy,
            varentropy,
            float(top[0] - top[1]),
            float(p[token] - others),
        )

    def score(self, ids: Prefix, law: ProposalLaw) -> Tokens:
        """A whole sequence with the rows of its tokens."""
        return Tokens.of(ids, [self.row(ids[:t], v, law) for t, v in enumerate(ids)])

    def ends(self, ids: Prefix) -> bool:
        """True when the sequence has stopped."""
        return bool(ids) and ids[-1] == self.eos

    def sequences(self, horizon: int | None = None, prefix: Prefix = ()) -> list[Prefix]:
        """All of Y_horizon that begins with `prefix`, in lexicographic order."""
        limit = self.horizon if horizon is None else horizon
        if self.ends(prefix) or len(prefix) == limit:
            return [prefix]
        vocab = len(self.probs(prefix))
        return [y for v in range(vocab) for y in self.sequences(limit, (*prefix, v))]

    def power_law(self, alpha: float, horizon: int | None = None) -> FloatArray:
        """pi over `sequences(horizon)`: p(y)^alpha / Z."""
        log_p = np.array([self.score(y, ProposalLaw(1.0)).log_p.sum() for y in self.sequences(horizon)])
        weights = np.exp(alpha * (log_p - log_p.max()))
        return np.asarray(weights / weights.sum(), dtype=np.float64)


class TabularEngine:
    """The Engine protocol on a TabularModel; draws are a function of (call seed, position)."""

    def __init__(self, model: TabularModel) -> None:
        self.model = model

    async def generate(self, call: ContinuationCall) -> Continuation:
        """Run one call; see ContinuationCall."""
        monitors = [rule.monitor() for rule in call.rules]
        ids, cut_short = call.prefix, call.recalled
        rows: list[tuple[float, ...]] = []
        while not self.model.ends(ids) and len(ids) < call.horizon and not cut_short:
            token = self._next_token(call, ids)
            row = self.model.row(ids, token, call.law)
            ids = (*ids, token)
            rows.append(row)
            cut_short = any(monitor.ends(len(rows) - 1, row) for monitor in monitors)
            cut_short |= call.deadline is not None and clock.now() > call.deadline
            cut_short |= call.recalled
        finished = self.model.ends(ids)
        count = len(rows)
        return Continuation(
            tokens=Tokens.of(ids[len(call.prefix) :], rows),
            finished=finished,
            cut_short=cut_short and not finished and len(ids) < call.horizon,
            usage=Usage.of_call(count, prefilled=1),
        )

    def share(self, wanted: int) -> int:
        """Return `wanted`: nobody else waits for this engine."""
        return wanted

    async def most_likely(self, prefix: Prefix, count: int) -> tuple[list[RankedToken], Usage]:
        """The most likely tokens after `prefix`, best first."""
        p = self.model.probs(prefix)
        order = np.argsort(-p, kind="stable")[:count]
        with np.errstate(divide="ignore"):
            ranked = [RankedToken(int(token), float(np.log(p[token]))) for token in order]
        return ranked, Usage.of_call(1, wasted=1, prefilled=1)

    def _next_token(self, call: ContinuationCall, ids: Prefix) -> int:
        done = len(ids) - len(call.prefix)
        if call.forced is not None and done < len(call.forced):
            return call.forced[done]
        u = PHILOX.at(call.seed, (len(ids), 0, 0, 0)).random()
        cdf = np.cumsum(self.model.proposal(ids, call.law))
        return int(np.searchsorted(cdf, u * cdf[-1], side="right"))
