"""The demo's claims hold nearly always at the committed rates, and every one of them can fail. No server.

The rates are those of results/demo.json, row by row, with the pairing of each row with `power`, which the
committed p-values tell exactly (suite S has no pairs: its claim is on one row). Problems are drawn anew and
independently, and rows independently given whether power is right. The draws have a fixed seed: no chance is
left in these tests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from integration_tests import demo
from integration_tests.claims import Runs, check_claims
from integration_tests.evaluation import Outcome, Run
from integration_tests.next_steps import next_steps
from integration_tests.pivot.problems import Problem

RECORD: dict[str, Any] = json.loads((demo.RESULTS / "demo.json").read_text())
ROWS = {(row["suite"], row["sampler"]): row for row in RECORD["rows"]}
SIMULATIONS = 2_000
RETURNED = 1_000
"""Returned tokens of an outcome, so that the cost per returned token is exact to three digits."""

Pairs = Mapping[tuple[str, str], tuple[int, int]]
"""By family and sampler: problems that only `power` solved, and only that sampler."""

BREAKS: Mapping[str, tuple[str, str, float, float]] = {
    "Q: power at least 0.8": ("Q", "power", 0.75, 1.0),
    "Q: CoT-decoding at least 0.95": ("Q", "cot", 0.9, 1.0),
    "Q: plain above low temperature": ("Q", "lowtemp", 0.5, 1.0),
    "R: power at least 0.65": ("R", "power", 0.63, 1.0),
    "R: power above best_of at equal decoded tokens": ("R", "best_of @ power", 0.88, 1.0),
    "R: power above vote at equal decoded tokens, p < 0.01": ("R", "vote @ power", 0.88, 1.0),
    "R: branch at least 0.9": ("R", "branch", 0.85, 1.0),
    "R: branch at no more than 6 decoded tokens per returned one": ("R", "branch", 1.0, 6.1),
    "R: branch above best_of at equal decoded tokens, p < 0.01": ("R", "best_of @ branch", 1.0, 1.0),
    "R: branch above vote at equal decoded tokens, p < 0.01": ("R", "vote @ branch", 1.0, 1.0),
    "R: particles above best_of at equal decoded tokens": ("R", "best_of @ smc", 1.0, 1.0),
    "R: particles above vote at equal decoded tokens, p < 0.01": ("R", "vote @ smc", 1.0, 1.0),
    "R: fast-exact at least 0.65": ("R", "fast_exact", 0.6, 1.0),
    "R: fast-exact at no more than 1.5 steps per returned token": ("R", "fast_exact", 1.0, 1.6),
    "S: perfect at least 0.85": ("S", "perfect", 0.8, 1.0),
}
"""By claim: a row, and an accuracy and a cost (tokens and steps) of it with which the claim is false."""


def discordant(suite: str, sampler: str) -> tuple[int, int]:
    """Return on how many of the committed problems only `power` was right, and only `sampler`."""
    count, p = RECORD["problems"], RECORD["paired_p"][suite][sampler]
    own, other = (round(count * ROWS[suite, name]["accuracy"]) for name in ("power", sampler))
    both_right = range(max(0, own + other - count), min(own, other) + 1)
    fitting = [
        (wins, losses)
        for wins, losses in ((own - both, other - both) for both in both_right)
        if np.isclose(stats.binom.sf(wins - 1, wins + losses, 0.5), p, rtol=1e-9, atol=0)
    ]
    assert len(fitting) == 1, (suite, sampler, fitting)
    return fitting[0]


def run_of(suite: str, sampler: str, correct: np.ndarray, cost: float | None = None) -> Run:
    """Return a run that was right where `correct` says, at the committed cost per returned token."""
    row = ROWS[suite, sampler]
    decoded, depth = (row[f"{kind}_per_returned"] if cost is None else cost for kind in ("decoded", "depth"))
    wrong, right = (
        Outcome(truth, RETURNED, round(RETURNED * decoded), 1, round(RETURNED * depth))
        for truth in (False, True)
    )
    return Run(sampler, {}, tuple(right if truth else wrong for truth in correct), 1.0)


def drawn_runs(
    rng: np.random.Generator, count: int, pairs: Mapping[tuple[str, str], tuple[int, int]]
) -> Runs:
    """Return runs over `count` problems per family, drawn at the committed rates."""
    runs: dict[str, dict[str, Run]] = {}
    for suite in demo.POWER:
        right = round(RECORD["problems"] * ROWS[suite, "power"]["accuracy"])
        power = rng.random(count) < right / RECORD["problems"]
        runs[suite] = {"power": run_of(suite, "power", power)}
        for (family, sampler), (wins, losses) in pairs.items():
            if family == suite:
                chance = np.where(power, (right - wins) / right, losses / (RECORD["problems"] - right))
                runs[suite][sampler] = run_of(suite, sampler, rng.random(count) < chance)
    short = {name: row["accuracy"] for (suite, name), row in ROWS.items() if suite == demo.SHORT}
    runs[demo.SHORT] = {
        name: run_of(demo.SHORT, name, rng.random(count) < accuracy) for name, accuracy in short.items()
    }
    return runs


def even_runs() -> dict[str, dict[str, Run]]:
    """Return runs with exactly the committed accuracies, in which every claim holds."""
    runs: dict[str, dict[str, Run]] = {suite: {} for suite, _ in ROWS}
    for (suite, sampler), row in ROWS.items():
        runs[suite][sampler] = run_of(suite, sampler, np.arange(200) < round(200 * row["accuracy"]))
    return runs


def broken_runs(claim: str) -> dict[str, dict[str, Run]]:
    """Return runs in which one row spoils a claim."""
    suite, sampler, accuracy, cost = BREAKS[claim]
    runs = even_runs()
    runs[suite][sampler] = run_of(suite, sampler, np.arange(200) < round(200 * accuracy), cost)
    return runs


@pytest.mark.parametrize("count", [demo.PROBLEMS, demo.FULL])
def test_all_claims_hold_together_in_at_least_95_of_100_demos(count: int) -> None:
    """The lower end of an exact one-sided interval of 99.9% is at least 0.95."""
    left_out = demo.LEFT_OUT if count < demo.FULL else frozenset()
    rows = [row for row in ROWS if row[1] != "power" and row[0] in demo.POWER and row not in left_out]
    pairs = {(suite, sampler): discordant(suite, sampler) for suite, sampler in rows}
    rng = np.random.default_rng(20_261_129)
    held = sum(all(check_claims(drawn_runs(rng, count, pairs)).values()) for _ in range(SIMULATIONS))
    interval = stats.binomtest(held, SIMULATIONS, alternative="greater").proportion_ci(0.999)
    assert interval.low >= 0.95, f"{held} of {SIMULATIONS}"


def test_the_committed_p_values_tell_the_pairs() -> None:
    assert discordant("R", "best_of @ power") == (63, 19)


def test_every_claim_can_fail() -> None:
    assert all(check_claims(even_runs()).values())
    assert BREAKS.keys() == check_claims(even_runs()).keys()
    for claim in BREAKS:
        assert not check_claims(broken_runs(claim))[claim], claim


@pytest.fixture
def stubbed(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Run]]:
    """A demo without a server: it measures the runs that the test puts here, and draws nothing."""
    runs: dict[str, dict[str, Run]] = {}

    @contextmanager
    def running(*_: Any) -> Iterator[Any]:
        yield SimpleNamespace(url="")

    async def evaluate(*_: Any) -> dict[str, dict[str, Run]]:
        return runs

    monkeypatch.setattr(demo, "running", running)
    monkeypatch.setattr(demo, "evaluate", evaluate)
    monkeypatch.setattr(demo, "one_chain", lambda _: [])
    monkeypatch.setattr(demo, "one_tree", lambda _: "tree")
    monkeypatch.setattr(demo, "plots", SimpleNamespace(chain=lambda *_: None, demo=lambda *_: None))
    return runs


def test_a_claim_that_fails_sets_the_exit_status(
    stubbed: dict[str, dict[str, Run]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stubbed |= even_runs()
    assert demo.main(["--results", str(tmp_path)]) == 0
    assert "FAILS" not in capsys.readouterr().out
    claim = "R: branch at least 0.9"
    stubbed |= broken_runs(claim)
    assert demo.main(["--results", str(tmp_path)]) == 1
    assert f"FAILS: {claim}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "command", "count"),
    [
        ([], "make demo", 60),
        (["--full"], "make demo-full", 200),
        (["--problems", "5"], "demo --problems 5", 5),
    ],
)
def test_the_record_names_its_command(
    stubbed: dict[str, dict[str, Run]], tmp_path: Path, options: list[str], command: str, count: int
) -> None:
    stubbed |= even_runs()
    demo.main([*options, "--results", str(tmp_path)])
    record = json.loads((tmp_path / "demo.json").read_text())
    assert (record["command"], record["problems"]) == (command, count)


def test_committed_figures_are_renewed_by_full_runs_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.parse(["--full", "--write"]).results == demo.RESULTS
    with pytest.raises(SystemExit):
        demo.main(["--write"])
    assert "add --full" in capsys.readouterr().err


class Recorder:
    """An Evaluator that asks nobody."""

    def __init__(self, _: Any) -> None:
        pass

    async def plain(self, name: str, problems: Sequence[Problem], temperature: float) -> Run:
        return Run(name, {"temperature": temperature}, (), float(len(problems)))

    async def own(
        self, sampler: str, problems: Sequence[Problem], params: dict[str, Any], name: str | None = None
    ) -> Run:
        return Run(name or sampler, params, (), float(len(problems)))

    async def controls(self, problems: Sequence[Problem], plain: Run, own: Run) -> tuple[Run, Run]:
        assert plain.sampler == "plain"
        best_of, vote = (
            Run(f"{name} @ {own.sampler}", {}, (), float(len(problems))) for name in ("best_of", "vote")
        )
        return best_of, vote


def test_the_full_demo_has_the_committed_rows_and_the_short_one_leaves_out_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo, "Evaluator", Recorder)
    for count, left_out in ((demo.FULL, frozenset[tuple[str, str]]()), (demo.PROBLEMS, demo.LEFT_OUT)):
        runs = asyncio.run(demo.evaluate("http://127.0.0.1:1", count))
        rows = [(suite, sampler) for suite, suite_runs in runs.items() for sampler in suite_runs]
        assert rows == [row for row in ROWS if row not in left_out]
        assert {run.seconds for suite_runs in runs.values() for run in suite_runs.values()} == {count}


def test_what_to_do_next_are_commands_of_the_readme_and_of_make() -> None:
    readme = demo.README.read_text()
    steps = next_steps(readme)
    makefile = (demo.README.parent / "Makefile").read_text()
    for command in ("sglang-power check --url http://127.0.0.1:30000", "make serve"):
        assert f"\n{command}\n" in steps
        assert command in readme
    assert "\ncurl -s http://127.0.0.1:30000/generate " in steps
    assert '"sampler": "power"' in steps
    for target in ("serve", "demo-full"):
        assert f"make {target}" in steps
        assert f"\n{target}: " in makefile
