"""What tests ask of policies."""

from __future__ import annotations

import numpy as np

from ultra.policies.policy import Policy, flatten


def same(one: Policy, other: Policy) -> bool:
    """Whether two policies have the same weights, bit for bit."""
    mine, theirs = flatten(one.params), flatten(other.params)
    return mine.keys() == theirs.keys() and all(np.array_equal(array, theirs[name]) for name, array in mine.items())
