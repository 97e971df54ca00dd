"""Pong against Gymnasium's own environment and its screen, its snapshots, and its worker processes."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from ultra.common.errors import WorkerError
from ultra.tasks import Batch, Step, get_task
from ultra.tasks.pong import GYMNASIUM_ACTIONS, TIME_LIMIT, ObjectPong, PongBatch, StickyActions, draw_noops

Record = list[tuple[Step, NDArray[np.float64]]]

BALL, OWN_PADDLE, OPPONENT = (236, 236, 236), (92, 186, 92), (213, 130, 74)
COURT = slice(34, 194)
"""Rows of the screen between the walls."""
FACTS = get_task("pong").card.fact_names


def named(facts: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(FACTS, facts.tolist(), strict=True))


def in_play(facts: NDArray[np.float64]) -> bool:
    """Without a ball, the facts put it in the centre of the court."""
    return (facts[0], facts[1]) != (78.0, 114.0)


def play(batch: Batch, actions: NDArray[np.int64]) -> Record:
    return [(batch.step(row), batch.facts()) for row in actions]


def assert_same(record: Record, again: Record, old: list[int], new: list[int]) -> None:
    """The environments `old` of one record went exactly as `new` of the other."""
    for (step, facts), (step_again, facts_again) in zip(record, again, strict=True):
        np.testing.assert_array_equal(step_again.observations[new], step.observations[old])
        np.testing.assert_array_equal(step_again.rewards[new], step.rewards[old])
        np.testing.assert_array_equal(step_again.terminated[new], step.terminated[old])
        np.testing.assert_array_equal(step_again.truncated[new], step.truncated[old])
        np.testing.assert_array_equal(facts_again[new], facts[old])


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail where something would hang."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"not done within {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [0.0, 0.25])
def test_a_whole_game_is_gymnasiums(sticky: float) -> None:
    """To the end of the game, then into another one in the same slot."""
    batch, env = PongBatch(2, sticky), ObjectPong(sticky)
    rng = np.random.default_rng(0)
    for seed, steps in ((11, 3000), (12, 50)):
        observations = batch.reset([1], [seed])
        theirs, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(observations[0], theirs)
        np.testing.assert_array_equal(batch.facts()[1], env.facts)
        for _ in range(steps):
            action = int(rng.integers(3))
            step = batch.step(np.array([0, action]))
            theirs, reward, terminated, truncated, _ = env.step(action)
            np.testing.assert_array_equal(step.observations[1], theirs)
            np.testing.assert_array_equal(batch.facts()[1], env.facts)
            assert (step.rewards[1], step.terminated[1], step.truncated[1]) == (reward, terminated, truncated)
            if terminated:
                break
        assert terminated == (steps == 3000), "a game against random actions is lost within 3000 steps"
    env.close()


def test_without_sticky_actions_four_frames_are_gymnasiums_frame_skip() -> None:
    env = ObjectPong()
    theirs = gymnasium.make("ALE/Pong-v5", obs_type="ram", frameskip=4, repeat_action_probability=0.0)
    console: Any = theirs.unwrapped
    env.reset(seed=6)
    theirs.reset(seed=6)
    for _ in range(draw_noops(6)):
        console.ale.act(0)
    for action in np.random.default_rng(0).integers(3, size=300):
        _, reward, terminated, _, _ = env.step(int(action))
        ram, their_reward, their_end, _, _ = theirs.step(GYMNASIUM_ACTIONS[action])
        np.testing.assert_array_equal(cast(Any, env.unwrapped).ale.getRAM(), ram)
        assert (reward, terminated) == (their_reward, their_end)
    env.close()
    theirs.close()


def test_sticky_actions_repeat_the_previous_frames_action_with_their_probability() -> None:
    """The chosen action takes hold after a geometric number of frames."""
    sticky, rng = StickyActions(0.25), np.random.default_rng(0)
    sticky.reset(3)
    late, previous = [], 0
    for _ in range(8000):
        action = (previous + int(rng.integers(1, 3))) % 3
        frames = sticky.frames(action)
        held = next((i for i, effective in enumerate(frames) if effective == action), 4)
        assert frames == [previous] * held + [action] * (4 - held)
        late.append(held)
        previous = frames[-1]
    shares = np.bincount(late, minlength=5) / len(late)
    np.testing.assert_allclose(shares, [0.75 * 0.25**k for k in range(4)] + [0.25**4], atol=0.02)


def test_facts_are_what_the_screen_shows() -> None:
    """A player that follows the ball, clumsily, so that there are rallies and points."""
    env, rng = ObjectPong(), np.random.default_rng(0)
    screen_of: Any = env.unwrapped
    env.reset(seed=3)
    seen = hidden = 0
    for _ in range(600):
        facts = named(env.facts)
        action = 0 if abs(facts["ball_y"] - facts["paddle_y"]) < 6 else 1 + int(facts["ball_y"] > facts["paddle_y"])
        env.step(int(rng.integers(3)) if rng.random() < 0.3 else action)
        facts = named(env.facts)
        screen = screen_of.ale.getScreenRGB()
        ball = centre(screen, BALL)
        if in_play(env.facts):
            hidden += ball is None  # behind the walls, for a moment
            if ball is not None:
                seen += 1
                assert (facts["ball_x"], facts["ball_y"]) == pytest.approx(ball, abs=2.0)
        else:
            assert ball is None
        for fact, colour in (("paddle_y", OWN_PADDLE), ("opponent_y", OPPONENT)):
            paddle = centre(screen, colour, rows=16)
            if paddle is not None:
                assert facts[fact] == pytest.approx(paddle[1], abs=1.5)
    assert seen > 300
    assert hidden < 0.05 * seen
    env.close()


def centre(screen: NDArray[np.uint8], colour: tuple[int, int, int], rows: int = 1) -> tuple[float, float] | None:
    """Centre (x, y) of a colour's box in the court, or None if it spans fewer than `rows` rows."""
    y, x = np.nonzero((screen[COURT] == colour).all(axis=-1))
    if len(y) == 0 or y.max() - y.min() + 1 < rows:
        return None
    return (x.min() + x.max()) / 2, (y.min() + y.max()) / 2 + COURT.start


