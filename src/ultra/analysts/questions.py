"""The questions of the method, filled in from a run. Equal runs give equal questions, byte for byte.

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
from textwrap import shorten
from typing import Any

import numpy as np

from ultra.advice.records import Advice, CriticalState
from ultra.analysts.conversation import Question
from ultra.analysts.schema import advise_schema, identify_schema, programs_schema
from ultra.collection.describe import describe_episode, describe_outcome, describe_windows
from ultra.collection.effects import Effects, describe_effects
from ultra.collection.trajectories import Trajectory
from ultra.common.errors import UltraError
from ultra.common.files import to_json_text
from ultra.programs.expression import SYNTAX
from ultra.programs.records import LIMITS
from ultra.tasks import Task
from ultra.tasks.card import Fact
from ultra.tasks.plans import MOST_CONTINUOUS_STEPS, MOST_DISCRETE_STEPS
from ultra.tasks.spaces import Discrete

_FOLDER = Path(__file__).parent / "prompts"
_SPLIT = "<!-- episode -->"
_VERSION = "<!-- version: "

MOST_STATES = 6
"""Critical states that may be named in one episode."""
FAILED = 6
"""Pieces of failed advice that are shown."""
WINDOWS = 1.2
"""Length of the steps around critical states, as a multiple of an episode's text."""
LATER = "6"
"""Programs that are asked for in each later turn, at most."""
PROGRAMS = ((20, "3 to 5"), (100, "4 to 6"), (float("inf"), "6 to 10"))
"""Programs that are asked for where the steps of a turn last for fewer of the agent's episodes than so many."""
POTENTIALS = "3"
"""Potentials that are asked for, at most."""
SHARES = {"median": 0.6, "best": 0.4, "worst": 0.4}
"""Length of the episodes that are shown with the question for programs, as shares of an episode's text."""
EFFECTS_ARE_MEANS = (
    " (means over the states tried: small ones may be noise, the large ones count more than any assumption)"
)
"""Said before the measured effects of actions."""
EXPLAINED = 240
"""Characters of an explanation that are repeated."""


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
    verified: tuple[Advice, ...] = ()
    """Advice of this round that has been verified."""
    stuck: bool = False
    """Whether the policy no longer learns."""
    turns: int = 1
    """Turns of programs."""
    race_steps: int = 0
    """Environment steps for racing and tuning the programs of a turn; 0 if not known."""
    verify_steps: int = 0
    """Environment steps for verifying programs; 0 if not known."""

    @property
    def count(self) -> int:
        """Critical states to name in one episode: a few more than needed, the best are taken."""
        return min(MOST_STATES, 1 + math.ceil(self.states / self.episodes))


def identify_question(brief: Brief, index: int, episode: Trajectory) -> Question:
    """The critical states of an episode, thinned to the brief's tokens."""
    text = describe_episode(brief.task, episode, brief.tokens, brief.effects.split if brief.effects else None)
    values = {"episode": text, "count": str(brief.count), "case": worked_case(brief.task, 0)}
    return _question("identify", f"identify, episode {index}", brief, values, identify_schema())


def advise_question(brief: Brief, index: int, episode: Trajectory, states: Sequence[CriticalState]) -> Question:
    """Advice at all critical states of an episode, with the steps around them."""
    task = brief.task
    if isinstance(task.action_space, Discrete):
        plan, longest = [{"action": task.card.actions[-1].name, "steps": 4}], MOST_DISCRETE_STEPS
        form = (
            f"A plan is a list of segments, together at most {longest} steps; each segment names an action and the "
            "number of steps for which it is held. Afterwards the agent acts by itself."
        )
    else:
        plan, longest = [{"change": {task.card.actions[0].name: -0.3}, "steps": 6}], MOST_CONTINUOUS_STEPS
        form = (
            f"A plan is a list of segments, together at most {longest} steps; each segment holds *changes* of actions, "
            "which are added to what the agent itself does, so that its gait survives (actions that are not named stay "
            "as they are), and the number of steps. The sum is clipped to the bounds of the actions. Small changes "
            "often do more good than large ones; they may also be tried at half or twice their size. Afterwards the "
            "agent acts by itself."
        )
    values = {
        "summary": describe_outcome(task, episode, brief.effects.split if brief.effects else None),
        "states": "\n".join(f"- t = {state.t}: {state.explanation}" for state in states),
        "windows": describe_windows(task, episode, [state.t for state in states], longest, int(WINDOWS * brief.tokens)),
        "form": form,
        "plan": to_json_text(plan, "a plan"),
        "failed": _failed(brief),
        "case": worked_case(task, 1),
    }
    return _question("advise", f"advise, episode {index}", brief, values, advise_schema(task))


