"""CoT-decoding's rules on hand-made rows, and its paths on the exact language model."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sglang_power.algorithms.cot import (
    GREEDY,
    CotConfig,
    confidence,
    kept_first_tokens,
    most_confident,
    path_call,
)
from sglang_power.algorithms.engine import RankedToken
from sglang_power.engines.tabular import TabularEngine, TabularModel
from sglang_power.types import ROW_FIELDS, ProposalLaw, Tokens

MARGIN = ROW_FIELDS.index("margin")


def with_margins(*margins: float) -> Tokens:
    rows = np.zeros((len(margins), len(ROW_FIELDS)))
    rows[:, MARGIN] = margins
    return Tokens.of(range(len(margins)), rows)


def ranked(*probs: float) -> list[RankedToken]:
    return [RankedToken(i, math.log(p) if p else -math.inf) for i, p in enumerate(probs)]


# --- Delta --------------------------------------------------------------------------------------------


def test_delta_is_the_mean_margin_of_the_answer_tokens_alone() -> None:
    path = with_margins(-0.2, 0.9, 0.5, 0.1, 1.0)
    assert confidence(path, [2, 3]) == pytest.approx(0.3)
    assert confidence(path, [0, 4]) == pytest.approx(0.4)


def test_control_other_spans_give_other_values() -> None:
    """The whole completion, or a span shifted by one token: both are known mistakes of public code."""
    path = with_margins(-0.2, 0.9, 0.5, 0.1, 1.0)
    right = confidence(path, [2, 3])
    assert right != pytest.approx(confidence(path, range(5)))
    assert right != pytest.approx(confidence(path, [3, 4]))


def test_a_path_without_an_answer_has_no_confidence() -> None:
    assert confidence(with_margins(0.5), []) is None


def test_the_most_confident_path_wins_and_the_first_of_equals() -> None:
    assert most_confident([0.2, None, 0.7, 0.7]) == 2
    assert most_confident([-0.5, -0.1]) == 1
    assert most_confident([None, None]) is None
    assert most_confident([]) is None


# --- the fork -----------------------------------------------------------------------------------------


def test_all_of_the_k_most_likely_first_tokens_are_tried() -> None:
    config = CotConfig(k=3, horizon=5)
    assert [first.token for first in kept_first_tokens(config, ranked(0.5, 0.3, 0.1, 0.1))] == [0, 1, 2]


def test_a_vocabulary_smaller_than_k_is_tried_whole() -> None:
    assert len(kept_first_tokens(CotConfig(k=10, horizon=5), ranked(0.7, 0.3))) == 2


def test_impossible_first_tokens_are_not_tried() -> None:
    assert len(kept_first_tokens(CotConfig(k=3, horizon=5), ranked(0.7, 0.3, 0.0))) == 2


def test_min_first_p_drops_implausible_first_tokens_but_never_the_first() -> None:
    config = CotConfig(k=3, horizon=5, min_first_p=0.2)
    assert len(kept_first_tokens(config, ranked(0.7, 0.2, 0.1))) == 2
    assert len(kept_first_tokens(CotConfig(k=3, horizon=5, min_first_p=0.9), ranked(0.7, 0.3))) == 1


# --- paths on the tabular model -----------------------------------------------------------------------


def greedy_from(model: TabularModel, prefix: tuple[int, ...]) -> tuple[int, ...]:
    while not model.ends(prefix) and len(prefix) < model.horizon:
        prefix = (*prefix, int(model.probs(prefix).argmax()))
    return prefix


@pytest.mark.parametrize("seed", range(5))
async def test_paths_are_greedy_behind_each_first_token(seed: int) -> None:
    model = TabularModel.random(seed, vocab=4, horizon=5)
    engine = TabularEngine(model)
    config = CotConfig(k=4, horizon=5)
    best, _ = await engine.most_likely((), config.k)
    assert [first.token for first in best] == list(np.argsort(-model.probs(()), kind="stable"))
    for number, first in enumerate(kept_first_tokens(config, best)):
        path = await engine.generate(path_call(config, (), first, seed=number))
        assert path.tokens.ids == greedy_from(model, (first.token,))
        assert path.finished == model.ends(path.tokens.ids)
        p = model.probs(())
        assert path.tokens.margin[0] == pytest.approx(p[first.token] - np.delete(p, first.token).max())
        assert (path.tokens.margin[0] < 0) == (number > 0)
        assert (path.tokens.margin[1:] >= 0).all()


async def test_a_first_token_that_stops_is_a_whole_path() -> None:
    model = TabularModel.random(3, vocab=3, horizon=4)
    call = path_call(CotConfig(k=3, horizon=4), (), RankedToken(model.eos, -1.0), seed=1)
    path = await TabularEngine(model).generate(call)
    assert (path.tokens.ids, path.finished) == ((model.eos,), True)


async def test_continuations_may_follow_another_law() -> None:
    model = TabularModel.random(1, vocab=4, horizon=6, concentration=5.0)
    hot = CotConfig(k=1, horizon=6, law=ProposalLaw(0.5))
    calls = [path_call(hot, (), RankedToken(1, -1.0), seed) for seed in range(20)]
    paths = {(await TabularEngine(model).generate(call)).tokens.ids for call in calls}
    assert len(paths) > 5
    assert {path[0] for path in paths} == {1}
    assert GREEDY.truncated
