"""Chains with early rejection on the tabular model."""

from __future__ import annotations

import dataclasses

import exact
import numpy as np
from sglang_power.algorithms.cuts import CutLaw
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.steps import Info
from sglang_power.samplers.chain import ChainResult
from sglang_power.types import ProposalLaw, Tokens

LONG = exact.random_model(3, vocab=5, horizon=12, stop_share=0.3)


"""Too large to enumerate, long enough for savings."""


def config_of(
    law: ProposalLaw,
    cut: CutLaw,
    *,
    early: bool,
    lookback_blocks: int | None = None,
    alpha: float = exact.ALPHA,
) -> MHConfig:
    return exact.make_config(
        LONG,
        alpha=alpha,
        law=law,
        cut=cut,
        block_size=4,
        steps=5,
        early_rejection=early,
        lookback_blocks=lookback_blocks,
    )


def assert_same_tokens(one: Tokens, other: Tokens) -> None:
    assert one.ids == other.ids
    np.testing.assert_array_equal(one.rows, other.rows)


def assert_same_decision(early: Info, whole: Info) -> None:
    """Equal but for the tokens that were never sampled."""
    for field in ("stage", "step", "cut", "current_length", "log_u", "accepted"):
        assert getattr(early, field) == getattr(whole, field)
    assert not whole.early_rejected
    assert_same_tokens(early.proposal, whole.proposal.first(len(early.proposal)))
    if early.early_rejected:
        assert len(early.proposal) < len(whole.proposal)
        assert not whole.accepted
        assert whole.log_ratio < whole.log_u
    else:
        assert early.terms == whole.terms
        assert early.log_ratio == whole.log_ratio
        assert early.proposal_finished == whole.proposal_finished


def assert_same_chain(early: ChainResult, whole: ChainResult) -> None:
    assert_same_tokens(early.state.tokens, whole.state.tokens)
    assert dataclasses.replace(early.state, tokens=Tokens.EMPTY) == dataclasses.replace(
        whole.state, tokens=Tokens.EMPTY
    )
    assert early.stopped_by == whole.stopped_by == "completed"
    assert len(early.infos) == len(whole.infos)
    for one, other in zip(early.infos, whole.infos, strict=True):
        assert_same_decision(one, other)
