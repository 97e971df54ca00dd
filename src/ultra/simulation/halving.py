"""Sequential halving: which of several arms is best, with few plays of those that are not.

Karnin, Koren and Somekh, "Almost Optimal Exploration in Multi-Armed Bandits" (ICML 2013).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TypeVar

Arm = TypeVar("Arm")


def sequential_halving(
    arms: Sequence[Arm],
    rounds: int,
    play: Callable[[list[Arm], int], bool],
    score: Callable[[Arm], float],
    *,
    keep: Callable[[int], int] = lambda count: count // 2,
    group: Callable[[Arm], Hashable] = lambda arm: None,
) -> list[Arm]:
    """Play all arms equally often, drop the worse part, and so on with what is left.

    What an arm's own plays say of it is flattered by having won; `ultra.verification` measures winners afresh.

    Args:
        arms: in order of precedence, which decides between equal scores.
        rounds: at most.
        play: plays the arms that are left, given them and the number of rounds to come, this one included; returns
            False if it had no steps for that, which ends the contest.
        score: of an arm after it was played; higher is better.
        keep: how many of a group's arms go on, given their number; at least one does.
        group: arms compete within their group.

    Returns:
        The arms that are left, group by group, the best ones first.
    """
    alive = list(arms)
    for number in range(rounds):
        if not alive or not play(alive, rounds - number):
            break
        groups: dict[Hashable, list[Arm]] = {}
        for arm in alive:
            groups.setdefault(group(arm), []).append(arm)
        alive = [
            arm
            for members in groups.values()
            for arm in sorted(members, key=score, reverse=True)[: max(1, keep(len(members)))]
        ]
    return alive
