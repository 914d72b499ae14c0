"""Per-step policies in the scheduler, without a server: which rows, in which order, with what memory."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH
from sglang_power.errors import HostError
from sglang_power.policies import Policy, Row, policies
from sglang_power.policies.adapt import Adapt
from sglang_power.policies.base import softmax
from sglang_power.policies.entropix import Entropix
from sglang_power.policies.kl_guided import KLGuided
from sglang_power.policies.min_k import MinK
from sglang_power.policies.top_n_sigma import TopNSigma
from sglang_power.policies.typical import Typical
from sglang_power.server.config import Kernels, ServerConfig
from sglang_power.sglang_host.child_params import (
    APART,
    GREEDY_FIELD,
    POLICY,
    ChildParams,
    Coupling,
    flat_policy,
)
from sglang_power.sglang_host.host_sampling import law_asked
from sglang_power.sglang_host.scheduler import sampler
from sglang_power.sglang_host.scheduler.drawing import Drawn, draw_rows
from sglang_power.sglang_host.scheduler.row_memory import (
    NOTHING,
    RowMemory,
    begins_line,
    line_begins,
    read_memories,
    write_memories,
)
from sglang_power.sglang_host.scheduler.row_tensors import RowTensors
from sglang_power.sglang_host.scheduler.rows import BAN, RowBlock, _row_of, banned_tokens
from sglang_power.sglang_host.scheduler.statistics import HostStatistics
from sglang_power.types import FloatArray, ProposalLaw
from sglang_power_kernels import counters
from sglang_power_kernels.testing import NoHostReads


class Pieces:
    """A tokenizer of a few byte-level pieces, and one whose decoder strips the blank."""

    texts = ("a", "\n", " \n  ", "x\n", "\nx", "  ", "\t", " b", "", "\n\n")
    pieces = ("a", "Ċ", "ĠĊĠĠ", "xĊ", "Ċx", "ĠĠ", "ĉ", "Ġb", "▁", "ĊĊ")

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i] for i in ids)


TOKENIZER = Pieces()
CPU = torch.device("cpu")
ORIGIN = 4


def params(policy: Policy | None = None, seed: int = 0, **fields: Any) -> ChildParams:
    law = ProposalLaw(fields.pop("kappa", 1.0), top_k=fields.pop("top_k", None), policy=policy)
    return ChildParams(law=law, seed=seed, origin=ORIGIN, **fields)


def request(policy: Policy, **sampling: Any) -> SimpleNamespace:
    """A scheduler request as SGLang normalises it, by default without any limit."""
    own = {"temperature": 1.0, "top_k": 1 << 30, "top_p": 1.0, "min_p": 0.0, "logit_bias": None, **sampling}
    flat = {"sampler": POLICY, "seed": 7, **flat_policy(policy)}
    return SimpleNamespace(
        sampling_params=SimpleNamespace(custom_params=flat, **own),
        origin_input_ids=[1] * (ORIGIN + 1),
        custom_logit_processor=None,
        tokenizer=Pieces(),
        to_finish=None,
        customized_info=None,
        output_ids=[],
        finished=lambda: False,
    )


def draw(logits: torch.Tensor, rows: list[ChildParams], index: int | list[int] = 0, **more: Any) -> Drawn:
    """One step of rows that are all at the same token of their answers, or at those given."""
    positions = torch.as_tensor(index).expand(len(rows)) + ORIGIN
    return draw_rows(logits, positions, RowBlock.of(*rows).on(CPU), **more)


def random_logits(rows: int, vocab: int = 12, seed: int = 1) -> torch.Tensor:
    return 2.0 * torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed))


# --- rows ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", policies().values(), ids=list(policies()))
def test_every_policy_survives_the_way_to_the_scheduler(kind: type[Policy]) -> None:
    for example in kind.examples:
        policy = kind(**example)
        row = _row_of(request(policy, temperature=0.5, top_k=3, top_p=0.9, min_p=0.1))
        assert row is not None
        assert row.params.law == ProposalLaw(2.0, 3, 0.9, 0.1, policy)
        assert (row.params.seed, row.params.origin, row.params.native) == (7, ORIGIN, True)
        child = params(policy, coupling=Coupling("a.1", "twin"))
        assert ChildParams.from_custom_params(child.to_custom_params()) == child


def test_limits_that_sglang_leaves_off_stay_off() -> None:
    row = _row_of(request(TopNSigma()))
    assert row is not None
    assert not row.params.law.limited


def test_a_request_keeps_its_memory_when_its_row_is_made_again() -> None:
    """Retraction sends a request through prefill again, which reads its parameters anew."""
    req = request(Entropix(entropy_threshold=1.0, varentropy_threshold=1.0))
    first, again = _row_of(req), _row_of(req)
    assert first is not None
    assert again is not None
    assert first.memory is not None
    assert again.memory is first.memory
    other = _row_of(request(Entropix(entropy_threshold=1.0, varentropy_threshold=1.0)))
    assert other is not None
    assert other.memory is not first.memory


def test_memories_are_read_and_written_by_row() -> None:
    memories = [RowMemory(), None, RowMemory()]
    assert read_memories(memories, CPU).tolist() == [[NOTHING]] * 3
    write_memories(memories, torch.tensor([[5], [6], [7]]))
    assert read_memories(memories, CPU).tolist() == [[5], [NOTHING], [7]]


# --- the order of one row -----------------------------------------------------------------------------


def law_of(logits: torch.Tensor, row: ChildParams, draws: int = 3000) -> FloatArray:
    """Observed law of one row over many seeds."""
    many = [params(row.policy, seed, kappa=row.law.kappa, top_k=row.law.top_k) for seed in range(draws)]
    ids = draw(logits.expand(draws, -1).contiguous(), many).ids
    return np.bincount(ids.numpy(), minlength=logits.shape[1]) / draws


def test_limits_measure_what_the_policy_left() -> None:
    """Typical sampling may leave the top token out; top_k = 1 then means the best of what it kept."""
    logits = torch.tensor([[2.0, 1.0, 0.9, 0.8, 0.7, -3.0]])
    policy = Typical(mass=0.4)
    kept = policy.law(Row(logits[0].double().numpy()))
    best = int(kept.argmax())
    assert kept[0] == 0.0
    assert best != 0
    assert law_of(logits, params(policy, top_k=1))[best] == 1.0


UNTYPICAL_TOP = torch.log(torch.tensor([[0.4, *[0.1] * 6]]))
"""H = 1.75: the tokens of 0.1 are nearer to it than the top one, which typical sampling of mass 0.5 drops."""


def rows_at_zero(policy: Policy) -> dict[str, ChildParams]:
    """What reaches the scheduler of a request at temperature 0: as a policy's own request, and as a base."""
    req = request(policy, top_k=1)  # as SGLang parses temperature 0
    req.sampling_params.custom_params[GREEDY_FIELD] = True
    own = _row_of(req)
    assert own is not None
    manager = SimpleNamespace(preferred_sampling_params={"temperature": 0.9})
    base = dataclasses.replace(own.params, law=law_asked(manager, {"temperature": 0.0}, policy))
    return {"own": own.params, "base": base}


