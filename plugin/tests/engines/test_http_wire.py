"""What is asked of a remote server, how its recorded answers are read, and what is refused.

Error rate 0.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from remote_answers import FORCED, PROMPT, RECORDED
from sglang_power.algorithms import cuts
from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.early_rejection import EarlyRejection
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.mh import MHConfig
from sglang_power.algorithms.triggers import THRESHOLDS, Trigger, Watch
from sglang_power.engines.http import capabilities, check_chain, wire
from sglang_power.engines.http.capabilities import BASE
from sglang_power.engines.http.wire import Generation, row_of
from sglang_power.errors import HostError, UnsupportedError
from sglang_power.policies.edt import EDT
from sglang_power.rng import Key
from sglang_power.types import ROW_FIELDS, ProposalLaw, Usage

LOG_P, LOG_Q, LOG_Z, ENTROPY, VARENTROPY, GAP, MARGIN = range(len(ROW_FIELDS))


def asked(forced: tuple[int, ...], fresh: int, law: ProposalLaw) -> Generation:
    return Generation(PROMPT, forced, fresh, law, seed=1, stop_token_ids=())


# --- requests -----------------------------------------------------------------------------------------


BODIES = {
    "prompt": wire.prompt_body("Q7+3*2-8:"),
    "drawn": Generation(PROMPT, (), 6, BASE, seed=2, stop_token_ids=(61,)).body(),
    "greedy": asked((), 48, GREEDY).body(),
    "forced": asked(FORCED, 2, GREEDY).body(),
    "forced_only": asked(FORCED, 0, BASE).body(),
    "ranking": wire.ranking_body(PROMPT, 4),
    "stops": wire.stops_body([0, 99]),
}


@pytest.mark.parametrize("name", BODIES)
def test_requests_are_those_that_were_recorded(name: str) -> None:
    assert BODIES[name] == RECORDED[name]["request"]


@pytest.mark.parametrize("name", BODIES)
def test_no_default_of_the_server_acts(name: str) -> None:
    params = BODIES[name]["sampling_params"]
    for one in params if isinstance(params, list) else [params]:
        assert wire.NEUTRAL.keys() <= one.keys()
        assert one["custom_params"] == {"sampler": "none"}
        assert (one["temperature"], one["top_p"], one["min_p"]) == (1.0, 1.0, 0.0)
        assert {one[name] for name in ("frequency_penalty", "presence_penalty")} == {0.0}


# --- answers ------------------------------------------------------------------------------------------


def test_drawn_tokens_are_read_with_what_one_pass_states() -> None:
    answer = RECORDED["drawn"]["answer"]
    tokens = asked((), 6, BASE).read(answer)
    meta = answer["meta_info"]
    assert list(tokens.ids) == answer["output_ids"]
    assert tokens.log_p.tolist() == [entry[0] for entry in meta["output_token_logprobs"]]
    assert tokens.log_q.tolist() == tokens.log_p.tolist()
    assert not tokens.rows[:, LOG_Z].any()
    assert np.isnan(tokens.rows[:, [ENTROPY, VARENTROPY]]).all()
    top = np.exp([[log_p for log_p, *_ in pair] for pair in meta["output_top_logprobs"]])
    assert tokens.rows[:, GAP] == pytest.approx(top[:, 0] - top[:, 1])
    others = [
        max(math.exp(log_p) for log_p, other, _ in pair if other != token)
        for token, pair in zip(tokens.ids, meta["output_top_logprobs"], strict=True)
    ]
    assert tokens.margin == pytest.approx(np.exp(tokens.log_p) - others)


def test_forced_tokens_are_scored_by_the_prefill_and_drawn_ones_follow() -> None:
    tokens = asked(FORCED, 2, GREEDY).read(RECORDED["forced"]["answer"])
    assert tokens.ids[:3] == FORCED
    assert len(tokens) == 5
    only = asked(FORCED, 0, BASE).read(RECORDED["forced_only"]["answer"])
    assert only.ids == FORCED
    assert only.log_p == pytest.approx(tokens.log_p[:3], abs=1e-5)


def test_a_forced_token_that_greedy_would_not_take_has_no_mass_and_a_negative_margin() -> None:
    row = asked(FORCED, 2, GREEDY).read(RECORDED["forced"]["answer"]).rows[0]
    best, second = RECORDED["forced"]["answer"]["meta_info"]["input_top_logprobs"][-3]
    assert second[1] == FORCED[0]
    assert row[LOG_Q] == -math.inf
    assert row[MARGIN] == pytest.approx(math.exp(second[0]) - math.exp(best[0]))
    assert row[MARGIN] < 0 < row[GAP]


def test_greedy_draws_are_certain() -> None:
    tokens = asked((), 48, GREEDY).read(RECORDED["greedy"]["answer"])
    assert not tokens.log_q.any()
    assert tokens.log_p.min() < -1.0
    assert tokens.margin.min() >= 0.0


@pytest.mark.parametrize("token", [7, 8])
def test_exact_ties_are_both_most_likely(token: int) -> None:
    row = row_of(token, -0.7, [[-0.7, 7, None], [-0.7, 8, None]], GREEDY)
    assert (row[LOG_Q], row[GAP], row[MARGIN]) == (0.0, 0.0, 0.0)


def test_a_probability_that_underflows_is_null() -> None:
    row = row_of(7, 0.0, [[0.0, 7, None], [None, 8, None]], BASE)
    assert (row[GAP], row[MARGIN]) == (1.0, 1.0)


@pytest.mark.parametrize("name", ["output_token_logprobs", "input_token_logprobs"])
def test_log_probabilities_of_other_tokens_are_an_error(name: str) -> None:
    answer = copy.deepcopy(RECORDED["forced"]["answer"])
    answer["meta_info"][name][-1][1] += 1
    with pytest.raises(HostError, match="not of"):
        asked(FORCED, 2, GREEDY).read(answer)
    del answer["meta_info"][name][1:]
    with pytest.raises(HostError, match=r"of [23] tokens"):
        asked(FORCED, 2, GREEDY).read(answer)


def test_the_last_id_of_the_vocabulary_is_shown_as_another() -> None:
    answer = copy.deepcopy(RECORDED["forced_only"]["answer"])
    answer["meta_info"]["input_token_logprobs"][-1][1] = wire.SHOWN_FOR_LAST_ID
    whole = asked(FORCED, 0, BASE).read(RECORDED["forced_only"]["answer"])
    shown = asked(FORCED, 0, BASE).read(answer)
    assert shown.ids == FORCED
    assert shown.log_p.tolist() == whole.log_p.tolist()


def test_a_row_of_the_next_token_is_left_out() -> None:
    """SGLang lists one for a request of no new tokens, in some batches."""
    answer = copy.deepcopy(RECORDED["forced_only"]["answer"])
    answer["meta_info"]["output_token_logprobs"] = [[-1.25, 3, None]]
    assert asked(FORCED, 0, BASE).read(answer).ids == FORCED


def test_an_abort_gives_what_there_is() -> None:
    aborted = RECORDED["aborted"]["answer"]
    assert list(asked((), 48, BASE).read(aborted).ids) == aborted["output_ids"]
    at_once = RECORDED["aborted_at_once"]["answer"]
    assert len(asked(FORCED, 48, BASE).read(at_once)) == 0
    assert wire.usage_of(at_once["meta_info"]) == Usage(depth=1, children=1)


def test_usage_counts_what_was_not_cached() -> None:
    meta = RECORDED["forced"]["answer"]["meta_info"]
    assert (meta["prompt_tokens"], meta["cached_tokens"]) == (12, 8)
    assert wire.usage_of(meta) == Usage(decoded=2, prefilled=4, depth=3, children=1)


def test_the_ranking_is_best_first() -> None:
    ranked = wire.read_ranking(RECORDED["ranking"]["answer"])
    assert len(ranked) == 4
    assert [one.log_p for one in ranked] == sorted([one.log_p for one in ranked], reverse=True)


def test_stops_are_the_tokens_that_end_what_decodes_them() -> None:
    answers = RECORDED["stops"]["answer"]
    assert wire.read_stops([0, 99], answers) == {0: True, 99: False}
    with pytest.raises(HostError, match="logit bias"):
        wire.read_stops([0, 98], answers)


# --- refusals -----------------------------------------------------------------------------------------


def chain(law: ProposalLaw, cut: CutLaw) -> MHConfig:
    return MHConfig(alpha=4.0, law=law, horizon=48, block_size=16, steps=2, cut=cut)


REFUSED_LAWS = {
    "kappa": ProposalLaw(4.0),
    "top_k": ProposalLaw(1.0, top_k=2),
    "top_p": ProposalLaw(1.0, top_k=1, top_p=0.9),
    "min_p": ProposalLaw(1.0, min_p=0.1),
    "policy": ProposalLaw(1.0, policy=EDT()),
}


@pytest.mark.parametrize("field", REFUSED_LAWS)
def test_other_laws_are_refused_by_name(field: str) -> None:
    law = REFUSED_LAWS[field]
    with pytest.raises(UnsupportedError, match="sglang-power") as in_chain:
        check_chain(chain(law, UniformCut()))
    with pytest.raises(UnsupportedError, match="sglang-power") as in_call:
        capabilities.check_call(ContinuationCall((), 1, law, 1))
    assert in_chain.value.field == in_call.value.field == field


def test_what_one_pass_states_is_accepted() -> None:
    for law in (ProposalLaw(1.0), ProposalLaw(1.0, top_k=1)):
        check_chain(chain(law, UniformCut()))
        rejection = EarlyRejection(-1.0, 4.0, UniformCut(), 0, 0.0, 0.0)
        watch = Watch((Trigger("ratio", (0.5,)),))
        capabilities.check_call(ContinuationCall((), 1, law, 1, rules=(rejection, watch)))
    capabilities.check_server(
        {"speculative_algorithm": None, "watermark_enforce_all": False, "version": "0.5.23"}
    )


def test_entropy_cuts_are_refused_in_chains_and_in_early_rejection() -> None:
    cut = EntropyCut(4.0, 0.1)
    with pytest.raises(UnsupportedError, match="uniform") as refused:
        check_chain(chain(BASE, cut))
    assert refused.value.field == "cut"
    rejection = EarlyRejection(-1.0, 4.0, cut, 0, 0.0, 0.0)
    with pytest.raises(UnsupportedError, match="uniform"):
        capabilities.check_call(ContinuationCall((), 1, BASE, 1, rules=(rejection,)))


def test_a_cut_that_reads_entropies_does_not_take_rows_without_them() -> None:
    """Where nobody checked the chain: without early rejection its calls do not show the cut."""
    entropies = asked((), 6, BASE).read(RECORDED["drawn"]["answer"]).entropy
    with pytest.raises(UnsupportedError, match="entropies"):
        cuts.draw(EntropyCut(4.0, 0.1), Key(1), 0, entropies)
    assert 0 <= cuts.draw(UniformCut(), Key(1), 0, entropies) < len(entropies)


@pytest.mark.parametrize("name", sorted(THRESHOLDS.keys() - {"ratio"}))
def test_triggers_that_read_entropies_are_refused(name: str) -> None:
    watch = Watch((Trigger("ratio", (0.5,)), Trigger(name, (0.5,) * THRESHOLDS[name])))
    with pytest.raises(UnsupportedError, match="ratio") as refused:
        capabilities.check_call(ContinuationCall((), 1, BASE, 1, rules=(watch,)))
    assert (refused.value.field, refused.value.value) == ("trigger", name)


@pytest.mark.parametrize(
    ("name", "value"), [("speculative_algorithm", "EAGLE"), ("watermark_enforce_all", True)]
)
def test_servers_that_draw_from_another_law_are_refused(name: str, value: object) -> None:
    with pytest.raises(UnsupportedError, match="without it") as refused:
        capabilities.check_server({name: value})
    assert refused.value.field == name
