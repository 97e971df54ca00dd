"""Programs that correct what an agent with continuous actions does: offsets, gains, smoothing, a rhythm.

All but the last change nothing at the values with which they begin, so that a search starts from the agent itself.
Actuators of a group share their numbers (`ultra.analysts.posture.Group`); where a program would need more parameters
than are allowed, facts share one gain, then offsets are left out, then the least active actuators.
"""

from __future__ import annotations

from collections.abc import Sequence

from ultra.analysts.posture import Body, Group, Signal
from ultra.programs.records import MAX_PARAMETERS, Assignment, Parameter, Program, Register

OFFSET, GAIN, OWN = 0.5, 0.4, 0.6
"""Half widths of ranges: of an offset, in units of half an actuator's range; of a gain on a standardised fact, in the
same units; of a gain on the agent's own action."""
WEIGHT = 1.5
"""Half width of the range of a second fact's weight beside the first one's."""
STEPS_PER_TURN = (10, 200)
"""Fewest and most steps in which a rhythm repeats."""

_Changes = tuple[tuple[str, str], ...]


class Corrections:
    """Writes programs for a body."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._actions = [action.name for action in body.card.actions]
        self._taken = {*self._actions, *body.card.fact_names}

    def own_action(self, *, clipped: bool) -> Program:
        """A gain on the agent's own action, before it is clipped to its bounds or after, and an offset."""
        groups, offsets, _ = self._layout(1)
        parameters: list[Parameter] = []
        terms: dict[str, list[str]] = {}
        for group in groups:
            gain = self._named("gain", group)
            parameters.append(Parameter(gain, *((1.0, 1 - OWN, 1 + OWN) if clipped else (0.0, -OWN, OWN))))
            low, high = self._body.bounds(group)
            for name in self._members(group):
                own = f"clip(agent({name}), {low:g}, {high:g})" if clipped else f"agent({name})"
                terms[name] = [f"{gain} * {own}"]
        parameters += self._with_offsets(groups if offsets else (), terms)
        rule = Assignment(set=_sums(terms)) if clipped else Assignment(add=_sums(terms))
        words = f"scales the agent's own action {'after' if clipped else 'before'} it is clipped to its bounds"
        return Program("own_clipped" if clipped else "own_scaled", (rule,), words, tuple(parameters))

    def offsets(self) -> Program:
        """An offset for each kind of actuator."""
        terms: dict[str, list[str]] = {}
        parameters = self._with_offsets(self._most_active(MAX_PARAMETERS), terms)
        return Program(
            "offsets", (Assignment(add=_sums(terms)),), "adds a constant to each kind of actuator", parameters
        )

    def feedback(self, name: str, signals: Sequence[Signal]) -> Program:
        """Gains on facts, and offsets."""
        groups, offsets, mixed = self._layout(len(signals))
        lets = [(self._free(f"x{place}"), str(signal)) for place, signal in enumerate(signals)]
        parameters, used = [], lets
        if mixed:
            weights = [self._free(f"weight_{signal.name}") for signal in signals[1:]]
            parameters += [Parameter(weight, 0.0, -WEIGHT, WEIGHT) for weight in weights]
            products = [f"{weight} * {x}" for weight, (x, _) in zip(weights, lets[1:], strict=True)]
            used = [(self._free("mixed"), " + ".join([lets[0][0], *products]))]
            lets = [*lets, *used]
        terms: dict[str, list[str]] = {}
        for group in groups:
            for place, (x, _) in enumerate(used):
                gain = self._named("gain" if len(used) == 1 else f"gain_{signals[place].name}", group)
                parameters.append(_around(gain, GAIN * group.unit))
                for action in self._members(group):
                    terms.setdefault(action, []).append(f"{gain} * {x}")
        parameters += self._with_offsets(groups if offsets else (), terms)
        words = f"feeds back {', '.join(signal.name for signal in signals)}"
        return Program(name, (Assignment(add=_sums(terms)),), words, tuple(parameters), let=tuple(lets))

    def phases(self, rate: str) -> Program:
        """Different offsets while a fact that rises and falls rises, and while it falls."""
        half = MAX_PARAMETERS // 2
        parameters, changes = [], []
        for group in self._most_active(half):
            up, down = self._named("rising", group), self._named("falling", group)
            parameters += [_around(up, OFFSET * group.unit), _around(down, OFFSET * group.unit)]
            changes += [(name, f"{up} if {rate} > 0 else {down}") for name in self._members(group)]
        words = f"one constant for each kind of actuator where {rate} is positive, another one where it is not"
        return Program("phases", (Assignment(add=tuple(changes)),), words, tuple(parameters))

    def joints(self) -> Program | None:
        """Stiffness and damping of the joints that the actuators move; None if no such facts are known."""
        found = [(group, [self._body.joint(column) for column in group.columns]) for group in self._body.groups]
        found = [(group, pairs) for group, pairs in found if all(speed is not None for _, speed in pairs)]
        stiff = 2 * len(found) <= MAX_PARAMETERS and all(place is not None for _, pairs in found for place, _ in pairs)
        found = found[: MAX_PARAMETERS // (2 if stiff else 1)]
        parameters: list[Parameter] = []
        terms: dict[str, list[str]] = {}
        for group, pairs in found:
            wanted = [("damping", 1), ("stiffness", 0)] if stiff else [("damping", 1)]
            signals = {what: self._body.signals([pair[part] for pair in pairs]) for what, part in wanted}
            for what, standardised in signals.items():
                if len(standardised) < len(pairs):  # one of them never changes
                    continue
                parameters.append(_around(self._named(what, group), GAIN * group.unit))
                for action, signal in zip(self._members(group), standardised, strict=True):
                    terms.setdefault(action, []).append(f"{self._named(what, group)} * {signal}")
        if not parameters:
            return None
        words = "changes the stiffness and the damping of the joints" if stiff else "changes the damping of the joints"
        return Program("joints", (Assignment(add=_sums(terms)),), words, tuple(parameters))

    def smoothing(self) -> Program:
        """The agent's own action, nearer to what it has done lately or farther from it."""
        groups = self._most_active(MAX_PARAMETERS - 1)
        keep = self._free("keep")
        parameters, terms, registers = [Parameter(keep, 0.6, 0.1, 0.95)], {}, []
        for group in groups:
            gain = self._named("smooth", group)
            parameters.append(Parameter(gain, 0.0, -OWN, 1.0))
            for name in self._members(group):
                lately = self._free(f"lately_{name}")
                registers.append(Register(lately, 0.0, f"{keep} * {lately} + (1 - {keep}) * agent({name})"))
                terms[name] = [f"{gain} * ({lately} - agent({name}))"]
        if 1 + 2 * len(groups) <= MAX_PARAMETERS:
            parameters += self._with_offsets(groups, terms)
        words = "moves actions toward their own average of the last steps, or away from it"
        return Program("smoothing", (Assignment(add=_sums(terms)),), words, tuple(parameters), memory=tuple(registers))

    def rhythm(self) -> Program:
        """A wave that runs through the actuators, in place of a part of what the agent does."""
        clock, rate, lag = self._free("wave"), self._free("wave_rate"), self._free("wave_lag")
        share, size = self._free("wave_share"), self._free("wave_size")
        fast, slow = (2 * 3.1416 / steps for steps in STEPS_PER_TURN)
        parameters = [
            Parameter(rate, (fast * slow) ** 0.5, slow, fast),
            Parameter(lag, 1.0, -3.1416, 3.1416),
            Parameter(share, 0.5, 0.0, 1.0),
            Parameter(size, 1.0, 0.0, 1.5),
        ]
        unit = self._body.groups[0].unit
        changes = [
            (name, f"{share} * ({unit * 1.0:g} * {size} * sin({clock} - {place} * {lag}) - agent({name}))")
            for place, name in enumerate(self._actions)
        ]
        words = "a wave that runs through the actuators, mixed with what the agent does"
        return Program("rhythm", (Assignment(add=tuple(changes)),), words, tuple(parameters), clocks=((clock, rate),))

    def _layout(self, facts: int) -> tuple[tuple[Group, ...], bool, bool]:
        """Groups that are changed, whether they get offsets, and whether facts are mixed into one signal."""
        groups = self._body.groups
        if len(groups) * (1 + facts) <= MAX_PARAMETERS:
            return groups, True, False
        if 2 * len(groups) + facts - 1 <= MAX_PARAMETERS:
            return groups, True, True
        return self._most_active(MAX_PARAMETERS - (facts - 1)), False, facts > 1

    def _most_active(self, most: int) -> tuple[Group, ...]:
        """The groups whose actuators the agent moves most, in the order of the actions."""
        groups = self._body.groups
        ranked = sorted(groups, key=lambda group: -group.activity)[:most]
        return tuple(group for group in groups if group in ranked)

    def _with_offsets(self, groups: Sequence[Group], terms: dict[str, list[str]]) -> tuple[Parameter, ...]:
        """Offsets as parameters, which are added to the terms of each action."""
        for group in groups:
            for name in self._members(group):
                terms.setdefault(name, []).append(self._named("offset", group))
        return tuple(_around(self._named("offset", group), OFFSET * group.unit) for group in groups)

    def _members(self, group: Group) -> list[str]:
        return [self._actions[column] for column in group.columns]

    def _named(self, what: str, group: Group) -> str:
        return self._free(f"{what}_{group.label}")

    def _free(self, name: str) -> str:
        """A name that no fact and no action has."""
        while name in self._taken:
            name += "_"
        return name


def _around(name: str, width: float) -> Parameter:
    return Parameter(name, 0.0, -width, width)


def _sums(terms: dict[str, list[str]]) -> _Changes:
    return tuple((name, " + ".join(parts)) for name, parts in terms.items())
