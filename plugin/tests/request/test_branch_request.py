"""What a request for `branch` may say, what it means, and which mistakes are named how. No server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sglang_power.algorithms.branching import BranchConfig
from sglang_power.algorithms.cot import GREEDY
from sglang_power.algorithms.triggers import DEFAULT_THRESHOLDS, RULES, THRESHOLDS, Trigger
from sglang_power.errors import ConfigError, RequestError
from sglang_power.request import BranchRequest, parse_request
from sglang_power.server.config import load_config

DOCUMENTED: dict[str, Any] = {
    "sampler": "branch",
    "answer": "number",
    "answer_regex": None,
    "equivalence": None,
    "seed": None,
    "max_total_tokens": None,
    "deadline_ms": None,
    "trigger": "entropy",
    "threshold": None,
    "thresholds": {},
    "branch_k": 2,
    "branch_tokens": "top",
    "policy": "lookahead",
    "lookahead_tokens": 16,
    "beam": 4,
    "max_branches": 32,
    "max_depth": 32,
    "min_gap": 1,
    "score": "mean_log_p",
    "alpha": 4.0,
    "reward": None,
    "continuation_policy": None,
    "refine": None,
    "return_tree": False,
    "return_rows": False,
}
"""Names and defaults as published; a change here breaks clients."""


def parse(**values: Any) -> BranchRequest:
    request = parse_request({"sampler": "branch", **values})
    assert isinstance(request, BranchRequest)
    return request


def test_names_and_defaults_are_the_documented_ones() -> None:
    assert parse().model_dump() == DOCUMENTED


# --- triggers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_trigger_may_be_asked_for(name: str) -> None:
    values = [0.25, 0.5][: THRESHOLDS[name]]
    expected = (Trigger(name, tuple(values)),)
    assert parse(trigger=name, threshold=values).triggers == expected
    assert parse(trigger=[name], threshold=[values]).triggers == expected
    if len(values) == 1:
        assert parse(trigger=name, threshold=values[0]).triggers == expected
        assert parse(trigger=name).triggers == (Trigger(name, DEFAULT_THRESHOLDS[name]),)


def test_each_of_several_triggers_has_its_threshold_or_its_default() -> None:
    asked = parse(trigger=["jump", "entropix_high_high", "ratio"], threshold=[None, [0.5, 1], 0.9])
    assert asked.triggers == (
        Trigger("jump", DEFAULT_THRESHOLDS["jump"]),
        Trigger("entropix_high_high", (0.5, 1.0)),
        Trigger("ratio", (0.9,)),
    )
    assert [one.name for one in parse(trigger=["ratio", "entropy"]).triggers] == ["ratio", "entropy"]


def test_a_threshold_above_everything_is_allowed_where_a_value_can_be_that_high() -> None:
    """Branching that never fires is greedy decoding."""
    assert parse(threshold=1e9).triggers == (Trigger("entropy", (1e9,)),)


# --- mistakes -----------------------------------------------------------------------------------------

REFINE = {"sampler": "power"}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"trigger": "surprise"}, "trigger='surprise': unknown trigger 'surprise'. Use one of: entropy, "),
    ({"trigger": ["entropy", "luck"]}, "trigger=['entropy', 'luck']: unknown trigger 'luck'"),
    ({"trigger": 3}, "trigger=3: unknown trigger 3"),
    ({"trigger": ["ratio", 3]}, "trigger=['ratio', 3]: unknown trigger 3"),
    ({"trigger": []}, "trigger=[]: "),
    ({"trigger": None}, "trigger=None: "),
    ({"threshold": -0.1}, "threshold=-0.1: "),
    ({"threshold": float("nan")}, "threshold=nan: "),
    ({"threshold": float("inf")}, "threshold=inf: "),
    ({"threshold": 10**400}, "threshold=1000"),
    ({"threshold": "0.5"}, "threshold='0.5': "),
    ({"threshold": True}, "threshold=True: "),
    ({"threshold": {"entropy": 1}}, "threshold={'entropy': 1}: "),
    ({"threshold": [0.5, 0.5]}, "threshold=[0.5, 0.5]: entropy takes 1 number(s), not 2"),
    ({"threshold": []}, "threshold=[]: entropy takes 1 number(s), not 0"),
    ({"threshold": [None]}, "threshold=[None]: not the thresholds of entropy alone"),
    ({"threshold": [[0.5]]}, "threshold=[[0.5]]: not the thresholds of entropy alone"),
    ({"threshold": [[[0.5]]]}, "threshold=[[[0.5]]]: "),
    ({"trigger": ["entropy", "jump"], "threshold": 0.5}, "threshold=0.5: not one entry per trigger"),
    ({"trigger": ["entropy", "jump"], "threshold": [0.5]}, "threshold=[0.5]: not one entry per trigger"),
    ({"trigger": ["entropy"], "threshold": [[0.5, 0.6]]}, "threshold=[[0.5, 0.6]]: entropy takes 1"),
    ({"trigger": ["entropy"], "threshold": [-1]}, "threshold=[-1]: "),
    ({"trigger": "entropix_high_low"}, "threshold=None: entropix_high_low needs the thresholds of"),
    ({"trigger": "entropix_low_low", "threshold": 0.5}, "threshold=0.5: entropix_low_low takes 2"),
    ({"trigger": "entropix_low_low", "threshold": [1, 2, 3]}, "threshold=[1, 2, 3]: entropix_low_low takes"),
    ({"trigger": ["jump", "entropix_low_low"], "threshold": [0.5, None]}, "threshold=[0.5, None]: entropix"),
    ({"trigger": "ratio", "threshold": 1}, "threshold=1: ratio never fires at 1 or more"),
    ({"trigger": "quantile", "threshold": 1.5}, "threshold=1.5: quantile never fires"),
    ({"trigger": ["jump", "ratio"], "threshold": [2, 1.0]}, "threshold=[2, 1.0]: ratio never fires"),
    ({"branch_k": 1}, "branch_k=1: "),
    ({"branch_k": 1025}, "branch_k=1025: "),
    ({"branch_k": 2.0}, "branch_k=2.0: "),
    ({"policy": "forest"}, "policy='forest': "),
    ({"lookahead_tokens": 0}, "lookahead_tokens=0: "),
    ({"policy": "beam", "beam": 0}, "beam=0: "),
    ({"max_branches": 0}, "max_branches=0: "),
    ({"max_branches": 3, "branch_k": 4}, "max_branches=3: less than branch_k=4"),
    ({"branch_k": 33}, "max_branches=None: less than branch_k=33"),
    ({"max_depth": 0}, "max_depth=0: "),
    ({"min_gap": 0}, "min_gap=0: "),
    ({"beam": 4}, "beam=4: not used with policy='lookahead'. Set policy to 'beam'"),
    ({"policy": "tree", "beam": 4}, "beam=4: not used with policy='tree'"),
    ({"policy": "tree", "lookahead_tokens": 16}, "lookahead_tokens=16: not used with policy='tree'"),
    ({"policy": "beam", "lookahead_tokens": 16}, "lookahead_tokens=16: not used with policy='beam'"),
    ({"score": "luck"}, "score='luck': "),
    ({"score": "vote"}, "score='vote': a rollout is no whole answer"),
    ({"score": "confidence"}, "score='confidence': a rollout is no whole answer"),
    ({"alpha": 4.0}, "alpha=4.0: not used with score='mean_log_p'"),
    ({"score": "power", "alpha": 0.5}, "alpha=0.5: "),
    ({"score": "reward"}, "reward=None: required with score='reward'"),
    ({"score": "reward", "reward": ""}, "reward='': "),
    ({"reward": "r"}, "reward='r': not used with score='mean_log_p'"),
    ({"return_tree": 1}, "return_tree=1: "),
    ({"seed": -1}, "seed=-1: "),
    ({"max_total_tokens": 0}, "max_total_tokens=0: "),
    ({"answer": "regex"}, "answer_regex=None: required"),
    ({"k": 3}, "k=3: unknown parameter. Known parameters: alpha, "),
    ({"lookahead": 3}, "lookahead=3: unknown parameter"),
    ({"continuation_policy": "edt"}, "continuation_policy='edt': "),
    ({"continuation_policy": {"sampler": "edtt"}}, "continuation_policy.sampler='edtt': unknown policy"),
    ({"continuation_policy": {"sampler": "power"}}, "continuation_policy.sampler='power': unknown policy"),
    ({"continuation_policy": {"sampler": "edt", "theta": -1}}, "continuation_policy.theta=-1: "),
    ({"continuation_policy": {"sampler": "edt", "seed": 1}}, "continuation_policy.seed=1: the request has"),
    ({"refine": 4}, "refine=4: "),
    ({"refine": {}}, "refine.sampler=None: not power"),
    ({"refine": {"sampler": "cot"}}, "refine.sampler='cot': not power"),
    ({"refine": REFINE | {"steps": 0}}, "refine.steps=0: "),
    ({"refine": REFINE | {"alhpa": 4}}, "refine.alhpa=4: unknown parameter"),
    ({"refine": REFINE | {"seed": 1}}, "refine.seed=1: not a parameter here"),
    ({"refine": REFINE | {"initial_text": "a"}}, "refine.initial_text='a': not a parameter here"),
    ({"refine": REFINE | {"reward": "r"}}, "refine.reward='r': not a parameter here"),
    ({"refine": REFINE | {"proposal_policy": {"sampler": "x"}}}, "refine.proposal_policy.sampler='x': "),
    ({"refine": REFINE | {"lookback_blocks": 1}}, "refine.lookback_blocks=1: "),
]


@pytest.mark.parametrize(("values", "message"), BAD, ids=lambda value: str(value)[:50])
def test_mistakes_name_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(**values)
    error = caught.value
    assert str(error).startswith(message)
    assert error.hint
    assert str(error).endswith(error.hint)
    assert "None" not in error.hint, "a remedy of no default names none"


# --- what it means ------------------------------------------------------------------------------------


def test_the_search_is_configured_as_asked() -> None:
    assert parse().branch_config(50) == BranchConfig((Trigger("entropy", (0.6,)),), 50)
    asked = parse(
        trigger="ratio", branch_k=3, lookahead_tokens=5, max_branches=9, max_depth=4, min_gap=2
    ).branch_config(50)
    trigger = Trigger("ratio", (0.5,))
    expected = BranchConfig(
        (trigger,), 50, k=3, lookahead=5, max_branches=9, max_depth=4, min_gap=2, law=GREEDY
    )
    assert asked == expected
    assert parse(policy="beam", beam=2).branch_config(50).beam == 2
    assert parse(policy="tree").branch_config(50).policy == "tree"


parts: st.SearchStrategy[dict[str, dict[str, Any]]] = st.fixed_dictionaries(
    {
        "trigger": st.sampled_from(
            [
                {"trigger": "entropy"},
                {"trigger": "jump", "threshold": 0.25},
                {"trigger": "entropix_low_high", "threshold": [0.5, 1.5]},
                {"trigger": ["entropy", "entropix_low_low"], "threshold": [None, [1, 2]]},
                {"trigger": ["quantile"]},
            ]
        ),
        "policy": st.sampled_from(
            [
                {},
                {"policy": "lookahead", "lookahead_tokens": 3, "score": "power", "alpha": 2.0},
                {"policy": "tree", "score": "vote", "equivalence": "exact"},
                {"policy": "beam", "beam": 2, "score": "confidence"},
                {"score": "reward", "reward": "r"},
            ]
        ),
        "more": st.sampled_from(
            [
                {"branch_k": 3, "max_branches": 9, "max_depth": 2, "min_gap": 4, "return_tree": True},
                {"continuation_policy": {"sampler": "edt", "theta": 0.2}, "max_total_tokens": 500},
                {"refine": {"sampler": "power", "steps": 3, "proposal_policy": {"sampler": "top_h"}}},
                {"answer": "regex", "answer_regex": "a(b)", "deadline_ms": 50},
            ]
        ),
    }
)


@given(parts)
def test_what_is_echoed_can_be_sent_again(asked: dict[str, dict[str, Any]]) -> None:
    request = parse(**asked["trigger"], **asked["policy"], **asked["more"])
    again = parse(**request.echo())
    assert again.branch_config(20) == request.branch_config(20)
    assert again.echo() == request.echo()
    for name in ("score", "alpha", "reward", "relation", "answer", "return_tree", "max_total_tokens"):
        assert getattr(again, name) == getattr(request, name)
    if request.refine is not None:
        assert again.refine is not None
        assert again.refine.mh_config(20) == request.refine.mh_config(20)


def test_the_echo_shows_what_is_in_force_and_nothing_else() -> None:
    hidden = {"sampler", "seed", "thresholds"}
    assert parse().echo().keys() == DOCUMENTED.keys() - hidden - {"beam", "alpha"}
    assert parse(policy="beam", score="power").echo().keys() == DOCUMENTED.keys() - hidden - {
        "lookahead_tokens"
    }
    assert parse(trigger=["jump", "ratio"]).echo()["threshold"] == [[0.6], [0.5]]
    assert parse(trigger="jump").echo()["threshold"] == [0.6]
    assert parse(continuation_policy={"sampler": "edt"}).echo()["continuation_policy"]["sampler"] == "edt"


# --- thresholds of a model ----------------------------------------------------------------------------

MEASURED: dict[str, Any] = {"entropy": 3.5, "ratio": 0.9, "entropix_low_high": [2.0, 4.0]}


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, [("entropy", (3.5,))]),
        ({"trigger": "ratio"}, [("ratio", (0.9,))]),
        ({"trigger": "entropix_low_high"}, [("entropix_low_high", (2.0, 4.0))]),
        ({"trigger": "varentropy"}, [("varentropy", (1.0,))]),
        ({"threshold": 0.7}, [("entropy", (0.7,))]),
        ({"trigger": ["ratio", "jump"]}, [("ratio", (0.9,)), ("jump", (0.6,))]),
        (
            {"trigger": ["ratio", "entropy"], "threshold": [None, 0.2]},
            [("ratio", (0.9,)), ("entropy", (0.2,))],
        ),
    ],
)
def test_every_trigger_gets_its_own_threshold_of_the_table(
    asked: dict[str, Any], expected: list[tuple[str, tuple[float, ...]]]
) -> None:
    request = parse(thresholds=MEASURED, **asked)
    assert [(trigger.name, trigger.thresholds) for trigger in request.triggers] == expected
    echo = request.echo()
    assert parse(trigger=echo["trigger"], threshold=echo["threshold"]).triggers == request.triggers


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"entropie": 1.0}, "thresholds.entropie"),
        ({"entropy": "high"}, "thresholds.entropy"),
        ({"entropy": [1.0, 2.0]}, "thresholds.entropy"),
        ({"ratio": 1.0}, "thresholds.ratio"),
        ({"entropix_low_low": 1.0}, "thresholds.entropix_low_low"),
        ([1.0], "thresholds"),
    ],
)
def test_a_table_is_checked_entry_by_entry(table: Any, field: str) -> None:
    with pytest.raises(RequestError) as caught:
        parse(thresholds=table)
    assert caught.value.field == field


# --- the configuration file ---------------------------------------------------------------------------

PRESETS = """
presets:
  careful: {sampler: branch, policy: beam, beam: 2, refine: {sampler: power, steps: 2}}
  quadrant: {sampler: branch, trigger: entropix_high_high}
