"""The state of a Gymnasium environment as bytes, where it can be had; checked before it is relied on.

An environment's state is what its own methods `save_state` and `load_state` say, if it has them.
Otherwise it is the plain values (numbers, texts, arrays, containers, random generators) among the
attributes of the environment and its wrappers, with the simulator's state for MuJoCo and Atari. An
environment that keeps anything else is not trusted with that: its episodes are replayed.
"""

from __future__ import annotations

import base64
import functools
import inspect
import json
import math
import types
from typing import Any

import gymnasium
import numpy as np

from ultra.common.files import to_json_text

_HARMLESS = (
    gymnasium.Space, gymnasium.Env, gymnasium.envs.registration.EnvSpec, type, types.ModuleType,
    types.FunctionType, types.MethodType, types.BuiltinFunctionType, functools.partial,
)  # fmt: skip
_HARMLESS_MODULES = ("mujoco", "ale_py", "pygame", "gymnasium.envs.mujoco", "gymnasium.spaces", "logging")
"""Of these, what changes is in the simulator's state."""
_DERIVED = (
    "xpos", "xquat", "xmat", "xipos", "ximat", "geom_xpos", "geom_xmat", "site_xpos", "site_xmat", "cvel", "cinert",
    "cfrc_ext", "cfrc_int", "cacc", "subtree_com", "subtree_linvel", "qfrc_actuator", "qfrc_constraint", "qfrc_passive",
    "qfrc_bias", "qacc", "actuator_force", "actuator_length", "actuator_velocity", "sensordata", "ten_length",
)  # fmt: skip
"""What MuJoCo computes at a step's last stage and environments read before the next."""


class NotPlainError(Exception):
    """An environment keeps something that cannot be written down."""


def take(env: gymnasium.Env[Any, Any]) -> bytes:
    """The complete state of an environment.

    Raises:
        NotPlainError: if it keeps something that cannot be written down; the message names it.
    """
    base: Any = env.unwrapped
    own = base.save_state() if _has_own(base) else None
    chain = [_attributes(layer) for layer in _layers(env) if layer is not base or own is None]
    blobs: list[bytes] = []
    engine = {} if own is not None else _engine(base)
    tree = to_json_text(_encode([own, chain, engine], blobs), "a snapshot").encode()
    return len(tree).to_bytes(4, "little") + tree + b"".join(blobs)


def put(env: gymnasium.Env[Any, Any], state: bytes) -> None:
    """Bring a state back, in this environment or in another of the same kind."""
    length = int.from_bytes(state[:4], "little")
    own, chain, engine = _decode(json.loads(state[4 : 4 + length]), memoryview(state)[4 + length :])
    base: Any = env.unwrapped
    if own is not None:
        base.load_state(own)
    layers = [layer for layer in _layers(env) if layer is not base or own is None]
    for layer, values in zip(layers, chain, strict=True):
        for name, value in values.items():
            if isinstance(value, np.random.Generator) and isinstance(vars(layer).get(name), np.random.Generator):
                vars(layer)[name].bit_generator.state = value.bit_generator.state  # others may refer to it
            else:
                vars(layer)[name] = value
    if engine:
        _put_engine(base, engine)


def _has_own(base: Any) -> bool:
    return inspect.ismethod(getattr(base, "save_state", None)) and inspect.ismethod(getattr(base, "load_state", None))


def _layers(env: Any) -> list[Any]:
    """The wrappers from the outermost in, and the environment."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _attributes(layer: Any) -> dict[str, Any]:
    """The plain attributes of a layer; whatever changes but cannot be written down is refused."""
    values = {}
    for name, value in vars(layer).items():
        if isinstance(value, _HARMLESS) or type(value).__module__.startswith(_HARMLESS_MODULES):
            continue
        try:
            _encode(value, [])
        except NotPlainError as error:
            if _only_settings(value):
                continue
            raise NotPlainError(f"{type(layer).__name__}.{name} ({error})") from error
        values[name] = value
    return values


def _only_settings(value: Any) -> bool:
    """Whether a container holds nothing but functions, spaces and the like."""
    if isinstance(value, dict):
        return all(_only_settings(item) for item in value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return all(_only_settings(item) for item in value)
    return isinstance(value, (*_HARMLESS, str, int, float, type(None))) or type(value).__module__.startswith(
        _HARMLESS_MODULES
    )


# -- simulators ------------------------------------------------------------------------------------


def _engine(base: Any) -> dict[str, Any]:
    if hasattr(base, "ale"):
        return {"ale": base.ale.cloneState(include_rng=True).serialize()}
    if hasattr(base, "data") and hasattr(base, "model") and type(base.data).__name__ == "MjData":
        import mujoco

        kind = mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.zeros(mujoco.mj_stateSize(base.model, kind))
        mujoco.mj_getState(base.model, base.data, state, kind)
        derived = {name: np.array(getattr(base.data, name)) for name in _DERIVED if hasattr(base.data, name)}
        return {"mujoco": state, "derived": derived}
    return {}


def _put_engine(base: Any, engine: dict[str, Any]) -> None:
    if "ale" in engine:
        from ale_py import ALEState

        base.ale.restoreState(ALEState(engine["ale"]))
    if "mujoco" in engine:
        import mujoco

        mujoco.mj_setState(base.model, base.data, engine["mujoco"], mujoco.mjtState.mjSTATE_INTEGRATION)
        for name, value in engine["derived"].items():
            getattr(base.data, name)[...] = value


# -- values ----------------------------------------------------------------------------------------


def _encode(value: Any, blobs: list[bytes]) -> Any:
    """A value as JSON; arrays and bytes go to `blobs`, one after the other."""
    if value is None or type(value) in (bool, int, float, str):
        finite = type(value) is not float or math.isfinite(value)
        return value if finite else {"float": str(value)}  # environments may keep infinities, JSON may not
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biufcSU":
        array = np.asarray(value)
        start = sum(map(len, blobs))
        blobs.append(array.tobytes())
        return {"array": [array.dtype.str, list(array.shape), start], "scalar": isinstance(value, np.generic)}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if type(value) in (list, tuple):
        items = [_encode(item, blobs) for item in value]
        return items if type(value) is list else {"tuple": items}
    if type(value) is dict:
        return {"dict": [[_encode(key, blobs), _encode(item, blobs)] for key, item in value.items()]}
    if isinstance(value, np.random.Generator):
        kind = type(value.bit_generator).__name__
        return {"generator": _encode(value.bit_generator.state, blobs), "kind": kind}
    raise NotPlainError(type(value).__name__)


def _decode(value: Any, blobs: memoryview) -> Any:
    result: Any = value
    match value:
        case list():
            result = [_decode(item, blobs) for item in value]
        case {"array": [kind, shape, start], "scalar": scalar}:
            dtype = np.dtype(kind)
            size = dtype.itemsize * int(np.prod(shape))
            array = np.frombuffer(blobs[start : start + size], dtype).reshape(shape).copy()
            result = array[()] if scalar else array
        case {"float": text}:
            result = float(text)
        case {"bytes": text}:
            result = base64.b64decode(text)
        case {"tuple": items}:
            result = tuple(_decode(item, blobs) for item in items)
        case {"dict": pairs}:
            result = {_decode(key, blobs): _decode(item, blobs) for key, item in pairs}
        case {"generator": state, "kind": kind}:
            bits = getattr(np.random, kind)()
            bits.state = _decode(state, blobs)
            result = np.random.Generator(bits)
    return result
