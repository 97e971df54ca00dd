"""Rules in whole episodes: as they were given, alone, and in sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ultra.advice.records import Verification
from ultra.config import VerifyConfig
from ultra.simulation.branches import Habit
from ultra.simulation.paired import Bench, Proposal
from ultra.verification.verdicts import FIRST_LOOK, verify


def verify_rules(
    habits: Mapping[str, Habit], groups: Mapping[str, str], bench: Bench, config: VerifyConfig
) -> dict[str, dict[str, Any]]:
    """Try rules in whole episodes: as they were given, then alone, then together with others.

    Rules that were given as one (`push right when ..., left when ...`) are tried as one first, because a part
    of them may be worth nothing. Of a group that does not help, every rule is tried alone. Then two sets are
    tried: all that helps, and this with all that is unclear. Of everything that helps, what has the largest
    advantage is chosen.

    Args:
        habits: rules by their guards.
        groups: the group of each guard; rules of the group "" do not belong together.
        bench: of whole episodes.
        config: pairs and confidence.

    Returns:
        For each guard `verification`, what was found of it alone, or else of its group (with its part of the
        steps), and `together`, what was found of the chosen set if it belongs to it.
    """
    units = rule_units(groups)
    short = replace(config, branches=FIRST_LOOK) if len(units) > 1 else config  # leaves enough for what follows

    def attempt(sets: Sequence[tuple[str, ...]], settings: VerifyConfig) -> dict[tuple[str, ...], Verification]:
        proposals = [Proposal(habits=tuple(habits[name] for name in names)) for names in sets]
        results = verify(proposals, bench, settings)
        return {names: found for names, found in zip(sets, results, strict=True) if found is not None}

    tried = attempt(units, short)
    failed = [names for names in units if len(names) > 1 and names in tried and tried[names].verdict != "helps"]
    tried |= attempt([(name,) for names in failed for name in names], replace(config, branches=FIRST_LOOK))
    parts = [names for names in tried if names not in failed]
    helping = [names for names in parts if tried[names].verdict == "helps"]
    hopeful = [names for names in parts if tried[names].verdict != "harms"]
    unions = {tuple(name for names in part for name in names) for part in (helping, hopeful) if len(part) > 1}
    tried |= attempt([names for names in sorted(unions) if names not in tried], config)
    good = [names for names, found in tried.items() if found.verdict == "helps"]
    chosen = max(good, key=lambda names: tried[names].advantage, default=())
    of_group = {
        name: replace(tried[names], steps=tried[names].steps // len(names))
        for names in units
        if names in tried
        for name in names
    }
    return {
        name: {
            "verification": tried.get((name,), of_group.get(name)),
            "together": tried[chosen] if name in chosen else None,
        }
        for name in habits
    }


def rule_units(groups: Mapping[str, str]) -> list[tuple[str, ...]]:
    """Which guards are tried as one: those of a group, in their order; the others alone."""
    units: dict[str, list[str]] = {}
    for name, group in groups.items():
        units.setdefault(group or f"alone: {name}", []).append(name)
    return [tuple(names) for names in units.values()]