@pytest.mark.parametrize("way", ["own", "base"])
@pytest.mark.parametrize("kind", [kind for kind in policies().values() if "twin" not in kind.needs])
def test_every_policy_is_greedy_at_temperature_zero(kind: type[Policy], way: str) -> None:
    """As SGLang is: the policy meets a law that has all its mass on the most likely token."""
    for example in kind.examples:
        policy = kind.model_validate({**example, **({"insert_ids": []} if "insert_ids" in example else {})})
        row = rows_at_zero(policy)[way]
        context: dict[str, Any] = {"ends_line": torch.tensor([[False]]), "memory": torch.tensor([[NOTHING]])}
        for logits in (UNTYPICAL_TOP, *random_logits(20, 7, seed=3)[:, None]):
            drawn = draw(logits, [row], **{key: value for key, value in context.items() if key in kind.needs})
            assert drawn.ids.tolist() == [int(logits.argmax())], policy


def test_control_the_best_token_of_a_policy_need_not_be_the_best_of_all() -> None:
    """top_k = 1, which SGLang makes of temperature 0, is about what the policy left."""
    assert draw(UNTYPICAL_TOP, [params(Typical(mass=0.5), top_k=1)]).ids.item() != 0


def test_the_servers_preferred_temperature_counts_where_a_request_names_none() -> None:
    manager = SimpleNamespace(preferred_sampling_params={"temperature": 0.5, "top_p": 0.9})
    assert law_asked(manager, {"top_p": 0.8}, None) == ProposalLaw(2.0, top_p=0.8)
    assert law_asked(manager, {"temperature": 0}, None) == ProposalLaw(1.0, top_k=1, top_p=0.9)


