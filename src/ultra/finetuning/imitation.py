"""How much advice and programs are worth imitating."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def imitation_worth(gains: NDArray[np.float64], whole_episodes: NDArray[np.bool_]) -> NDArray[np.float32]:
    """The worth of imitating each, 0 to 1: its measured gain divided by the largest one of its kind.

    A gain at a critical state is discounted and taken over a horizon, that of a program is the difference of
    undiscounted returns of whole episodes. In the units of one kind the other has none: divided by a single
    program's gain, all advice at states would be worth next to nothing.

    Args:
        gains: (k,) measured gains; what does not help has none, or a negative one, and is worth 0.
        whole_episodes: (k,) whether a gain is that of whole episodes.
    """
    positive = np.maximum(gains, 0.0)
    worth = np.zeros(len(gains), np.float32)
    for kind in (whole_episodes, ~whole_episodes):
        most = positive[kind].max(initial=0.0)
        if most > 0:
            worth[kind] = positive[kind] / most
    return worth
