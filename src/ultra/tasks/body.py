"""A robot's body in words, read off its MuJoCo model: time step, start, links, joints, actuators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import mujoco
import numpy as np

from ultra.tasks.card import plain_name

MOST_LINKS = 16
"""Links and joints that are listed; more say little."""
_BEND = 0.2
"""Radians or metres by which a joint is moved to see where its links go."""


def body_name(model: Any, body: int) -> str:
    """A body's name, or that of its joint."""
    joint = int(model.body_jntadr[body])
    own = model.body(body).name or (model.joint(joint).name if joint >= 0 else "")
    return plain_name(own or f"body{body}")


def describe_body(base: Any, names: Mapping[str, str] | None = None) -> str:
    """Time step, what the start varies, sizes and masses of the links, limits and senses of the joints.

    Args:
        base: Gymnasium's environment, unwrapped.
        names: of facts by the names of joints, where they differ.
    """
    model = base.model
    names = names or {}
    lines = [
        f"One step of the agent lasts {base.dt:g} s ({base.frame_skip} physics steps with the same action).",
        _start(base),
    ]
    links = [_link(model, body) for body in range(1, model.nbody)]
    links = [link for link in links if link]
    if links:
        lines.append(f"Links (length, mass): {'; '.join(links[:MOST_LINKS])}.")
    hinges = [
        joint
        for joint in range(model.njnt)
        if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_HINGE and joint in model.actuator_trnid[:, 0]
    ]
    if hinges:
        joints = [_joint(base, joint, names) for joint in hinges[:MOST_LINKS]]
        lines.append(f"Joints (range in rad, and where the link's end goes as the angle grows): {'; '.join(joints)}.")
    if model.nu:
        gears = {float(gear) for gear in model.actuator_gear[:, 0]}
        each = [f"{gear:g}" for gear in (sorted(gears) if len(gears) == 1 else model.actuator_gear[:, 0])]
        bounds = sorted({f"{low:g} to {high:g}" for low, high in model.actuator_ctrlrange})
        lines.append(f"Actions from {', '.join(bounds)}; torque in N m at action 1: {', '.join(each)}.")
    return " ".join(line for line in lines if line)


def _start(base: Any) -> str:
    noise = getattr(base, "_reset_noise_scale", None)
    if isinstance(noise, int | float):
        return f"Episodes start in one posture, its positions and velocities varied by noise of about {noise:g}."
    return ""


def _link(model: Any, body: int) -> str:
    if model.body_mass[body] <= 0:
        return ""
    lengths = []
    for geom in np.flatnonzero(model.geom_bodyid == body):
        kind, size = int(model.geom_type[geom]), model.geom_size[geom]
        if kind in (int(mujoco.mjtGeom.mjGEOM_CAPSULE), int(mujoco.mjtGeom.mjGEOM_CYLINDER)):
            lengths.append(2 * float(size[1]))
        elif kind == int(mujoco.mjtGeom.mjGEOM_SPHERE):
            lengths.append(2 * float(size[0]))
    if not lengths:
        return ""
    return f"{body_name(model, body)} {max(lengths):.2g} m {model.body_mass[body]:.2g} kg"


def _joint(base: Any, joint: int, names: Mapping[str, str]) -> str:
    model = base.model
    own = plain_name(model.joint(joint).name or f"joint{joint}")
    low, high = model.jnt_range[joint]
    limits = f"{low:.2f} to {high:.2f}" if model.jnt_limited[joint] else "no limits"
    return f"{names.get(own, own)} {limits}{_sense(base, joint)}"


def _sense(base: Any, joint: int) -> str:
    """Where the far end of what hangs on a joint goes when its angle grows, seen in the starting posture."""
    model = base.model
    if abs(model.jnt_axis[joint][2]) > 0.9:
        return ", counter-clockwise seen from +z"
    if abs(model.jnt_axis[joint][1]) < 0.9:
        return ""
    moved = np.array([_tip(base, joint, sign * _BEND) for sign in (-1, 1)])
    x, _, z = moved[1] - moved[0]
    if abs(x) >= abs(z):
        return ", forward" if x > 0 else ", backward"
    return ", up" if z > 0 else ", down"


def _tip(base: Any, joint: int, change: float) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Place of the point that is farthest from a joint among what hangs on it."""
    model = base.model
    data = mujoco.MjData(model)
    data.qpos[:] = base.init_qpos
    mujoco.mj_kinematics(model, data)
    below = _below(model, int(model.jnt_bodyid[joint]))
    points = [(body, end) for body in below for end in _points(model, body)]
    at = [data.xpos[body] + data.xmat[body].reshape(3, 3) @ end for body, end in points]
    far = int(np.argmax([np.linalg.norm(point - data.xanchor[joint]) for point in at]))
    data.qpos[model.jnt_qposadr[joint]] += change
    mujoco.mj_kinematics(model, data)
    body, end = points[far]
    place: np.ndarray[Any, np.dtype[np.float64]] = data.xpos[body] + data.xmat[body].reshape(3, 3) @ end
    return place


def _below(model: Any, body: int) -> list[int]:
    """A body and all that hang on it."""
    found = [body]
    for other in range(body + 1, model.nbody):
        if int(model.body_parentid[other]) in found:
            found.append(other)
    return found


def _points(model: Any, body: int) -> Sequence[np.ndarray[Any, np.dtype[np.float64]]]:
    points = [np.zeros(3)]
    for geom in np.flatnonzero(model.geom_bodyid == body):
        axis = np.zeros(3)
        mujoco.mju_rotVecQuat(axis, np.array([0.0, 0.0, 1.0]), model.geom_quat[geom])
        half = float(model.geom_size[geom][1]) if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0
        points += [model.geom_pos[geom] + sign * half * axis for sign in (-1, 1)]
    return points
