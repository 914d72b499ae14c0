"""Child requests and what their answers are worth: masks of stops, retractions, laws that are no numbers.

SGLang is replaced by scripted answers to the children that it is sent.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from letters import Letters
from sglang_power.algorithms.engine import ContinuationCall
from sglang_power.algorithms.penalties import Penalties
from sglang_power.errors import HostError
from sglang_power.policies.kl_guided import KLGuided
from sglang_power.server.config import ServerConfig
from sglang_power.sglang_host.child_params import APART, META_KEY, ChildParams
from sglang_power.sglang_host.tokenizer.children import ChildEngine, Prompt
from sglang_power.sglang_host.tokenizer.host import Host
from sglang_power.sglang_host.tokenizer.parent import Parent
from sglang_power.sglang_host.tokenizer.stopping import StopRule
from sglang_power.sglang_host.tokenizer.twin import TwinEngine
from sglang_power.types import Continuation, ProposalLaw, Usage

EOS = 0
PROMPT, OTHER = Prompt([3, 4, 5], {}, Usage()), Prompt([6, 7], {}, Usage())
LAW = ProposalLaw(1.0)
GUIDED = ProposalLaw(1.0, policy=KLGuided(ids_without=[6, 7]))


def scripted(ids: list[int], asked: int, retractions: int = 0, log_q: dict[int, float] | None = None) -> Any:
    """SGLang's answer of a child that ended with its last token, by a stop or by its length."""
    rows = [[-0.5, (log_q or {}).get(i, -0.5), 0.0, 1.0, 0.0, 0.1, 0.1] for i in range(len(ids))]
    stopped = ids[-1:] == [EOS]
    length = {"type": "length", "length": len(ids)}
    reason = {"type": "stop", "matched": EOS} if stopped else length
    assert stopped or log_q or len(ids) == asked
    meta = {"id": "r.0", "prompt_tokens": 3, "cached_tokens": 3, "finish_reason": reason}
    return {"output_ids": ids, "meta_info": {**meta, META_KEY: rows, "num_retractions": retractions}}


class ScriptedParent(Parent):
    """Answers children in turn and remembers them."""

    def __init__(self, min_new_tokens: int | None, *answers: Any) -> None:
        model = SimpleNamespace(hf_eos_token_id=[EOS])
        manager = SimpleNamespace(tokenizer=Letters(), model_config=model, max_req_input_len=100)
        obj = SimpleNamespace(rid="r", sampling_params={"min_new_tokens": min_new_tokens}, background=False)
        super().__init__(Host(manager, lambda *_: None, obj, None, ServerConfig()))
        self.children: list[Any] = []
        self._answers = iter(answers)

    async def run(self, child: Any, *_: Any) -> dict[str, Any]:
        self.children.append(child)
        answer: dict[str, Any] = next(self._answers)
        return answer

    async def run_together(self, children: Any) -> list[dict[str, Any]]:
        return [await self.run(child) for child in children]

    @property
    def masks(self) -> list[int]:
        """min_new_tokens of each child."""
        return [child.sampling_params["min_new_tokens"] for child in self.children]

    @property
    def stop(self) -> StopRule:
        return StopRule.of(self.manager, self.params)


def engine(parent: ScriptedParent, prompt: Prompt = PROMPT) -> ChildEngine:
    return ChildEngine(parent, prompt, parent.stop, None)


async def generated(parent: ScriptedParent, horizon: int, prefix: tuple[int, ...] = ()) -> Continuation:
    return await engine(parent).generate(ContinuationCall(prefix, horizon, LAW, 7))


async def paired(parent: ScriptedParent, horizon: int) -> Continuation:
    twin = ChildEngine(parent, OTHER, StopRule(parent.stop.tokenizer, (), parent.stop.tokens, 1), None)
    pair = TwinEngine(parent, engine(parent), twin, parent.stop, "r.0")
    return await pair.generate(ContinuationCall((), horizon, GUIDED, 7))


# --- min_new_tokens -----------------------------------------------------------------------------------


async def test_children_mask_no_stop_unless_the_client_named_min_new_tokens() -> None:
    """SGLang's mask is built of the stop ids of a whole batch, and one outside of the vocabulary ends it."""
    for least in (None, 0):
        parent = ScriptedParent(least, scripted([5, 8, 9], 3), scripted([7, 8, 9], 3))
        whole = await paired(parent, 2)
        assert whole.tokens.ids == (8, 9)
        assert parent.masks == [0, 0]
        assert (whole.usage.decoded, whole.usage.children) == (6, 2)
        assert whole.usage.depth == 3 + 1, "two rows side by side, with the known token and the launch"


async def test_the_mask_covers_the_known_token_too() -> None:
    parent = ScriptedParent(2, scripted([5, 8, 9, 2], 4), scripted([7, 8, 9, 2], 4))
    await paired(parent, 3)
    assert parent.masks == [1 + 2, 1 + 2]


async def test_what_a_prefix_has_is_not_masked_again() -> None:
    parent = ScriptedParent(3, scripted([8, 9], 2))
    await generated(parent, 4, prefix=(1, 2))
    assert parent.masks == [1]


# --- retractions --------------------------------------------------------------------------------------


