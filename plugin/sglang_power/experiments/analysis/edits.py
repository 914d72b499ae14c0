"""What an edit of an experiment's file does to its data, before a server takes it: for `ab check`.

Says what `versions` and `requests` say, which the server and the report go by; owns but the sentences.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from sglang_power.experiments.analysis import wording
from sglang_power.experiments.analysis.requests import Joined, joined, scope_of
from sglang_power.experiments.analysis.units import population
from sglang_power.experiments.model import Experiment
from sglang_power.experiments.state import State
from sglang_power.experiments.versions import Versions, config_hash, phases_of, rules_hash


def edited(before: Experiment, after: Experiment) -> Iterator[str]:
    """Say of every field that differs what becomes of the data that were logged under the file as it was.

    Each field is judged by itself: put into the old file, does it change the version, or the rules?
    """
    fields = [name for name in Experiment.model_fields if getattr(before, name) != getattr(after, name)]
    for field in fields:
        yield f"{field}: {_becomes(before, after, field)}"
    if not fields:
        yield "nothing differs"


def _becomes(before: Experiment, after: Experiment, field: str) -> str:
    if field == "kill":
        return _killed(after)
    if field == "drain":
        return _drained(after)
    mixed = before.model_copy(update={field: getattr(after, field)})
    if field in ("arms", "ramp"):
        mixed = mixed.model_copy(update={"arms": after.arms, "ramp": after.ramp})
    lost = _lost_phases(before, mixed)
    if lost:
        which = f" of phase {', '.join(map(str, lost))}" if phases_of(before) > 1 else ""
        return (
            f"A NEW VERSION: the data{which} so far do not count any more. To keep them, let the experiment "
            "end (`drain`), and give the new one another name"
        )
    if rules_hash(before) != rules_hash(mixed):
        return (
            "all data count, and are judged by the new rules from the beginning; intervals and verdict hold "
            "only for rules that were fixed beforehand"
        )
    return "changes nothing of the data"


def _lost_phases(before: Experiment, after: Experiment) -> list[int]:
    versions = Versions(after)
    return [
        phase for phase in range(phases_of(before)) if not versions.accepts(config_hash(before, phase), phase)
    ]


def _killed(after: Experiment) -> str:
    if after.kill:
        return (
            "from now on nobody is enrolled; units whose outcome window is open will never be analysed "
            "(`drain: true` lets the windows close)"
        )
    return "enrols again: units that come from now on count, units whose window the kill cut off do not"


def _drained(after: Experiment) -> str:
    if after.drain:
        return "everybody is served as before; units that come from now on are not analysed"
    return "units that came while it drained count, too"


def standing(
    log: Path, experiment: Experiment, state: State, now: float, before: Sequence[Experiment] = ()
) -> Iterator[str]:
    """Say what a log holds for the file as it is, in the phase of its state.

    Args:
        log: directory of the servers' JSONL files.
        before: earlier contents of the file, see Scope.

    Raises:
        RecordError: no such directory, or lines of another schema.
    """
    found = joined(log, scope_of(experiment, state.phase, now, before))
    people = population(found)
    others = found.others
    yield (
        f"log: {found.accepted:,} requests count under this version of the file, in phase {state.phase} "
        f"{len(people.kept):,} units; {others.total():,} requests do not{_told(others)}"
    )
    if said := _held(found):
        yield said
    left = [unit for unit in people.kept if not found.is_over(unit) and not found.is_cut(unit)]
    if left and not experiment.drain:
        last = wording.moment(max(map(found.closes, left)))
        yield (
            f"log: {len(left):,} units have an open window, the last one until {last} UTC: `kill` would "
            "leave them out for good, `drain` lets them close"
        )


def _held(found: Joined) -> str | None:
    """A kill or a drain of the log, and a file that speaks of one which no server has heard of."""
    file, told = found.scope.experiment, found.history
    if told.killed is not None:
        return f"log: killed since {wording.moment(told.killed)} UTC"
    if told.draining is not None:
        return f"log: draining since {wording.moment(told.draining)} UTC"
    return "log: no server has said yet that it is killed or drains" if file.kill or file.drain else None


def _told(others: Counter[str]) -> str:
    each = [f"{count:,} of version {version}" for version, count in others.most_common()]
    return f" ({', '.join(each)})" if each else ""
