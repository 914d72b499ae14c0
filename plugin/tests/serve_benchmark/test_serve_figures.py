"""Loads, passes and figures of the benchmark; no test measures time. Error rate 0."""

from __future__ import annotations

import asyncio

import pytest
from serve_rows import metrics, workload
from sglang_power.serve_benchmark.askers import Answer
from sglang_power.serve_benchmark.figures import Reference, accuracy, figures
from sglang_power.serve_benchmark.loads import LEAST, Block, Timed, closed, open_loop
from sglang_power.serve_benchmark.passes import Passes, counted
from sglang_power.serve_benchmark.workloads import Task

HOUR = 3600.0
TASKS = [Task(str(number)) for number in range(20)]


class Asked:
    """Answers after some turns of the event loop; counts who waits."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self.order: list[int] = []
        self.waiting = self.most = 0
        self._breaks_at = breaks_at

    async def __call__(self, task: Task, number: int) -> Answer:
        assert task.text == str(number)
        self.order.append(number)
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        for _ in range(3 + number % 2):
            await asyncio.sleep(0)
        self.waiting -= 1
        if number == self._breaks_at:
            raise ValueError(number)
        return Answer(task.text, 1, 1, 1, 1)


async def test_clients_of_a_closed_loop_work_through_all_tasks() -> None:
    asked, done = Asked(), []
    block = await closed(asked, TASKS, 3, HOUR, lambda: done.append(1))
    assert asked.order == list(range(20))
    assert asked.most == 3
    assert [timed.answer.text for timed in block.timed] == [task.text for task in TASKS]
    assert len(done) == 20


async def test_after_its_time_a_cell_asks_for_no_further_answer() -> None:
    asked = Asked()
    block = await closed(asked, TASKS, 1, 0.0, lambda: None)
    assert len(block.timed) == len(asked.order) == LEAST


async def test_an_open_loop_waits_for_nobody() -> None:
    asked = Asked()
    block = await open_loop(asked, TASKS, 1e9, HOUR, lambda: None)
    assert len(block.timed) == 20
    assert asked.most > 3
    late = await open_loop(Asked(), TASKS, 1e9, 0.0, lambda: None)
    assert len(late.timed) == LEAST


@pytest.mark.parametrize("loop", ["closed", "open"])
async def test_what_goes_wrong_ends_the_block(loop: str) -> None:
    asked = Asked(breaks_at=2)
    running = (
        closed(asked, TASKS, 2, HOUR, lambda: None)
        if loop == "closed"
        else open_loop(asked, TASKS, 1e9, HOUR, lambda: None)
    )
    with pytest.raises(ExceptionGroup) as caught:
        await running
    assert isinstance(caught.value.exceptions[0], ValueError)


def test_passes_are_added_up_over_ranks_and_modes() -> None:
    assert counted(metrics(extend=2, decode=7)) == Passes(extend=2, decode=7)
    assert counted(metrics(extend=2, decode=7, ranks=(0, 1))) == Passes(extend=4, decode=14)
    assert counted("sglang:gen_throughput 5.0\n") is None
    assert Passes(5, 9).since(Passes(2, 3)) == Passes(3, 6)


def block(*seconds: float) -> Block:
    """Answers of 4 returned tokens, 40 decoded, 8 prefilled, depth 20; those with even numbers are wrong."""
    timed = [
        Timed(Task(f"{i}:", "1"), Answer(f"A{i % 2}.", 4, 40, 8, 20), wait) for i, wait in enumerate(seconds)
    ]
    return Block(timed, 2.0)


def test_figures_are_per_returned_token_and_per_answer() -> None:
    made = figures(workload(), block(0.1, 0.2, 0.3, 0.4), Reference(0.05, Passes(8, 40)))
    assert made["decoded_per_returned"] == 10.0
    assert made["prefilled_per_returned"] == 2.0
    assert made["depth_per_returned"] == 5.0
    assert made["answers_per_minute"] == 120.0
    assert made["p50_s"] == pytest.approx(0.25)
    assert made["wall_vs_plain"] == pytest.approx(5.0)
    assert (made["p95_s"], made["p99_s"]) == (pytest.approx(0.385), pytest.approx(0.397))
    assert (made["answers"], made["returned_per_answer"]) == (4, 4.0)
    assert (made["extend_passes_per_answer"], made["decode_passes_per_answer"]) == (2.0, 10.0)


def test_what_is_not_known_is_none() -> None:
    made = figures(workload(), block(0.1), Reference(None, None))
    assert made["wall_vs_plain"] is None
    assert made["extend_passes_per_answer"] is made["decode_passes_per_answer"] is None
    ungraded = accuracy(workload(), [Timed(Task("?"), Answer("A1.", 1, 1, 1, 1), 0.1)])
    assert ungraded == {"accuracy": None, "ci95": None}


def test_the_interval_is_wilsons() -> None:
    told = accuracy(workload(), block(*[0.1] * 10).timed)
    assert told["accuracy"] == 0.5
    z, n, p = 1.959964, 10, 0.5
    centre, half = (p + z * z / (2 * n)) / (1 + z * z / n), z * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    half /= 1 + z * z / n
    assert told["ci95"] == pytest.approx((centre - half, centre + half), abs=1e-6)
