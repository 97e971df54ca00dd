"""Cards derived from environments: shipped ones, models, consoles, MiniGrid's views, or a skeleton."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ultra.common.errors import UltraError
from ultra.tasks.atari_objects import atari_card
from ultra.tasks.card import ActionMeaning, Card, Fact, load_card, plain_name, skeleton_card, unlike
from ultra.tasks.mujoco_card import mujoco_card
from ultra.tasks.sources import compile_source
from ultra.tasks.spaces import ActionSpace, from_gymnasium

Env = gymnasium.Env[Any, Any]
_CARDS = Path(__file__).parent / "cards"
_MOST_ENTRIES = 400
"""Entries of an observation that a skeleton lists; a picture's are left out."""
_LONGEST_TITLE = 160


def derive_card(env_id: str, env: Env) -> Card:
    """A card for a flattened environment, as far as it can be known.

    Args:
        env_id: as Gymnasium knows it.
        env: made by `make_environment`, not necessarily reset.
    """
    assert env.observation_space.shape is not None
    size, space = env.observation_space.shape[0], from_gymnasium(env.action_space)
    shipped = _CARDS / f"{env_id.rpartition(':')[2].replace('/', '-')}.yaml"
    candidates = [
        load_card(shipped) if shipped.is_file() else None,
        mujoco_card(env_id, env),
        atari_card(env_id, env),
        _minigrid_card(env_id, env),
    ]
    for card in candidates:
        if card is not None and _fits(card, size, space):
            return card
    facts = unlike(_entries(_observed(env), "", 0)[:_MOST_ENTRIES])
    return replace(skeleton_card(env_id, facts, space), title=_title(env_id, env))


def _title(env_id: str, env: Env) -> str:
    """The id with the first sentence that the environment says about itself, if it is short enough."""
    paragraphs = re.split(r"\n\s*\n|\n\s*#", inspect.cleandoc(type(env.unwrapped).__doc__ or ""))
    first = next((" ".join(text.split()) for text in paragraphs if text.strip() and not text.startswith("#")), "")
    sentence = first.split(". ")[0].rstrip(".")
    return f"{env_id}: {sentence}" if 0 < len(sentence) <= _LONGEST_TITLE else env_id


def _fits(card: Card, size: int, space: ActionSpace) -> bool:
    try:
        for place, fact in enumerate(card.facts):
            compile_source(fact.source or f"obs[{place}]", size)
    except UltraError:
        return False
    return len(card.actions) == space.size


# -- skeletons -------------------------------------------------------------------------------------


def _observed(env: Env) -> gymnasium.Space[Any]:
    """The space that the flattened observation was made of."""
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.FlattenObservation):
            return layer.env.observation_space
        layer = layer.env
    return env.observation_space


def _entries(space: gymnasium.Space[Any], name: str, start: int) -> list[Fact]:
    """Facts of a part of an observation whose flattened entries begin at `start`.

    What can have one of several values is one fact, not as many as it has values.
    """
    width = gymnasium.spaces.flatdim(space)
    match space:
        case gymnasium.spaces.Dict() | gymnasium.spaces.Tuple():
            parts = space.spaces.items() if isinstance(space, gymnasium.spaces.Dict) else enumerate(space.spaces)
            facts = []
            for key, part in parts:
                own = plain_name(str(key)) if isinstance(key, str) else f"part{key}"
                facts += _entries(part, f"{name}_{own}" if name else own, start)
                start += gymnasium.spaces.flatdim(part)
            return facts
        case gymnasium.spaces.Discrete():
            return [_choice(name or "state", start, width, int(space.start))]
        case gymnasium.spaces.MultiDiscrete() if space.nvec.ndim == 1:
            facts = []
            for k, choices in enumerate(space.nvec.tolist()):
                facts.append(_choice(f"{name or 'x'}{'_' if name else ''}{k}", start, choices, int(space.start[k])))
                start += choices
            return facts
    low, high = (np.ravel(bound) for bound in (space.low, space.high)) if isinstance(space, gymnasium.spaces.Box) else (
        np.zeros(width), np.ones(width)
    )  # fmt: skip
    return [_number(name, k, width, start + k, float(low[k]), float(high[k])) for k in range(min(width, _MOST_ENTRIES))]


