"""Pong: object-centric observations and facts from the console's RAM, on ALE without rendering.

The addresses are those of Anand et al., "Unsupervised State Representation Learning in Atari"
(arXiv 1906.08226); offsets to screen pixels were measured against rendered frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from ale_py import ALEInterface, ALEState, LoggerMode, roms
from numpy.typing import NDArray

from ultra.spaces import Actions
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot, Step

FRAME_SKIP = 4
TIME_LIMIT = 27_000
"""Agent steps in an episode: ALE's limit of 108,000 frames."""
MOST_NOOPS = 120
"""Each episode begins with up to so many frames of doing nothing, drawn from its seed."""

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
    return int(np.random.default_rng(seed).integers(MOST_NOOPS + 1))


class PongBatch:
    """Games of Pong, stepped one after the other in this process.

    ALE's Python interface holds the interpreter's lock while it steps, so several cores are used by
    putting such batches into worker processes (`ultra.tasks.workers`).
    """

    def __init__(self, size: int, sticky: float = 0.0) -> None:
        ALEInterface.setLoggerMode(LoggerMode.Error)
        self._games = [self._make(sticky) for _ in range(size)]
        self._actions = [self._games[0].getMinimalActionSet()[i] for i in GYMNASIUM_ACTIONS]
        self._facts = np.zeros((size, _SIZE))
        self._clock = np.zeros(size, dtype=np.int64)

    @staticmethod
    def _make(sticky: float) -> ALEInterface:
        game = ALEInterface()
        game.setFloat("repeat_action_probability", sticky)
        game.loadROM(_ROM)
        return game

    @property
    def size(self) -> int:
        """Number of environments."""
        return len(self._games)

    def reset(self, indices: Indices, seeds: Sequence[int]) -> Observations:
        """Start new games, as Gymnasium's environment with the same seeds does."""
        for index, seed in zip(indices, seeds, strict=True):
            game = self._games[index]
            _, ale_seed = np.random.SeedSequence(seed).generate_state(2)
            game.setInt("random_seed", np.int32(ale_seed))
            game.loadROM(_ROM)
            game.reset_game()
            for _ in range(draw_noops(seed)):
                game.act(self._actions[0])
            self._facts[index] = read_facts(game.getRAM(), None)
            self._clock[index] = 0
        return observe(self._facts[indices])

    def step(self, actions: Actions) -> Step:
        """Step all games by four frames."""
        rewards = np.zeros(self.size)
        terminated = np.zeros(self.size, dtype=np.bool_)
        for index, game in enumerate(self._games):
            action = self._actions[actions[index]]
            rewards[index] = sum(game.act(action) for _ in range(FRAME_SKIP))
            terminated[index] = game.game_over(with_truncation=False)
            self._facts[index] = read_facts(game.getRAM(), self._facts[index])
        self._clock += 1
        return Step(observe(self._facts), rewards, terminated, self._clock >= TIME_LIMIT)

    def facts(self) -> Facts:
        """Ball, paddles, their changes and the score, in screen pixels."""
        return self._facts.copy()

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """The console's state with its random generator, then the facts and the counter."""
        return [
            np.append(self._facts[i], float(self._clock[i])).tobytes()
            + self._games[i].cloneState(include_rng=True).serialize()
            for i in indices
        ]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put saved consoles back."""
        head = (_SIZE + 1) * 8
        for index, snapshot in zip(indices, snapshots, strict=True):
            self._games[index].restoreState(ALEState(snapshot[head:]))
            row = np.frombuffer(snapshot[:head])
            self._facts[index], self._clock[index] = row[:-1], int(row[-1])
        return observe(self._facts[indices])

    def restart_clock(self, indices: Indices) -> None:
        """Give some games a full time limit again."""
        self._clock[indices] = 0

    def close(self) -> None:
        """Nothing to free."""


class ObjectPong(gymnasium.Wrapper[NDArray[np.float32], int, NDArray[np.uint8], int]):
    """Gymnasium's own `ALE/Pong-v5` with our observations and actions, for evaluation."""

    def __init__(self, sticky: float = 0.0) -> None:
        import ale_py

        gymnasium.register_envs(ale_py)
        env = gymnasium.make("ALE/Pong-v5", obs_type="ram", frameskip=FRAME_SKIP, repeat_action_probability=sticky)
        super().__init__(env)
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (OBSERVATION_SIZE,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(len(GYMNASIUM_ACTIONS))  # type: ignore[assignment]
        self.facts = np.zeros(_SIZE)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Reset the game, then do nothing for a number of frames drawn from the seed."""
        _, info = self.env.reset(seed=seed, options=options)
        game = self.unwrapped.ale  # type: ignore[attr-defined]
        noop = game.getMinimalActionSet()[0]
        for _ in range(draw_noops(0 if seed is None else seed)):
            game.act(noop)
        self.facts = read_facts(game.getRAM(), None)
        return observe(self.facts), info

    def step(self, action: int) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Step the game by four frames."""
        _, reward, terminated, truncated, info = self.env.step(GYMNASIUM_ACTIONS[int(action)])
        self.facts = read_facts(self.unwrapped.ale.getRAM(), self.facts)  # type: ignore[attr-defined]
        return observe(self.facts), float(reward), terminated, truncated, info
