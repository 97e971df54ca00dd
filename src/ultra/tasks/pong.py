"""Pong: object-centric observations and facts from the console's RAM, on ALE without rendering.

The addresses are those of Anand et al., "Unsupervised State Representation Learning in Atari"
(arXiv 1906.08226); offsets to screen pixels were measured against rendered frames.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from ale_py import ALEInterface, ALEState, LoggerMode, roms
from numpy.typing import NDArray

from ultra.common.streams import stream
from ultra.tasks.batch import Facts, Indices, Live, Observations, Snapshot, Step
from ultra.tasks.spaces import Actions

FRAME_SKIP = 4
TIME_LIMIT = 27_000
"""Agent steps in an episode: ALE's limit of 108,000 frames, counted after the frames of doing nothing."""
MOST_NOOPS = 120
"""Most no-op frames at the start of an episode; their number is drawn from its seed."""

# Indices into ALE's minimal action set of Pong: NOOP, RIGHT (paddle up), LEFT (paddle down).
GYMNASIUM_ACTIONS = (0, 2, 3)

_BALL_X, _BALL_Y, _PADDLE_Y, _OPPONENT_Y, _OWN_SCORE, _OPPONENT_SCORE = 49, 54, 51, 50, 14, 13
_SIZE = 10
_ROM = Path(str(roms.get_rom_path("pong")))

# Observations are facts, centred on the court and scaled to about [-1, 1].
_CENTRE = np.array([78.0, 114.0, 0.0, 0.0, 114.0, 0.0, 114.0, 0.0, 0.0, 0.0])
_SCALE = np.array([78.0, 80.0, 16.0, 16.0, 80.0, 24.0, 80.0, 24.0, 21.0, 21.0])
_OBSERVED = slice(0, 8)
OBSERVATION_SIZE = 8


def read_facts(ram: NDArray[np.uint8], previous: NDArray[np.float64] | None) -> NDArray[np.float64]:
    """Facts (10,) of one state, in the order of the card.

    Args:
        ram: the console's 128 bytes.
        previous: the facts one agent step before, or None at the start of an episode.
    """
    facts = np.zeros(_SIZE)
    in_play = ram[_BALL_X] != 0 and ram[_BALL_Y] != 0
    ball_x, ball_y = float(ram[_BALL_X]) - 48.0, float(ram[_BALL_Y]) - 12.5
    facts[0], facts[1] = (ball_x, ball_y) if in_play else (78.0, 114.0)
    facts[4] = float(ram[_PADDLE_Y]) - 5.5
    facts[6] = float(ram[_OPPONENT_Y]) - 7.5
    facts[8], facts[9] = ram[_OWN_SCORE], ram[_OPPONENT_SCORE]
    if previous is not None:
        # The ball jumps when it is served: such a change is no velocity.
        change = facts[0:2] - previous[0:2]
        was_in_play = previous[0] != 78.0 or previous[1] != 114.0
        if in_play and was_in_play and np.abs(change).max() < 40:
            facts[2:4] = change
        facts[5] = facts[4] - previous[4]
        facts[7] = facts[6] - previous[6]
    return facts


def observe(facts: Facts) -> Observations:
    """Observations (..., 8) of facts (..., 10): positions and changes, without the score."""
    scaled = (facts - _CENTRE) / _SCALE
    observations: Observations = scaled[..., _OBSERVED].astype(np.float32)
    return observations


def draw_noops(seed: int) -> int:
    """Frames of doing nothing with which the episode of this seed begins."""
    return int(stream(seed, "no-ops").integers(MOST_NOOPS + 1))


class StickyActions:
    """Sticky actions (Machado et al., arXiv 1709.06009): a frame may repeat the previous frame's action.

    ALE's own are not used, because its saved states leave out the previous action. The repeats are
    drawn from the episode's seed and the number of the step, which keeps the state small.

    Args:
        probability: that a frame repeats the action of the one before.
    """

    _STATE = struct.Struct("<3q")
    state_size = _STATE.size
    """Bytes that `save` gives."""

    def __init__(self, probability: float) -> None:
        self._probability = probability
        self.reset(0)

    def reset(self, seed: int) -> None:
        """Begin an episode: before it, nothing was done."""
        self._seed, self._steps, self._previous = seed, 0, 0

    def frames(self, action: int) -> list[int]:
        """The actions (FRAME_SKIP) that take effect in the frames of one step in which `action` is chosen."""
        if not self._probability:
            return [action] * FRAME_SKIP
        self._steps += 1
        repeats = stream(self._seed, "sticky actions", self._steps).random(FRAME_SKIP) < self._probability
        effective = []
        for repeated in repeats:
            self._previous = self._previous if repeated else action
            effective.append(self._previous)
        return effective

    def save(self) -> bytes:
        """The state: seed, step and previous action."""
        return self._STATE.pack(self._seed, self._steps, self._previous)

    def restore(self, state: bytes) -> None:
        """Inverse of `save`."""
        self._seed, self._steps, self._previous = self._STATE.unpack(state)


