"""A child's parameters survive their flat form; nothing in it is deeper than a list of scalars."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st
from sglang_power.algorithms.cuts import CutLaw, EntropyCut, UniformCut
from sglang_power.algorithms.early_rejection import EarlyRejection
from sglang_power.algorithms.low_confidence import LowConfidence
from sglang_power.algorithms.triggers import THRESHOLDS, Trigger, TriggerState, Watch
from sglang_power.sglang_host.child_params import CHILD, ChildParams, Coupling
from sglang_power.types import ProposalLaw

numbers = st.floats(-50, 50)
cuts: st.SearchStrategy[CutLaw] = st.one_of(
    st.just(UniformCut()), st.builds(EntropyCut, beta=st.floats(0.5, 8), epsilon=st.floats(0.01, 0.9))
)
rejections = st.builds(
    EarlyRejection,
    threshold=numbers,
    alpha=st.floats(1, 8),
    cut=cuts,
    count=st.integers(0, 99),
    total_gain=st.floats(0, 9),
    previous_entropy=st.floats(0, 9),
)
laws = st.builds(
    ProposalLaw,
    kappa=st.floats(0.1, 8),
    top_k=st.none() | st.integers(1, 99),
    top_p=st.none() | st.floats(0.1, 0.9),
    min_p=st.none() | st.floats(0.01, 0.9),
)
triggers = st.sampled_from([*THRESHOLDS]).flatmap(
    lambda name: st.tuples(*[st.floats(0, 9)] * THRESHOLDS[name]).map(lambda values: Trigger(name, values))
)
watches = st.builds(
    Watch,
    triggers=st.lists(triggers, min_size=1, max_size=4).map(tuple),
    state=st.builds(
        TriggerState,
        position=st.integers(0, 999),
        previous=st.floats(0, 12),
        open_from=st.integers(0, 999),
        history=st.lists(st.floats(0, 12), max_size=6).map(lambda values: tuple(sorted(values))),
    ),
    start=st.integers(0, 999),
)
groups = st.builds(
    LowConfidence,
    threshold=numbers,
    group=st.integers(1, 2048),
    recent=st.lists(st.floats(0, 12), max_size=6).map(tuple),
)
couplings = st.builds(Coupling, name=st.text(min_size=1), role=st.sampled_from(["main", "twin"]))
children = st.builds(
    ChildParams,
    law=laws,
    seed=st.integers(0, 2**62 - 1),
    origin=st.integers(0, 10_000),
    forced=st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=5).map(tuple),
    known=st.integers(0, 3),
    rules=st.tuples()
    | st.tuples(rejections)
    | st.tuples(watches)
    | st.tuples(groups)
    | st.tuples(rejections, watches),
    probe=st.booleans(),
    coupling=st.none() | couplings,
)


@given(children)
def test_the_flat_form_loses_nothing(params: ChildParams) -> None:
    assert ChildParams.from_custom_params(params.to_custom_params()) == params


@given(children)
def test_the_flat_form_is_flat(params: ChildParams) -> None:
    flat = json.loads(json.dumps(params.to_custom_params()))
    assert flat["sampler"] == CHILD
    for value in flat.values():
        assert not isinstance(value, dict)
        assert not isinstance(value, list) or all(isinstance(item, int | float | str) for item in value)
