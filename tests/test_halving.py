"""Sequential halving: who is played how often, and who is left."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ultra.simulation.halving import sequential_halving


def test_a_contest_of_eight_in_two_groups() -> None:
    """In each group four, two and one are played; groups keep their order, and the best comes first."""
    worth = {"a1": 1.0, "a2": 4.0, "a3": 2.0, "a4": 3.0, "b1": 9.0, "b2": 8.0, "b3": 7.0, "b4": 6.0}
    played: list[tuple[list[str], int]] = []

    def play(alive: list[str], to_come: int) -> bool:
        played.append((alive, to_come))
        return True

    left = sequential_halving(list(worth), 3, play, lambda arm: worth[arm], group=lambda arm: arm[0])
    assert left == ["a2", "b1"]
    assert played == [(list(worth), 3), (["a2", "a4", "b1", "b2"], 2), (["a2", "b1"], 1)]


def test_a_contest_ends_where_there_are_no_steps_for_a_round() -> None:
    """What the rounds before found stays; without any, the order of precedence."""
    arms = [3, 1, 2, 4]
    assert sequential_halving(arms, 5, lambda alive, to_come: False, float) == arms
    assert sequential_halving(arms, 5, lambda alive, to_come: to_come == 5, float) == [4, 3]


def test_equals_keep_their_order() -> None:
    left = sequential_halving("dcba", 1, lambda alive, to_come: True, lambda arm: 0.0, keep=lambda count: 3)
    assert left == ["d", "c", "b"]


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=40), st.integers(0, 2**31))
def test_the_best_of_arms_without_noise_always_wins(worth: list[float], seed: int) -> None:
    """After log2(n) rounds one is left; it is the best, however the arms are ordered."""
    order = np.random.default_rng(seed).permutation(len(worth)).tolist()
    rounds = math.ceil(math.log2(len(worth)))
    left = sequential_halving(order, rounds, lambda alive, to_come: True, lambda arm: worth[arm])
    assert worth[left[0]] == max(worth) or rounds == 0
    assert len(left) == 1


def test_the_best_of_noisy_arms_wins_more_often_than_with_equal_plays() -> None:
    """Sixteen arms, sixteen plays each: halving spends them on those that are hard to tell apart."""
    arms, plays, rounds, repeats = 16, 16, 4, 400
    means = -0.12 * np.arange(arms)
    won = equal = 0
    for seed in range(repeats):
        rng = np.random.default_rng(seed)
        scores = dict.fromkeys(range(arms), 0.0)

        def play(
            alive: list[int], to_come: int, rng: np.random.Generator = rng, scores: dict[int, float] = scores
        ) -> bool:
            each = arms * plays // rounds // len(alive)
            for arm in alive:
                scores[arm] = float(rng.normal(means[arm], 1 / math.sqrt(each)))
            return True

        won += sequential_halving(range(arms), rounds, play, scores.__getitem__)[0] == 0
        equal += int(np.argmax(rng.normal(means, 1 / math.sqrt(plays)))) == 0
    assert won > equal + 2 * math.sqrt(repeats / 4)
