"""Penalised rows without a server: counts belong to the answer in front of a row, and the law to the counts.

Chains run on an engine whose rows are the scheduler's (`rows`, `penalties`) over a model of logits, and
follow the law of their steps on the enumerated base. Error rate of each G-test 1e-4, seeds are fixed; the
same test at the same size rejects, below 1e-6, an engine that counts what follows a cut alone, one that
counts a step late, and one that penalises logits that the power has scaled.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import exact
import numpy as np
import pytest
import torch
from sglang_power.algorithms.engine import ContinuationCall, RankedToken
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.penalties import Penalties
from sglang_power.engines.tabular import Prefix, TabularEngine
from sglang_power.policies.base import softmax
from sglang_power.samplers.chain import Chain, ChainResult
from sglang_power.sglang_host.child_params import ChildParams
from sglang_power.sglang_host.scheduler import row_memory
from sglang_power.sglang_host.scheduler.drawing import draw_rows
from sglang_power.sglang_host.scheduler.penalties import CountedRow, CountTable, penalise, table_of
from sglang_power.sglang_host.scheduler.rows import PowerRow, RowBlock, _row_of
from sglang_power.types import Continuation, FloatArray, ProposalLaw, Usage
from sglang_power_kernels.testing import NoHostReads

CPU = torch.device("cpu")
PROMPT = (3, 1, 1)
"""Of tokens that answers have, too: they do not count."""

ALL = Penalties(1.5, 0.8, 1.8)
VOCAB, HORIZON = 4, 4


def logits_of(prefix: Prefix) -> FloatArray:
    """[VOCAB] logits of either sign behind every answer: `repetition` does not act on probabilities."""
    drawn = np.random.default_rng([9, len(prefix), *prefix]).normal(0.4, 1.2, VOCAB)
    return np.asarray(drawn - 1.2 * (np.arange(VOCAB) == 0), dtype=np.float64)


BASE = exact.MemoModel(lambda y: softmax(ALL.act(logits_of(y), y)), horizon=HORIZON)
"""The penalised base law, enumerated."""


def request(params: ChildParams, prompt: Sequence[int], output: Sequence[int] = ()) -> SimpleNamespace:
    """SGLang's request of a child."""
    return SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=params.to_custom_params(), logit_bias=None),
        origin_input_ids=list(prompt),
        output_ids=list(output),
        grammar=None,
    )


def child(penalties: Penalties | None = ALL, kept: int = 0, prompt: int = len(PROMPT)) -> ChildParams:
    return ChildParams(ProposalLaw(1.0), 1, prompt - 1, kept=kept, penalties=penalties)


def power_row(params: ChildParams, prompt: Sequence[int], output: Sequence[int] = ()) -> PowerRow:
    row = _row_of(request(params, prompt, output))
    assert row is not None
    return row


def step(
    block: RowBlock, logits: torch.Tensor, tokens: Sequence[int], positions: Sequence[int]
) -> torch.Tensor:
    """The logits of a decode step as the sampler gets them, by the hook on ModelRunner.sample."""
    out = SimpleNamespace(next_token_logits=logits.clone())
    batch = SimpleNamespace(
        sampling_info=SimpleNamespace(power_rows=block),
        input_ids=torch.tensor(tokens),
        positions=torch.tensor(positions),
        forward_mode=SimpleNamespace(is_decode=lambda: True),
    )
    seen: torch.Tensor = row_memory.sample(lambda _, told, __: told.next_token_logits, None, out, batch)
    return seen


def expected(logits: torch.Tensor, penalties: Penalties, answer: Sequence[int]) -> torch.Tensor:
    return torch.tensor(penalties.act(logits.double().numpy(), answer), dtype=torch.float32)


def random_logits(rows: int, vocab: int = 8) -> torch.Tensor:
    return 2.0 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(3))


# --- the definition -----------------------------------------------------------------------------------


def test_the_three_penalties_by_hand() -> None:
    acted = Penalties(0.5, 0.25, 2.0).act(np.array([1.0, 1.0, -1.0, 3.0]), (1, 2, 1))
    assert acted.tolist() == [1.0, (1.0 - 1.25) * 2.0, (-1.0 - 0.75) * 2.0, 3.0]
    assert Penalties(-0.5, 0.0, 0.5).act(np.array([1.0, -2.0]), (0, 1)).tolist() == [3.0, -0.75]


@pytest.mark.parametrize(
    "named",
    [{}, {"frequency_penalty": 0}, {"presence_penalty": 0.0, "repetition_penalty": 1.0, "top_p": 0.5}],
)
def test_penalties_that_change_nothing_are_none(named: dict[str, Any]) -> None:
    assert Penalties.of(named) is None
    assert child(Penalties.of(named)).to_custom_params().keys().isdisjoint(ALL.flat())


@pytest.mark.parametrize("penalties", [ALL, Penalties(presence=-1.0), Penalties(repetition=0.5), None])
def test_penalties_travel_with_a_child(penalties: Penalties | None) -> None:
    assert ChildParams.from_custom_params(child(penalties).to_custom_params()).penalties == penalties


