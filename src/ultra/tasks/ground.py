"""Heights of feet above the ground, and whether they touch it, from positions alone.

Both ways give the same numbers: `PlanarFeet` for a whole batch of a planar robot in a few operations on arrays, and
`Heights` for one environment of any MuJoCo model. They use the state's own positions: what MuJoCo's data holds after
a step (`xpos`, contacts) belongs to the integrator's last stage, one physics step earlier.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import mujoco
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def floor_of(model: Any) -> int | None:
    """The plane that is the ground; None if nothing can touch it."""
    planes = np.flatnonzero((model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE) & (model.geom_bodyid == 0))
    return next((int(plane) for plane in planes if _touching(model, int(plane)).any()), None)


def feet_of(model: Any) -> list[int]:
    """Bodies at the ends of the kinematic tree that can touch the ground."""
    floor = floor_of(model)
    if floor is None:
        return []
    able = set(model.geom_bodyid[_touching(model, floor)].tolist())
    parents = set(model.body_parentid.tolist())
    return [body for body in range(1, model.nbody) if body in able and body not in parents]


def margin_of(model: Any, body: int) -> float:
    """Height in metres below which MuJoCo counts a body as in contact with the floor."""
    floor = floor_of(model)
    own = np.flatnonzero((model.geom_bodyid == body) & (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE))
    return float(model.geom_margin[own].max(initial=0.0)) + (
        float(model.geom_margin[floor]) if floor is not None else 0
    )


def _touching(model: Any, plane: int) -> NDArray[np.bool_]:
    """Which geometries can collide with a plane; round ones only, whose lowest point is simple."""
    kinds, bits = model.geom_contype, model.geom_conaffinity
    meet = ((kinds & bits[plane]) != 0) | ((kinds[plane] & bits) != 0)
    round_ones = np.isin(model.geom_type, (mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_CAPSULE))
    result: NDArray[np.bool_] = meet & round_ones & (model.geom_bodyid > 0)
    return result


class PlanarFeet:
    """Lowest points of bodies of a robot that moves in the x-z plane: hinges about y, slides along x and z.

    A point's height is linear in the sines and cosines of the angles of the bodies before it.

    Args:
        model: of MuJoCo.
        feet: bodies whose heights are wanted.
    """

    def __init__(self, model: Any, feet: Sequence[int]) -> None:
        chains = [_chain(model, foot) for foot in feet]
        bodies = sorted({body for chain in chains for body in chain})
        place = {body: number for number, body in enumerate(bodies)}
        turns, rise = np.zeros((model.nq, len(bodies))), np.zeros(model.nq)
        for body in bodies:
            for joint in _joints(model, body):
                address, axis = int(model.jnt_qposadr[joint]), model.jnt_axis[joint]
                if model.jnt_type[joint] == mujoco.mjtJoint.mjJNT_SLIDE:
                    rise[address] = axis[2]
                    continue
                for later in bodies:
                    if body in _chain(model, later):
                        turns[address, place[later]] = axis[1]
        ends, of_foot, radii = [], [], []
        for number, (foot, chain) in enumerate(zip(feet, chains, strict=True)):
            for end, radius in _ends(model, foot):
                ends.append(_offsets(model, chain, end, place))
                radii.append(radius)
                of_foot.append(number)
        self._sines = -np.array([[offset[0] for offset in row] for row in ends]).T
        self._cosines = np.array([[offset[1] for offset in row] for row in ends]).T
        self._first = np.flatnonzero(np.diff([-1, *of_foot]))
        # One product gives the bodies' angles and, beside them, the root's height less the radius of each end.
        self._bodies = len(bodies)
        self._linear = np.concatenate([turns, np.tile(rise[:, None], len(ends))], axis=1)
        level = float(model.body_pos[chains[0][0]][2] - rise @ model.qpos0) - np.array(radii)
        self._constant = np.concatenate([-(model.qpos0 @ turns), level])
        self.margins = np.array([margin_of(model, foot) for foot in feet])
        """(feet,) heights below which they count as in contact."""

    def heights(self, qpos: Array) -> Array:
        """(n, nq) -> (n, feet): metres from the floor to each foot's lowest point."""
        linear = qpos @ self._linear + self._constant
        angles = linear[:, : self._bodies]
        ends = np.sin(angles) @ self._sines + np.cos(angles) @ self._cosines + linear[:, self._bodies :]
        lowest: Array = np.minimum.reduceat(ends, self._first, axis=1)
        return lowest

    def facts(self, qpos: Array) -> Array:
        """(n, nq) -> (n, 2 * feet): heights of all feet, then whether each touches the floor (1 or 0)."""
        heights = self.heights(qpos)
        return np.concatenate([heights, heights < self.margins], axis=1)


