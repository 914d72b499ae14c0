"""A group of named branches of one program.

Owns the branches from `branch` to `select`: what they are called, which of them failed, and whether the
program they came from has waited for them. Knows neither how they were made nor how one is chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from sglang_power.errors import RequestError
from sglang_power.frontend._lang import ProgramState, SglExpr
from sglang_power.frontend.ledger import DrawnText

Generated = tuple[tuple[int, ...], DrawnText]
"""A generated segment with the tokens in front of it."""


class Group:
    """Branches of a program, in order.

    Args:
        origin: the program.
        states: its branches, by name.
        firings: of the trigger that made them, if one did.

    Attributes:
        names: of the branches.
        question: the program's text in front of them.
        firings: with a trigger: the `rows` of the likeliest branch, at how many of them it `fired`, and a
            `hint` where that is more than a third; else None.
    """

    def __init__(
        self,
        origin: ProgramState,
        states: Mapping[str, ProgramState],
        firings: Mapping[str, Any] | None = None,
    ) -> None:
        executor = origin.stream_executor
        self.origin, self._states = origin, dict(states)
        self.names, self.firings = tuple(states), firings
        self.question: str = executor.text_
        self._start = len(executor.backend.ledger.pieces)
        self._role = self._role_of(executor)
        self._open = True

    def __len__(self) -> int:
        return len(self._states)

    def __iter__(self) -> Iterator[ProgramState]:
        return iter(self._states.values())

    def __getitem__(self, which: str | int) -> ProgramState:
        """A branch, by its name or its number."""
        return self._states[self.names[which] if isinstance(which, int) else which]

    def __setitem__(self, which: str | int, state: ProgramState) -> None:
        """What `group[name] += expression` ends with: the branch is the same."""
        assert self[which] is state, "a group keeps its branches"

    def __iadd__(self, other: Any) -> Self:
        """Add to every branch: the same expression, one per name, one per branch, or what a function of the
        name says.
        """
        for name, expr in zip(self.names, self._each(other), strict=True):
            state = self._states[name]
            state += expr
        return self

    def _each(self, other: Any) -> Sequence[Any]:
        if isinstance(other, str | SglExpr):
            return [other] * len(self)
        if isinstance(other, Mapping):
            return [other[name] for name in self.names]
        if callable(other):
            function: Callable[[str], Any] = other
            return [function(name) for name in self.names]
        return list(other)

    @property
    def errors(self) -> dict[str, Exception]:
        """What the branches that failed failed with; waits for all of them."""
        found = {name: state.error() for name, state in self._states.items()}
        return {name: error for name, error in found.items() if error is not None}

    def survivors(self) -> dict[str, ProgramState]:
        """Branches that can be chosen.

        Raises:
            RequestError: the group was merged before, its program has gone on, or a branch left its role.
            Exception: all branches failed; the first one's failure.
        """
        self._check_open()
        errors = self.errors
        if len(errors) == len(self):
            raise next(iter(errors.values()))
        alive = {name: state for name, state in self._states.items() if name not in errors}
        for name, state in alive.items():
            if (role := self._role_of(state.stream_executor)) != self._role:
                problem = f"it is in role {role[0]!r}, the program in {self._role[0]!r}, or in another turn"
                raise RequestError(
                    "group", name, problem, "End roles in a branch that begin there, only those"
                )
        return alive

    def _check_open(self) -> None:
        self.origin.sync()
        if not self._open:
            raise RequestError("group", list(self.names), "merged before", "Select from a group once")
        if self.origin.stream_executor.text_ != self.question:
            hint = "Select before the program goes on"
            raise RequestError("group", list(self.names), "the program has gone on without it", hint)

    def draws(self, name: str) -> list[Generated]:
        """What a branch has generated, in order."""
        ledger = self._states[name].stream_executor.backend.ledger
        found: list[Generated] = ledger.draws_from(self._start)
        return found

    def added_text(self, name: str) -> str:
        """What a branch has added to the program's text."""
        text: str = self._states[name].stream_executor.text_
        return text[len(self.question) :]

    def close(self) -> None:
        """End the branches' threads."""
        self._open = False
        for state in self:
            state.stream_executor.end()

    @staticmethod
    def _role_of(executor: Any) -> tuple[str | None, int | None]:
        return executor.cur_role, executor.cur_role_begin_pos if executor.cur_role is not None else None
