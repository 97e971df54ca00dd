"""Who reads episodes, names critical states and gives advice: one protocol, one file each."""

from __future__ import annotations

import difflib

from ultra.analysts.base import Analyst, Case
from ultra.errors import UltraError

__all__ = ["ANALYSTS", "Analyst", "Case", "get_analyst"]

ANALYSTS = {
    "search": "simulated branches over alternative plans; no language model",
    "random": "random states and random plans, the control",
}


def get_analyst(name: str) -> Analyst:
    """Make an analyst by its name.

    Raises:
        UltraError: if there is no such analyst; the closest name is offered.
    """
    if name == "search":
        from ultra.analysts.search import SearchAnalyst

        return SearchAnalyst()
    if name == "random":
        from ultra.analysts.random import RandomAnalyst

        return RandomAnalyst()
    close = difflib.get_close_matches(name, ANALYSTS, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known analysts: {', '.join(ANALYSTS)}"
    raise UltraError(f"unknown analyst {name!r}: {hint}")
