"""Lagged coupled chains: two copies of one chain, of which the second repeats the first one's random numbers.

Biswas, Jacob & Vanetti, arXiv 1905.09971. A leader X runs `lag` steps alone, then a follower Y, from a start
of its own, makes its step t with the random numbers of the leader's step t + lag:

    X_0, X_1, ..., X_lag     alone
    (X_lag+1, Y_1), (X_lag+2, Y_2), ...     seed of the step, so cut, uniform and draws, in common

Each chain alone is a run of the same kernel from the same start, since no step of it sees a seed twice. They
meet after a coupled steps where X_lag+a = Y_a. From there on equal answers with equal seeds stay equal, so
the pair need not be run any further. P(not met after a steps) bounds the distance between the laws of Y_a and
of X_lag+a, those of one chain after a and after lag + a steps (`diagnosis.bounds` goes on from there).

A driver repeats `moves`, makes them, and hands their answers to `moved`. Knows neither kernel nor engine: a
move is a seed and an answer to go on from, so any kernel whose randomness is a function of its seed will do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sglang_power.rng import Key, Purpose


@dataclass(frozen=True, slots=True)
class Place:
    """Where a chain is.

    Args:
        ids: the answer's tokens, its stop included.
        log_p: of the answer at temperature 1, nats.
    """

    ids: tuple[int, ...]
    log_p: float


@dataclass(frozen=True, slots=True)
class Move:
    """One step to make, or the first answer of a chain to draw.

    Args:
        seed: all of its randomness.
        before: the answer to go on from; None for a chain's first one.
    """

    seed: int
    before: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class CoupledPair:
    """Two chains, as far as they have come.

    Args:
        lag: steps that the leader is ahead, at least 1.
        steps: coupled steps at most.
        leader, follower: every place, first to last.
    """

    lag: int
    steps: int
    leader: tuple[Place, ...] = ()
    follower: tuple[Place, ...] = ()

    @property
    def coupled_steps(self) -> int:
        """Return how many steps both have made together; 0 before the first."""
        return max(0, len(self.follower) - 1)

    @property
    def has_met(self) -> bool:
        """Return whether the leader is where the follower is, `lag` steps behind it."""
        return len(self.leader) > self.lag and self.leader[-1].ids == self.follower[-1].ids

    @property
    def is_over(self) -> bool:
        """Return whether there is nothing more to learn."""
        return self.has_met or self.coupled_steps == self.steps

    @property
    def meeting(self) -> int | None:
        """Return the coupled steps after which they met; None where they have not."""
        return self.coupled_steps if self.has_met else None


def moves(key: Key, pair: CoupledPair) -> tuple[Move, ...]:
    """Return what is to be done next: moves that do not depend on one another, the leader's first.

    Args:
        key: of this pair; other pairs have others.
        pair: not over.
    """
    if not pair.leader:
        return tuple(Move(key.child_seed(chain, Purpose.EXTENSION), None) for chain in range(2))
    step = len(pair.leader)
    seed = key.child_seed(step, Purpose.PROPOSAL)
    ahead = Move(seed, pair.leader[-1].ids)
    return (ahead,) if step <= pair.lag else (ahead, Move(seed, pair.follower[-1].ids))


def moved(pair: CoupledPair, places: tuple[Place, ...]) -> CoupledPair:
    """Return the pair after its moves.

    Args:
        pair: as `moves` saw it.
        places: where each move led, in their order.
    """
    leader = (*pair.leader, places[0])
    follower = (*pair.follower, *places[1:])
    return replace(pair, leader=leader, follower=follower)
