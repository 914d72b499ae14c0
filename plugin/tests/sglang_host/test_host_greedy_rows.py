"""Greedy rows in the scheduler: no search, no draw, and nothing changes for the rows beside them.

The other rows are held to the naive form, to the bit: every row searched for every limit, every row drawn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sglang_power.algorithms.cot import GREEDY
from sglang_power.policies.top_n_sigma import TopNSigma
from sglang_power.sglang_host.child_params import ChildParams
from sglang_power.sglang_host.scheduler import drawing
from sglang_power.sglang_host.scheduler.drawing import Drawn, draw_rows
from sglang_power.sglang_host.scheduler.rows import RowBlock
from sglang_power.types import ROW_FIELDS, ProposalLaw
from sglang_power_kernels import counter_uniforms, row_statistics, sample_rows, truncation_bounds
from sglang_power_kernels.testing import NoHostReads

CPU = torch.device("cpu")
LOG_P, LOG_Q = ROW_FIELDS.index("log_p"), ROW_FIELDS.index("log_q")

PLAIN = ProposalLaw(2.0)
LAWS = {
    "greedy": [GREEDY] * 6,
    "plain": [PLAIN] * 6,
    "greedy and plain": [GREEDY, PLAIN, PLAIN, GREEDY, PLAIN, GREEDY],
    "greedy and top-p": [GREEDY, ProposalLaw(1.0, top_p=0.7)] * 3,
    "one of each": [
        GREEDY,
        PLAIN,
        ProposalLaw(0.5, top_k=3),
        ProposalLaw(1.5, top_p=0.6),
        ProposalLaw(1.0, min_p=0.2),
        ProposalLaw(1.0, top_k=9, top_p=0.8, min_p=0.1),
    ],
    "greedy with other limits": [ProposalLaw(1.0, top_k=1, top_p=0.3, min_p=0.5), *[PLAIN] * 5],
}
SEARCHES: dict[str, list[tuple[int, set[str]]]] = {
    "greedy": [],
    "plain": [],
    "greedy and plain": [],
    "greedy and top-p": [(3, {"top_p"})],
    "one of each": [(1, {"top_k"}), (1, {"top_p"}), (1, {"min_p"}), (1, {"top_k", "top_p", "min_p"})],
    "greedy with other limits": [],
}


def rows_of(laws: list[ProposalLaw]) -> list[ChildParams]:
    return [ChildParams(law=law, seed=seed, origin=4) for seed, law in enumerate(laws)]


def draw(logits: torch.Tensor, laws: list[ProposalLaw]) -> Drawn:
    return draw_rows(logits, torch.full((len(laws),), 9), RowBlock.of(*rows_of(laws)).on(CPU))


def naive(logits: torch.Tensor, laws: list[ProposalLaw]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and log q where a limit that a row does not name is one that keeps everything."""
    kappa = torch.tensor([law.kappa for law in laws])
    bounds = truncation_bounds(
        logits,
        kappa=kappa,
        top_k=torch.tensor([law.top_k or 0 for law in laws]),
        top_p=torch.tensor([1.0 if law.top_p is None else law.top_p for law in laws]),
        min_p=torch.tensor([law.min_p or 0.0 for law in laws]),
    )
    uniforms = counter_uniforms(torch.arange(len(laws)), torch.full((len(laws),), 9))
    ids = sample_rows(logits, kappa=kappa, uniforms=uniforms, keep_min=bounds).clamp_min(0)
    return ids, row_statistics(logits, ids, kappa=kappa, keep_min=bounds).log_q


def logits_of(kind: str) -> torch.Tensor:
    logits = 2.0 * torch.randn(6, 700, generator=torch.Generator().manual_seed(3))
    if kind == "tied":  # as float32 logits of a model in bfloat16 often are
        logits = logits.round()
    if kind == "not numbers":
        logits[0], logits[1, 5], logits[3], logits[4, 7] = torch.nan, torch.nan, -torch.inf, torch.inf
    return logits