def test_changes_and_scores_follow_from_the_game() -> None:
    batch, rng = PongBatch(1), np.random.default_rng(4)
    batch.reset([0], [4])
    won = 0.0
    before = batch.facts()[0]
    for step, after in play(batch, rng.integers(3, size=(400, 1))):
        won += step.rewards[0]
        old, new = named(before), named(after[0])
        assert new["own_score"] - new["opponent_score"] == won
        for position, change in (("paddle_y", "paddle_dy"), ("opponent_y", "opponent_dy")):
            assert new[change] == new[position] - old[position]
        if in_play(before) and in_play(after[0]) and step.rewards[0] == 0:
            assert (new["ball_dx"], new["ball_dy"]) == (
                new["ball_x"] - old["ball_x"],
                new["ball_y"] - old["ball_y"],
            )
        elif not in_play(after[0]):
            assert new["ball_dx"] == new["ball_dy"] == 0
        before = after[0]
    assert won < -3


def test_actions_do_what_the_card_says() -> None:
    """UP makes y smaller, DOWN larger; the paddle is free to move from where a point leaves it."""
    card = get_task("pong").card
    moved = {}
    for index, action in enumerate(card.actions):
        batch = PongBatch(1)
        batch.reset([0], [2])
        play(batch, np.zeros((10, 1), np.int64))
        start = named(batch.facts()[0])["paddle_y"]
        moved[action.name] = named(play(batch, np.full((3, 1), index))[-1][1][0])["paddle_y"] - start
    assert moved["UP"] < -5
    assert moved["DOWN"] > 5
    assert abs(moved["STAY"]) <= 2


@pytest.mark.slow
@pytest.mark.parametrize("sticky", [0.0, 0.25, 0.9])
def test_restore_and_replay_is_bit_identical(sticky: float) -> None:
    """In place and in other slots of another batch, whatever was played there before."""
    rng = np.random.default_rng(1)
    batch, other = PongBatch(2, sticky), PongBatch(3, sticky)
    batch.reset([0, 1], [5, 6])
    other.reset(range(3), [7, 8, 9])
    for _ in range(12):
        play(batch, rng.integers(3, size=(15, 2)))
        play(other, rng.integers(3, size=(5, 3)))
        snapshots, facts = batch.snapshots([0, 1]), batch.facts()
        ahead = rng.integers(3, size=(15, 2))
        record = play(batch, ahead)

        restored = batch.restore([0, 1], snapshots)
        np.testing.assert_array_equal(batch.facts(), facts)
        assert_same(record, play(batch, ahead), [0, 1], [0, 1])

        np.testing.assert_array_equal(other.restore([2, 0], snapshots), restored)
        elsewhere = rng.integers(3, size=(15, 3))
        elsewhere[:, [2, 0]] = ahead
        assert_same(record, play(other, elsewhere), [0, 1], [2, 0])


def test_sticky_actions_change_the_game() -> None:
    actions = np.random.default_rng(0).integers(3, size=(60, 1))
    paddles = []
    for sticky in (0.0, 0.25):
        batch = get_task("pong", sticky=sticky).make_batch(1)
        batch.reset([0], [1])
        paddles.append([facts[0, 4] for _, facts in play(batch, actions)])
    assert paddles[0] != paddles[1]


def test_the_time_limit_is_counted_kept_and_restarted() -> None:
    batch = PongBatch(2)
    batch.reset([0, 1], [0, 1])
    batch._clock[:] = TIME_LIMIT - 2  # 26,998 steps would take ten seconds
    snapshots = batch.snapshots([0, 1])
    stay = np.zeros(2, np.int64)
    assert batch.step(stay).truncated.tolist() == [False, False]
    assert batch.step(stay).truncated.tolist() == [True, True]
    batch.restore([0, 1], snapshots)
    batch.restart_clock([1])
    batch.step(stay)
    assert batch.step(stay).truncated.tolist() == [True, False]
    batch.reset([0], [3])
    assert batch.step(stay).truncated.tolist() == [False, False]


