"""What is imitated how strongly."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ultra.finetuning.imitation import imitation_worth

GAINS = st.lists(st.tuples(st.floats(-1e4, 1e4), st.booleans()), max_size=8)


def test_a_programs_gain_in_whole_episodes_does_not_erase_advice_at_states() -> None:
    gains, whole = np.array([2.0, 4.0, -1.0, 962.0, 481.0]), np.array([False, False, False, True, True])
    np.testing.assert_allclose(imitation_worth(gains, whole), [0.5, 1.0, 0.0, 1.0, 0.5])


@given(items=GAINS, factor=st.floats(0.1, 1000))
def test_each_kind_is_measured_by_itself(items: list[tuple[float, bool]], factor: float) -> None:
    """In other units of one kind nothing changes; the best of a kind that helps is worth 1."""
    gains = np.array([gain for gain, _ in items])
    whole = np.array([kind for _, kind in items], np.bool_)
    worth = imitation_worth(gains, whole)
    np.testing.assert_allclose(worth, imitation_worth(np.where(whole, factor * gains, gains), whole), rtol=1e-5)
    assert ((worth > 0) <= (gains > 0)).all()
    for kind in (whole, ~whole):
        assert worth[kind].max(initial=0.0) == (1.0 if (gains[kind] > 0).any() else 0.0)