def programs_question(brief: Brief, episodes: Sequence[Trajectory], states: Sequence[CriticalState]) -> Question:
    """Programs and potentials for the whole policy: what it does, how it fails, and what programs can say."""
    discrete = isinstance(brief.task.action_space, Discrete)
    lasts = brief.race_steps / float(np.mean([len(episode) for episode in episodes]))
    values = {
        "language": _language(brief.task),
        "steps": _steps(brief, lasts),
        "acting": (
            "it samples its actions there too"
            if brief.task.sampled_evaluation
            else "it takes its most likely actions there, without exploration noise, so it may do better than in the "
            "episodes below"
        ),
        "stance": (
            "The agent is stuck and gets little: whole controllers that do the task by themselves are wanted most, "
            "beside a few corrections of what it does."
            if brief.stuck
            else "The agent does part of the task: corrections on top of it are wanted most (what it does well "
            "survives), and one or two whole controllers if you know how the task is done."
        ),
        "programs": next(words for most, words in PROGRAMS if lasts < most),
        "potentials": POTENTIALS,
        "effect": '"action": "..."' if discrete else '"set": {...} or "add": {...}',
        "states": _named(brief, states),
        "returns": _returns(episodes),
        "episodes": _episodes(brief, episodes),
    }
    return _question("programs", "programs", brief, values, programs_schema(brief.task))


def _language(task: Task) -> str:
    text = (_FOLDER / "language.md").read_text(encoding="utf-8")
    names = [action.name for action in task.card.actions]
    if isinstance(task.action_space, Discrete):
        values = {
            "acts": f'names the action that is taken: {{"when": "...", "action": "{names[-1]}"}}.',
            "order": "Where several hold, the last one counts; where none does, the agent's own action is taken.",
            "agent": f"1 if the agent itself chooses that action, else 0, for instance agent({names[-1]}); "
            f"{'it samples its actions' if task.sampled_evaluation else 'it takes its most likely action'}.",
        }
    else:
        values = {
            "acts": 'sets or changes actions: {"when": "...", "set": {action: expression}, '
            '"add": {action: expression}}.',
            "order": "`set` replaces an action; `add` adds to what stands by then: the agent's own action or "
            "what earlier rules made of it. Only at the very end are actions clipped to their bounds.",
            "agent": f"what the agent itself does: its most likely action, not clipped; here, say, agent({names[0]}).",
        }
    known = values | {"syntax": SYNTAX, "limits": LIMITS}
    return Template(text).substitute(known).strip()


def _cut(text: str) -> str:
    """An explanation in short, cut between words."""
    return shorten(text, EXPLAINED, placeholder=" ...")


def _steps(brief: Brief, lasts: float) -> str:
    limit = f"An episode lasts at most {brief.task.time_limit:,} steps."
    if not brief.race_steps:
        return limit
    verify = f", and {brief.verify_steps:,} to verify the best" if brief.verify_steps else ""
    turns = f" There are at most {brief.turns} turns." if brief.turns > 1 else ""
    long = f", as many as {lasts:,.0f} of the agent's episodes," if lasts >= 1 else ""
    return (
        f"The simulator has about {brief.race_steps:,} environment steps{long} to race and tune the programs of a turn"
        f"{verify}. {limit}{turns}"
    )


def _named(brief: Brief, states: Sequence[CriticalState]) -> str:
    """Critical states, and what became of advice at them."""
    found = {(item.state.episode, item.state.t): item for item in (*brief.failed, *brief.verified)}
    lines = []
    for state in states:
        line = f"- episode {state.episode}, t = {state.t}: {_cut(state.explanation)}"
        item = found.pop((state.episode, state.t), None)
        lines.append(line + (f" {_outcome(brief, item)}" if item is not None else ""))
    lines += [f"- {_cut(item.state.explanation)} {_outcome(brief, item)}" for item in list(found.values())[:FAILED]]
    return "\n".join(lines) or "None."


