"""Programs checked against a task and turned into instructions for a whole batch."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property, partial

import numpy as np
from numpy.typing import NDArray

from ultra.programs.expression import ExpressionError, Reader
from ultra.programs.records import MAX_INSTRUCTIONS, Assignment, Potential, Program, ProgramError
from ultra.programs.tape import AGENT, CLOCKS, FACTS, MEMORY, PREVIOUS, SETTINGS, START, Instruction, Tape
from ultra.tasks.plans import Plan
from ultra.tasks.spaces import ActionSpace, Discrete

_WORD = re.compile(r"\w+")

MIN_PLAN = 32
"""Room for the steps of a plan; longer plans get twice as much, or four times."""


@dataclass(frozen=True)
class Effect:
    """One assignment to one action."""

    when: int
    """Place of the condition."""
    column: int
    """Of a continuous action. Of a discrete one: the part that is chosen, or -1 for the whole action."""
    value: int
    """Place of the number."""
    adds: bool = False


@dataclass(frozen=True, eq=False)
class Compiled:
    """Programs that are followed together, one after the other, as instructions.

    Attributes:
        programs: as they were written; empty for one that is made of plans.
        space: of the actions.
        settings: (n_settings,) the parameters' values, program after program.
        updates: instructions that advance clocks and memory.
        clocks, memory: places of their changes and new values in `updates`.
        starts: (n_registers,) of the memory.
        rules: instructions of guards and values.
        effects: assignments, in order.
    """

    programs: tuple[Program, ...]
    space: ActionSpace
    settings: NDArray[np.float64]
    updates: Tape
    clocks: tuple[int, ...]
    memory: tuple[int, ...]
    starts: NDArray[np.float64]
    rules: Tape
    effects: tuple[Effect, ...]

    def reads(self, source: int) -> frozenset[int]:
        """Columns of one of the frame's arrays that anything in it reads."""
        return self.updates.reads(source) | self.rules.reads(source)

    @property
    def facts(self) -> frozenset[int]:
        """Columns of the facts that it needs, now, before or at the start."""
        return self.reads(FACTS) | self.reads(PREVIOUS) | self.reads(START)

    @cached_property
    def reads_agent(self) -> bool:
        """Whether what it does depends on what the agent itself does, beyond adding to it."""
        return bool(self.reads(AGENT))


def compile_programs(
    programs: Sequence[Program], facts: Sequence[str], actions: Sequence[str], space: ActionSpace
) -> Compiled:
    """Check programs against a task, and turn them into instructions.

    Args:
        programs: followed together, in this order.
        facts: names of the task's facts.
        actions: names of its actions: one for each dimension, or for each discrete action.
        space: of the actions.

    Raises:
        ProgramError: naming the program, the place in it, the value, and what would be right.
    """
    updates, rules = Tape(), Tape()
    clocks: list[int] = []
    memory: list[int] = []
    effects: list[Effect] = []
    settings = registers = 0
    for program in programs:
        try:
            _check_names(program, facts)
            before = len(updates) + len(rules)
            offsets = settings, len(clocks), registers
            for name in _names(Tape(), program, facts, actions, offsets).values():
                name()  # lets are checked, used or not
            reader = Reader(updates, facts, actions, _names(updates, program, facts, actions, offsets))
            advances = [reader.number(text, f"clocks.{name}") for name, text in program.clocks]
            values = [reader.number(item.update, f"memory.{item.name}.update") for item in program.memory]
            reader = Reader(rules, facts, actions, _names(rules, program, facts, actions, offsets))
            for place, rule in enumerate(program.rules):
                effects += _effects(rule, f"rules[{place}]", reader, actions, space)
            if len(updates) + len(rules) - before > MAX_INSTRUCTIONS:
                raise ProgramError(f"needs more than {MAX_INSTRUCTIONS} operations: simplify it")
        except (ExpressionError, ProgramError) as error:
            raise ProgramError(f"program {program.name!r}, {error}") from None
        clocks += advances
        memory += values
        settings += len(program.parameters)
        registers += len(program.memory)
    return Compiled(
        programs=tuple(programs),
        space=space,
        settings=np.array([value for program in programs for value in program.values]),
        updates=updates,
        clocks=tuple(clocks),
        memory=tuple(memory),
        starts=np.array([item.start for program in programs for item in program.memory]),
        rules=rules,
        effects=tuple(effects),
    )


def _check_names(program: Program, facts: Sequence[str]) -> None:
    known = set(facts)
    named = [("parameters", [p.name for p in program.parameters]), ("clocks", [name for name, _ in program.clocks]),
             ("memory", [r.name for r in program.memory]), ("let", [name for name, _ in program.let])]  # fmt: skip
    for part, names in named:
        for name in names:
            if name in known:
                raise ProgramError(f"{part}.{name} has the name of a fact: choose another")


def _names(
    tape: Tape, program: Program, facts: Sequence[str], actions: Sequence[str], offsets: tuple[int, int, int]
) -> dict[str, Callable[[], int]]:
    """What makes the instructions of each of a program's names, when it is first used."""
    groups = ([p.name for p in program.parameters], [n for n, _ in program.clocks], [r.name for r in program.memory])
    names: dict[str, Callable[[], int]] = {
        name: partial(tape.read, source, column)
        for source, offset, group in zip((SETTINGS, CLOCKS, MEMORY), offsets, groups, strict=True)
        for column, name in enumerate(group, start=offset)
    }
    lets: dict[str, Callable[[], int]] = {}
    for name, text in program.let:  # each sees those before it
        words = set(_WORD.findall(unicodedata.normalize("NFKC", text)))  # as Python's parser reads names
        within = Reader(tape, facts, actions, names | lets)
        lets[name] = cache(partial(_let, within, name, text, [lets[word] for word in sorted(words & lets.keys())]))
    return names | lets


