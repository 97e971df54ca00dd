"""Cards of MuJoCo environments: joints, actuators and bodies by name, read off the model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import yaml

from ultra.tasks.body import body_name, describe_body
from ultra.tasks.card import ActionMeaning, Card, Fact, plain_name, skeleton_card, unlike
from ultra.tasks.spaces import from_gymnasium

_AXES = ("x", "y", "z")
_TURNS = ("roll", "pitch", "yaw")


def mujoco_card(env_id: str, env: gymnasium.Env[Any, Any]) -> Card | None:
    """A card with units and ranges, or None if the environment has no MuJoCo model."""
    base: Any = env.unwrapped
    model: Any = getattr(base, "model", None)
    if type(model).__name__ != "MjModel":
        return None
    places: list[Fact] = []
    speeds: list[Fact] = []
    for number in range(model.njnt):
        place, speed = _joint(model, number)
        places += place
        speeds += speed
    actions = tuple(_actuator(model, number) for number in range(model.nu))
    plain = skeleton_card(env_id, (), from_gymnasium(env.action_space))
    facts = unlike((*places, *speeds, *_feet(model)))
    return replace(plain, **_goal(env_id, env), facts=facts, actions=actions, body=describe_body(base))


def _feet(model: Any) -> list[Fact]:
    """Heights of the feet above the floor, and whether they touch it."""
    from ultra.tasks.ground import feet_of

    feet = [(body, body_name(model, body)) for body in feet_of(model)]
    heights = [
        Fact(f"{name}_height", "m", f"lowest point of {name} above the floor", 3, False, f"height[{body}]")
        for body, name in feet
    ]
    return heights + [
        Fact(f"{name}_contact", "", f"1 if {name} touches the floor, else 0", 0, False, f"contact[{body}]")
        for body, name in feet
    ]


def _goal(env_id: str, env: gymnasium.Env[Any, Any]) -> dict[str, str]:
    """What Gymnasium's own environments ask for; nothing where arguments may have changed it."""
    known = gymnasium.registry.get(env_id)
    if known is None or env.spec is None or env.spec.kwargs != known.kwargs:
        return {}
    goals = yaml.safe_load((Path(__file__).parent / "cards" / "goals.yaml").read_text(encoding="utf-8"))
    found: dict[str, str] = goals.get(env_id.rpartition("-v")[0], {})
    return found


def _joint(model: Any, number: int) -> tuple[list[Fact], list[Fact]]:
    """Facts of a joint's place and of its speed."""
    import mujoco

    joint = model.joint(number)
    body = model.body(int(model.jnt_bodyid[number])).name
    of = f" of the {body}" if body else ""
    name = plain_name(joint.name or f"{body or 'body'}_joint")
    place, speed = int(model.jnt_qposadr[number]), int(model.jnt_dofadr[number])
    kind = mujoco.mjtJoint(int(model.jnt_type[number]))
    if kind in (mujoco.mjtJoint.mjJNT_HINGE, mujoco.mjtJoint.mjJNT_SLIDE):
        limits = f", from {joint.range[0]:.3g} to {joint.range[1]:.3g}" if model.jnt_limited[number] else ""
        turn = kind == mujoco.mjtJoint.mjJNT_HINGE
        unit, what = ("rad", "angle") if turn else ("m", "position")
        return (
            [Fact(name, unit, f"{what} of joint {name}{of}{limits}", source=f"qpos[{place}]")],
            [Fact(f"{name}_velocity", f"{unit}/s", f"speed of joint {name}", source=f"qvel[{speed}]")],
        )
    if kind == mujoco.mjtJoint.mjJNT_BALL:
        return _orientation(name, of, place), _turning(name, of, speed)
    places = [
        Fact(f"{name}_{axis}", "m", f"position{of} along {axis}", match=axis == "z", source=f"qpos[{place + k}]")
        for k, axis in enumerate(_AXES)
    ]
    speeds = [
        Fact(f"{name}_{axis}_velocity", "m/s", f"speed{of} along {axis}", source=f"qvel[{speed + k}]")
        for k, axis in enumerate(_AXES)
    ]
    return places + _orientation(name, of, place + 3), speeds + _turning(name, of, speed + 3)


def _orientation(name: str, of: str, place: int) -> list[Fact]:
    """Angles out of the quaternion that begins at a place, which says nothing to a reader.

    It need not be of unit length: Gymnasium adds noise to it when an episode starts.
    """
    w, x, y, z = (f"qpos[{place + k}]" for k in range(4))
    ww, xx, yy, zz = (f"{part} * {part}" for part in (w, x, y, z))
    length, up, lean = f"{ww} + {xx} + {yy} + {zz}", f"{ww} - {xx} - {yy} + {zz}", f"2 * ({w} * {y} - {z} * {x})"
    return [
        Fact(f"{name}_upright", "", f"1 if the top{of} points up, 0 if it lies, -1 upside down",
             source=f"({up}) / ({length})"),
        Fact(f"{name}_roll", "rad", f"turn{of} about x, its left side up is positive",
             source=f"atan2(2 * ({w} * {x} + {y} * {z}), {up})"),
        Fact(f"{name}_pitch", "rad", f"turn{of} about y, its front down is positive",
             source=f"atan2({lean}, sqrt(max(0, ({length}) * ({length}) - {lean} * {lean})))"),
        Fact(f"{name}_yaw", "rad", f"heading{of}, 0 is along x, to the left is positive",
             source=f"atan2(2 * ({w} * {z} + {x} * {y}), {ww} + {xx} - {yy} - {zz})"),
    ]  # fmt: skip


def _turning(name: str, of: str, speed: int) -> list[Fact]:
    return [
        Fact(f"{name}_{turn}_velocity", "rad/s", f"turning{of} about its own {axis}", source=f"qvel[{speed + k}]")
        for k, (turn, axis) in enumerate(zip(_TURNS, _AXES, strict=True))
    ]


def _actuator(model: Any, number: int) -> ActionMeaning:
    actuator = model.actuator(number)
    joint = int(model.actuator_trnid[number, 0])
    target = plain_name(model.joint(joint).name or f"joint{joint}")
    name = plain_name(actuator.name or f"{target}_motor")
    low, high = (float(x) for x in model.actuator_ctrlrange[number])
    gear = float(model.actuator_gear[number, 0])
    return ActionMeaning(name, f"control of joint {target}, from {low:g} to {high:g}, gear {gear:g}")