def test_policies_measure_the_tempered_row() -> None:
    logits = random_logits(1)
    policy = Typical(mass=0.5)
    exact = policy.law(Row(logits[0].double().numpy(), temperature=0.4))
    seen = law_of(logits, params(policy, kappa=2.5))
    assert seen[exact == 0].sum() == 0.0
    assert np.abs(seen - exact).sum() < 0.1
    at_one = policy.law(Row(logits[0].double().numpy()))
    assert np.abs(at_one - exact).sum() > 0.3


def test_log_q_is_of_the_law_that_was_drawn_from() -> None:
    logits = random_logits(2)
    policy = TopNSigma(n=1.2)
    drawn = draw(logits, [params(policy, kappa=1.5), params(None, kappa=1.5)])
    for row, token in enumerate(drawn.ids.tolist()):
        x = logits[row].double().numpy()
        q = policy.law(Row(x, 1 / 1.5)) if row == 0 else softmax(x, 1 / 1.5)
        assert drawn.statistics[row, 0].item() == pytest.approx(np.log(softmax(x)[token]), abs=1e-5)
        assert drawn.statistics[row, 1].item() == pytest.approx(np.log(q[token]), abs=1e-5)


def test_the_logits_of_other_rows_and_of_logprobs_are_not_touched() -> None:
    logits = random_logits(2)
    before = logits.clone()
    draw(logits, [params(TopNSigma(n=0.1)), params()])
    assert torch.equal(logits, before)


def test_no_policy_waits_for_the_device() -> None:
    """A step of one batch with every policy, limits, pairs and memory reads nothing on the host."""
    rows = [params(kind(**kind.examples[0]), i, top_k=5) for i, kind in enumerate(policies().values())]
    rows = [row for row in rows if row.policy is not None and "twin" not in row.policy.needs]
    rows += [params(), *pair(KLGuided(ids_without=[1]))]
    logits, tensors = random_logits(len(rows)), RowBlock.of(*rows).on(CPU)
    ends_line = torch.zeros(len(rows), 1, dtype=torch.bool)
    memory = torch.full((len(rows), 1), NOTHING)
    positions = torch.full((len(rows),), ORIGIN)
    with NoHostReads():
        drawn = draw_rows(logits, positions, tensors, ends_line=ends_line, memory=memory)
    assert len(drawn.ids) == len(rows)


# --- pairs --------------------------------------------------------------------------------------------


def pair(policy: KLGuided, seed: int = 0, name: str = "p") -> list[ChildParams]:
    return [
        params(policy, seed, coupling=Coupling(name, "main")),
        params(None, seed, coupling=Coupling(name, "twin")),
    ]


def test_the_main_row_sees_its_twin_and_the_twin_repeats_it() -> None:
    policy, logits = KLGuided(sigma=0.3, ids_without=[1]), random_logits(2)
    draws = 2000
    rows = [row for seed in range(draws) for row in pair(policy, seed, str(seed))]
    drawn = draw(logits.repeat(draws, 1), rows)
    mains, twins = drawn.ids[0::2], drawn.ids[1::2]
    assert torch.equal(mains, twins)
    assert not drawn.statistics.isnan().any()
    with_source, without = (logits[i].double().numpy() for i in (0, 1))
    exact = policy.law(Row(with_source, twin=without))
    seen = np.bincount(mains.numpy(), minlength=len(exact)) / draws
    assert np.abs(seen - exact).sum() < 0.1
    assert np.abs(softmax(with_source) - exact).sum() > 0.3


