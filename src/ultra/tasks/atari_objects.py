"""Cards of Atari games: objects through OCAtari where it is installed, otherwise the console's memory."""

from __future__ import annotations

import importlib
import importlib.util
import re
from functools import lru_cache
from typing import Any

import gymnasium
import numpy as np

from ultra.tasks.card import ActionMeaning, Card, Fact, skeleton_card
from ultra.tasks.spaces import from_gymnasium

_MOST_ALIKE = 4
"""Objects of one kind that are worth facts of their own; walls of bricks are left out."""
_RAM = 128


def atari_card(env_id: str, env: gymnasium.Env[Any, Any]) -> Card | None:
    """A card of an Atari game, or None if the environment is none."""
    base: Any = env.unwrapped
    if not hasattr(base, "ale") or not hasattr(base, "get_action_meanings"):
        return None
    plain = skeleton_card(env_id, (), from_gymnasium(env.action_space))
    objects = _objects(_game(env_id), env)
    facts = objects or [
        Fact(f"ram{i}", "", f"byte {i} of the console's memory", 0, source=f"ram[{i}]") for i in range(_RAM)
    ]
    return Card(
        name=env_id,
        title=f"{env_id}, an Atari game",
        goal="Score as many points as possible.",
        termination="The episode ends when the game is over.",
        reward="The points scored in this step.",
        facts=tuple(facts),
        actions=tuple(ActionMeaning(name.lower(), f"joystick: {name.lower()}") for name in base.get_action_meanings())
        if len(base.get_action_meanings()) == len(plain.actions)
        else plain.actions,
    )


def _game(env_id: str) -> str:
    """The game's name as OCAtari's modules have it."""
    return re.sub(r"(NoFrameskip|Deterministic)?(-ram)?(-v\d+)?$", "", env_id.rpartition("/")[2]).lower()


def why_bytes() -> str:
    """Why the facts of an Atari game are bytes of its memory, and not objects."""
    if importlib.util.find_spec("ocatari") is None:
        return "facts are bytes of the console's memory; for objects install OCAtari (docs/own-environment.md)"
    try:
        importlib.import_module("ocatari")
    except ImportError as error:
        return f"OCAtari is installed but cannot be imported ({error}): facts are bytes of the console's memory"
    return "OCAtari reads no objects of this game: facts are bytes of the console's memory"


def _module(game: str) -> Any:
    try:
        return importlib.import_module(f"ocatari.ram.{game}")
    except ImportError:
        return None


def _objects(game: str, env: gymnasium.Env[Any, Any]) -> list[Fact]:
    """Facts of a game's objects; none if OCAtari is not installed, or does not know the game or fails on it."""
    module = _module(game)
    facts: list[Fact] = []
    if module is not None:
        env.reset(seed=0)
        try:
            Objects(env.unwrapped)[game]
        except Exception:  # OCAtari's own code, which fails on some games
            return []
    for kind, count in getattr(module, "MAX_NB_OBJECTS", {}).items():
        if count > _MOST_ALIKE:
            continue
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", kind).lower()
        for number in range(count):
            own = name if count == 1 else f"{name}{number + 1}"
            for axis, way in (("x", "right"), ("y", "down")):
                meaning = (
                    f"{axis} of the {own.replace('_', ' ')}'s upper left corner, {way} is positive; -1 if not there"
                )
                source = f"objects['{game}']['{kind}'][{number}]['{axis}']"
                facts.append(Fact(f"{own}_{axis}", "px", meaning, 0, source=source))
    return facts


class Objects:
    """The objects of an Atari game by kind, read from the console's memory by OCAtari."""

    def __init__(self, base: Any) -> None:
        self._base = base

    def __getitem__(self, game: str) -> dict[str, list[dict[str, float]]]:
        """Objects of a game: `kind` -> places, as many as there can be, -1 for those that are not there."""
        return _places(game, self._base.ale.getRAM().tobytes())


@lru_cache(maxsize=256)
def _places(game: str, memory: bytes) -> dict[str, list[dict[str, float]]]:
    """Kept for the other facts of the same state."""
    module = _module(game)
    if module is None:
        raise KeyError(f"OCAtari, which reads the objects of {game!r}, is not installed: docs/own-environment.md")
    found = module._init_objects_ram(hud=False)
    # OCAtari computes with single bytes as NumPy 1 did, where `byte - 47` can be negative.
    module._detect_objects_ram(found, np.frombuffer(memory, np.uint8).astype(np.int64), hud=False)
    places: dict[str, list[dict[str, float]]] = {}
    for kind, count in module.MAX_NB_OBJECTS.items():
        own = [{"x": float(item.x), "y": float(item.y)} for item in found if type(item).__name__ == kind]
        places[kind] = (own + [{"x": -1.0, "y": -1.0}] * count)[:count]
    return places
