"""Records of runs: what they may hold, what is made of responses, what is said of them. Error rate 0."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sglang_power.errors import RecordError
from sglang_power.viewer import TraceRecord, read_record, record_of, validated
from sglang_power.viewer.record import TraceTree
from sglang_power.viewer.story import sentences

DATA = Path(__file__).parents[1] / "data"
RECORDS = ("chain_record", "tree_record")

Json = dict[str, Any]
Edit = Callable[[Json], object]


def saved(name: str) -> Json:
    content: Json = json.loads((DATA / f"{name}.json").read_text())
    return content


def edited(name: str, edit: Edit) -> Json:
    content = saved(name)
    edit(content)
    return content


def tree_of(record: TraceRecord) -> TraceTree:
    assert isinstance(record.run, TraceTree)
    return record.run


@pytest.mark.parametrize("name", RECORDS)
def test_a_record_survives_being_written(name: str) -> None:
    record = validated(saved(name))
    assert read_record(record.model_dump_json()) == record


MISTAKES: dict[str, tuple[str, Edit, str]] = {
    "an unknown key": ("tree_record", lambda r: r.update(extra=1), "extra: Extra inputs"),
    "another version": ("tree_record", lambda r: r.update(version=2), "use a newer one"),
    "a kind to come": ("tree_record", lambda r: r["run"].update(kind="particles"), "use a newer one"),
    "not a number": ("tree_record", lambda r: r["totals"].update(log_p=float("nan")), "totals.log_p: "),
    "a number as text": ("tree_record", lambda r: r["totals"].update(decoded="7"), "totals.decoded: "),
    "a second root": ("tree_record", lambda r: r["run"]["nodes"][3].update(parent=None), "node 3: the root"),
    "a circle": ("tree_record", lambda r: r["run"]["nodes"][3].update(parent=3), "parent 3 does not stand"),
    "no nodes": ("tree_record", lambda r: r["run"].update(nodes=[]), "run.tree.nodes: "),
    "a backward span": ("tree_record", lambda r: r["run"]["nodes"][3].update(start=99), "before it starts"),
    "a missing winner": ("tree_record", lambda r: r["run"].update(chosen=13), "node 13 is named"),
    "a missing member": ("tree_record", lambda r: r["run"]["classes"][0]["members"].append(50), "node 50"),
    "a cut behind the end": (
        "chain_record",
        lambda r: r["run"]["steps"][4].update(cut=99),
        "4: cut=99",
    ),
    "two decisions": (
        "chain_record",
        lambda r: r["run"]["steps"][4].update(accepted=True, early_rejected=True),
        "both accepted and rejected early",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_a_record_that_does_not_hold_together_is_refused(case: str) -> None:
    name, edit, message = MISTAKES[case]
    with pytest.raises(RecordError) as raised:
        validated(edited(name, edit))
    assert message in str(raised.value)


def test_paths_become_a_tree_of_one_level() -> None:
    tree = tree_of(record_of(saved("cot_response")))
    assert [node.parent for node in tree.nodes] == [None] + [0] * 10
    assert (tree.chosen, tree.reason) == (7, "largest")
    assert [one.members for one in tree.classes] == [[1, 3, 6], [2], [4], [5, 7, 8, 9, 10]]
    assert tree.nodes[7].fate == "chosen"
    assert tree.nodes[7].answer == "2"
    assert tree.nodes[7].first_log_p is not None


def test_a_reported_tree_gets_the_answers_of_its_leaves() -> None:
    response = saved("branch_response")
    tree = tree_of(record_of(response))
    assert len(tree.nodes) == 11
    assert [one.name for one in tree.triggers] == ["entropy"]
    (winner,) = (i for i, node in enumerate(tree.nodes) if node.fate == "chosen")
    assert tree.chosen == winner == response["meta_info"]["power"]["tree"]["leaves"][0]
    assert tree.nodes[winner].answer == "2"


def test_a_winner_that_the_tree_omits_is_not_named() -> None:
    def cut_off(response: Json) -> None:
        tree = response["meta_info"]["power"]["tree"]
        tree.update(nodes=tree["nodes"][:3], omitted=8)

    tree = tree_of(record_of(edited("branch_response", cut_off)))
    assert (tree.chosen, tree.omitted, len(tree.nodes)) == (None, 8, 3)


def test_openai_responses_and_lists_hold_one_answer_per_choice() -> None:
    one = saved("cot_response")
    power = one["meta_info"]["power"]
    wanted = record_of(one)
    chat = {
        "choices": [{"message": {"content": "another"}}, {"message": {"content": one["text"]}}],
        "metadata": {"power": [power, power]},
    }
    completion = {"choices": [{"text": one["text"]}], "metadata": {"power": [power]}}
    assert record_of([{"text": "another", "meta_info": {}}, one], index=1) == wanted
    for response, index in ((chat, 1), (completion, 0)):
        record = record_of(response, index=index)
        assert (record.answer, record.run) == (wanted.answer, wanted.run)


def _power(edit: Edit) -> Edit:
    return lambda response: edit(response["meta_info"]["power"])


LACKS: dict[str, tuple[Edit, str]] = {
    "no report": (lambda r: r["meta_info"].pop("power"), "meta_info.power: there is none"),
    "no tree": (_power(lambda p: p.pop("tree")), "Ask with return_tree=true"),
    "a chain without its steps": (
        _power(lambda p: [p.pop("tree"), p.update(proposals=3)]),
        "no trace in this response. Ask with return_trace=true",
    ),
    "a sampler without one": (
        _power(lambda p: [p.pop(key) for key in list(p) if key != "sampler"]),
        "'branch' leaves no trace",
    ),
    "a number missing": (_power(lambda p: p.pop("depth")), "meta_info.power.depth: Field required"),
    "leaves missing": (_power(lambda p: p["tree"].pop("leaves")), "tree.leaves: Field required"),
    "a leaf too many": (_power(lambda p: p["tree"]["leaves"].append(2)), "not one leaf per path"),
    "a tree without paths": (_power(lambda p: [p.pop("paths"), p["tree"]["leaves"].clear()]), "not one leaf"),
    "a winner missing": (_power(lambda p: p["chosen"].update(index=1)), "a path is named that there is not"),
    "nobody chosen": (_power(lambda p: p.pop("chosen")), "none of them is chosen"),
    "no text": (lambda r: r.pop("text"), "answer: "),
    "thresholds missing": (_power(lambda p: p["params"].pop("threshold")), "triggers.0.thresholds: "),
}


@pytest.mark.parametrize("case", LACKS)
def test_what_a_response_lacks_is_named(case: str) -> None:
    edit, message = LACKS[case]
    with pytest.raises(RecordError) as raised:
        record_of(edited("branch_response", edit))
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "file: not JSON"),
        ("[" * 100_000, "file: not JSON"),
        (r'{"text": "\ud800"}', "file: not JSON"),
        ("[]", "response: has no entry 0"),
        ("3", "response: has no entry 0"),
        ('{"choices": 3}', "choices: has no entry 0"),
        ('{"choices": [{"text": "a"}]}', "metadata.power: has no entry 0"),
        ('{"text": "a", "meta_info": 7}', "meta_info.power: there is none"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(content: str, message: str) -> None:
    with pytest.raises(RecordError) as raised:
        read_record(content)
    assert message in str(raised.value)


def test_the_story_of_a_chain() -> None:
    told = " ".join(sentences(validated(saved("chain_record"))))
    assert "36 times, everything behind a random place was written anew" in told
    assert "16 of these new endings replaced the old one, 20 did not" in told
    assert "20 new endings could not win any more half-way and were stopped" in told
    assert "The answer has 39 tokens; the whole run generated 291 tokens, 7.5 times as many." in told


def test_the_story_of_a_tree() -> None:
    told = " ".join(sentences(record_of(saved("branch_response"))))
    assert "At 5 places the model was unsure" in told
    assert "(the entropy of the next token was above 0.6 nats)" in told
    assert "into 10 branches in all, of which 5 were given up" in told
    assert "Only one finished answer was left" in told


FORKS: dict[str, tuple[Edit, str]] = {
    "several": (
        _power(lambda p: p["params"].update(trigger=["entropy", "jump"], threshold=[[0.6], [0.5]])),
        "above 0.6 nats, or the entropy rose by more than 0.5 nats",
    ),
    "by name": (
        _power(lambda p: p["params"].update(trigger="entropix_low_low", threshold=[1.0, 2.0])),
        "At 5 places a trigger fired (entropix_low_low 1 2)",
    ),
    "none": (
        _power(lambda p: p["tree"].update(nodes=p["tree"]["nodes"][:1], leaves=[0])),
        "which happened nowhere",
    ),
}


def _cut_off(left: int, omitted: int) -> Edit:
    """What a size limit leaves of a tree."""
    return _power(lambda p: p["tree"].update(nodes=p["tree"]["nodes"][:left], omitted=omitted))


@pytest.mark.parametrize(
    ("left", "omitted", "wanted"),
    [
        (11, 700, "5 places or more ... into 710 branches in all, of which 5 or more were given up."),
        (9, 2, "4 places or more ... into 10 branches in all, of which 4 or more were given up."),
        (2, 9, "1 place or more ... into 10 branches in all, of which 1 or more were given up."),
        (1, 10, "1 place or more ... into 10 branches in all."),
    ],
)
def test_the_story_counts_branches_that_the_record_omits(left: int, omitted: int, wanted: str) -> None:
    told = " ".join(sentences(record_of(edited("branch_response", _cut_off(left, omitted)))))
    assert all(part in told for part in wanted.split("...")), told
    assert "Only one finished answer was left" not in told


def test_the_story_counts_paths_that_the_record_omits() -> None:
    content = record_of(saved("cot_response")).model_dump()
    run = content["run"]
    run.update(nodes=run["nodes"][:9], omitted=2)
    for one in run["classes"]:
        one["members"] = [member for member in one["members"] if member < 9]
    told = " ".join(sentences(validated(content)))
    assert "The model's 10 most likely first tokens were each tried once" in told
    assert "“2” weighed 4 (3 paths or more)" in told


@pytest.mark.parametrize("case", FORKS)
def test_the_story_tells_why_a_text_forked(case: str) -> None:
    edit, wanted = FORKS[case]
    assert wanted in sentences(record_of(edited("branch_response", edit)))[0]


WINNERS: dict[str, tuple[Edit, str]] = {
    "largest": (
        lambda _: None,
        "“2” weighed 4 (5 paths), the next one, “6”, weighed 3; so it won",
    ),
    "tie": (_power(lambda p: p["chosen"].update(reason="tie")), "a random draw decided"),
    "no answer": (_power(lambda p: p["chosen"].update(reason="no_answer")), "the first one was returned"),
    "no score": (_power(lambda p: p["chosen"].update(reason="no_score")), "No finished answer got a score"),
    "max": (_power(lambda p: p["params"].update(select="max")), "the model was most decided"),
    "a score": (
        _power(lambda p: [p["chosen"].update(reason="reward"), p.update(classes=[])]),
        "because it was given the highest reward",
    ),
    "a score to come": (_power(lambda p: p["chosen"].update(reason="luck")), "what decided was: luck."),
}


@pytest.mark.parametrize("case", WINNERS)
def test_the_story_tells_why_the_winner_won(case: str) -> None:
    edit, wanted = WINNERS[case]
    assert wanted in " ".join(sentences(record_of(edited("cot_response", edit))))


def test_the_story_of_a_sampler_that_nobody_knows_claims_nothing_of_it() -> None:
    def strange(power: Json) -> None:
        power.update(sampler="shortlist", classes=[])
        power["chosen"].update(reason="luck")
        for path in power["paths"]:
            path["first_log_p"] = None

    told = sentences(record_of(edited("cot_response", _power(strange))))
    assert told[0] == "The sampler “shortlist” came to 10 answers."
    assert told[1] == "Of the finished answers one was returned; what decided was: luck."