@pytest.mark.parametrize("index", [[0, 1], [3, 2]])
def test_rows_of_a_pair_at_different_tokens_say_so(index: list[int]) -> None:
    drawn = draw(random_logits(2), pair(KLGuided(ids_without=[1])), index)
    assert (drawn.statistics[:, 1] == APART).all()
    assert not drawn.statistics[:, 0].isnan().any()


def test_a_row_without_its_partner_says_so_and_disturbs_nobody() -> None:
    lonely, _ = pair(KLGuided(ids_without=[1]))
    logits = random_logits(3)
    drawn = draw(logits, [lonely, params(seed=3), params(seed=4)])
    assert drawn.statistics[0, 1] == APART
    alone = draw(logits[1:], [params(seed=3), params(seed=4)])
    assert torch.equal(drawn.ids[1:], alone.ids)
    assert torch.equal(drawn.statistics[1:], alone.statistics)


def test_a_known_token_needs_no_partner_and_the_next_one_does() -> None:
    """Children start a token early, so that the two may be prefilled in different steps."""
    main, twin = (dataclasses.replace(row, forced=(5,)) for row in pair(KLGuided(ids_without=[1])))
    logits = random_logits(2)
    first = draw(logits[:1], [main], 0)
    assert first.ids.tolist() == [5]
    assert not first.statistics.isnan().any()
    assert draw(logits, [main, twin], [0, 0]).ids.tolist() == [5, 5]
    assert draw(logits[:1], [main], 1).statistics[0, 1] == APART
    together = draw(logits, [main, twin], [1, 1])
    assert not together.statistics.isnan().any()
    assert together.ids[0] == together.ids[1]


def test_pairs_in_one_batch_do_not_mix() -> None:
    policy, logits = KLGuided(sigma=0.3, ids_without=[1]), random_logits(4)
    first, second = pair(policy, 1, "a"), pair(policy, 2, "b")
    together = draw(logits[[0, 2, 3, 1]], [first[0], second[0], second[1], first[1]])
    alone = draw(logits[:2], first), draw(logits[2:], second)
    assert together.ids[[0, 3]].tolist() == alone[0].ids.tolist()
    assert together.ids[[1, 2]].tolist() == alone[1].ids.tolist()


# --- memory -------------------------------------------------------------------------------------------


def test_memory_does_not_advance_on_prefill_chunks() -> None:
    """A row before the first token of the answer is a middle chunk of the prompt: it decides nothing."""
    policy = Entropix(entropy_threshold=0.0, varentropy_threshold=99.0, insert_ids=[2])
    memory = torch.tensor([[NOTHING]])
    early = draw(random_logits(1), [params(policy)], -1, memory=memory)
    assert early.memory is not None
    assert early.memory.tolist() == [[NOTHING]]
    first = draw(random_logits(1), [params(policy)], 0, memory=early.memory)
    assert first.ids.tolist() == [2]
    assert first.memory is not None
    assert first.memory.tolist() == [[0]]


def test_a_policy_cannot_force_what_a_grammar_forbids() -> None:
    policy = Entropix(entropy_threshold=0.0, varentropy_threshold=99.0, insert_ids=[2])
    logits = random_logits(1)
    logits[0, 2] = -torch.inf
    drawn = draw(logits, [params(policy)], memory=torch.tensor([[NOTHING]]))
    assert drawn.ids.tolist() != [2]


# --- the token before ---------------------------------------------------------------------------------


def state_behind(ids: list[int], before: int) -> list[int]:
    """The state of a line behind each token, as the rows of one answer see it, one step after the other."""
    states, state = [], torch.tensor([[before]])
    for token in ids:
        state = line_begins(torch.tensor([token]), state, TOKENIZER)
        assert torch.equal(line_begins(torch.tensor([token]), state, TOKENIZER), state), "not idempotent"
        states.append(int(state))
    return states


