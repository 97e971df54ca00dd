"""Faults of environments, named in one line: which environment, `reset` or `step`, and why."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ultra.common.errors import UltraError


class EnvironmentFault(UltraError):
    """An environment that does not keep to Gymnasium's interface, or whose own code failed."""


class Checked(gymnasium.Wrapper[Any, Any, Any, Any]):
    """An environment whose faults are named where they arise.

    Raises:
        EnvironmentFault: from `reset` and `step`, for what its code raises and for results that cannot be used.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self._name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        try:
            result = self.env.reset(seed=seed, options=options)
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{self._name}: reset failed: {_reason(error, 'reset')}") from error
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._fault("reset", f"returned {_kind(result)}, but must return the observation and a dict of info")
        self._check("reset", result[0])
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        try:
            result = self.env.step(action)
        except (Exception, SystemExit) as error:
            raise EnvironmentFault(f"{self._name}: step failed: {_reason(error, 'step')}") from error
        observation, terminated, truncated, info = result[0], *result[2:]
        reward: Any = result[1]
        self._check("step", observation)
        if np.ndim(reward) or not isinstance(reward, int | float | np.generic | np.ndarray):
            raise self._fault("step", f"returned {_short(reward)} as the reward, but must return a number")
        if not np.isfinite(reward):
            raise self._fault("step", f"returned a reward that is not finite: {reward}")
        for name, value in (("terminated", terminated), ("truncated", truncated)):
            if np.ndim(value) or not isinstance(value, bool | int | np.generic | np.ndarray):
                raise self._fault("step", f"returned {_short(value)} as `{name}`, but must return True or False")
        return observation, float(reward), bool(terminated), bool(truncated), info

    def _check(self, method: str, observation: Any) -> None:
        problem = _problem(self.env.observation_space, observation, "")
        if problem:
            raise self._fault(method, f"returned {problem}")

    def _fault(self, method: str, what: str) -> EnvironmentFault:
        return EnvironmentFault(f"{self._name}: {method} {what}")


def _problem(space: gymnasium.Space[Any], value: Any, key: str) -> str:
    """What is wrong with an observation, or a part of it; empty if nothing is."""
    whose = f"the observation's {key!r}" if key else "the observation"
    if isinstance(space, gymnasium.spaces.Box):
        return _problem_of_array(space, value, whose)
    if isinstance(space, gymnasium.spaces.Dict):
        if not isinstance(value, Mapping):
            return f"{_kind(value)} as {whose}, but must return a dict"
        missing = [name for name in space.spaces if name not in value]
        if missing:
            return f"an observation without {missing[0]!r}, which its space names"
        return next(filter(None, (_problem(part, value[name], name) for name, part in space.spaces.items())), "")
    choices = gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.MultiBinary
    if isinstance(space, choices) and not _inside(space, value):
        return f"{_short(value)} as {whose}, which is not in {' '.join(str(space).split())}"
    return ""


def _problem_of_array(space: gymnasium.spaces.Box, value: Any, whose: str) -> str:
    if not isinstance(value, np.ndarray | np.generic):
        return f"{_kind(value)} as {whose}, but must return an array: np.array(..., dtype=np.{space.dtype})"
    if value.dtype.kind not in "biuf":
        return f"{whose} as an array of {value.dtype}, but must return numbers"
    if value.shape != space.shape:
        return f"{whose} with shape {value.shape}, but its space says {space.shape}"
    return ""


def _inside(space: Any, value: Any) -> bool:
    """Whether a value can be flattened as one of a space; its type may be another one."""
    numbers = np.asarray(value)
    if numbers.dtype.kind not in "biuf" or numbers.shape != space.shape:
        return False
    if isinstance(space, gymnasium.spaces.MultiBinary):
        return bool(np.isin(numbers, (0, 1)).all())
    counts = space.n if isinstance(space, gymnasium.spaces.Discrete) else space.nvec
    return bool(((numbers >= space.start) & (numbers < space.start + counts)).all())


def check_finite(env: gymnasium.Env[Any, Any], method: str, observation: np.ndarray[Any, Any]) -> None:
    """Check a flattened observation.

    Raises:
        EnvironmentFault: naming the first entry that is not finite.
    """
    bad = np.flatnonzero(~np.isfinite(observation))
    if len(bad):
        name = env.spec.id if env.spec is not None else type(env.unwrapped).__name__
        raise EnvironmentFault(
            f"{name}: {method} returned an observation that is not finite: entry {bad[0]} is {observation[bad[0]]}"
        )


def _reason(error: BaseException, method: str) -> str:
    """Why a method failed, with the place in the environment's own code."""
    text = " ".join(str(error).split())
    if isinstance(error, SystemExit):
        why = f"it ended the program (sys.exit({text}))"
    elif isinstance(error, TypeError) and "unexpected keyword argument" in text and method == "reset":
        return f"{text}: write `def reset(self, *, seed=None, options=None)`"
    elif isinstance(error, ValueError) and text.startswith("not enough values to unpack (expected 5"):
        return f"it returned {text[-2]} values: observation, reward, terminated, truncated and info are needed"
    elif isinstance(error, ValueError) and text.startswith("too many values to unpack (expected 5"):
        return "it returned more than five values: observation, reward, terminated, truncated and info are needed"
    else:
        why = f"{type(error).__name__}: {text}" if text else type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if f"{gymnasium.__name__}/" not in Path(frame.filename).as_posix()]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if len(own) > 1 else ""
    told = "; it is given a seed and no options" if method == "reset" else ""
    return f"{why}{place}{told}"


def _kind(value: Any) -> str:
    known = {type(None): "nothing", np.ndarray: "an array", int: "an int"}
    name = known.get(type(value), f"a {type(value).__name__}")
    return f"{name} of {len(value)} values" if isinstance(value, list | tuple) else name


def _short(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}..."
