"""Pong as DQN saw it: the last four screens in grey, 84 x 84, with the facts of object-centric Pong.

A screen is the brighter of the last two frames of a step in every pixel (Mnih et al., Nature 2015).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ultra.tasks.batch import Indices, Observations, Snapshot
from ultra.tasks.pong import ObjectPong, PongBatch

SIDE, CHANNELS = 84, 4
IMAGE = (SIDE, SIDE, CHANNELS)
OBSERVATION_SIZE = SIDE * SIDE * CHANNELS

Screen = NDArray[np.uint8]


def _averaging(old: int, new: int) -> NDArray[np.float32]:
    """A matrix (new, old) that shrinks a line of pixels by averaging over areas."""
    edges = np.arange(new + 1) * old / new
    low, high = edges[:-1, None], edges[1:, None]
    cells = np.arange(old)[None]
    overlap = np.clip(np.minimum(high, cells + 1) - np.maximum(low, cells), 0, None)
    weights: NDArray[np.float32] = (overlap * new / old).astype(np.float32)
    return weights


_ROWS, _COLUMNS = _averaging(210, SIDE), _averaging(160, SIDE).T


def shrink(screen: Screen) -> Screen:
    """A grey screen (210, 160) as (84, 84), every pixel the mean of the area that it stands for."""
    small: Screen = np.rint(_ROWS @ screen.astype(np.float32) @ _COLUMNS).astype(np.uint8)
    return small


def first_image(screen: Screen) -> Screen:
    """The image (84, 84, 4) with which an episode begins: its first screen four times."""
    return np.repeat(shrink(screen)[..., None], CHANNELS, axis=2)


def next_image(image: Screen, screens: Sequence[Screen]) -> Screen:
    """The image after a step whose last frames are `screens`: the oldest channel goes, the newest is last."""
    result = np.empty_like(image)
    result[..., :-1] = image[..., 1:]
    result[..., -1] = shrink(np.maximum.reduce(screens))
    return result


class PixelPongBatch(PongBatch):
    """Games of Pong with images (n, 84 * 84 * 4) as observations."""

    def __init__(self, size: int, sticky: float = 0.0) -> None:
        super().__init__(size, sticky)
        self._images = np.zeros((size, *IMAGE), dtype=np.uint8)

    def _begin(self, index: int) -> None:
        self._images[index] = first_image(self._games[index].getScreenGrayscale())

    def _observe(self, indices: Indices | slice = slice(None)) -> Observations:
        images: Any = self._images[indices]
        observations: Observations = images.reshape(len(images), -1).copy()
        return observations

    def _play(self, index: int, frames: list[int]) -> float:
        reward = super()._play(index, frames[:-1])
        screens = [self._games[index].getScreenGrayscale()]
        reward += super()._play(index, frames[-1:])
        screens.append(self._games[index].getScreenGrayscale())
        self._images[index] = next_image(self._images[index], screens)
        return reward

    def snapshots(self, indices: Indices) -> list[Snapshot]:
        """The image, then what object-centric Pong saves."""
        rest = super().snapshots(indices)
        return [self._images[i].tobytes() + state for i, state in zip(indices, rest, strict=True)]

    def restore(self, indices: Indices, snapshots: Sequence[Snapshot]) -> Observations:
        """Put saved games back. The console's screen is stale then, but every step draws it anew."""
        for index, snapshot in zip(indices, snapshots, strict=True):
            self._images[index] = np.frombuffer(snapshot, np.uint8, OBSERVATION_SIZE).reshape(IMAGE)
        return super().restore(indices, [snapshot[OBSERVATION_SIZE:] for snapshot in snapshots])


class PixelPong(ObjectPong):
    """Gymnasium's own `ALE/Pong-v5` with the same images, for evaluation."""

    def __init__(self, sticky: float = 0.0) -> None:
        super().__init__(sticky)
        self.observation_space = gymnasium.spaces.Box(0, 255, (OBSERVATION_SIZE,), np.uint8)  # type: ignore[arg-type]
        self._screens: deque[Screen] = deque(maxlen=2)
        self._image = np.zeros(IMAGE, np.uint8)

    def _see(self) -> None:
        self._screens.append(self.unwrapped.ale.getScreenGrayscale())  # type: ignore[attr-defined]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset the game; see `ObjectPong.reset`."""
        _, info = super().reset(seed=seed, options=options)
        self._see()
        self._image = first_image(self._screens[-1])
        return self._image.reshape(-1), info

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Step the game by four frames."""
        _, reward, terminated, truncated, info = super().step(action)
        self._image = next_image(self._image, list(self._screens))
        return self._image.reshape(-1), reward, terminated, truncated, info