def test_no_frame_of_doing_nothing_counts_towards_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in training nor in evaluation, whatever number of such frames the seed gives."""
    monkeypatch.setattr("ultra.tasks.pong.TIME_LIMIT", 20)
    batch, env = PongBatch(2), ObjectPong()
    batch.reset([0, 1], [2, 3])
    assert draw_noops(2) != draw_noops(3)
    for seed in (2, 3):
        env.reset(seed=seed)
        assert [env.step(0)[3] for _ in range(20)] == [False] * 19 + [True]
    stay = np.zeros(2, np.int64)
    assert [batch.step(stay).truncated.tolist() for _ in range(20)] == [[False] * 2] * 19 + [[True] * 2]
    env.close()


@pytest.fixture(scope="module")
def workers() -> Iterator[Batch]:
    batch = get_task("pong").make_batch(5, workers=2)
    assert not isinstance(batch, PongBatch)
    yield batch
    batch.close()


def test_worker_processes_give_the_local_batchs_results(workers: Batch) -> None:
    """Resets, steps, facts, snapshots and restores, over the border between the two workers."""
    rng = np.random.default_rng(2)
    local = PongBatch(5)
    assert workers.size == local.size
    for indices, seeds in (([0, 1, 2, 3, 4], [1, 2, 3, 4, 5]), ([4, 1], [8, 9])):
        np.testing.assert_array_equal(workers.reset(indices, seeds), local.reset(indices, seeds))
    actions = rng.integers(3, size=(60, 5))
    everywhere = list(range(5))
    assert_same(play(local, actions), play(workers, actions), everywhere, everywhere)

    some = [3, 0, 4]
    snapshots = local.snapshots(some)
    assert workers.snapshots(some) == snapshots
    ahead = rng.integers(3, size=(60, 5))
    record = play(local, ahead)
    play(workers, rng.integers(3, size=(20, 5)))
    targets = [0, 4, 2]  # other slots, other workers
    np.testing.assert_array_equal(workers.restore(targets, snapshots), local.restore(some, snapshots))
    elsewhere = rng.integers(3, size=(60, 5))
    elsewhere[:, targets] = ahead[:, some]
    assert_same(record, play(workers, elsewhere), some, targets)


def test_arrays_from_workers_are_the_callers_to_keep(workers: Batch) -> None:
    observations = workers.reset(range(5), range(5))
    step, facts = workers.step(np.ones(5, np.int64)), workers.facts()
    kept = [array.copy() for array in (observations, step.observations, step.rewards, step.terminated, facts)]
    play(workers, np.full((30, 5), 2))
    for array, copy in zip((observations, step.observations, step.rewards, step.terminated, facts), kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def processes(batch: Batch) -> list[subprocess.Popen[bytes]]:
    return cast("list[subprocess.Popen[bytes]]", cast(Any, batch)._processes)


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_worker_is_an_error_and_no_hang(busy: bool) -> None:
    """Killed between two steps, or at any moment while games are stepping."""
    batch = get_task("pong").make_batch(2, workers=2)
    batch.reset([0, 1], [0, 1])
    with within(30):
        if busy:
            threading.Timer(0.3, processes(batch)[1].kill).start()
        else:
            processes(batch)[1].kill()
            processes(batch)[1].wait()
        with pytest.raises(WorkerError, match="worker 1 has ended"):
            while True:
                batch.step(np.zeros(2, np.int64))
        batch.close()
    assert all(process.poll() is not None for process in processes(batch))


def test_workers_pass_the_tasks_options_on() -> None:
    task = get_task("pong", sticky=0.25)
    local, workers = PongBatch(2, 0.25), task.make_batch(2, workers=2)
    actions = np.random.default_rng(0).integers(3, size=(60, 2))
    for batch in (local, workers):
        batch.reset([0, 1], [1, 2])
    assert_same(play(local, actions), play(workers, actions), [0, 1], [0, 1])
    workers.close()


def test_evaluation_plays_gymnasiums_own_game() -> None:
    ours, own = PongBatch(2), get_task("pong").make_evaluation_batch(2, workers=2)
    actions = np.random.default_rng(0).integers(3, size=(60, 2))
    np.testing.assert_array_equal(own.reset([0, 1], [1, 2]), ours.reset([0, 1], [1, 2]))
    for row in actions:
        step, theirs = ours.step(row), own.step(row)
        np.testing.assert_array_equal(theirs.observations, step.observations)
        np.testing.assert_array_equal(theirs.rewards, step.rewards)
    own.close()


def test_an_exception_in_a_worker_is_reported_with_its_traceback() -> None:
    batch = get_task("pong").make_batch(2, workers=2)
    batch.reset([0, 1], [0, 1])
    with within(30):
        with pytest.raises(WorkerError, match="worker 1 failed: IndexError") as caught:
            batch.step(np.array([0, 99]))
        (note,) = caught.value.__notes__
        assert "Traceback" in note and "in step" in note
        batch.close()
    assert all(process.poll() is not None for process in processes(batch))