@pytest.mark.parametrize("kind", ["ordinary", "tied", "not numbers"])
@pytest.mark.parametrize("name", LAWS)
def test_the_rows_beside_greedy_ones_are_drawn_as_ever_to_the_bit(name: str, kind: str) -> None:
    laws, logits = LAWS[name], logits_of(kind)
    drawn = draw(logits, laws)
    ids, log_q = naive(logits, laws)
    for row, law in enumerate(laws):
        if law.top_k == 1:
            continue
        assert drawn.ids[row] == ids[row]
        assert torch.equal(drawn.statistics[row, LOG_Q].nan_to_num(7.0), log_q[row].nan_to_num(7.0))


@pytest.mark.parametrize("name", [name for name, laws in LAWS.items() if any(law.top_k == 1 for law in laws)])
@pytest.mark.parametrize("kind", ["ordinary", "tied"])
def test_a_greedy_row_takes_the_first_of_the_most_likely_tokens(name: str, kind: str) -> None:
    logits = logits_of(kind)
    drawn = draw(logits, LAWS[name])
    for row, law in enumerate(LAWS[name]):
        if law.top_k == 1:
            assert drawn.ids[row] == logits[row].tolist().index(float(logits[row].max()))
            assert drawn.statistics[row, LOG_Q] == 0.0


def test_a_greedy_row_that_is_not_numbers_stays_inside_the_vocabulary_and_says_so() -> None:
    drawn = draw(logits_of("not numbers"), [GREEDY] * 6)
    assert drawn.ids[[0, 1, 3, 4]].tolist() == [0] * 4
    assert drawn.statistics[:, LOG_P].isnan().tolist() == [True, True, False, True, True, False]
    assert drawn.statistics[:, LOG_Q].isnan().tolist() == [True, True, False, True, True, False]


def test_a_forced_token_of_a_greedy_row_is_as_impossible_as_its_law_says() -> None:
    logits = torch.tensor([[1.0, 3.0, 3.0], [1.0, 3.0, 3.0], [1.0, 3.0, 3.0]])
    rows = [ChildParams(law=GREEDY, seed=0, origin=9, forced=(token,)) for token in (0, 1, 2)]
    drawn = draw_rows(logits, torch.full((3,), 9), RowBlock.of(*rows).on(CPU))
    assert drawn.ids.tolist() == [0, 1, 2]
    assert drawn.statistics[:, LOG_Q].tolist() == [-torch.inf, 0.0, -torch.inf]


def test_greedy_means_the_best_of_what_a_policy_left() -> None:
    logits = logits_of("ordinary")[:2]
    law = ProposalLaw(1.0, top_k=1, policy=TopNSigma(n=0.5))
    drawn = draw(logits, [law, PLAIN])
    assert drawn.ids[0] == logits[0].argmax()
    assert drawn.statistics[0, LOG_Q] == 0.0
    assert torch.equal(drawn.statistics[1], draw(logits, [PLAIN, PLAIN]).statistics[1])


@pytest.mark.parametrize("name", LAWS)
def test_rows_are_searched_for_the_limits_that_they_name_and_greedy_ones_for_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[tuple[int, set[str]]] = []

    def counted(logits: torch.Tensor, **asked: Any) -> torch.Tensor:
        named = {limit for limit in ("top_k", "top_p", "min_p") if asked[limit] is not None}
        searches.append((len(logits), named))
        return truncation_bounds(logits, **asked)

    monkeypatch.setattr(drawing, "truncation_bounds", counted)
    draw(logits_of("ordinary"), LAWS[name])
    assert searches == SEARCHES[name]


def test_a_batch_of_every_kind_of_row_reads_nothing_on_the_host() -> None:
    logits = logits_of("ordinary")
    for laws in LAWS.values():
        rows = RowBlock.of(*rows_of(laws)).on(CPU)
        with NoHostReads():
            draw_rows(logits, torch.full((6,), 9), rows)
