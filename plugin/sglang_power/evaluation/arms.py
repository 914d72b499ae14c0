"""What is asked for: samplers with their parameters, under the names that the report shows. Pure."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict

from sglang_power.errors import ConfigError
from sglang_power.evaluation.items import Item, Kind
from sglang_power.fields import UNTEMPERED

Json: TypeAlias = dict[str, Any]

BASELINES: Final[Mapping[str, Json]] = {
    "plain": {"sampler": "temperature", "value": 1.0},
    "lowtemp": {"sampler": "temperature", "value": 0.25},
    "greedy": {"sampler": "greedy"},
}
"""As per-step policies of the plugin: the same laws as SGLang's own, drawn by the seed of each request."""

CHOOSING: Final = ("cot", "branch", "vote", "best_of")
"""Samplers that read the answers of their paths."""

WHOLE: Final = ("power", "smc", "perfect", "lookahead", *CHOOSING)

NAMES: Final = (*BASELINES, *WHOLE)

DEFAULT: Final = ("plain", "lowtemp", "greedy", "power", "smc", "vote", "best_of")

DRAW_NOTHING: Final = ("greedy", "cot", "branch")
"""The same request gives the same answer: they are asked once, however many samples the others give."""

UNVOTED: Final[Mapping[Kind, tuple[str, ...]]] = {"code": ("vote", "cot")}
"""Samplers that make no sense of a kind: no two programs are equal."""

READING: Final[Mapping[Kind, Json]] = {
    "number": {"answer": "number", "equivalence": "number"},
    "choice": {"answer": "choice", "equivalence": "choice"},
    "math": {"answer": "boxed", "equivalence": "normalised"},
    "text": {"answer": "text", "equivalence": "normalised"},
    "regex": {"answer": "regex"},
    "code": {"answer": "text"},
}
"""How samplers that choose read an answer, kind by kind."""


class Arm(BaseModel):
    """A sampler with its parameters.

    Args:
        name: in the report and in the answers' file; unique.
        sampler: as `--samplers` names it.
        params: what is sent, without the seed.
        samples: answers to each item.
        swept: the parameter that `--sweep` set, and its value.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    sampler: str
    params: dict[str, Any]
    samples: int
    swept: tuple[str, float | int | str] | None = None

    @property
    def is_baseline(self) -> bool:
        """Return whether any server can answer it."""
        return self.sampler in BASELINES


def sampling_of(arm: Arm) -> Json:
    """Return SGLang's own sampling fields of a baseline, for a server without the plugin."""
    if arm.sampler == "greedy":
        return {**UNTEMPERED, "temperature": 0.0}
    return {**UNTEMPERED, "temperature": arm.params["value"]}


def seed_of(seed: int, item: str, arm: str, sample: int) -> int:
    """Return an answer's seed: a hash of what it answers, so that no other answer changes it.

    Args:
        seed: of the whole run.
        item, arm: names.
        sample: the number of the answer among those of its arm to its item.
    """
    told = json.dumps([seed, item, arm, sample]).encode()
    return int.from_bytes(hashlib.sha256(told).digest()[:6])


def build(
    names: Sequence[str],
    items: Sequence[Item],
    params: Mapping[str, Json],
    sweeps: Sequence[tuple[str, str, Sequence[float | int | str]]],
    samples: int,
    plain_samples: int | None,
) -> list[Arm]:
    """Return the arms of a run.

    Args:
        names: samplers.
        items: what they answer, which says how answers are read.
        params: by sampler, on top of what fits any task.
        sweeps: sampler, parameter, and the values that it takes one after the other.
        samples: answers to each item.
        plain_samples: of `plain`, where these are others.

    Raises:
        ConfigError: an unknown sampler, or parameters of one that does not run.
    """
    for name in [*names, *params, *(sweep[0] for sweep in sweeps)]:
        if name not in NAMES:
            raise ConfigError(f"unknown sampler {name!r}: choose among {', '.join(NAMES)}")
    for name in [sweep[0] for sweep in sweeps]:
        if name not in names:
            raise ConfigError(f"--sweep {name}: it is not among the samplers that run ({', '.join(names)})")
    arms = []
    for name in dict.fromkeys(names):
        base = {**_own(name, items), **params.get(name, {})}
        mine = [sweep for sweep in sweeps if sweep[0] == name]
        count = 1 if name in DRAW_NOTHING else samples
        if name == "plain" and plain_samples is not None:
            count = plain_samples
        arms += _swept(name, base, mine, count) or [Arm(name=name, sampler=name, params=base, samples=count)]
    return arms


def _own(name: str, items: Sequence[Item]) -> Json:
    """What a sampler is sent on any task: its name, and how it is to read these items' answers."""
    if name in BASELINES:
        return dict(BASELINES[name])
    own: Json = {"sampler": name}
    return {**own, **_reading(items)} if name in CHOOSING else own


def _reading(items: Sequence[Item]) -> Json:
    kinds = {(item.kind, item.pattern) for item in items}
    if len(kinds) > 1:
        return {"answer": "text", "equivalence": "normalised"}
    kind, pattern = kinds.pop()
    return {**READING[kind], **({} if pattern is None else {"answer_regex": pattern})}


def _swept(
    name: str, base: Json, sweeps: Sequence[tuple[str, str, Sequence[float | int | str]]], samples: int
) -> list[Arm]:
    return [
        Arm(
            name=f"{name}[{parameter}={value}]",
            sampler=name,
            params={**base, parameter: value},
            samples=samples,
            swept=(parameter, value),
        )
        for _, parameter, values in sweeps
        for value in values
    ]


def left_out(items: Sequence[Item], names: Sequence[str]) -> list[str]:
    """Return the samplers that make no sense of these items."""
    kinds = {item.kind for item in items}
    return [name for name in names if any(name in UNVOTED.get(kind, ()) for kind in kinds)]


def parse_sweep(text: str) -> tuple[str, str, list[float | int | str]]:
    """Return sampler, parameter and values of `power.steps=1,2,5`.

    Raises:
        ConfigError: it is written in another way.
    """
    place, equals, values = text.partition("=")
    sampler, point, parameter = place.partition(".")
    read = [yaml.safe_load(value) for value in values.split(",")] if values else []
    if not (equals and point and parameter and read) or any(
        isinstance(value, bool) or not isinstance(value, float | int | str) for value in read
    ):
        raise ConfigError(f"--sweep {text}: write it like power.steps=1,2,5,10")
    return sampler, parameter, list(dict.fromkeys(read))


def merged(*tables: Mapping[str, Json]) -> dict[str, Json]:
    """Return parameters by sampler; of one parameter the last table counts."""
    names = dict.fromkeys(itertools.chain.from_iterable(tables))
    return {
        name: {key: value for table in tables for key, value in table.get(name, {}).items()} for name in names
    }