parameters:
  small:
    branch: {trigger: entropix_high_high, threshold: [0.5, 1.5]}
"""


def test_presets_may_name_it_and_models_have_thresholds_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "power.yaml"
    path.write_text(PRESETS)
    config = load_config(path)
    careful = config.resolve({"preset": "careful", "beam": 3})
    assert isinstance(careful, BranchRequest)
    assert (careful.policy, careful.beam) == ("beam", 3)
    small = config.resolve({"preset": "quadrant"}, "small")
    assert isinstance(small, BranchRequest)
    assert small.triggers == (Trigger("entropix_high_high", (0.5, 1.5)),)
    with pytest.raises(RequestError, match="threshold=None: entropix_high_high needs"):
        config.resolve({"preset": "quadrant"}, "large")


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ("presets:\n  a:\n    sampler: branch\n    branch_k: 1\n", 4, "presets.a.branch_k"),
        ("presets:\n  a:\n    sampler: branch\n    trigger: x\n", 4, "presets.a.trigger"),
        ("parameters:\n  m:\n    branch:\n      beams: 2\n", 4, "parameters.m.branch.beams"),
    ],
)
def test_a_wrong_preset_is_found_with_its_line(tmp_path: Path, text: str, line: int, field: str) -> None:
    path = tmp_path / "power.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert f"line {line}, field '{field}'" in str(caught.value)