def _let(reader: Reader, name: str, text: str, uses: Sequence[Callable[[], int]]) -> int:
    """The place of a let. Those that it uses come first: read while it is read, a chain of them would nest deeply."""
    for use in uses:
        use()
    return reader.value(text, f"let.{name}")


def _effects(rule: Assignment, where: str, reader: Reader, actions: Sequence[str], space: ActionSpace) -> list[Effect]:
    when = reader.condition(rule.when, f"{where}.when")
    if isinstance(space, Discrete):
        if rule.set or rule.add:
            raise ProgramError(
                f"{where} sets numbers, but actions are discrete: give `action`, one of {_some(actions)}"
            )
        choices = _choices(rule.action, where, actions, space)
        return [Effect(when, part, reader.tape.number(float(choice))) for part, choice in choices]
    if rule.action:
        raise ProgramError(f"{where} names an action, but actions are numbers: give `set` or `add`")
    effects = []
    for kind, part in (("set", rule.set), ("add", rule.add)):
        for name, text in part:
            if name not in actions:
                raise ProgramError(f"{where}.{kind}: {name!r} is not an action: actions are {_some(actions)}")
            value = reader.number(text, f"{where}.{kind}.{name}")
            effects.append(Effect(when, list(actions).index(name), value, adds=kind == "add"))
    return effects


def _choices(
    action: str | tuple[tuple[str, int], ...], where: str, actions: Sequence[str], space: Discrete
) -> list[tuple[int, int]]:
    """Part and choice of each discrete action that a rule takes; part -1 for a whole action."""
    if isinstance(action, str):
        found = [number for number, name in enumerate(actions) if name.lower() == action.lower()]
        if not found:
            raise ProgramError(f"{where}.action: {action!r} is not an action: actions are {_some(actions)}")
        return [(-1, found[0])]
    parts = {f"choice{k}": (k, count) for k, count in enumerate(space.choices)}
    choices = []
    for name, choice in action:
        if name not in parts:
            raise ProgramError(f"{where}.action: {name!r} is not a part of the action: parts are {_some(list(parts))}")
        part, count = parts[name]
        if not 0 <= choice < count:
            raise ProgramError(f"{where}.action.{name} is {choice}, not one of 0 to {count - 1}")
        choices.append((part, choice))
    return choices


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:24]) + (", ..." if len(names) > 24 else "") if names else "none"


@cache
def compile_plan(length: int, space: ActionSpace) -> Compiled:
    """Plans of at most `length` steps that begin at once, as a program whose settings are their actions.

    One program serves all plans, however different: they differ in their settings alone (`Controller.of_plan`).
    """
    updates, rules = Tape(), Tape()
    step = updates.add(Instruction("+", (updates.read(MEMORY, 0), updates.number(1.0))))
    position = rules.read(MEMORY, 0)
    width = 1 if isinstance(space, Discrete) else space.size
    relative = rules.add(Instruction(">", (rules.read(SETTINGS, 0), rules.number(0.0))))
    absolute = rules.add(Instruction("not", (relative,)))
    effects = []
    for column in range(width):
        value = rules.add(Instruction("setting", (position,), table=(1 + column, length, width)))
        if isinstance(space, Discrete):
            effects.append(Effect(absolute, -1, value))
        else:
            effects += [Effect(absolute, column, value), Effect(relative, column, value, adds=True)]
    settings = np.full(1 + length * width, np.nan)
    settings[0] = 0.0
    return Compiled((), space, settings, updates, (), (step,), np.zeros(1), rules, tuple(effects))


@dataclass(frozen=True, eq=False)
class Controller:
    """A program with values for its parameters."""

    program: Compiled
    settings: NDArray[np.float64]
    """(n_settings,)"""

    @classmethod
    def of(cls, program: Compiled) -> Controller:
        """The program with its own values."""
        return cls(program, program.settings)

    @classmethod
    def of_plan(cls, plan: Plan, space: ActionSpace, strength: float = 1.0) -> Controller:
        """A plan that begins at once, its changes (if it is relative) scaled by `strength`."""
        program = compile_plan(max(MIN_PLAN, 1 << (len(plan) - 1).bit_length()), space)
        settings = program.settings.copy()
        steps = plan.expand().astype(np.float32)
        if plan.relative:
            steps = steps * np.float32(strength)
        settings[0] = float(plan.relative)
        settings[1 : 1 + steps.size] = steps.ravel()
        return cls(program, settings)


@dataclass(frozen=True, eq=False)
class CompiledPotential:
    """A potential that was checked against a task."""

    potential: Potential
    tape: Tape
    place: int


def compile_potential(potential: Potential, facts: Sequence[str]) -> CompiledPotential:
    """Check a potential against a task.

    It may read the present facts alone: a shaped reward leaves the best policy unchanged only if the potential is a
    function of the state.

    Raises:
        ProgramError: naming the potential, the part that is not allowed, and what is.
    """
    tape = Tape()
    try:
        place = Reader(tape, facts).number(potential.expression, "expression")
        if tape.reads(PREVIOUS) or tape.reads(START):
            raise ProgramError("expression looks back: a potential may read the present facts only")
    except (ExpressionError, ProgramError) as error:
        raise ProgramError(f"potential {potential.name!r}, {error}") from None
    return CompiledPotential(potential, tape, place)
