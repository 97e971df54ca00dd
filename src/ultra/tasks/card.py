"""Cards: what a task is about, in words and units that people and language models share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from ultra.common.errors import UltraError
from ultra.tasks.plans import Plan
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

UNKNOWN_GOAL = "Collect as much reward as possible."
"""Of an environment of which only the spaces are known."""


@dataclass(frozen=True)
class Fact:
    """A named quantity of a state."""

    name: str
    """As text and guards speak of it, for instance `torso_pitch`."""
    unit: str
    """`m`, `rad`, `px/step`; empty for a plain number."""
    meaning: str
    """One line, with the direction in which it grows."""
    decimals: int = 2
    """Decimals worth printing."""
    match: bool = True
    """Whether likeness of states depends on it (a score or a distance travelled does not)."""
    source: str = ""
    """Where it comes from in a Gymnasium environment (`ultra.tasks.sources`); empty for the entry of the
    observation at the fact's own place."""


@dataclass(frozen=True)
class ActionMeaning:
    """A discrete action, or one dimension of a continuous one."""

    name: str
    meaning: str


@dataclass(frozen=True)
class Card:
    """What a task is about.

    Raises:
        UltraError: if two facts or two actions share a name.
    """

    name: str
    title: str
    goal: str
    termination: str
    reward: str
    facts: tuple[Fact, ...]
    actions: tuple[ActionMeaning, ...]
    body: str = ""
    """What the agent moves with, in words: time step, start, links, joints, actuators. Empty if nothing is known."""
    worked_case: str = ""
    """An example of good reasoning for prompts: the name of a shipped one (`analysts/prompts/cases`) or a text."""

    def __post_init__(self) -> None:
        for kind, names in (
            ("facts", [fact.name for fact in self.facts]),
            ("actions", [action.name for action in self.actions]),
        ):
            double = sorted({name for name in names if names.count(name) > 1})
            if double:
                raise UltraError(f"card {self.name!r}: {kind} named twice: {', '.join(double)}")

    @property
    def fact_names(self) -> tuple[str, ...]:
        """Names of the facts, in the order of a batch's columns."""
        return tuple(fact.name for fact in self.facts)

    @property
    def matched(self) -> NDArray[np.intp]:
        """Columns of the facts on which likeness of states depends."""
        return np.flatnonzero([fact.match for fact in self.facts])

    def describe_action(self, action: Any, space: ActionSpace) -> str:
        """An action in words: its name, or each dimension with its value."""
        if isinstance(space, Discrete):
            return self.actions[int(action)].name
        named = zip(self.actions, action, strict=True)
        return ", ".join(f"{meaning.name} {float(value):+.2f}" for meaning, value in named if value)

    def describe_plan(self, plan: Plan, space: ActionSpace) -> str:
        """A plan in words: each action with the number of steps it is held."""
        parts = [f"{self.describe_action(s.action, space)} for {s.steps} steps" for s in plan.segments]
        return ("add " if plan.relative else "") + ", then ".join(parts)


def load_card(path: Path) -> Card:
    """Read a card from YAML.

    Raises:
        UltraError: if the file is missing, is not YAML or lacks a field (named).
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UltraError(
            f"cannot read card {path}: {error.strerror}: `ultra card ENV_ID --out FILE` writes one"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UltraError(f"card {path} is no YAML: {' '.join(str(error).split())}") from error
    try:
        return Card(
            name=raw["name"],
            title=raw["title"],
            goal=raw["goal"].strip(),
            termination=raw["termination"].strip(),
            reward=raw["reward"].strip(),
            facts=tuple(Fact(**fact) for fact in raw["facts"]),
            actions=tuple(ActionMeaning(**action) for action in raw["actions"]),
            body=raw.get("body", "").strip(),
            worked_case=raw.get("worked_case", "").strip(),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise UltraError(f"card {path}: missing or misspelt field: {error}") from error


def shipped_card(name: str) -> Card:
    """Read a card that ships with the package."""
    return load_card(Path(__file__).parent / "cards" / f"{name}.yaml")


def action_names(space: ActionSpace) -> tuple[ActionMeaning, ...]:
    """Names of actions of which only the space is known."""
    if isinstance(space, Continuous):
        bounds = [f"control {i}, from {space.low[i]:g} to {space.high[i]:g}" for i in range(space.size)]
        return tuple(ActionMeaning(f"control{i}", meaning) for i, meaning in enumerate(bounds))
    if not space.parts:
        return tuple(ActionMeaning(f"action{i}", f"action {i}") for i in range(space.n))
    choices = space.split(np.arange(space.n)).tolist()
    return tuple(
        ActionMeaning("_".join(map(str, choice)), ", ".join(f"choice {k} is {c}" for k, c in enumerate(choice)))
        for choice in choices
    )


def plain_name(text: str) -> str:
    """A name that guards can speak of."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in text).strip("_")
    return plain if plain[:1].isalpha() else f"j_{plain}"


def unlike(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """Facts with a number added to names that occur twice."""
    seen: dict[str, int] = {}
    result = []
    for fact in facts:
        seen[fact.name] = seen.get(fact.name, 0) + 1
        result.append(fact if seen[fact.name] == 1 else replace(fact, name=f"{fact.name}_{seen[fact.name]}"))
    return tuple(result)


def skeleton_card(name: str, facts: Iterable[Fact], space: ActionSpace) -> Card:
    """A card for an environment of which only the spaces are known."""
    return Card(
        name=name,
        title=name,
        goal=UNKNOWN_GOAL,
        termination="As the environment decides.",
        reward="As the environment gives it.",
        facts=tuple(facts),
        actions=action_names(space),
    )


def write_card(card: Card) -> str:
    """A card as YAML, as `load_card` reads it; settings that are the usual ones are left out."""
    facts = []
    for fact in card.facts:
        entry: dict[str, Any] = {"name": fact.name, "unit": fact.unit, "meaning": fact.meaning}
        usual = Fact("", "", "")
        entry |= {
            key: getattr(fact, key)
            for key in ("decimals", "match", "source")
            if getattr(fact, key) != getattr(usual, key)
        }
        facts.append(entry)
    head = {key: getattr(card, key) for key in ("name", "title", "goal", "termination", "reward")}
    tail: dict[str, Any] = {"actions": [{"name": a.name, "meaning": a.meaning} for a in card.actions]}
    for key in ("body", "worked_case"):
        if getattr(card, key):
            tail[key] = getattr(card, key)

    def dump(value: Any, flow: bool | None) -> str:
        text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=flow)
        return text

    return dump(head, False) + dump({"facts": facts}, None) + dump(tail, None)
