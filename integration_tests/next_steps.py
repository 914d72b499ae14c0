"""What to try after the demo: the README's commands, as it has them. Pure: sees its text."""

from __future__ import annotations

import re

CHECK = r"^sglang-power check --url \S+"
ASK = r"^curl .*?\}'$"


def next_steps(readme: str) -> str:
    """Return, for the terminal, how to serve the demo's model, check the server and ask for an answer.

    Args:
        readme: its text.

    Raises:
        ValueError: it has no command that checks a server, or none that asks one.
    """
    check, ask = (re.search(command, readme, re.MULTILINE | re.DOTALL) for command in (CHECK, ASK))
    if check is None or ask is None:
        raise ValueError("README.md has no command that checks a server, or none that asks one")
    return f"""
Next, serve the same model on 127.0.0.1:30000 until interrupted:

make serve

and in a second terminal see that the plugin is live, and ask for one answer:

source .venv/bin/activate
{check[0]}
{ask[0]}

`make demo-full` asks 200 problems per family, with every row. README.md goes on from here."""
