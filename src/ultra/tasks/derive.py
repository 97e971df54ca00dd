"""Cards derived from environments: shipped ones, MuJoCo's models, MiniGrid's views, or a skeleton."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ultra.errors import UltraError
from ultra.spaces import ActionSpace, from_gymnasium
from ultra.tasks.atari_objects import atari_card
from ultra.tasks.card import ActionMeaning, Card, Fact, load_card, skeleton_card
from ultra.tasks.sources import compile_source

Env = gymnasium.Env[Any, Any]
_CARDS = Path(__file__).parent / "cards"
_MOST_ENTRIES = 400
"""Entries of an observation that a skeleton lists; a picture's are left out."""
_LONGEST_TITLE = 80


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
        _mujoco_card(env_id, env),
        atari_card(env_id, env),
        _minigrid_card(env_id, env),
    ]
    for card in candidates:
        if card is not None and _fits(card, size, space):
            return card
    skeleton = skeleton_card(env_id, min(size, _MOST_ENTRIES), space)
    facts = _with_ranges(_named(skeleton.facts, _dict_of(env)), env.observation_space)
    return replace(skeleton, facts=facts, title=_title(env_id, env))


def _title(env_id: str, env: Env) -> str:
    lines = [line.strip() for line in (type(env.unwrapped).__doc__ or "").splitlines()]
    first = next((line.strip(".") for line in lines if line and not line.startswith("#")), "")
    return f"{env_id}: {first}" if 0 < len(first) <= _LONGEST_TITLE else env_id


def _fits(card: Card, size: int, space: ActionSpace) -> bool:
    try:
        for place, fact in enumerate(card.facts):
            compile_source(fact.source or f"obs[{place}]", size)
    except UltraError:
        return False
    return len(card.actions) == space.size


def _dict_of(env: Env) -> gymnasium.spaces.Dict | None:
    """The Dict that the flattened observation was made of, or None."""
    layer: Any = env
    while isinstance(layer, gymnasium.Wrapper):
        layer = layer.env
        if isinstance(layer.observation_space, gymnasium.spaces.Dict):
            return layer.observation_space
    return None


def _named(facts: tuple[Fact, ...], parts: gymnasium.spaces.Dict | None) -> tuple[Fact, ...]:
    """Facts of a skeleton named after the parts of a Dict observation."""
    if parts is None:
        return facts
    names: list[tuple[str, str]] = []
    for key, part in parts.spaces.items():
        width, name = gymnasium.spaces.flatdim(part), _name(str(key))
        if isinstance(part, gymnasium.spaces.Discrete):
            names += [(f"{name}_is_{part.start + i}", f"1 if {key} is {part.start + i}") for i in range(width)]
        else:
            ends = [""] if width == 1 else [f"_{i}" for i in range(width)]
            names += [(f"{name}{end}", f"{key}, entry {i}") for i, end in enumerate(ends)]
    named = (replace(fact, name=name, meaning=text) for fact, (name, text) in zip(facts, names, strict=False))
    return _unlike(tuple(named))


def _with_ranges(facts: tuple[Fact, ...], space: gymnasium.Space[Any]) -> tuple[Fact, ...]:
    """Facts of a skeleton with the bounds of their entries, where there are any."""
    if not isinstance(space, gymnasium.spaces.Box):
        return facts
    described = []
    for place, fact in enumerate(facts):
        low, high = float(space.low[place]), float(space.high[place])
        known = np.isfinite([low, high]).all() and max(abs(low), abs(high)) < 1e9
        meaning = f"{fact.meaning}, from {low:g} to {high:g}" if known else fact.meaning
        described.append(replace(fact, meaning=meaning))
    return tuple(described)


# -- MuJoCo ----------------------------------------------------------------------------------------

_FREE = ("x", "y", "z", "qw", "qx", "qy", "qz")
_FREE_VELOCITIES = ("x_velocity", "y_velocity", "z_velocity", "roll_velocity", "pitch_velocity", "yaw_velocity")