@pytest.mark.parametrize("before", [0, 1])
def test_what_a_single_token_says_of_the_line(before: int) -> None:
    """A newline, and nothing but blanks behind it; blanks alone say nothing; unknown ids are inside."""
    alone = [state_behind([token], before)[0] for token in (*range(10), 10, 4000)]
    assert alone == [0, 1, 1, 1, 0, before, before, 0, before, 1, 0, 0]


@pytest.mark.parametrize(
    ("text", "ids", "states"),
    [
        ("newline, indentation, code", [1, 5, 0, 0], [1, 1, 0, 0]),
        ("newline, indentation in three pieces, code", [3, 5, 6, 8, 7, 0], [1, 1, 1, 1, 0, 0]),
        ("newline and indentation in one token", [2, 0, 5, 0], [1, 0, 0, 0]),
        ("an empty line of blanks", [1, 5, 1, 5, 7, 5], [1, 1, 1, 1, 0, 0]),
        ("empty lines in one token", [9, 5, 0], [1, 1, 0]),
        ("blanks inside of a line", [0, 5, 0, 6, 0], [0, 0, 0, 0, 0]),
        ("a token that goes on behind its newline", [4, 5, 0], [0, 0, 0]),
    ],
)
def test_a_line_begins_until_its_first_token_that_is_not_blank(
    text: str, ids: list[int], states: list[int]
) -> None:
    assert state_behind(ids, 0) == states, text
    read_again = [int(begins_line(reversed(ids[: n + 1]), TOKENIZER)) for n in range(len(ids))]
    assert read_again == states, "a row that is made again sees what it would have seen"


@pytest.mark.parametrize(
    ("output", "begins"), [([], 1), ([5, 6], 1), ([5, 0], 0), ([5, 0, 5], 0), ([0, 3], 1)]
)
def test_a_row_reads_the_line_from_prompt_and_answer_whenever_it_is_made(
    output: list[int], begins: int
) -> None:
    """Retraction, prefix caching and proposals of power make rows in the middle of an answer."""
    req = request(Adapt())
    req.origin_input_ids, req.output_ids = [0, 3, 5], output
    row = _row_of(req)
    assert row is not None
    assert row.line is not None
    assert row.line.read(CPU).tolist() == [begins]


def test_the_indentation_and_the_first_code_token_are_hot_the_rest_is_cold() -> None:
    """Through the sampler's own step: the rows' states, and the law that each token is drawn from."""
    req = request(Adapt(hot=2.0, cold=0.5))
    req.origin_input_ids, answer = [0] * ORIGIN + [3], [5, 5, 7, 0, 1, 6, 0]
    row = _row_of(req)
    assert row is not None
    block = RowBlock((row, _row_of(request(TopNSigma()))))
    logits, seen = random_logits(2), []
    cold = sampler._draw(logits, torch.tensor([1, 1]), block, torch.tensor([0, 0]), "torch")
    assert cold.statistics[0, 1] != cold.statistics[0, 0], "a middle chunk of the prompt: not remembered"
    for index, token in enumerate([3, *answer]):
        positions = torch.full((2,), ORIGIN + index)
        drawn = sampler._draw(logits, positions, block, torch.tensor([token, 1]), "torch")
        x = logits[0].double().numpy()
        log_q = {t: np.log(softmax(x, t)[drawn.ids[0]]) for t in (2.0, 0.5)}
        seen.append(min(log_q, key=lambda t: abs(log_q[t] - drawn.statistics[0, 1].item())))
    #                newline  4    4    b    a   newline tab   a
    assert seen == [2.0, 2.0, 2.0, 0.5, 0.5, 2.0, 2.0, 0.5]


# --- bans ---------------------------------------------------------------------------------------------


def test_which_biases_ban() -> None:
    bias = {"3": -100, "4": -99.9, "5": -1e9, "6": 100.0, "7": float("-inf"), "8": 0}
    assert banned_tokens(bias) == (3, 5, 7)
    assert banned_tokens(None) == ()


