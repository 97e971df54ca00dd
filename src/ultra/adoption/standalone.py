"""Export of a policy, with its program, as one Python module that needs NumPy alone."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.adoption.reading import Reading
from ultra.common.errors import UltraError
from ultra.common.files import to_json_text, write_atomically
from ultra.policies.policy import Policy
from ultra.programs.compiled import Compiled, Controller
from ultra.programs.expression import Tape
from ultra.tasks.batch import Facts, Observations
from ultra.tasks.spaces import Discrete, mixing

_PLACE = 'DATA = ""'


class ExportError(UltraError):
    """A policy or a program that cannot be exported; the message says why."""


def export_standalone(
    path: Path, policy: Policy, controller: Controller | None = None, reading: Reading | None = None
) -> None:
    """Write a module with a class `Policy` of `reset()` and `act(observation)`, for most likely actions.

    Args:
        path: of the module.
        policy: of fully connected layers.
        controller: a program that is followed on top of the policy.
        reading: of the facts from the task's observations; `observation_reading` makes one.

    Raises:
        ExportError: if the network is of another kind, or a fact that the program needs cannot be read.
        UltraError: if the file cannot be written.
    """
    write_atomically(path, standalone_source(policy, controller, reading).encode())


def observation_reading(
    names: tuple[str, ...], observations: Observations, facts: Facts, episodes: NDArray[np.int64] | None = None
) -> Reading:
    """How facts are read off observations as the task gives them.

    Args:
        names: of the facts.
        observations: (n, observation_size) of visited states.
        facts: (n, n_facts) of the same states.
        episodes: (n,) the number of each state's episode; None if that is not known.

    Raises:
        ReadingError: if there are too few states.
    """
    return Reading(observations.astype(np.float64), facts, names, episodes)


def standalone_source(policy: Policy, controller: Controller | None = None, reading: Reading | None = None) -> str:
    """The module's text.

    Raises:
        ExportError: if the network is of another kind, or a fact that the program needs cannot be read.
    """
    shape = policy.architecture
    if shape.image is not None:
        raise ExportError("a policy of images is no module of NumPy alone: only fully connected networks are exported")
    space = shape.action_space
    layers = [*policy.params.get("shared", []), *policy.params["actor"]]
    shift, factor, clip = policy.normalizer.arrays()
    arrays: dict[str, Any] = {"shift": shift, "factor": factor, "clip": clip}
    for number, layer in enumerate(layers):
        arrays |= {f"w{number}": np.asarray(layer["w"]), f"b{number}": np.asarray(layer["b"])}
    form: dict[str, Any] = {"activation": shape.activation, "layers": len(layers), "choices": [], "program": None}
    if isinstance(space, Discrete):
        form |= {"choices": list(space.choices) or [space.n], "n": space.n}
        if space.parts:
            arrays["mixing"] = mixing(space.parts)
    else:
        arrays["low"], arrays["high"] = space.bounds
    if controller is not None:
        arrays |= _program_arrays(controller, reading, shape.observation_size)
        form["program"] = _program_form(controller.program)
    arrays["form"] = np.array(to_json_text(form, "the program"))
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    text = base64.b64encode(file.getvalue()).decode()
    lines = "\n".join(f'    "{text[start : start + 100]}"' for start in range(0, len(text), 100))
    template = files("ultra.adoption").joinpath("standalone_policy.py").read_text(encoding="utf-8")
    return template.replace(_PLACE, f"DATA = (\n{lines}\n)", 1)


def _program_arrays(controller: Controller, reading: Reading | None, size: int) -> dict[str, Any]:
    """Numbers of a program, and how the facts that it needs are read."""
    program = controller.program
    needed = sorted(program.facts)
    if needed and reading is None:
        raise ExportError("the program reads facts: give the reading of facts from observations")
    arrays: dict[str, Any] = {"reading": np.zeros((size, 0)), "constants": np.zeros(0)}
    if reading is not None:
        hidden = [reading.names[column] for column in needed if not reading.readable[column]]
        if hidden:
            raise ExportError(
                f"the program reads facts that are no affine function of the observation: {', '.join(hidden)}; distil "
                "it into the policy's network instead"
            )
        arrays = {"reading": reading.weights, "constants": reading.constants}
    tapes = {
        f"{name} numbers": _numbers(tape) for name, tape in (("updates", program.updates), ("rules", program.rules))
    }
    return arrays | tapes | {"settings": controller.settings, "starts": program.starts}


def _numbers(tape: Tape) -> NDArray[np.float64]:
    return np.array([item.value for item in tape.instructions], np.float64)


def _program_form(program: Compiled) -> dict[str, Any]:
    """A program's instructions as plain JSON values, but for its numbers."""

    def plain(tape: Tape) -> list[Any]:
        return [[i.operation, i.operands, i.source, i.column, i.table] for i in tape.instructions]

    return {
        "updates": plain(program.updates),
        "rules": plain(program.rules),
        "clocks": program.clocks,
        "memory": program.memory,
        "effects": [[effect.when, effect.column, effect.value, effect.adds] for effect in program.effects],
    }