# --- counts -------------------------------------------------------------------------------------------


def test_rows_are_penalised_by_their_own_answers_and_no_others() -> None:
    """A row of a kept prefix, one of none, one without penalties and one of SGLang's, side by side."""
    logits, mild = random_logits(4), Penalties(presence=1.0)
    kept = power_row(child(kept=2, prompt=5), (*PROMPT, 6, 6))
    fresh = power_row(child(mild), PROMPT)
    block = RowBlock((kept, None, power_row(child(None), PROMPT), fresh))
    first = step(block, logits, (6, 0, 1, 1), (4, 9, 2, 2))
    torch.testing.assert_close(first[0], expected(logits[0], ALL, (6, 6)))
    assert torch.equal(first[1:3], logits[1:3])
    torch.testing.assert_close(first[3], expected(logits[3], mild, ()))
    second = step(block, logits, (2, 0, 1, 5), (5, 10, 3, 3))
    torch.testing.assert_close(second[0], expected(logits[0], ALL, (6, 6, 2)))
    torch.testing.assert_close(second[3], expected(logits[3], mild, (5,)))


def test_counts_follow_rows_through_filters_and_merges() -> None:
    logits = random_logits(3)
    rows = [power_row(child(kept=1, prompt=4), (*PROMPT, token)) for token in (4, 5, 6)]
    step(RowBlock((rows[0], rows[1])), logits[:2], (4, 5), (3, 3))
    step(RowBlock((rows[0], rows[1])), logits[:2], (7, 2), (4, 4))
    merged = RowBlock((rows[0], rows[1])).keep([1]).followed_by(RowBlock((rows[2],)))
    seen = step(merged, logits[:2], (2, 6), (5, 3))
    torch.testing.assert_close(seen[0], expected(logits[0], ALL, (5, 2, 2)))
    torch.testing.assert_close(seen[1], expected(logits[1], ALL, (6,)))


def test_a_row_that_is_sampled_twice_counts_its_token_once() -> None:
    logits = random_logits(1)
    block = RowBlock((power_row(child(), PROMPT),))
    step(block, logits, (1,), (2,))
    for _ in range(3):
        torch.testing.assert_close(step(block, logits, (5,), (3,))[0], expected(logits[0], ALL, (5,)))


def test_a_retracted_row_begins_with_all_that_it_had() -> None:
    """Its request is prefilled again with its output: what was kept of the answer, and what followed."""
    logits, params = random_logits(1), child(kept=1, prompt=4)
    again = RowBlock((power_row(params, (*PROMPT, 7), (2, 2, 5)),))
    torch.testing.assert_close(step(again, logits, (5,), (6,))[0], expected(logits[0], ALL, (7, 2, 2, 5)))
    torch.testing.assert_close(step(again, logits, (7,), (7,))[0], expected(logits[0], ALL, (7, 2, 2, 5, 7)))


def test_a_row_whose_answer_is_not_known_is_no_number() -> None:
    """A token that was never seen would make another law, silently."""
    logits = random_logits(2)
    block = RowBlock((power_row(child(), PROMPT), power_row(child(), PROMPT)))
    seen = step(block, logits, (5, 1), (4, 2))
    assert seen[0].isnan().all()
    assert not seen[1].isnan().any()


def test_prefilled_rows_take_the_last_of_their_tokens() -> None:
    """Behind a prefill, rows follow the last token of each prompt, and count none of it again."""
    logits = random_logits(2)
    block = RowBlock((power_row(child(kept=1, prompt=4), (*PROMPT, 6)), power_row(child(), PROMPT)))
    out = SimpleNamespace(next_token_logits=logits.clone())
    batch = SimpleNamespace(
        sampling_info=SimpleNamespace(power_rows=block),
        input_ids=torch.tensor([*PROMPT, 6, *PROMPT]),
        positions=torch.tensor([0, 1, 2, 3, 0, 1, 2]),
        seq_lens=torch.tensor([4, 3]),
        extend_seq_lens=torch.tensor([4, 3]),
        forward_mode=SimpleNamespace(is_decode=lambda: False),
    )
    seen = row_memory.sample(lambda _, told, __: told.next_token_logits, None, out, batch)
    torch.testing.assert_close(seen[0], expected(logits[0], ALL, (6,)))
    torch.testing.assert_close(seen[1], logits[1])


def test_slots_are_free_again_when_their_rows_are_gone() -> None:
    table = CountTable(8, CPU)
    rows = [CountedRow(ALL, (1, 2), 4) for _ in range(3)]
    assert sorted(table.place([0, 1, 2], rows).slots.tolist()) == [0, 1, 2]
    gone = rows.pop().slot
    (again,) = table.place([0], [CountedRow(ALL, (7,), 9)]).slots.tolist()
    assert (again, table.slots) == (gone, 3)
    counts = table.step(torch.tensor([again]), torch.tensor([7]), torch.tensor([9]))
    assert counts.tolist() == [[0, 0, 0, 0, 0, 0, 0, 1]], "nothing of the row before"
    table.place([0, 1], [CountedRow(ALL, (), 0), CountedRow(ALL, (), 0)])
    assert table.slots == 6


