"""What a report knew earlier is the beginning of what it knows now, on a log with everything in any order."""

from __future__ import annotations

import random
from pathlib import Path

from ab_lines import CONFIG, HOUR, Lines, experiment
from sglang_power.experiments.analysis.observations import Observations
from sglang_power.experiments.analysis.requests import Scope, joined
from sglang_power.experiments.analysis.units import population


def observed(log: Path, now: float) -> Observations:
    return population(joined(log, Scope(experiment(), CONFIG, 0, now))).observations


def _random_log(directory: Path) -> Path:
    """300 requests of 60 units over five hours, with whatever may follow them, in two files; fixed seed."""
    chance, log = random.Random(2), Lines()
    for _ in range(300):
        unit, at = chance.randrange(60), chance.uniform(0.0, 5 * HOUR)
        arm = "plain" if unit % 2 else "power"
        exposure = log.enrol(f"u{unit}", arm, at)
        for _ in range(chance.choice([0, 1, 1, 2])):
            log.complete(
                exposure, arm, at + chance.expovariate(1 / HOUR), outcome=chance.choice(["ok", "error"])
            )
        for _ in range(chance.choice([0, 1, 2])):
            log.say(exposure, chance.random(), at + chance.expovariate(1 / HOUR))
    chance.shuffle(log.written)
    rest = [log.written.pop() for _ in range(200)]
    log.write(directory, "b.jsonl")
    log.written = rest
    return log.write(directory, "a.jsonl")


def test_what_was_known_earlier_is_the_beginning_of_what_is_known_now(tmp_path: Path) -> None:
    """Sequential statistics need it: a value never changes once its unit has entered."""
    log = _random_log(tmp_path)
    now = observed(log, 100 * HOUR)
    assert len(now) > 50
    for half_hours in range(13):
        then = observed(log, half_hours * HOUR / 2)
        rows = len(then)
        assert then.arms == now.arms[:rows]
        for metric in ("thumbs", "failed", "tokens"):
            assert then.columns[metric].values.tolist() == now.columns[metric].values[:rows].tolist()