def _choice(name: str, start: int, choices: int, first: int) -> Fact:
    source = f"argmax(obs[{start}:{start + choices}])" + (f" + {first}" if first else "")
    return Fact(name, "", f"one of {choices}, from {first} to {first + choices - 1}", 0, source=source)


def _number(name: str, entry: int, width: int, place: int, low: float, high: float) -> Fact:
    known = np.isfinite([low, high]).all() and max(abs(low), abs(high)) < 1e9
    meaning = (f"{name}, entry {entry}" if name else f"entry {place} of the observation") + (
        f", from {low:g} to {high:g}" if known else ""
    )
    own = (name if width == 1 else f"{name}_{entry}") if name else f"x{place}"
    return Fact(own, "", meaning, 3, source=f"obs[{place}]")


# -- MiniGrid --------------------------------------------------------------------------------------

_THINGS = (
    "0 unseen, 1 empty, 2 wall, 3 floor, 4 door, 5 key, 6 ball, 7 box, 8 goal, 9 lava, 10 the agent"  # of MiniGrid
)
_MOVES = (
    ("left", "turn left"), ("right", "turn right"), ("forward", "move one cell forward"),
    ("pickup", "pick up the object in front"), ("drop", "drop the carried object in front"),
    ("toggle", "open or close the door, or open the box, in front"), ("done", "nothing in most tasks"),
)  # fmt: skip


def _minigrid_card(env_id: str, env: Env) -> Card | None:
    """What the agent of a MiniGrid environment sees around itself."""
    base: Any = env.unwrapped
    if not all(hasattr(base, name) for name in ("agent_view_size", "grid", "agent_pos", "agent_dir")):
        return None
    offset = _offset_of(env, "image")
    if offset is None:
        return None
    view = int(base.agent_view_size)
    middle = view // 2

    def seen(x: int, y: int, channel: int = 0) -> str:
        return f"obs[{offset + (x * view + y) * 3 + channel}]"

    facts = [
        Fact("agent_x", "cells", "column of the agent, right is positive", 0, source="env.agent_pos[0]"),
        Fact("agent_y", "cells", "row of the agent, down is positive", 0, source="env.agent_pos[1]"),
        Fact("direction", "", "where the agent looks: 0 right, 1 down, 2 left, 3 up", 0, source="env.agent_dir"),
        Fact("front", "", f"what is in front: {_THINGS}", 0, source=seen(middle, view - 2)),
        Fact("front_state", "", "of a door in front: 0 open, 1 closed, 2 locked", 0, source=seen(middle, view - 2, 2)),
        Fact("second", "", "what is two cells in front (as `front`)", 0, source=seen(middle, view - 3)),
        Fact("third", "", "what is three cells in front (as `front`)", 0, source=seen(middle, view - 4)),
        Fact("at_left", "", "what is at the left (as `front`)", 0, source=seen(middle - 1, view - 1)),
        Fact("at_right", "", "what is at the right (as `front`)", 0, source=seen(middle + 1, view - 1)),
        Fact("carried", "", "what is carried: 1 nothing, else as `front`", 0, source=seen(middle, view - 1)),
        Fact("steps", "", "steps since the beginning", 0, match=False, source="env.step_count"),
    ]
    return Card(
        name=env_id,
        title=_title(env_id, env),
        goal=f"Fulfil the mission in as few steps as possible. {getattr(base, 'mission', '').capitalize()}".strip(". ")
        + ".",
        termination="The episode ends when the mission is fulfilled or has failed; "
        f"after {base.max_steps} steps it is cut off.",
        reward="0 until the mission is fulfilled, then 1 - 0.9 times the share of the allowed steps that were taken.",
        facts=tuple(facts),
        actions=tuple(ActionMeaning(name, meaning) for name, meaning in _MOVES),
    )


def _offset_of(env: Env, key: str) -> int | None:
    """Where a part of a Dict observation begins in the flattened one."""
    parts = _observed(env)
    if not isinstance(parts, gymnasium.spaces.Dict) or key not in parts.spaces:
        return None
    offset = 0
    for name, part in parts.spaces.items():
        if name == key:
            return offset
        offset += gymnasium.spaces.flatdim(part)
    return None