def _outcome(brief: Brief, item: Advice) -> str:
    """A piece of advice, and what verification found of it."""
    plan, found = brief.task.card.describe_plan(item.plan, brief.task.action_space), item.verification
    if found is None:
        return f"Advice: {plan}. Not tried."
    interval = f" [{found.low:+.3g}, {found.high:+.3g}]" if math.isfinite(found.low + found.high) else ""
    return (
        f"Advice: {plan}. Tried, {found.verdict}: it changed the discounted return by {found.advantage:+.3g}{interval} "
        f"over {found.pairs} paired branch{'es' * (found.pairs > 1)}."
    )


def _returns(episodes: Sequence[Trajectory]) -> str:
    returns = [episode.total_reward for episode in episodes]
    ended = sum(episode.terminated for episode in episodes)
    return (
        f"{len(episodes)} episodes, with exploration noise: return {np.mean(returns):.1f} in the mean (from "
        f"{min(returns):.1f} to {max(returns):.1f}), {np.mean([len(episode) for episode in episodes]):.0f} steps; "
        f"{ended} ended by the task's own rule."
    )


def _episodes(brief: Brief, episodes: Sequence[Trajectory]) -> str:
    """The median, the best and the worst episode, thinned; the worst alone would mislead."""
    order = sorted(range(len(episodes)), key=lambda index: episodes[index].total_reward)
    chosen = {"median": order[len(order) // 2], "best": order[-1], "worst": order[0]}
    parts, shown = [], set()
    for name, index in chosen.items():
        if index in shown:
            continue
        shown.add(index)
        split = brief.effects.split if brief.effects else None
        tokens = int(SHARES[name] * brief.tokens)
        text = describe_episode(brief.task, episodes[index], tokens, split, likely=True)
        parts.append(f"## Episode {index}, the {name} one (its columns of actions hold the most likely ones)\n\n{text}")
    return "\n\n".join(parts)


def _failed(brief: Brief) -> str:
    if not brief.failed:
        return ""
    lines = ["\n# Advice that was tried before and did not help\n"]
    lines += [f"- {_cut(item.state.explanation)} {_outcome(brief, item)}" for item in brief.failed[:FAILED]]
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
    known = {"task": task_text(brief), **values}
    version, instructions, prompt = _template(name)
    return Question(
        title=title,
        version=version,
        instructions=Template(instructions).substitute(known).strip(),
        prompt=Template(prompt).substitute(known).strip(),
        schema=schema,
    )


def task_text(brief: Brief) -> str:
    """What the task is about: its card, and what its actions do."""
    card = brief.task.card
    facts = _facts(card.facts)
    parts = [
        f"# Task: {card.title}",
        f"Goal: {card.goal}",
        f"End of an episode: {card.termination}",
        f"Reward: {card.reward}",
        *([f"Body: {card.body}"] if card.body else []),
        "Facts, one column each in the tables, in this order (those that do not change in an episode are left out):\n"
        + "\n".join(facts),
        "Actions:\n" + "\n".join(f"- {action.name}: {action.meaning}" for action in card.actions),
        f"Measured effects of actions{EFFECTS_ARE_MEANS if brief.effects else ''}:\n{describe_effects(brief.effects)}",
    ]
    return "\n\n".join(parts)


def _facts(facts: Sequence[Fact]) -> list[str]:
    """A line for each fact; velocities of joints that stand side by side share one."""
    lines: list[str] = []
    names = {fact.name for fact in facts}
    speeds: list[str] = []
    for fact in (*facts, None):
        angle = fact.name.removesuffix("_velocity") + "_angle" if fact else ""
        if fact is not None and fact.unit == "rad/s" and angle in names and angle != f"{fact.name}_angle":
            speeds.append(fact.name)
            continue
        if speeds:
            lines.append(f"- {', '.join(speeds)} [rad/s]: turning of these joints")
            speeds = []
        if fact is not None:
            lines.append(f"- {fact.name}{f' [{fact.unit}]' if fact.unit else ''}: {fact.meaning}")
    return lines


def worked_case(task: Task, part: int) -> str:
    """The example of good reasoning: the card's own text, a shipped one by its name, or the general one.

    Args:
        task: whose card may name one.
        part: line of a shipped case: 0 for finding critical states, 1 for the analysis of cases.

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
    lines = path.read_text(encoding="utf-8").strip().splitlines()
    return "\n".join(lines) if part and len(lines) > 1 else lines[0]
