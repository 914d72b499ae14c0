"""What changes while an experiment runs: the file `<name>.state.json` beside `<name>.yaml`.

Written by `sglang-power ab ramp`, or by hand; read by every server, which reloads it, and by the report.
Where there is none, the experiment is in its first phase.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sglang_power.errors import ConfigError

VERSION: Literal[1] = 1


class State(BaseModel):
    """Where an experiment stands.

    Args:
        phase: of its ramp, from 0.
        killed: rolled back, or stopped: nobody is enrolled any more.
        reason: why it was changed last.
        at: when, seconds since 1970; None where it never was.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    version: Literal[1] = VERSION
    phase: Annotated[int, Field(ge=0)] = 0
    killed: bool = False
    reason: str | None = None
    at: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] | None = None


def state_path(path: Path) -> Path:
    """Where the state of an experiment's file is."""
    return path.with_name(f"{path.stem}.state.json")


def read_state(path: Path) -> State:
    """Read a state; the first phase where there is no file.

    Raises:
        ConfigError: unreadable, or not a state.
    """
    try:
        return State.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return State()
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{path}, field '{field}': {first['msg']}, got {first['input']!r}") from error


def write_state(path: Path, state: State) -> None:
    """Replace a state at once: a reader sees the old one or the new one.

    Raises:
        OSError: it could not be written; the old one is untouched.
    """
    half = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with half.open("w", encoding="utf-8") as file:
            file.write(state.model_dump_json(indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def replace_state(path: Path, before: State, after: State) -> State:
    """Write a state if nobody has changed the one that it was made from.

    Reading a log takes minutes, in which somebody may stop the experiment by hand. There is no lock, since
    an editor takes none; between the look and the write is less than a millisecond.

    Returns:
        the state in force now: `after`, or what somebody else wrote.

    Raises:
        ConfigError: the state in force cannot be read.
        OSError: it could not be written.
    """
    current = read_state(path)
    if current != before:
        return current
    write_state(path, after)
    return after