async def test_tokens_behind_the_minimum_of_a_retracted_child_are_drawn_again() -> None:
    """Behind the retraction stops were masked for min_new_tokens more: they may be what no law would draw."""
    parent = ScriptedParent(2, scripted([1, 2, 3, 3, 3, 3], 6, retractions=1), scripted([4, EOS], 4))
    whole = await generated(parent, 6)
    assert whole.tokens.ids == (1, 2, 4, EOS)
    assert whole.finished
    assert parent.masks == [2, 0]
    assert parent.children[1].input_ids == [*PROMPT.ids, 1, 2]
    assert (whole.usage.decoded, whole.usage.wasted) == (8, 4)
    assert (whole.usage.children, whole.usage.depth) == (2, 8 + 2), "a child that goes on is launched again"


async def test_an_end_behind_the_minimum_of_a_retracted_child_counts_for_nothing() -> None:
    parent = ScriptedParent(2, scripted([1, 2, 3, EOS], 6, retractions=2), scripted([5, 5, 5, 5], 4))
    whole = await generated(parent, 6)
    assert whole.tokens.ids == (1, 2, 5, 5, 5, 5)
    assert not whole.finished


@pytest.mark.parametrize(("least", "retractions"), [(None, 3), (2, 0), (6, 3)])
async def test_others_keep_all_that_they_drew(least: int | None, retractions: int) -> None:
    """Without a minimum nothing is masked, without a retraction nothing twice, below it all of it rightly."""
    parent = ScriptedParent(least, scripted([1, 2, 3, 4, 5, 6], 6, retractions=retractions))
    whole = await generated(parent, 6)
    assert whole.tokens.ids == (1, 2, 3, 4, 5, 6)
    assert len(parent.children) == 1


@pytest.mark.parametrize("retracted", [(1, 0), (0, 1)])
async def test_a_retraction_of_either_child_of_a_pair_counts(retracted: tuple[int, int]) -> None:
    first = [scripted([known, 1, 2, 3, 3], 5, count) for known, count in zip((5, 7), retracted, strict=True)]
    again = [scripted([known, 9, EOS], 4) for known in (1, 1)]
    parent = ScriptedParent(1, *first, *again)
    whole = await paired(parent, 4)
    assert whole.tokens.ids == (1, 9, EOS)
    assert parent.masks == [2, 2, 0, 0]


# --- laws that are no numbers -------------------------------------------------------------------------


async def test_a_density_that_is_no_number_fails_the_request() -> None:
    """The loop that waits for tokens would never end: such a child has none to keep."""
    with pytest.raises(HostError, match="not numbers"):
        await generated(ScriptedParent(None, scripted([1, 2], 6, log_q={1: math.nan})), 6)


async def test_a_pair_tells_a_lost_partner_from_a_law_that_is_no_number() -> None:
    apart = [scripted([5, 8, 9], 3, log_q={2: APART}), scripted([7, 8, 9], 3, log_q={2: APART})]
    again = [scripted([8, 1], 2), scripted([8, 1], 2)]
    whole = await paired(ScriptedParent(None, *apart, *again), 2)
    assert whole.tokens.ids == (8, 1)
    broken = [scripted([5, 8, 9], 3, log_q={2: math.nan}), scripted([7, 8, 9], 3)]
    with pytest.raises(HostError, match="not numbers"):
        await paired(ScriptedParent(None, *broken), 2)


@pytest.mark.parametrize(("prefix", "kept"), [((), 0), ((6, 7), 2)])
async def test_a_child_has_the_grammar_and_says_how_many_tokens_it_has_to_see(
    prefix: tuple[int, ...], kept: int
) -> None:
    parent = ScriptedParent(None, scripted([4, 5], 2))
    engine = ChildEngine(
        parent, PROMPT, StopRule(Letters(), (), frozenset({EOS}), 1), None, grammar={"regex": "a*"}
    )
    await engine.generate(ContinuationCall(prefix, len(prefix) + 2, LAW, seed=1))
    (sent,) = parent.children
    assert sent.sampling_params["regex"] == "a*"
    assert sent.sampling_params["custom_params"].get("kept", 0) == kept
    assert sent.input_ids == [*PROMPT.ids, *prefix]


async def test_a_child_has_penalties_of_ours_and_none_of_sglangs() -> None:
    """A child that goes on behind a retracted one has what was kept of that counted, too."""
    parent = ScriptedParent(2, scripted([1, 2, 3, 3], 4, retractions=1), scripted([4, EOS], 2))
    penalties = Penalties(0.5, repetition=1.5)
    parent.params = {**parent.params, **penalties.flat()}
    behind = ChildEngine(parent, PROMPT, parent.stop, None, penalties=penalties)
    await behind.generate(ContinuationCall((), 4, LAW, seed=1))
    sent = [child.sampling_params for child in parent.children]
    assert [params["custom_params"].get("kept", 0) for params in sent] == [0, 2]
    for params in sent:
        assert ChildParams.from_custom_params(params["custom_params"]).penalties == penalties
        assert Penalties.of(params) is None


async def test_what_follows_an_answer_has_neither_grammar_nor_penalties() -> None:
    """The judge's question behind it, for one."""
    parent = ScriptedParent(None, scripted([4, 5], 2))
    stop = StopRule(Letters(), (), frozenset({EOS}), 1)
    whole = ChildEngine(
        parent, PROMPT, stop, None, grammar={"regex": "a*"}, penalties=Penalties(presence=1.0)
    )
    await whole.behind([6]).generate(ContinuationCall((7,), 3, LAW, seed=1))
    (sent,) = parent.children
    assert "regex" not in sent.sampling_params
    assert sent.sampling_params["custom_params"].keys().isdisjoint({"kept", "presence_penalty"})
