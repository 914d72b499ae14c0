"""What is left of a selection that ends while its answers are scored: by an abort, or by its deadline.

The reward `stuck` scores guesses at once and never comes to a result on worked steps, so where a choice
stands when it is interrupted hangs on its answer alone.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest

from integration_tests.helpers.clients import (
    PROMPT,
    Answer,
    abort,
    events,
    eventually,
    metric,
    post,
    power_of,
    quiet,
    raw_generate,
    running,
)
from integration_tests.server import Server

pytestmark = pytest.mark.server

STUCK: dict[str, Any] = {"score": "reward", "reward": "worked_steps_stuck"}


def body(seed: int, samples: int = 1, **best_of: Any) -> dict[str, Any]:
    """A request for two choices, each of the best of some samples."""
    custom = {"sampler": "best_of", "samples": samples, "seed": seed, "answer": "text", **best_of}
    return {"sampling_params": {"n": 2, "max_new_tokens": 48, "custom_params": custom}}


def of_mixed_fates(server: Server) -> tuple[int, list[str]]:
    """A seed whose first choice is a guess and whose second one works a step, and their texts."""
    for seed in itertools.count():
        texts = [answer["text"] for answer in raw_generate(server, **body(seed))]
        if ["w" in text for text in texts] == [False, True]:
            return seed, texts
    raise AssertionError("unreachable")


def interrupted(server: Server, rid: str, seed: int, *, stream: bool) -> list[Answer]:
    """The answers, or the chunks, of a request that is aborted when only its second reward is missing."""
    request = {"text": PROMPT, **body(seed, **STUCK), "rid": [rid], "stream": stream}
    before = metric(server, "sglang_power_requests_total", sampler="best_of")
    with running(functools.partial(events if stream else post, server, "/generate", request)) as call:
        eventually(
            lambda: metric(server, "sglang_power_requests_total", sampler="best_of") == before + 1,
            "the first choice is done",
        )
        quiet(server)
        assert not call.done(), call.result()
        abort(server, rid=rid)
        got = call.result()
    answers: list[Answer] = got if stream else got.json()
    return answers


def ends(answers: list[Answer]) -> list[tuple[str, str]]:
    """Text and finish reason of every answer that has one."""
    reasons = [(one["text"], one["meta_info"]["finish_reason"]) for one in answers]
    return [(text, reason["type"]) for text, reason in reasons if reason is not None]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_an_abort_leaves_every_choice_what_it_had(pivot_server: Server, stream: bool) -> None:
    seed, (guess, worked) = of_mixed_fates(pivot_server)
    answers = interrupted(pivot_server, f"stuck-{stream}", seed, stream=stream)
    assert ends(answers) == [(guess, "stop"), (worked, "abort")]
    done, aborted = (power_of(one) for one in answers if one["meta_info"]["finish_reason"])
    assert (done["stopped_by"], aborted["stopped_by"]) == ("completed", "abort")
    assert aborted["paths"][0]["score"] is None
    quiet(pivot_server)


def test_a_deadline_ends_a_reward_that_never_comes(pivot_server: Server) -> None:
    seed, (guess, worked) = of_mixed_fates(pivot_server)
    answers = raw_generate(pivot_server, **body(seed, **STUCK, deadline_ms=5000))
    assert ends(answers) == [(guess, "stop"), (worked, "stop")]
    done, late = map(power_of, answers)
    assert (done["stopped_by"], done["paths"][0]["score"]) == ("completed", 0.0)
    assert (late["stopped_by"], late["paths"][0]["score"]) == ("deadline_ms", None)
    assert late["chosen"] == {"index": 0, "reason": "no_score"}
    quiet(pivot_server)
