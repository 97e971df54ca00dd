"""Random generators by name: independent of each other, and the same in every run with the same seed."""

from __future__ import annotations

import hashlib

import numpy as np

from ultra.common.files import to_json_text


def stream(*key: int | str) -> np.random.Generator:
    """The generator of a purpose, for instance `stream(seed, "round", 2, "collect")`.

    Keys that differ in anything, in length too, give independent generators: the key's text is hashed, so that no
    two keys share a seed as `[a, b]` and `[a, b, 0]` do in NumPy.

    Args:
        key: seeds and names.
    """
    text = to_json_text([part if isinstance(part, str) else int(part) for part in key])
    return np.random.default_rng(np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint32))
