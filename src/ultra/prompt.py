"""What a language model is sent: the two prompts of the method, filled in from a run.

The prompts are the Markdown files in `ultra/prompts`. Equal runs give equal prompts, byte for byte.
"""

from __future__ import annotations

from pathlib import Path
from string import Template

from ultra.advice import CriticalState, load_states
from ultra.config import RefineConfig
from ultra.describe import count_tokens, describe_episode, describe_window
from ultra.errors import UltraError
from ultra.pipeline import task_of
from ultra.plans import MOST_CONTINUOUS_STEPS, MOST_DISCRETE_STEPS
from ultra.run import Run
from ultra.spaces import Discrete
from ultra.tasks import Task
from ultra.trajectories import Episodes, Trajectory

_FOLDER = Path(__file__).parent / "prompts"


def _fill(name: str, task: Task, values: dict[str, str]) -> str:
    """A prompt with the task's card and further values put in."""
    card = task.card
    facts = "\n".join(f"- {f.name}{f' [{f.unit}]' if f.unit else ''}: {f.meaning}" for f in card.facts)
    actions = "\n".join(f"- {action.name}: {action.meaning}" for action in card.actions)
    known = {
        "title": card.title,
        "goal": card.goal,
        "termination": card.termination,
        "reward": card.reward,
        "facts": facts,
        "actions": actions,
    }
    template = Template((_FOLDER / f"{name}.md").read_text(encoding="utf-8"))
    return template.substitute(known | values).strip()


def identify_prompt(task: Task, episode: Trajectory, count: int, tokens: int) -> str:
    """Stage 2a: an episode and the question for critical states, thinned to about `tokens` tokens in all."""
    around = count_tokens(_fill("identify", task, {"episode": "", "count": str(count)}))
    text = describe_episode(task, episode, tokens - around)
    return _fill("identify", task, {"episode": text, "count": str(count)})


def advise_prompt(task: Task, episode: Trajectory, states: list[CriticalState]) -> str:
    """Stage 2b: every step around the critical states of an episode, with the question for advice."""
    windows = "\n\n".join(
        f"## t = {state.t}: {state.explanation}\n\n{describe_window(task, episode, state.t)}" for state in states
    )
    if isinstance(task.action_space, Discrete):
        name = task.card.actions[-1].name
        form = f"A plan is a list of at most {MOST_DISCRETE_STEPS} steps, in segments of one action each."
        example = f'[{{"action": "{name}", "steps": 4}}]'
    else:
        form = (
            f"A plan is a list of segments, together at most {MOST_CONTINUOUS_STEPS} steps. Each segment holds a "
            "*change* of every action, which is added to what the agent itself does, so that its gait survives."
        )
        changes = ", ".join(["0.3", *["0.0"] * (task.action_space.size - 1)])
        example = f'[{{"action": [{changes}], "steps": 6}}]'
    summary = f"It lasted {len(episode)} steps with a return of {episode.total_reward:.2f}; {episode.end()}."
    return _fill("advise", task, {"summary": summary, "windows": windows, "form": form, "example": example})


def prompts_of_run(path: Path, episode: int, tokens: int) -> list[tuple[str, str]]:
    """The prompts for one collected episode of a run, with titles.

    Raises:
        UltraError: if there is no such episode; the number of episodes is named.
    """
    run = Run.open(path)
    run.require("round-1/collect", f"ultra collect {path}")
    config: RefineConfig = run.config
    task = task_of(config)
    folder = run.round(1)
    episodes = Episodes(folder / "trajectories")
    if not 0 <= episode < len(episodes):
        raise UltraError(f"--episode is {episode}, but {path} holds episodes 0 to {len(episodes) - 1}")
    found: Trajectory = episodes[episode]
    prompts = [("identify", identify_prompt(task, found, config.analyse.states, tokens))]
    if (folder / "states.jsonl").is_file():
        states = [state for state in load_states(folder / "states.jsonl") if state.episode == episode]
        if states:
            prompts.append(("advise", advise_prompt(task, found, sorted(states, key=lambda state: state.t))))
    return prompts