def banned_draw(logits: torch.Tensor, policy: Policy, banned: list[int], draws: int, kappa: float) -> Drawn:
    """As `draw`, on rows whose logit_bias bans tokens: SGLang has added it to the logits."""
    biased = logits.clone()
    biased[:, banned] += BAN
    rows = [params(policy, seed, kappa=kappa) for seed in range(draws)]
    tensors = RowTensors.of(rows, list(range(draws)), draws, [banned] * draws)
    return draw_rows(
        biased.expand(draws, -1).contiguous(),
        torch.full((draws,), ORIGIN),
        tensors,
        ends_line=torch.zeros(draws, 1, dtype=torch.bool),
        memory=torch.full((draws, 1), NOTHING),
    )


BANNED = [0, 3, 4, 9, 11, 12, 17, 20, 22, 23]
ALONE = [kind for kind in policies().values() if "twin" not in kind.needs]


@pytest.mark.parametrize("kappa", [1.0, 0.02])
@pytest.mark.parametrize("kind", ALONE, ids=[kind.name() for kind in ALONE])
def test_banned_tokens_do_not_count_for_any_policy(kind: type[Policy], kappa: float) -> None:
    """The density of every draw is that of the rule on the row without them, at high temperatures too.

    Exact, but for float32; the control below shows that the comparison sees what a ban can do.
    """
    logits, draws = random_logits(1, vocab=24, seed=5), 60
    x = logits[0].double().numpy().copy()
    x[BANNED] = -np.inf
    for example in kind.examples:
        policy = kind(**example)
        drawn = banned_draw(logits, policy, BANNED, draws, kappa)
        right = policy.law(Row(x, 1.0 / kappa))
        assert not set(drawn.ids.tolist()) & set(BANNED)
        expected = np.log(right[drawn.ids.numpy()])
        assert np.abs(drawn.statistics[:, 1].numpy() - expected).max() < 1e-4


def test_banned_tokens_add_nothing_to_a_divergence() -> None:
    """Either prompt's children carry the request's bias; the temperature is that of the laws without them."""
    policy, logits, draws = KLGuided(sigma=0.3, ids_without=[1]), random_logits(2, vocab=24, seed=5), 60
    biased, masked = logits.clone(), logits.double().numpy().copy()
    biased[:, BANNED] += BAN
    masked[:, BANNED] = -np.inf
    rows = [row for seed in range(draws) for row in pair(policy, seed, str(seed))]
    tensors = RowTensors.of(rows, list(range(2 * draws)), 2 * draws, [BANNED, []] * draws)
    drawn = draw_rows(biased.repeat(draws, 1), torch.full((2 * draws,), ORIGIN), tensors)
    right = policy.law(Row(masked[0], twin=masked[1]))
    expected = np.log(right[drawn.ids[0::2].numpy()])
    assert np.abs(drawn.statistics[0::2, 1].numpy() - expected).max() < 1e-4


@pytest.mark.parametrize("policy", [TopNSigma(), TopNSigma(n=0.3), MinK(), MinK(decay=0.25)])
def test_without_the_ban_being_known_such_rules_keep_other_tokens(policy: Policy) -> None:
    """So that the test above can fail: a finite logit of -100 is the spread, and the steepest fall."""
    logits = random_logits(1, vocab=24, seed=5)[0].double().numpy()
    biased, masked = logits.copy(), logits.copy()
    biased[BANNED] += BAN
    masked[BANNED] = -np.inf
    assert (policy.law(Row(biased)) > 1e-9).sum() > (policy.law(Row(masked)) > 0).sum()


def test_other_rows_of_the_batch_keep_their_biased_logits() -> None:
    """The base law keeps a biased token's tiny probability, so that log p of any token is finite."""
    logits = random_logits(3)
    logits[:, 2] += BAN
    rows = [params(TopNSigma()), params(), params(forced=(2,))]
    tensors = RowTensors.of(rows, [0, 1, 2], 3, [[2], [], []])
    drawn = draw_rows(logits, torch.full((3,), ORIGIN), tensors)
    assert drawn.ids[2] == 2
    assert drawn.statistics[2, 0] < BAN / 2
    assert drawn.statistics.isfinite().all()
    assert torch.equal(drawn.statistics[1:], draw(logits, rows).statistics[1:])