def test_a_step_without_new_rows_waits_for_no_number() -> None:
    logits = random_logits(2)
    block = RowBlock((power_row(child(), PROMPT), power_row(child(), PROMPT)))
    table = table_of(logits)
    rows = block.counted_in(table)
    tokens, positions = torch.tensor([5, 6]), torch.tensor([3, 3])
    with NoHostReads():
        penalise(logits, rows, table, tokens, positions)


def test_rows_without_penalties_touch_no_table() -> None:
    block = RowBlock.of(child(None), None)
    assert block.penalised == {}
    logits = random_logits(2)
    assert torch.equal(step(block, logits, (1, 1), (2, 2)), logits)


# --- the law ------------------------------------------------------------------------------------------

Mistake = Literal["none", "counts from the cut", "counts a step late", "behind the power"]


def row_behind(kept: int, answer: Prefix) -> FloatArray:
    """Logits of the row behind an answer of which `kept` tokens are the prompt of the child that gives it."""
    prompt = (*PROMPT, *answer[:kept])
    block = RowBlock((power_row(child(kept=kept, prompt=len(prompt)), prompt),))
    logits = torch.tensor(logits_of(answer), dtype=torch.float32)[None]
    for length in range(kept, len(answer) + 1):
        whole = (*PROMPT, *answer[:length])
        seen = step(block, logits, whole[-1:], [len(whole) - 1])
    return np.asarray(seen[0].double().numpy(), dtype=np.float64)


class CutEngine:
    """The Engine protocol on the rows that the scheduler's code gives behind each cut.

    Args:
        mistake: what it does wrong.
    """

    def __init__(self, mistake: Mistake = "none") -> None:
        self._mistake = mistake
        self._behind = functools.cache(self._engine)

    def share(self, wanted: int) -> int:
        return wanted

    async def most_likely(self, prefix: Prefix, count: int) -> tuple[list[RankedToken], Usage]:
        return await self._behind(len(prefix)).most_likely(prefix, count)

    async def generate(self, call: ContinuationCall) -> Continuation:
        return await self._behind(len(call.prefix)).generate(call)

    def _engine(self, kept: int) -> TabularEngine:
        rows: dict[Mistake, Callable[[Prefix], FloatArray]] = {
            "none": lambda y: row_behind(kept, y),
            "counts from the cut": lambda y: ALL.act(logits_of(y), y[kept:]),
            "counts a step late": lambda y: ALL.act(logits_of(y), y[:-1]),
            "behind the power": lambda y: ALL.act(exact.ALPHA * logits_of(y), y) / exact.ALPHA,
        }
        row = rows[self._mistake]
        return TabularEngine(exact.MemoModel(lambda y: softmax(row(y)), horizon=HORIZON))


LAWS = {"tempered": ProposalLaw(1.7), "plain": ProposalLaw(1.0), "truncated": ProposalLaw(1.3, top_k=3)}
CHAINS = 1200


def config_of(law: ProposalLaw) -> MHConfig:
    return exact.make_config(BASE, law=law, cut=exact.UNIFORM, block_size=2, steps=3)


def answers(law: ProposalLaw, mistake: Mistake = "none") -> list[Prefix]:
    """Answers of chains that redraw suffixes a few times."""

    async def run() -> list[ChainResult]:
        engine, config = CutEngine(mistake), config_of(law)
        return [await Chain(engine, config, key, exact.AMPLE).run(None) for key in exact.seeds(50, CHAINS)]

    return exact.answers(asyncio.run(run()))


def chain_law(law: ProposalLaw) -> dict[Prefix, float]:
    return exact.chain_law(BASE, config_of(law))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name != "tempered" else []) for name in LAWS]
)
def test_chains_follow_their_law_on_the_penalised_base(name: str) -> None:
    assert exact.g_test(answers(LAWS[name]), chain_law(LAWS[name])) > 1e-4


@pytest.mark.parametrize("mistake", ["counts from the cut", "counts a step late", "behind the power"])
def test_control_another_count_is_another_law(mistake: Mistake) -> None:
    assert exact.g_test(answers(LAWS["tempered"], mistake), chain_law(LAWS["tempered"])) < 1e-6


def test_statistics_are_those_of_the_penalised_law() -> None:
    """log p, log q, entropy and the others of a drawn row, against the enumerated model's."""
    law, answer = LAWS["tempered"], (1, 2, 1)
    logits = torch.tensor(row_behind(2, answer), dtype=torch.float32)[None]
    params = dataclasses.replace(child(), law=law)
    drawn = draw_rows(logits, torch.tensor([5]), RowBlock.of(params).on(CPU))
    row = BASE.row(answer, int(drawn.ids), law)
    np.testing.assert_allclose(drawn.statistics[0], row, atol=1e-5)
