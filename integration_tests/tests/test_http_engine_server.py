"""HttpEngine on real servers: SGLang without the plugin, and with it.

Rows against transformers and against the plugin's own statistics, and CoT-decoding against sampler="cot".
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sglang_power import clock
from sglang_power.algorithms.cot import GREEDY, CotConfig
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.answers import equivalence, spelled
from sglang_power.engines.http import HttpEngine, Remote
from sglang_power.errors import UnsupportedError
from sglang_power.rng import Key
from sglang_power.samplers.candidates import ReadAnswer, Reading
from sglang_power.samplers.cot import Cot
from sglang_power.samplers.samples import Samples
from sglang_power.samplers.vote import Vote
from sglang_power.types import FloatArray, ProposalLaw, Tokens
from transformers import Qwen2ForCausalLM, Qwen2Tokenizer

from integration_tests.helpers.clients import PROMPT_Q, generate, power_of, raw_generate
from integration_tests.server import PIVOT_MODEL, Server

RECORDED = Path(__file__).parents[2] / "plugin" / "tests" / "data" / "remote_answers.json"

BASE = ProposalLaw(1.0)
LONGEST = 48
GAP, MARGIN = 5, 6


@pytest.fixture(scope="module")
def network() -> Qwen2ForCausalLM:
    """The pivot model, as transformers runs it."""
    return Qwen2ForCausalLM.from_pretrained(PIVOT_MODEL, dtype=torch.float32).eval()


class DigitReader:
    """The Reader of the pivot model: the digit behind the A."""

    def __init__(self) -> None:
        self._tokenizer = Qwen2Tokenizer.from_pretrained(PIVOT_MODEL)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))

    def text(self, ids: Sequence[int], finished: bool) -> str:  # noqa: ARG002  (the protocol's signature)
        """What a client would be given."""
        return self._decode(ids)

    async def answer(self, tokens: Tokens, finished: bool) -> Reading:  # noqa: ARG002
        """The last digit behind an A."""
        path = spelled(self._decode, tokens.ids)
        found = list(re.finditer(r"A(\d)", path.text))
        if not found:
            return Reading(None)
        span = found[-1].span(1)
        return Reading(ReadAnswer(found[-1].group(1), span, path.tokens_of(span)))


def expected_rows(network: Qwen2ForCausalLM, prompt: Sequence[int], ids: Sequence[int]) -> FloatArray:
    """[tokens, 3]: log_p, gap and margin, from transformers."""
    with torch.inference_mode():
        logits = network(input_ids=torch.tensor([[*prompt, *ids]])).logits[0, len(prompt) - 1 : -1]
    log_p = torch.log_softmax(logits.double(), dim=-1).numpy()
    rows = []
    for row, token in zip(log_p, ids, strict=True):
        p = np.exp(row)
        first, second = np.sort(p)[::-1][:2]
        rows.append((row[token], first - second, p[token] - np.delete(p, token).max()))
    return np.array(rows)


def check_rows(network: Qwen2ForCausalLM, engine: HttpEngine, tokens: Tokens) -> None:
    stated = tokens.rows[:, [0, GAP, MARGIN]]
    np.testing.assert_allclose(stated, expected_rows(network, engine.prompt, tokens.ids), atol=1e-4)
    assert np.isnan(tokens.entropy).all()


@pytest.fixture(params=["plain", "plugin"])
def url(request: pytest.FixtureRequest) -> str:
    """A server without the plugin, and one with it."""
    name = {"plain": "plain_server", "plugin": "pivot_server"}[request.param]
    server: Server = request.getfixturevalue(name)
    return server.url


@pytest.mark.server
async def test_rows_are_those_of_transformers(url: str, network: Qwen2ForCausalLM) -> None:
    async with Remote(url) as remote:
        engine = await remote.engine(PROMPT_Q)
        base = await engine.generate(ContinuationCall((), LONGEST, BASE, 1))
        best = await engine.generate(ContinuationCall((), LONGEST, GREEDY, 1))
        forced = await engine.generate(ContinuationCall((), LONGEST, BASE, 1, forced=base.tokens.ids))
        worked = await engine.generate(
            ContinuationCall(base.tokens.ids[:1], LONGEST, GREEDY, 1, forced=base.tokens.ids[1:2])
        )
    for one in (base, best, forced):
        check_rows(network, engine, one.tokens)
    check_rows(network, engine, base.tokens.first(1) + worked.tokens)
    assert (forced.tokens.ids, forced.finished) == (base.tokens.ids, base.finished)
    assert base.tokens.log_q.tolist() == base.tokens.log_p.tolist()
    assert not best.tokens.log_q.any()
    assert base.usage.decoded == base.usage.depth - 1 == len(base.tokens)
    assert base.usage.prefilled == 1  # the prompt is cached up to its last token
    assert not any(one.cut_short for one in (base, best, forced, worked))


@pytest.mark.server
async def test_rows_are_those_of_the_plugins_children(plain_server: Server, pivot_server: Server) -> None:
    answer = generate(pivot_server, PROMPT_Q, alpha=4.0, proposal_temperature=1.0, seed=5)
    async with Remote(plain_server.url) as remote:
        engine = await remote.engine(PROMPT_Q)
        call = ContinuationCall((), LONGEST, BASE, 1, forced=tuple(answer["output_ids"]))
        scored = await engine.generate(call)
    assert scored.tokens.log_p.sum() == pytest.approx(power_of(answer)["log_p"], abs=1e-4)
    assert scored.finished == (answer["meta_info"]["finish_reason"]["type"] == "stop")


@pytest.mark.server
async def test_recorded_answers_are_still_given(plain_server: Server) -> None:
    """Those that hold no draw: what the unit tests read is what SGLang says."""
    recorded: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    async with Remote(plain_server.url) as remote:
        for name in ("greedy", "forced", "forced_only", "ranking"):
            said = await remote.connection.generate(recorded[name]["request"])
            told = recorded[name]["answer"]
            assert (name, said["output_ids"]) == (name, told["output_ids"])
            for key in ("input_top_logprobs", "output_top_logprobs"):
                now, then = (flat(one["meta_info"][key]) for one in (said, told))
                assert now == pytest.approx(then, abs=1e-4)


def flat(tops: Sequence[Any]) -> list[float]:
    """The log probabilities of nested alternatives."""
    return [entry[0] for row in tops if row is not None for entry in row]


# --- algorithms ---------------------------------------------------------------------------------------


@pytest.mark.server
@pytest.mark.parametrize("select", ["max", "aggregate"])
async def test_cot_is_that_of_the_server_side_sampler(
    plain_server: Server, pivot_server: Server, select: str
) -> None:
    custom = {"sampler": "cot", "k": 10, "answer": "regex", "answer_regex": r"A(\d)", "seed": 1}
    params = {"max_new_tokens": LONGEST, "custom_params": {**custom, "select": select}}
    told = raw_generate(pivot_server, PROMPT_Q, sampling_params=params)
    async with Remote(plain_server.url) as remote:
        engine = await remote.engine(PROMPT_Q)
        cot = Cot(
            engine,
            DigitReader(),
            equivalence("exact"),
            CotConfig(k=10, horizon=LONGEST),
            Key(1),
            aggregate=select == "aggregate",
        )
        selection = await cot.run()
    paths = power_of(told)["paths"]
    assert selection.best.text == told["text"]
    assert [one.text for one in selection.candidates] == [path["text"] for path in paths]
    assert [one.value for one in selection.candidates] == [path["answer"] for path in paths]
    stated = [(one.delta, one.first_log_p) for one in selection.candidates]
    assert stated == [pytest.approx((path["confidence"], path["first_log_p"]), abs=1e-4) for path in paths]


@pytest.mark.server
async def test_votes_by_power_weights(plain_server: Server) -> None:
    async with Remote(plain_server.url) as remote:
        engine = await remote.engine(PROMPT_Q)
        samples = Samples(count=8, horizon=LONGEST, base=BASE, tokens_each=LONGEST)
        vote = Vote(engine, DigitReader(), samples, Key(1))
        selection = await vote.run(equivalence("exact"), "power", alpha=4.0)
    log_p = np.array([one.log_p for one in selection.candidates])
    assert np.array(selection.scores) - log_p * 3.0 == pytest.approx(selection.scores[0] - 3.0 * log_p[0])
    assert selection.usage.decoded == sum(len(one.tokens) for one in selection.candidates)


@pytest.mark.server
async def test_the_vocabulary_bounds_the_ranking_and_the_server_lives_on(plain_server: Server) -> None:
    async with Remote(plain_server.url) as remote:
        engine = await remote.engine(PROMPT_Q)
        with pytest.raises(UnsupportedError, match="fewer"):
            await engine.most_likely((), 100_000)
        ranked, usage = await engine.most_likely((), 5)
    assert [one.log_p for one in ranked] == sorted([one.log_p for one in ranked], reverse=True)
    assert (usage.decoded, usage.wasted, usage.prefilled) == (1, 1, 1)


@pytest.mark.server
async def test_a_passed_deadline_still_gives_a_token(plain_server: Server) -> None:
    call = ContinuationCall((), LONGEST, BASE, 1, deadline=clock.now())
    async with Remote(plain_server.url) as remote:
        engine = await remote.engine(PROMPT_Q)
        late = await engine.generate(call)
    assert 1 <= len(late.tokens) <= LONGEST
    assert late.cut_short != late.finished
