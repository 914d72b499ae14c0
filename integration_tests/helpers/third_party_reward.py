"""A reward as another package would bring it: how many steps of a problem of family R were worked out.

Its `entry_points.txt` (in pyproject.toml: `[project.entry-points."sglang_power.rewards"]`) says

    [sglang_power.rewards]
    worked_steps = worked_steps_reward:worked_steps

and requests may name it: {"sampler": "power", "reward": "worked_steps", "reward_weight": 2.0}. conftest.py
installs this file so beside the server.
"""

from __future__ import annotations

import asyncio

MOST = 6


def worked_steps(prompt: str, answer: str) -> float:
    """The number of worked steps, `w7+3=0;`; at most six count. A prompt of another family scores 0."""
    return float(min(answer.count("w"), MOST)) if prompt.startswith("R") else 0.0


worked_steps.upper_bound = float(MOST)  # type: ignore[attr-defined]  # early rejection needs it


async def stuck(prompt: str, answer: str) -> float:
    """Scores guesses 0 and waits for ever over a worked step, for tests of what ends such a call."""
    score = worked_steps(prompt, answer)
    if score:
        await asyncio.Event().wait()
    return score
