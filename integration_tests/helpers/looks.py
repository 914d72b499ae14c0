"""A law of answers of the real server, by looks: a sequential test whose rule is fixed beforehand.

Of at most LOOKS samples with fresh seeds each, one has to pass a G-test (cells with expectation below 5
pooled) at LEVEL. A right sampler fails with probability LEVEL^LOOKS = 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from sglang_power.types import FloatArray

from integration_tests.helpers.goodness_of_fit import g_test
from integration_tests.law_model import AnswerTree
from integration_tests.server import Server
from integration_tests.tests.test_law_server import Json, counted, generate

LOOKS, LEVEL = 3, 1e-5 ** (1 / 3)
ANSWERS = 400
"""Of one look."""


async def passes_a_look(
    server: Server,
    tree: AnswerTree,
    target: FloatArray,
    body: Callable[[int], Json],
    check: Callable[[Sequence[Json]], None],
    first_seed: int,
) -> None:
    """Fail unless one of the looks at the server's answers fits the law.

    Args:
        server: with the law model.
        tree: all answers.
        target: [answers] their probabilities.
        body: the request with a seed.
        check: of every look's answers, beside the law.
        first_seed: seeds go up from here.
    """
    for look in range(LOOKS):
        seeds = range(first_seed + look * ANSWERS, first_seed + (look + 1) * ANSWERS)
        answers = await generate(server, [body(seed) for seed in seeds])
        check(answers)
        p = g_test(counted(tree, [tuple(answer["output_ids"]) for answer in answers]), target)
        print(f"look {look}: p {p:.3g}")
        if p > LEVEL:
            return
    pytest.fail(f"{LOOKS} samples of {ANSWERS} answers are all below {LEVEL:.3g}")
