"""Export of a policy, with its programs, as one Python module that needs NumPy alone."""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ultra.common.errors import PolicyError, UltraError
from ultra.common.files import to_json_text, write_atomically
from ultra.policies.acting import check_observed
from ultra.policies.policy import Policy
from ultra.programs.compiled import Compiled
from ultra.programs.tape import Tape
from ultra.tasks.sources import parse_source
from ultra.tasks.spaces import Discrete, mixing

_PLACE = 'DATA = ""'


class ExportError(UltraError):
    """A policy or a program that cannot be exported; the message says why."""


def export_standalone(path: Path, policy: Policy) -> None:
    """Write a module with a class `Policy` of `reset()` and `act(observation)`, for most likely actions.

    Args:
        path: of the module.
        policy: of fully connected layers, perhaps with programs whose facts can be read off the observation.

    Raises:
        ExportError: if the network is of another kind, or a fact that a program needs cannot be read.
        UltraError: if the file cannot be written.
    """
    write_atomically(path, standalone_source(policy).encode())


def standalone_source(policy: Policy) -> str:
    """The module's text.

    Raises:
        ExportError: if the network is of another kind, or a fact that a program needs cannot be read.
    """
    shape = policy.architecture
    if shape.image is not None:
        raise ExportError("a policy of images is no module of NumPy alone: only fully connected networks are exported")
    try:
        check_observed(policy)
    except PolicyError as error:
        raise ExportError(f"cannot be exported as a module: {error}") from None
    space = shape.action_space
    layers = [*policy.params.get("shared", []), *policy.params["actor"]]
    shift, factor, clip = policy.normalizer.arrays()
    arrays: dict[str, Any] = {"shift": shift, "factor": factor, "clip": clip}
    for number, layer in enumerate(layers):
        arrays |= {f"w{number}": np.asarray(layer["w"]), f"b{number}": np.asarray(layer["b"])}
    form: dict[str, Any] = {"activation": shape.activation, "layers": len(layers), "choices": []}
    if isinstance(space, Discrete):
        form |= {"choices": list(space.choices) or [space.n], "n": space.n}
        if space.parts:
            arrays["mixing"] = mixing(space.parts)
    else:
        arrays["low"], arrays["high"] = space.bounds
    form["sources"] = _add_readings(policy, arrays)
    form["programs"] = []
    for number, controller in enumerate(policy.controllers):
        program = controller.program
        for name, tape in (("updates", program.updates), ("rules", program.rules)):
            arrays[f"{name}{number} numbers"] = _numbers(tape)
        arrays |= {f"settings{number}": controller.settings, f"starts{number}": program.starts}
        form["programs"].append(_program_form(program))
    arrays["form"] = np.array(to_json_text(form, "the program"))
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    text = base64.b64encode(file.getvalue()).decode()
    lines = "\n".join(f'    "{text[start : start + 100]}"' for start in range(0, len(text), 100))
    template = files("ultra.adoption").joinpath("standalone_policy.py").read_text(encoding="utf-8")
    return template.replace(_PLACE, f"DATA = (\n{lines}\n)", 1)


def _add_readings(policy: Policy, arrays: dict[str, Any]) -> list[Any]:
    """Put the weighted sums that are facts into the arrays; returns columns and forms of those that are expressions."""
    attached, size = policy.attached, policy.architecture.observation_size
    names = attached.facts if attached else ()
    arrays |= {"reading": np.zeros((size, len(names))), "constants": np.zeros(len(names))}
    sources: list[Any] = []
    readings = attached.observed.readings if attached and attached.observed else {}
    for column, name in enumerate(names):
        reading = readings.get(name)
        if reading is None:
            continue
        if reading.source:
            sources.append([column, parse_source(reading.source, size)])
        else:
            arrays["reading"][:, column], arrays["constants"][column] = reading.weights, reading.constant
    return sources


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
