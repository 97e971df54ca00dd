"""A policy, perhaps with programs, that needs NumPy alone.

policy = Policy()
policy.reset()  # at the beginning of every episode
action = policy.act(observation)
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np

DATA = ""
"""Weights, statistics and instructions: a NumPy archive in base64, put here by the export."""

FACTS, PREVIOUS, START, AGENT, SETTINGS, CLOCKS, MEMORY = range(7)


def _fold(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*values: Any) -> Any:
        result = values[0]
        for value in values[1:]:
            result = function(result, value)
        return result

    return call


def _pick(index: Any, *options: Any) -> Any:
    place = np.floor(index)
    return options[int(place)] if 0 <= place < len(options) else np.float64(np.nan)


OPERATIONS: dict[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": lambda a, b: a != b and not np.isnan(a) and not np.isnan(b),
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.mod,
    "**": np.power,
    "abs": np.abs,
    "sign": np.sign,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "atan2": np.arctan2,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "log": np.log,
    "tanh": np.tanh,
    "floor": np.floor,
    "wrap": lambda a: np.mod(a + np.pi, 2 * np.pi) - np.pi,
    "clip": lambda a, low, high: np.minimum(np.maximum(a, low), high),
    "min": _fold(np.minimum),
    "max": _fold(np.maximum),
    "pick": _pick,
    "negative": np.negative,
    "and": np.logical_and,
    "or": np.logical_or,
    "not": np.logical_not,
    "if": lambda test, a, b: a if test else b,
    "as number": np.float64,
}
ACTIVATIONS: dict[str, Callable[..., Any]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "leaky_relu": lambda x: np.where(x >= 0, x, np.float32(0.01) * x),
}


class Policy:
    """Acts by its most likely actions, which programs may change."""

    def __init__(self) -> None:
        with np.load(io.BytesIO(base64.b64decode(DATA)), allow_pickle=False) as archive:
            self._arrays = dict(archive)
        self._form = json.loads(str(self._arrays["form"]))
        self._programs = [_Program(number, self._form, self._arrays) for number in range(len(self._form["programs"]))]
        self.reset()

    def reset(self) -> None:
        """Begin an episode."""
        for program in self._programs:
            program.fresh = True

    def act(self, observation: Any) -> Any:
        """The action for an observation: a float32 array inside the bounds, or the number of a discrete action.

        Raises:
            ValueError: if the observation has another number of entries.
        """
        observation = np.asarray(observation, np.float32).ravel()
        if observation.shape != self._arrays["shift"].shape:
            needed = self._arrays["shift"].size
            raise ValueError(f"the observation has {observation.size} entries, but the policy takes {needed}")
        with np.errstate(all="ignore"):
            action = self._own(observation)
            if self._programs:
                facts = self._facts(observation.astype(np.float64))
                for program in self._programs:
                    action = program.act(facts, action)
        if self._form["choices"]:
            return int(action)
        return np.minimum(np.maximum(action, self._arrays["low"]), self._arrays["high"])

    def _own(self, observation: Any) -> Any:
        """What the network does."""
        arrays = self._arrays
        x = np.clip((observation - arrays["shift"]) * arrays["factor"], -arrays["clip"], arrays["clip"])
        activation, layers = ACTIVATIONS[self._form["activation"]], self._form["layers"]
        for number in range(layers):
            x = x @ arrays[f"w{number}"] + arrays[f"b{number}"]
            if number < layers - 1:
                x = activation(x)
        if "mixing" in arrays:
            x = x @ arrays["mixing"]
        return int(np.argmax(x)) if self._form["choices"] else x

    def _facts(self, observation: Any) -> Any:
        """What programs read of the state."""
        facts = observation @ self._arrays["reading"] + self._arrays["constants"]
        for column, form in self._form["sources"]:
            facts[column] = _read(form, observation)
        return facts


def _read(form: Any, observation: Any) -> Any:
    """A fact by its expression over the observation."""
    if not isinstance(form, list):
        return np.float64(form)
    name, *operands = form
    if name == "obs":
        return observation[operands[0]]
    if name == "argmax":
        return np.float64(np.argmax(observation[operands[0] : operands[1]]))
    return OPERATIONS[name](*[_read(operand, observation) for operand in operands])


class _Program:
    """Follows programs, and keeps their clocks and memory."""

    def __init__(self, number: int, form: Any, arrays: Any) -> None:
        self._form, self._program, self.fresh = form, form["programs"][number], True
        self._numbers = {name: arrays[f"{name}{number} numbers"] for name in ("updates", "rules")}
        self._settings, self._starts = arrays[f"settings{number}"], arrays[f"starts{number}"]

    def act(self, facts: Any, action: Any) -> Any:
        """What becomes of the agent's own action."""
        program = self._program
        if self.fresh:
            self._start = self._previous = facts
            self._clocks, self._memory = np.zeros(len(program["clocks"])), self._starts.copy()
        agent = np.arange(self._form["n"]) == action if self._form["choices"] else action
        frame = [facts, self._previous, self._start, np.asarray(agent, np.float64), self._settings]
        if not self.fresh:
            values = self._run("updates", [*frame, self._clocks, self._memory])
            clocks = self._clocks + [values[place] for place in program["clocks"]]
            memory = np.array([values[place] for place in program["memory"]])
            self._clocks = np.where(np.isfinite(clocks), clocks, self._clocks)
            self._memory = np.where(np.isfinite(memory), memory, self._memory)
        self.fresh, self._previous = False, facts
        values = self._run("rules", [*frame, self._clocks, self._memory])
        return self._assigned(values, action)

    def _run(self, name: str, frame: list[Any]) -> list[Any]:
        """The value at every place of some instructions."""
        values: list[Any] = []
        for (operation, operands, source, column, table), number in zip(
            self._program[name], self._numbers[name], strict=True
        ):
            if source >= 0:
                values.append(frame[source][column])
            elif operation == "setting":
                place = np.floor(values[operands[0]])
                inside = 0 <= place < table[1]
                values.append(frame[SETTINGS][table[0] + int(place) * table[2]] if inside else np.float64(np.nan))
            elif operands:
                values.append(OPERATIONS[operation](*[values[operand] for operand in operands]))
            else:
                values.append(number if operation == "number" else operation == "true")
        return values

    def _assigned(self, values: list[Any], action: Any) -> Any:
        """The action after all assignments; what is no number is not done."""
        choices = self._form["choices"]
        done = action if choices else action.copy()
        for when, column, place, adds in self._program["effects"]:
            value = done[column] + values[place] if adds else values[place]
            if not values[when] or np.isnan(value):
                continue
            if not choices:
                done[column] = value
            elif column < 0:
                done = int(value)
            else:
                parts = list(np.unravel_index(done, choices))
                parts[column] = int(value)
                done = int(np.ravel_multi_index(parts, choices))
        return done
