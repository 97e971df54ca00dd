"""Estimated input tokens of language-model analysts, for every task: 20 episodes, all prompts.

    python benchmarks/prompt_tokens.py

Two critical states an episode are assumed. Pong and Hopper play the shipped policies, the others
untrained ones. "equal" is the part of both prompts that is equal for all episodes, which providers cache. The
question for programs comes once in a round. Prints a table in Markdown (docs/llm.md holds it).
"""

from __future__ import annotations

import numpy as np

from ultra.advice.records import CriticalState
from ultra.analysts.questions import Brief, advise_question, identify_question, programs_question
from ultra.collection.collect import collect
from ultra.collection.describe import count_tokens
from ultra.collection.effects import measure
from ultra.config import LLMConfig
from ultra.policies.io import SHIPPED, load_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks import get_task

EPISODES = 20
LONGEST = {"pong": 1000}
"""Pong is cut, as a collection with a share of the budget does."""


def main() -> None:
    print(
        "| task | steps an episode | identify | advise | an episode | equal | 20 episodes | programs | effects: steps |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name in ("pong", "hopper", "walker2d", "halfcheetah", "reacher"):
        task = get_task(name)
        shipped = SHIPPED / name
        architecture = Architecture(task.observation_size, task.action_space)
        policy = load_policy(shipped) if shipped.is_dir() else create_policy(architecture, np.random.default_rng(0))
        episodes = collect(task, policy, list(range(EPISODES)), 0.99, longest=LONGEST.get(name))
        effects = measure(task, policy, episodes, 10_000)
        brief = Brief(task, effects, 2 * EPISODES, EPISODES, LLMConfig().episode_tokens)
        identify, advise, equal, named = [], [], 0, []
        for index, episode in enumerate(episodes):
            steps = len(episode)
            text = "ball_dy +8 at ball_x 80, paddle_y 60: the agent held UP although the ball came in below it."
            states = [CriticalState(index, steps * part // 3, 0.5, text) for part in (1, 2)]
            asked = identify_question(brief, index, episode), advise_question(brief, index, episode, states)
            identify.append(count_tokens(asked[0].text))
            advise.append(count_tokens(asked[1].text))
            equal = sum(count_tokens(question.instructions) for question in asked)
            named += states
        length = np.mean([len(episode) for episode in episodes])
        each = np.mean(identify) + np.mean(advise)
        programs = count_tokens(programs_question(brief, episodes, named[:12]).text)
        print(
            f"| {name} | {length:.0f} | {np.mean(identify):,.0f} | {np.mean(advise):,.0f} | {each:,.0f} "
            f"| {equal:,} | {sum(identify) + sum(advise):,} | {programs:,} | {effects.cost if effects else 0} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
