"""The scheduler side without a server: rows follow their batch, draws have their law, state its position.

The G-test of the sampler's draws has an error rate of 1e-4, at a fixed seed.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sglang.srt.managers.schedule_batch import FINISH_LENGTH
from sglang_power.algorithms.cuts import UniformCut
from sglang_power.algorithms.early_rejection import EarlyRejection
from sglang_power.sglang_host.child_params import META_KEY, ChildParams
from sglang_power.sglang_host.scheduler.drawing import draw_rows
from sglang_power.sglang_host.scheduler.rows import PowerRow, RowBlock, _row_of
from sglang_power.sglang_host.scheduler.statistics import HostStatistics
from sglang_power.types import ROW_FIELDS, ProposalLaw


def child(seed: int = 0, **fields: Any) -> ChildParams:
    law = fields.pop("law", ProposalLaw(2.0))
    return ChildParams(law=law, seed=seed, origin=fields.pop("origin", 4), **fields)


def request(custom_params: dict[str, Any] | None) -> SimpleNamespace:
    return SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=custom_params),
        custom_logit_processor=None,
        to_finish=None,
        customized_info=None,
        output_ids=[],
        finished=lambda: False,
    )


def test_rows_follow_filtering_and_merging() -> None:
    first, second = PowerRow(child(1)), PowerRow(child(2))
    block = RowBlock((None, first, second)).keep([2, 0]).followed_by(RowBlock((None, first)))
    assert block.rows == (second, None, None, first)
    assert block.indices == [0, 3]
    assert block.on(torch.device("cpu")).seeds.tolist() == [2, 1]


def test_a_power_request_without_orchestrator_is_aborted_not_served_plain() -> None:
    lost = request({"sampler": "power", "alpha": 4.0})
    assert _row_of(lost) is None
    assert lost.to_finish.to_json()["type"] == "abort"
    assert "sglang-power check" in lost.to_finish.to_json()["message"]


@pytest.mark.parametrize("params", [None, {}, {"other": 1}, {"sampler": "none"}])
def test_other_requests_are_left_alone(params: dict[str, Any] | None) -> None:
    plain = request(params)
    assert _row_of(plain) is None
    assert plain.to_finish is None


def test_draws_have_the_tempered_truncated_law_and_report_it() -> None:
    p = np.array([0.4, 0.25, 0.2, 0.1, 0.05])
    logits = torch.log(torch.tensor(p, dtype=torch.float32))
    laws = {ProposalLaw(2.0): p**2, ProposalLaw(0.5, top_k=3): np.where(p >= 0.2, p, 0.0) ** 0.5}
    for law, weights in laws.items():
        exact = weights / weights.sum()
        count = 4000
        block = RowBlock.of(*[child(seed, law=law) for seed in range(count)])
        rows = block.on(torch.device("cpu"))
        positions = torch.full((count,), 9)
        drawn = draw_rows(logits.expand(count, -1).contiguous(), positions, rows)
        ids, table = drawn.ids, drawn.statistics
        seen = np.bincount(ids.numpy(), minlength=5)
        support = exact > 0
        assert seen[~support].sum() == 0
        test = stats.power_divergence(seen[support], exact[support] * count, lambda_="log-likelihood")
        assert test.pvalue > 1e-4
        wrong = exact[support] * p[support] / (exact[support] * p[support]).sum()
        control = stats.power_divergence(seen[support], wrong * count, lambda_="log-likelihood")
        assert control.pvalue < 1e-6
        np.testing.assert_allclose(table[:, 1].numpy(), np.log(exact[ids.numpy()]), atol=1e-5)


def test_draws_depend_on_seed_and_position_only() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    seeds = (11, 12, 13)
    alone = [
        draw_rows(
            logits[i : i + 1], torch.tensor([7]), RowBlock.of(child(seed)).on(torch.device("cpu"))
        ).ids.item()
        for i, seed in enumerate(seeds)
    ]
    block = RowBlock.of(*[child(seed) for seed in reversed(seeds)])
    together = draw_rows(logits.flip(0), torch.full((3,), 7), block.on(torch.device("cpu")))
    assert together.ids.flip(0).tolist() == alone


def test_forced_tokens_are_emitted_with_their_own_statistics() -> None:
    logits = torch.randn(2, 10, generator=torch.Generator().manual_seed(2))
    block = RowBlock.of(child(0, origin=4, forced=(7, 8)), child(1, origin=4))
    drawn = draw_rows(logits, torch.tensor([5, 5]), block.on(torch.device("cpu")))
    ids, table = drawn.ids, drawn.statistics
    assert ids[0].item() == 8
    assert table[0, 0].item() == pytest.approx(torch.log_softmax(logits[0], -1)[8].item(), abs=1e-6)


def test_rows_of_logits_that_are_not_numbers_stay_inside_the_vocabulary() -> None:
    logits = torch.full((1, 6), float("nan"))
    drawn = draw_rows(logits, torch.tensor([4]), RowBlock.of(child()).on(torch.device("cpu")))
    ids, table = drawn.ids, drawn.statistics
    assert 0 <= ids.item() < 6
    assert table.isnan()[0, 0]


def record(log_p: float) -> list[float]:
    return [log_p, log_p, 0.0, 1.0, *[0.0] * (len(ROW_FIELDS) - 4)]


def commit(
    req: SimpleNamespace, params: ChildParams, position: int, log_p: float, log_q: float | None = None
) -> None:
    req.output_ids.append(0)
    row = record(log_p)
    row[1] = row[1] if log_q is None else log_q
    values = torch.tensor([row], dtype=torch.float64)
    commits = [SimpleNamespace(output_index=position, token_ids=(0,))]
    HostStatistics(RowBlock.of(params), values).consume(SimpleNamespace(reqs=[req]), commits)


def test_a_lost_proposal_is_ended_once_and_only_where_tokens_are_committed() -> None:
    rule = EarlyRejection(
        threshold=-5.0, alpha=2.0, cut=UniformCut(), count=0, total_gain=0.0, previous_entropy=0.0
    )
    params, req = child(rules=(rule,)), request(None)
    commit(req, params, 0, -2.0)
    assert req.to_finish is None
    overshoot = HostStatistics(RowBlock.of(params), torch.tensor([record(-50.0)]))
    overshoot.consume(SimpleNamespace(reqs=[req]), [None])
    assert req.to_finish is None
    assert len(req.customized_info[META_KEY]) == 1
    commit(req, params, 1, -4.0)
    assert isinstance(req.to_finish, FINISH_LENGTH)
    assert req.to_finish.length == 2


@pytest.mark.parametrize(("log_p", "log_q"), [(float("nan"), -1.0), (-1.0, float("nan"))])
def test_a_row_without_a_law_ends_its_child_at_once(log_p: float, log_q: float) -> None:
    """All that follows would be noise, up to a horizon that nobody waits for."""
    req = request(None)
    commit(req, child(), 0, log_p, log_q)
    assert isinstance(req.to_finish, FINISH_LENGTH)


class Matcher:
    """A grammar that remembers what it was shown."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def accept_token(self, token: int) -> None:
        self.seen.append(token)


def test_a_grammar_is_shown_the_kept_tokens_once() -> None:
    """Rows are made again behind chunks and retractions; a grammar that was made anew has seen nothing."""
    req = request(child(kept=2).to_custom_params())
    req.origin_input_ids, req.grammar = [5, 6, 7, 8], Matcher()
    for _ in range(3):
        assert _row_of(req) is not None
    assert req.grammar.seen == [7, 8]
    req.grammar = Matcher()
    _row_of(req)
    assert req.grammar.seen == [7, 8]


def test_a_grammar_that_nothing_was_kept_for_is_left_alone() -> None:
    req = request(child().to_custom_params())
    req.origin_input_ids, req.grammar = [5, 6], Matcher()
    _row_of(req)
    assert req.grammar.seen == []


@pytest.mark.parametrize("kept", [0, 3])
def test_the_kept_tokens_travel_with_a_child(kept: int) -> None:
    assert ChildParams.from_custom_params(child(kept=kept).to_custom_params()).kept == kept
