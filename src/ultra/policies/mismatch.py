"""Why a policy may take more numbers than a task's observations hold: an older version, or a wrapper, of the task."""

from __future__ import annotations

MOST_STACKED = 16
"""Observations that a policy is thought to see at once, at most."""

_OLDER: dict[str, dict[int, str]] = {
    "ant": {27: "Ant-v4", 111: "Ant-v4 with --env-kwargs use_contact_forces=true"},
    "humanoid": {376: "Humanoid-v4"},
    "humanoidstandup": {376: "HumanoidStandup-v4"},
    "inverteddoublependulum": {11: "InvertedDoublePendulum-v4"},
    "reacher": {11: "Reacher-v4"},
}
"""Observations of tasks that had other ones in Gym's days, by the number of their entries."""


def likely_cause(wanted: int, given: int, actions: int, name: str) -> str:
    """A guess, with what to do about it.

    Args:
        wanted: entries of an observation that the policy takes.
        given: entries of the task's observations.
        actions: numbers of a continuous action; 0 where actions are discrete.
        name: of the task.
    """
    older = _OLDER.get(name.rpartition("-v")[0].lower() or name.lower(), {})
    if wanted in older:
        return f"{older[wanted]}, of Gym's days, has those: give it as the task"
    for size, version in {given: "", **older}.items():
        wrapper = _wrapper(wanted, size, actions)
        if wrapper:
            place = f" around {version}" if version else ""
            return (
                f"it was probably trained behind {wrapper}{place}: register the environment with that wrapper in a "
                "file of your own and add --env-module FILE (docs/own-environment.md)"
            )
    return "was it trained on another task?"


def _wrapper(wanted: int, size: int, actions: int) -> str:
    """The wrapper that makes observations of `wanted` entries out of those of `size`; empty if none is known."""
    if wanted == size + 1:
        return "TimeFeatureWrapper"
    stacked = {"VecFrameStack": size, "HistoryWrapper": size + actions}
    for name, part in stacked.items():
        if wanted % part == 0 and 2 <= wanted // part <= MOST_STACKED:
            return f"{name}({wanted // part})"
    return ""
