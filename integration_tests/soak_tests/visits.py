"""What the clients of the soak ask for, as a function of the seed: no I/O.

Every registered sampler of whole answers, plain requests and a per-step policy, through three routes,
streaming or not, directly or through SGLang's router; and what clients do: stay, hurry, leave, abort, or
send what nobody can serve.
"""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from integration_tests.helpers.contract import CHAT, COMPLETIONS, CONTRACT, GENERATE, Door

Json = dict[str, Any]
Fate = Literal["stays", "hurries", "leaves", "aborts", "malformed"]

TOKENS = 24
LATEST_S = 3.0
"""Until when a client aborts or leaves; most answers take less."""

INTERRUPTED: tuple[Fate, ...] = ("aborts", "leaves")
FATES: tuple[Fate, ...] = ("stays", "stays", "stays", "stays", "hurries", "malformed", *INTERRUPTED)
PLAIN = "none"
POLICY = {"sampler": "top_n_sigma", "n": 1.5}

MALFORMED: tuple[Json, ...] = (
    {"sampler": "powr"},
    {"sampler": "power", "unheard_of": 1},
    {"sampler": "power", "seed": -1},
    {"sampler": "power", "seed": "many"},
    {"sampler": "power", "alpha": 0.5},
    {"sampler": "power", "alpha": "NaN"},
    {"sampler": "smc", "particles": 10**6},
    {"sampler": "vote", "answer_regex": "("},
    {"sampler": ["power"]},
    {"preset": "of nobody"},
)
"""What nobody can serve as it stands."""


@dataclass(frozen=True)
class Visit:
    """One request and what its client does.

    Args:
        body, door: what is asked, and where.
        sampler: who answers; "none" for SGLang itself.
        n: choices.
        fate: "hurries" asks for an answer within a few milliseconds; "malformed" expects a 400.
        after_s: when it aborts or leaves.
        routed: it goes through the router.
    """

    body: Json
    door: Door
    sampler: str
    n: int
    fate: Fate
    after_s: float
    routed: bool


def visits(seed: int, *, router: bool) -> Iterator[Visit]:
    """Yield requests without end, in the order in which clients take them.

    Args:
        seed: of everything.
        router: whether chats and completions may go through one.
    """
    draw = random.Random(seed)
    quick: list[tuple[str, Json]] = [(name, row.quick) for name, row in CONTRACT.items()]
    lasting: list[tuple[str, Json]] = [(name, row.lasting) for name, row in CONTRACT.items()]
    plain: list[tuple[str, Json]] = [(PLAIN, {})] * len(CONTRACT)
    while True:
        kind = draw.choice([quick, quick, lasting, plain, [("top_n_sigma", POLICY)]])
        name, custom = draw.choice(kind)
        fate = draw.choice(INTERRUPTED if kind is lasting else FATES)
        yield _visit(draw, name, dict(custom), fate, router=router)


def _visit(draw: random.Random, sampler: str, custom: Json, fate: Fate, *, router: bool) -> Visit:
    door = Door(draw.choice([GENERATE, COMPLETIONS, CHAT]).path, stream=draw.random() < 0.5)
    routed = router and door.path != GENERATE.path and draw.random() < 0.5
    if fate == "aborts" and routed:
        fate = "leaves"  # aborts are posted to the workers: the router passes no id on
    if fate == "hurries" and not (sampler in CONTRACT and CONTRACT[sampler].budgets):
        fate = "stays"
    if custom:
        custom["seed"] = draw.randrange(2**32)
    if fate == "hurries":
        custom["deadline_ms"] = draw.randrange(1, 200)
    if fate == "malformed":
        custom = draw.choice(MALFORMED)
        sampler = PLAIN
    n = draw.choice([1, 1, 2])
    body = door.body(custom, TOKENS, n, rid=uuid.UUID(int=draw.getrandbits(128)).hex)
    return Visit(
        through_router(body) if routed else body, door, sampler, n, fate, draw.random() * LATEST_S, routed
    )


def through_router(body: Json) -> Json:
    """Return a chat's or completion's body as it survives the router: `metadata` names the sampler."""
    kept = {name: value for name, value in body.items() if name not in ("custom_params", "rid")}
    custom = body["custom_params"]
    return {**kept, "metadata": {"sglang_power": json.dumps(custom)}} if custom else kept