def test_a_row_that_bans_all_it_has_draws_as_if_it_banned_nothing() -> None:
    logits = random_logits(1)
    logits[0, 4:] = -torch.inf
    logits[0, :4] += BAN
    row = params(TopNSigma(n=0.5))
    banned = draw_rows(logits, torch.tensor([ORIGIN]), RowTensors.of([row], [0], 1, [[0, 1, 2, 3]]))
    free = draw(logits, [row])
    assert torch.equal(banned.ids, free.ids)
    assert banned.statistics.isfinite().all()


def test_a_policy_cannot_force_what_a_bias_bans() -> None:
    policy = Entropix(entropy_threshold=0.0, varentropy_threshold=99.0, insert_ids=[2])
    drawn = banned_draw(random_logits(1), policy, [2], 1, 1.0)
    assert drawn.ids.tolist() != [2]


def test_the_bans_of_a_request_reach_its_rows_and_follow_the_batch() -> None:
    banning = _row_of(request(MinK(), logit_bias={"5": -100, "1": -100.0, "2": -3}))
    assert banning is not None
    block = RowBlock((None, _row_of(request(MinK())), banning))
    bans = block.on(CPU).bans
    assert bans is not None
    assert (bans.rows.tolist(), bans.tokens.tolist()) == ([1, 1], [5, 1])
    alone = block.keep([2]).on(CPU).bans
    assert alone is not None
    assert alone.rows.tolist() == [0, 0]
    assert block.keep([1]).on(CPU).bans is None


# --- where tokens are committed -----------------------------------------------------------------------


def commit(req: SimpleNamespace, row: ChildParams, log_p: float, log_q: float) -> None:
    values = torch.tensor([[log_p, log_q, 0.0, 1.0, 0.0, 0.0, 0.0]])
    commits = [SimpleNamespace(output_index=0, token_ids=(0,))]
    req.output_ids.append(0)
    HostStatistics(RowBlock.of(row), values).consume(SimpleNamespace(reqs=[req]), commits)


def test_requests_that_sglang_answers_itself_carry_no_statistics() -> None:
    req = request(TopNSigma())
    commit(req, params(TopNSigma(), native=True), -1.0, -0.5)
    assert req.customized_info is None
    assert req.to_finish is None


@pytest.mark.parametrize("log_p", [float("nan"), -1.0])
def test_laws_that_are_not_numbers_end_such_a_request(log_p: float) -> None:
    req = request(TopNSigma())
    commit(req, params(TopNSigma(), native=True), log_p, float("nan"))
    assert isinstance(req.to_finish, FINISH_ABORT)
    assert "not numbers" in req.to_finish.to_json()["message"]


def test_a_row_apart_from_its_partner_ends() -> None:
    main, _ = pair(KLGuided(ids_without=[1]))
    together, apart = request(TopNSigma()), request(TopNSigma())
    commit(together, main, -1.0, -1.0)
    commit(apart, main, -1.0, APART)
    assert together.to_finish is None
    assert isinstance(apart.to_finish, FINISH_LENGTH)


# --- the backend that draws ---------------------------------------------------------------------------


def test_a_backend_that_cannot_run_here_stops_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServerConfig(kernels=Kernels(sampling="flashinfer"))
    monkeypatch.setattr(sampler, "server_config", lambda: config)
    with pytest.raises(HostError, match=r"kernels\.sampling='flashinfer'.*cpu.*torch"):
        sampler._sampling_backend("cpu")


def test_the_configured_backend_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ServerConfig(kernels=Kernels(sampling="torch"))
    monkeypatch.setattr(sampler, "server_config", lambda: config)
    assert sampler._sampling_backend("cpu") == "torch"
    before = counters().get("torch.sample_rows", 0)
    draw(random_logits(1), [params()], backend="torch")
    assert counters()["torch.sample_rows"] == before + 1