def _mujoco_card(env_id: str, env: Env) -> Card | None:
    """Joints, actuators and bodies of a MuJoCo model, by name, with units and ranges."""
    base: Any = env.unwrapped
    model: Any = getattr(base, "model", None)
    if type(model).__name__ != "MjModel":
        return None
    import mujoco

    facts: list[Fact] = []
    velocities: list[Fact] = []
    for number in range(model.njnt):
        joint = model.joint(number)
        body = model.body(int(model.jnt_bodyid[number])).name or "body"
        name = _name(joint.name or f"{body}_joint")
        place, speed = int(model.jnt_qposadr[number]), int(model.jnt_dofadr[number])
        kind = mujoco.mjtJoint(int(model.jnt_type[number]))
        limits = f", from {joint.range[0]:g} to {joint.range[1]:g}" if model.jnt_limited[number] else ""
        if kind in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE):
            turn = kind == mujoco.mjtJoint.mjJNT_HINGE
            unit, what = ("rad", "angle") if turn else ("m", "position")
            facts.append(_fact(name, unit, f"{what} of joint {name} of the {body}{limits}", f"qpos[{place}]"))
            meaning = f"speed of joint {name}"
            velocities.append(_fact(f"{name}_velocity", f"{unit}/s", meaning, f"qvel[{speed}]"))
            continue
        free = kind == mujoco.mjtJoint.mjJNT_FREE
        names, rates = (_FREE, _FREE_VELOCITIES) if free else (_FREE[3:], _FREE_VELOCITIES[3:])
        for k, axis in enumerate(names):
            unit = "m" if axis in "xyz" else ""
            meaning = f"position of the {body} along {axis}" if unit else f"part {axis[1]} of the {body}'s orientation"
            facts.append(_fact(f"{name}_{axis}", unit, meaning, f"qpos[{place + k}]", match=axis not in ("x", "y")))
        for k, axis in enumerate(rates):
            unit = "m/s" if axis[0] in "xyz" and axis[1] == "_" else "rad/s"
            velocities.append(_fact(f"{name}_{axis}", unit, f"{axis} of the {body}", f"qvel[{speed + k}]"))
    actions = [_actuator(model, number) for number in range(model.nu)]
    plain = skeleton_card(env_id, 0, from_gymnasium(env.action_space))
    title = _title(env_id, env)
    return replace(plain, title=title, facts=_unlike((*facts, *velocities)), actions=tuple(actions))


def _fact(name: str, unit: str, meaning: str, source: str, *, match: bool = True) -> Fact:
    return Fact(name, unit, meaning, match=match, source=source)


def _actuator(model: Any, number: int) -> ActionMeaning:
    actuator = model.actuator(number)
    joint = int(model.actuator_trnid[number, 0])
    target = _name(model.joint(joint).name or f"joint{joint}")
    name = _name(actuator.name or f"{target}_motor")
    low, high = (float(x) for x in model.actuator_ctrlrange[number])
    gear = float(model.actuator_gear[number, 0])
    return ActionMeaning(name, f"control of joint {target}, from {low:g} to {high:g}, gear {gear:g}")


def _name(text: str) -> str:
    """A name that guards can speak of."""
    plain = "".join(letter if letter.isalnum() else "_" for letter in text).strip("_")
    return plain if plain[:1].isalpha() else f"j_{plain}"


def _unlike(facts: tuple[Fact, ...]) -> tuple[Fact, ...]:
    """Facts with a number added to names that occur twice."""
    seen: dict[str, int] = {}
    result = []
    for fact in facts:
        seen[fact.name] = seen.get(fact.name, 0) + 1
        result.append(fact if seen[fact.name] == 1 else replace(fact, name=f"{fact.name}_{seen[fact.name]}"))
    return tuple(result)


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
        goal=f"Fulfil the mission in as few steps as possible. {getattr(base, 'mission', '').capitalize()}".strip(),
        termination="The episode ends when the mission is fulfilled or has failed; then it is cut off at the limit.",
        reward="0 until the mission is fulfilled, then 1 - 0.9 times the share of the allowed steps that were taken.",
        facts=tuple(facts),
        actions=tuple(ActionMeaning(name, meaning) for name, meaning in _MOVES),
    )


def _offset_of(env: Env, key: str) -> int | None:
    """Where a part of a Dict observation begins in the flattened one."""
    parts = _dict_of(env)
    if parts is None or key not in parts.spaces:
        return None
    offset = 0
    for name, part in parts.spaces.items():
        if name == key:
            return offset
        offset += gymnasium.spaces.flatdim(part)
    return None