def _chain(model: Any, body: int) -> list[int]:
    """Bodies from the root to a body."""
    chain: list[int] = []
    while body:
        chain.insert(0, body)
        body = int(model.body_parentid[body])
    return chain


def _joints(model: Any, body: int) -> list[int]:
    first = int(model.body_jntadr[body])
    return list(range(first, first + int(model.body_jntnum[body]))) if first >= 0 else []


def _ends(model: Any, body: int) -> list[tuple[Array, float]]:
    """Centres of the spheres at the ends of a body's geometries, in its frame, with their radii."""
    floor = floor_of(model)
    able = _touching(model, floor) if floor is not None else np.ones(model.ngeom, np.bool_)
    ends = []
    for geom in np.flatnonzero((model.geom_bodyid == body) & able):
        radius, centre = float(model.geom_size[geom][0]), model.geom_pos[geom]
        half = float(model.geom_size[geom][1]) if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE else 0.0
        axis = np.zeros(3)
        mujoco.mju_rotVecQuat(axis, np.array([0.0, 0.0, 1.0]), model.geom_quat[geom])
        ends += [(centre + sign * half * axis, radius) for sign in ((1, -1) if half else (1,))]
    return ends


def _offsets(model: Any, chain: Sequence[int], end: Array, place: dict[int, int]) -> list[tuple[float, float]]:
    """(x, z) by which a point lies away from the root, in the frame of each body."""
    offsets = np.zeros((len(place), 2))
    plane = [0, 2]
    for before, body in zip([0, *chain], chain, strict=False):
        hinges = [j for j in _joints(model, body) if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE]
        anchor = model.jnt_pos[hinges[0]] if hinges else np.zeros(3)
        offsets[place[body]] -= anchor[plane]
        if before:
            offsets[place[before]] += (model.body_pos[body] + anchor)[plane]
        else:
            offsets[place[body]] += anchor[plane]
    offsets[place[chain[-1]]] += end[plane]
    return [(float(x), float(z)) for x, z in offsets]


class Heights:
    """Heights of bodies of one environment's model by their numbers, for sources of facts: `height[4]`."""

    def __init__(self, base: Any) -> None:
        self._model = base.model
        self._data = _placed(base)

    def __getitem__(self, body: int) -> float:
        """Metres from the floor to the lowest point of a body."""
        floor = floor_of(self._model)
        level = float(self._data.geom_xpos[floor][2]) if floor is not None else 0.0
        at, turn = self._data.xpos[body], self._data.xmat[body].reshape(3, 3)
        return min(float((at + turn @ end)[2]) - radius for end, radius in _ends(self._model, body)) - level


class Touches(Heights):
    """Whether bodies touch the floor, by their numbers: `contact[4]`."""

    def __getitem__(self, body: int) -> float:
        """1 if it does, else 0."""
        return float(super().__getitem__(body) < margin_of(self._model, body))


_scratch: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


def _placed(base: Any) -> Any:
    """MuJoCo's data with the bodies where the present positions put them."""
    data = _scratch.get(base)
    if data is None:
        data = _scratch[base] = mujoco.MjData(base.model)
        data.qpos[:] = np.nan
    if not np.array_equal(data.qpos, base.data.qpos):
        data.qpos[:] = base.data.qpos
        mujoco.mj_kinematics(base.model, data)
    return data
