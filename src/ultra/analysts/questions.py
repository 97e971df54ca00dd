"""The two questions of the method, filled in from a run. Equal runs give equal questions, byte for byte.

The prompts are the Markdown files in `ultra/analysts/prompts`: a version, the part that is equal for all
episodes (so that providers can cache it), and the part about one episode.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.conversation import Question
from ultra.analysts.schema import advise_schema, identify_schema
from ultra.collection.describe import describe_episode, describe_outcome, describe_window
from ultra.collection.effects import Effects, describe_effects
from ultra.collection.trajectories import Trajectory
from ultra.common.errors import UltraError
from ultra.common.files import to_json_text
from ultra.tasks import Task
from ultra.tasks.plans import MOST_CONTINUOUS_STEPS, MOST_DISCRETE_STEPS
from ultra.tasks.spaces import Discrete

_FOLDER = Path(__file__).parent / "prompts"
_SPLIT = "<!-- episode -->"
_VERSION = "<!-- version: "

MOST_STATES = 6
"""Critical states that may be named in one episode."""
RULES = 3
"""Rules that may be given for one episode."""
FAILED = 6
"""Pieces of failed advice that are shown."""


@dataclass(frozen=True)
class Brief:
    """What all questions of a round share."""

    task: Task
    effects: Effects | None
    states: int
    """Critical states wanted, over all episodes."""
    episodes: int
    tokens: int
    """Length of an episode's text."""
    failed: tuple[Advice, ...] = ()
    """Advice of the round before that did not help."""

    @property
    def count(self) -> int:
        """Critical states to name in one episode: a few more than needed, the best are taken."""
        return min(MOST_STATES, 1 + math.ceil(self.states / self.episodes))


def identify_question(brief: Brief, index: int, episode: Trajectory) -> Question:
    """The critical states of an episode, thinned to the brief's tokens."""
    text = describe_episode(brief.task, episode, brief.tokens)
    values = {"episode": text, "count": str(brief.count)}
    return _question("identify", f"identify, episode {index}", brief, values, identify_schema())


def advise_question(brief: Brief, index: int, episode: Trajectory, states: Sequence[CriticalState]) -> Question:
    """Advice at all critical states of an episode, with every step around them."""
    task = brief.task
    windows = "\n\n".join(
        f"## t = {state.t}: {state.explanation}\n\n{describe_window(task, episode, state.t)}" for state in states
    )
    if isinstance(task.action_space, Discrete):
        form = (
            f"A plan is a list of segments, together at most {MOST_DISCRETE_STEPS} steps; each segment names an "
            "action and the number of steps for which it is held. Afterwards the agent acts by itself."
        )
    else:
        form = (
            f"A plan is a list of segments, together at most {MOST_CONTINUOUS_STEPS} steps; each segment holds a "
            "*change* of every action, which is added to what the agent itself does, so that its gait survives "
            "(0 leaves it as it is), and the number of steps. Small changes often do more good than large ones."
        )
    fact = task.card.facts[0].name
    values = {
        "summary": describe_outcome(task, episode),
        "windows": windows,
        "form": form,
        "rules": str(RULES),
        "guard": f"{fact} > 0.5 and {fact} > prev({fact})",
        "failed": _failed(brief),
    }
    return _question("advise", f"advise, episode {index}", brief, values, advise_schema(task))


def _failed(brief: Brief) -> str:
    if not brief.failed:
        return ""
    lines = ["\n# Advice that was tried before and did not help\n"]
    for item in brief.failed[:FAILED]:
        found = item.verification
        plan = brief.task.card.describe_plan(item.plan, brief.task.action_space)
        outcome = "was not tried"
        if found is not None:
            outcome = (
                f"{found.verdict}: it changed the discounted return by {found.advantage:+.3g} "
                f"[{found.low:+.3g}, {found.high:+.3g}] over {found.pairs} paired branches"
            )
        lines.append(f"- {item.state.explanation[:240]} Advice: {plan}. Tried, {outcome}.")
    return "\n".join(lines) + "\n"


@cache
def _template(name: str) -> tuple[str, str, str]:
    """Version, instructions and prompt of a file."""
    text = (_FOLDER / f"{name}.md").read_text(encoding="utf-8")
    first, rest = text.split("\n", 1)
    instructions, prompt = rest.split(_SPLIT)
    return first.removeprefix(_VERSION).removesuffix(" -->"), instructions.strip(), prompt.strip()


def _question(name: str, title: str, brief: Brief, values: Mapping[str, str], schema: dict[str, Any]) -> Question:
    """A prompt with the task's card and further values put in."""
    card = brief.task.card
    facts = "\n".join(f"- {f.name}{f' [{f.unit}]' if f.unit else ''}: {f.meaning}" for f in card.facts)
    known = {
        "title": card.title,
        "goal": card.goal,
        "termination": card.termination,
        "reward": card.reward,
        "facts": facts,
        "actions": "\n".join(f"- {action.name}: {action.meaning}" for action in card.actions),
        "effects": describe_effects(brief.effects),
        "case": worked_case(brief.task),
        "schema": to_json_text(schema, "the schema", "compact"),
        **values,
    }
    version, instructions, prompt = _template(name)
    return Question(
        title=title,
        version=version,
        instructions=Template(instructions).substitute(known).strip(),
        prompt=Template(prompt).substitute(known).strip(),
        schema=schema,
    )


def worked_case(task: Task) -> str:
    """The example of good reasoning: the card's own text, a shipped one by its name, or the general one.

    Raises:
        UltraError: if the card names a case that does not ship.
    """
    wanted = task.card.worked_case or "general"
    if any(character.isspace() for character in wanted):
        return wanted
    path = _FOLDER / "cases" / f"{wanted}.md"
    if not path.is_file():
        known = ", ".join(sorted(found.stem for found in path.parent.glob("*.md")))
        raise UltraError(f"card {task.card.name!r}: worked_case {wanted!r} is neither a text nor one of {known}")
    return path.read_text(encoding="utf-8").strip()
