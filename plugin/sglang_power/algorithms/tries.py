"""Multiple-try Metropolis: several independent suffixes behind one cut, of which at most one is accepted.

K suffixes y'_j are drawn from q behind the cut m. With W_j = exp(log_ratio_j), the Metropolis-Hastings ratio
of y'_j against the current state, and W = 1 for the current state itself:

    pick j with probability W_j / sum_k W_k
    accept y'_j with probability min(1, sum_k W_k / (sum_k W_k - W_j + 1))

The proposals do not depend on what they replace behind the cut, so the tries that were not picked serve as
the reference set of the move back, and detailed balance holds with them (independent multiple-try Metropolis;
Martino, "A review of multiple try MCMC methods for signal processing", 2018). K = 1 is Metropolis-Hastings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sglang_power.algorithms import acceptance, mh
from sglang_power.algorithms.acceptance import HastingsTerms
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import ChainState, Info, Propose, Try
from sglang_power.types import Continuation, FloatArray


def log_weights(terms: Sequence[HastingsTerms]) -> tuple[FloatArray, float]:
    """The logs of the importance weights behind the cut: of every try, and of the current suffix.

    They share an unknown constant. -inf of a current suffix with zero proposal density, which any try
    replaces, and of a try whose weight is not a number, which is never picked.
    """
    tries = np.array([t.log_w_proposal + t.log_cut_proposal + t.log_tilt_proposal for t in terms])
    now = terms[0]
    current = now.log_w_current + now.log_cut_current + now.log_tilt_current
    return np.where(np.isnan(tries), -math.inf, tries), -math.inf if current == math.inf else current


def pick_probabilities(tries: FloatArray) -> FloatArray:
    """W_j / sum W of log weights [K]; even where all are 0."""
    if tries.max() == -math.inf:
        return np.full(len(tries), 1.0 / len(tries))
    weights = np.exp(tries - tries.max())
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def log_acceptance(tries: FloatArray, current: float, picked: int) -> float:
    """log of sum W / (sum W - W_j + 1): above 0 where acceptance is certain.

    Args:
        tries: log weights of the tries, [K].
        current: that of the current suffix, up to the same constant.
        picked: j.
    """
    if tries.max() == -math.inf:
        return -math.inf
    reference = tries.copy()
    reference[picked] = current  # the set of the move back: summed anew, since a difference cancels
    if reference.max() == -math.inf:
        return math.inf
    return float(np.logaddexp.reduce(tries) - np.logaddexp.reduce(reference))


def decide(
    config: MHConfig,
    state: ChainState,
    proposal: Propose,
    continuations: Sequence[Continuation],
    rewards: Sequence[float | None],
) -> tuple[ChainState, Info]:
    """Accept one of several whole tries, or none.

    Args:
        config, state, proposal: of the step.
        continuations: of the tries.
        rewards: R of each where a tilt acts.
    """
    assert not any(each.cut_short for each in continuations)
    m = proposal.cut
    terms = [
        mh.tilted_terms(config, state, m, each.tokens, reward)
        for each, reward in zip(continuations, rewards, strict=True)
    ]
    tries, current = log_weights(terms)
    cumulated = np.cumsum(pick_probabilities(tries))
    picked = int(np.searchsorted(cumulated, proposal.pick * cumulated[-1], side="right"))
    ratio = log_acceptance(tries, current, picked)
    info = Info(
        stage=state.stage,
        step=state.step,
        cut=m,
        current_ids=state.tokens.ids,
        proposal=continuations[picked].tokens,
        proposal_finished=continuations[picked].finished,
        terms=terms[picked],
        log_ratio=ratio,
        log_u=proposal.log_u,
        accepted=acceptance.accepts(proposal.log_u, ratio),
        early_rejected=False,
        tries=tuple(
            Try(each.tokens, each.finished, acceptance.log_ratio(term))
            for each, term in zip(continuations, terms, strict=True)
        ),
        picked=picked,
    )
    return mh.stepped(config, state, info, rewards[picked]), info
