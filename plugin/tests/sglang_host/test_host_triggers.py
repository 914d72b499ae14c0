"""Triggers in the scheduler, without a server: rows are seen where tokens are committed, and nowhere else.

Oracle: the monitor that the driver decides by. The child has to end behind the very row at which the driver
forks, whatever the scheduler computes in between.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sglang.srt.managers.schedule_batch import FINISH_ABORT, FINISH_LENGTH
from sglang_power.algorithms.triggers import Trigger, TriggerMonitor, TriggerState, Watch
from sglang_power.sglang_host.child_params import META_KEY, ChildParams
from sglang_power.sglang_host.scheduler.rows import RowBlock
from sglang_power.sglang_host.scheduler.statistics import HostStatistics
from sglang_power.types import ROW_FIELDS, FloatArray, ProposalLaw
from trigger_rows import paths_of_rows, record

SHARP = record(np.array([0.97, 0.01, 0.01, 0.01]))
FLAT = record(np.full(4, 0.25))
"""Entropies 0.17 and 1.39."""

ENTROPY = Trigger("entropy", (1.0,))


def request(**fields: Any) -> SimpleNamespace:
    """What `consume` sees of a request in the scheduler."""
    values: dict[str, Any] = {
        "to_finish": None,
        "customized_info": None,
        "output_ids": [],
        "finished": lambda: False,
    }
    return SimpleNamespace(**{**values, **fields})


def child(watch: Watch | None) -> ChildParams:
    """A child as the scheduler gets it: behind the flat form."""
    sent = ChildParams(law=ProposalLaw(1.0), seed=0, origin=4, rules=() if watch is None else (watch,))
    return ChildParams.from_custom_params(sent.to_custom_params())


def step(req: Any, params: ChildParams, row: list[float], *, committed: bool = True) -> None:
    """One call of the sampler, with a row block made anew as after a retraction or a merge of batches."""
    commit = None
    if committed:
        req.output_ids.append(0)
        commit = SimpleNamespace(output_index=len(req.output_ids) - 1, token_ids=(0,))
    values = torch.tensor([row], dtype=torch.float32)
    HostStatistics(RowBlock.of(params), values).consume(SimpleNamespace(reqs=[req]), [commit])


def fired_behind(req: Any) -> int | None:
    """How many tokens a request had when it was ended."""
    if req.to_finish is None:
        return None
    assert isinstance(req.to_finish, FINISH_LENGTH)
    return int(req.to_finish.length)


def rows_of(req: Any) -> FloatArray:
    """What the driver is sent."""
    return np.array(req.customized_info[META_KEY]).reshape(-1, len(ROW_FIELDS))


def test_a_child_ends_once_behind_the_row_that_fires() -> None:
    req, params = request(), child(Watch((ENTROPY,)))
    for row in (SHARP, SHARP):
        step(req, params, row)
        assert req.to_finish is None
    step(req, params, FLAT)
    assert fired_behind(req) == 3
    first = req.to_finish
    step(req, params, FLAT)  # a token that was in flight
    assert req.to_finish is first
    assert len(rows_of(req)) == 4, "its statistics are sent all the same"


def test_children_without_a_watch_run_on() -> None:
    req = request()
    for _ in range(3):
        step(req, child(None), FLAT)
    assert req.to_finish is None


def test_calls_that_commit_nothing_are_not_seen() -> None:
    """Middle chunks of a prefill, steps of a finished or retracted request."""
    req, params = request(), child(Watch((ENTROPY,)))
    step(req, params, FLAT, committed=False)
    step(req, params, SHARP)
    step(req, params, FLAT, committed=False)
    assert req.to_finish is None
    assert len(rows_of(req)) == 1
    step(req, params, FLAT)
    assert fired_behind(req) == 2


def test_positions_begin_where_the_child_does() -> None:
    """open_from counts tokens of the answer, not of the child."""
    state = TriggerState(position=10, previous=0.2, open_from=12)
    req, params = request(), child(Watch((ENTROPY,), state, start=10))
    for _ in range(2):
        step(req, params, FLAT)
    assert req.to_finish is None
    step(req, params, FLAT)
    assert fired_behind(req) == 3


def test_the_row_of_a_forced_first_token_was_judged_before_the_fork() -> None:
    req, params = request(), child(Watch((ENTROPY,), TriggerState(position=5, previous=1.39), start=4))
    step(req, params, FLAT)
    assert req.to_finish is None
    step(req, params, FLAT)
    assert fired_behind(req) == 2


def test_the_jump_is_taken_from_the_row_before_the_child() -> None:
    jump = Trigger("jump", (1.0,))
    for previous, expected in ((0.2, 1), (1.0, None)):
        req = request()
        step(req, child(Watch((jump,), TriggerState(position=3, previous=previous), start=3)), FLAT)
        assert fired_behind(req) == expected


def test_the_quantile_is_that_of_the_whole_path() -> None:
    """Of four earlier rows three are below: the share 0.7 is reached, 0.8 is not."""
    history = (0.1, 0.2, 0.3, 2.0)
    for share, expected in ((0.7, 1), (0.8, None)):
        trigger = Trigger("quantile", (share,))
        req = request()
        step(req, child(Watch((trigger,), TriggerState(position=4, history=history), start=4)), FLAT)
        assert fired_behind(req) == expected
    forgetful = request()
    step(forgetful, child(Watch((Trigger("quantile", (0.7,)),), TriggerState(position=4), start=4)), FLAT)
    assert forgetful.to_finish is None


def test_requests_that_have_ended_are_left_alone() -> None:
    params = child(Watch((ENTROPY,)))
    finished = request(finished=lambda: True)
    step(finished, params, FLAT)
    assert finished.to_finish is None
    reason = FINISH_ABORT("the client left")
    aborted = request(to_finish=reason)
    step(aborted, params, FLAT)
    assert aborted.to_finish is reason


def test_requests_of_a_batch_have_monitors_of_their_own() -> None:
    reqs, params = [request(), request()], child(Watch((ENTROPY,)))
    for rows in ((SHARP, SHARP), (FLAT, SHARP)):
        for req in reqs:
            req.output_ids.append(0)
        commits = [SimpleNamespace(output_index=len(req.output_ids) - 1) for req in reqs]
        values = torch.tensor(rows, dtype=torch.float32)
        HostStatistics(RowBlock.of(params, params), values).consume(SimpleNamespace(reqs=reqs), commits)
    assert [fired_behind(req) for req in reqs] == [2, None]


TRIGGERS = [
    (Trigger("entropy", (0.9,)),),
    (Trigger("ratio", (0.8,)), Trigger("varentropy", (0.9,))),
    (Trigger("jump", (0.7,)),),
    (Trigger("quantile", (0.6,)),),
    (Trigger("entropix_high_low", (0.9, 0.3)),),
]


@pytest.mark.parametrize("triggers", TRIGGERS, ids=str)
@given(path=paths_of_rows, data=st.data())
def test_the_scheduler_stops_where_the_driver_forks(
    triggers: tuple[Trigger, ...], path: list[FloatArray], data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, len(path) - 1))
    rows = np.array([record(p) for p in path], dtype=np.float32).astype(np.float64)
    before = Watch(triggers).behind(rows[:cut])
    req, params = request(), child(before)
    for row in rows[cut:].tolist():
        for _ in range(data.draw(st.integers(0, 2))):
            noise = data.draw(st.sampled_from(path))
            step(req, params, record(noise), committed=False)
        step(req, params, row)
        if req.to_finish is not None:
            break
    found = TriggerMonitor(before).first_firing(rows[cut:])
    assert fired_behind(req) == (None if found is None else found[0] + 1)
    np.testing.assert_array_equal(rows_of(req), rows[cut : cut + len(req.output_ids)])


def test_the_test_above_sees_triggers_fire_and_not_fire() -> None:
    rng = np.random.default_rng(7)
    paths = [[rng.dirichlet(np.full(4, c)).clip(1e-6) for _ in range(5)] for c in (0.05, 0.5, 2.0) * 30]
    for triggers in TRIGGERS:
        found = [TriggerMonitor(Watch(triggers)).first_firing(np.array([*map(record, p)])) for p in paths]
        assert None in found
        assert len({index for index, _ in filter(None, found)}) > 1