class PongBatch:
    """Games of Pong, stepped one after the other in this process.

    ALE's Python interface holds the interpreter's lock while it steps, so several cores are used by
    putting such batches into worker processes (`ultra.tasks.workers`).
    """

    def __init__(self, size: int, sticky: float = 0.0) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._games = [self._make() for _ in range(size)]
        self._sticky = [StickyActions(sticky) for _ in range(size)]
        self._actions = [self._games[0].getMinimalActionSet()[i] for i in GYMNASIUM_ACTIONS]
        self._facts = np.zeros((size, _SIZE))
        self._clock = np.zeros(size, dtype=np.int64)

    @staticmethod
    def _make() -> ALEInterface:
        game = ALEInterface()
        game.setFloat("repeat_action_probability", 0.0)
        game.loadROM(_ROM)
        return game

    @property
    def size(self) -> int:
        """Number of environments."""
        return len(self._games)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new games, as Gymnasium's environment with the same seeds does.

        Gymnasium also seeds ALE and loads the game anew, which takes ten times as long and changes
        nothing: the console has no randomness of its own.
        """
        for index, seed in zip(indices, seeds, strict=True):
            game = self._games[index]
            game.reset_game()
            self._sticky[index].reset(int(seed))
            for _ in range(draw_noops(seed)):
                game.act(self._actions[0])
            self._facts[index] = read_facts(game.getRAM(), None)
            self._clock[index] = 0
            self._begin(index)
        return self._observe(indices)

    def _begin(self, index: int) -> None:
        """An episode has begun; nothing else to note."""

    def _observe(self, indices: Indices | slice = slice(None)) -> Observations:
        return observe(self._facts[indices])

    def _play(self, index: int, frames: list[int]) -> float:
        """Let one game run for some frames; returns the reward."""
        return float(sum(self._games[index].act(self._actions[action]) for action in frames))

    def step(self, actions: Actions, live: Live = None) -> Step:
        """Step the games by four frames."""
        rewards = np.zeros(self.size)
        terminated = np.zeros(self.size, dtype=np.bool_)
        for index in range(self.size) if live is None else np.flatnonzero(live).tolist():
            game = self._games[index]
            frames = self._sticky[index].frames(int(actions[index]))
            rewards[index] = self._play(index, frames)
            terminated[index] = game.game_over(with_truncation=False)
            self._facts[index] = read_facts(game.getRAM(), self._facts[index])
            self._clock[index] += 1
        return Step(self._observe(), rewards, terminated, self._clock >= TIME_LIMIT)

    def facts(self) -> Facts:
        """Ball, paddles, their changes and the score, in screen pixels."""
        return self._facts.copy()

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """The facts and the counter, what sticky actions need, and the console's state."""
        return [
            np.append(self._facts[i], float(self._clock[i])).tobytes()
            + self._sticky[i].save()
            + self._games[i].cloneState().serialize()
            for i in indices
        ]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put saved consoles back."""
        head = (_SIZE + 1) * 8
        console = head + StickyActions.state_size
        for index, snapshot in zip(indices, snapshots, strict=True):
            self._games[index].restoreState(ALEState(snapshot[console:]))
            self._sticky[index].restore(snapshot[head:console])
            row = np.frombuffer(snapshot[:head])
            self._facts[index], self._clock[index] = row[:-1], int(row[-1])
        return self._observe(indices)

    def restart_clock(self, indices: Indices) -> None:
        """Give some games a full time limit again."""
        self._clock[indices] = 0

    def close(self) -> None:
        """Nothing to free."""


class ObjectPong(gymnasium.Wrapper[NDArray[np.float32], int, NDArray[np.uint8], int]):
    """Gymnasium's own `ALE/Pong-v5` with our observations and actions, for evaluation.

    Args:
        sticky: probability that a frame repeats the action of the one before.
    """

    def __init__(self, sticky: float = 0.0) -> None:
        import ale_py

        gymnasium.register_envs(ale_py)
        # Frames are stepped one by one, for our sticky actions, and counted by Gymnasium's time limit
        # in place of ALE's, which would count the frames of doing nothing as well.
        env = gymnasium.make(
            "ALE/Pong-v5",
            obs_type="ram",
            frameskip=1,
            repeat_action_probability=0.0,
            max_num_frames_per_episode=0,
            max_episode_steps=FRAME_SKIP * TIME_LIMIT,
        )
        super().__init__(env)
        self._sticky = StickyActions(sticky)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(GYMNASIUM_ACTIONS))  # type: ignore[assignment]
        self.facts = np.zeros(_SIZE)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset the game, then do nothing for a number of frames drawn from the seed.

        Without a seed, the environment's own generator draws one.
        """
        _, info = self.env.reset(seed=seed, options=options)
        if seed is None:
            seed = int(self.np_random.integers(2**31))
        self._sticky.reset(seed)
        game = self.unwrapped.ale  # type: ignore[attr-defined]
        noop = game.getMinimalActionSet()[0]
        for _ in range(draw_noops(seed)):
            game.act(noop)
        self.facts = read_facts(game.getRAM(), None)
        return observe(self.facts), info

    def _see(self) -> None:
        """Called after every frame; nothing else to note."""

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step the game by four frames."""
        total = 0.0
        for effective in self._sticky.frames(int(action)):
            _, reward, terminated, truncated, info = self.env.step(GYMNASIUM_ACTIONS[effective])
            total += float(reward)
            self._see()
            if terminated:
                break
        self.facts = read_facts(self.unwrapped.ale.getRAM(), self.facts)  # type: ignore[attr-defined]
        return observe(self.facts), total, terminated, truncated, info


def environment_facts(environments: Sequence[Any], observations: Observations) -> Facts:
    """Facts (n, 10) of games that are `ObjectPong`."""
    return np.stack([game.facts for game in environments])
