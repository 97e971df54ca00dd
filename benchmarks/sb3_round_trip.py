"""Policies of Stable-Baselines3 in, refined, and out again: what they score here and there on the same seeds.

    python benchmarks/sb3_round_trip.py [--policies FOLDER] [--out docs/results/sb3-round-trip.md]

Zips that others trained (a folder with hopper_*.zip and halfcheetah_*.zip, if there is one) and zips that
Stable-Baselines3 trains here for a moment are scored, refined with `search` at a small budget, exported with
`ultra export`, loaded in stock Stable-Baselines3 and scored there: ten episodes, seeds 0 to 9, the most likely
actions. Needs the extras `sb3` and `envs`.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ultra import api
from ultra.config import CollectConfig, EvaluateConfig, PPOConfig, RefineConfig
from ultra.evaluation.evaluate import evaluate
from ultra.pipeline.run import versions
from ultra.policies.io import load_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import Policy
from ultra.policies.sb3.exporting import export_policy
from ultra.tasks import Task, get_task

SEEDS = list(range(10))
PPO = PPOConfig(environments=8, rollout_steps=64)

TRAINED = {"CartPole-v1": 8_192, "Acrobot-v1": 30_000, "LunarLander-v3": 40_000}
"""Steps that Stable-Baselines3 trains with its defaults."""
GIVEN = {
    "hopper_sub_optimal": ("hopper", "Hopper-v5", "740 ± 31"),
    "hopper_near_optimal": ("hopper", "Hopper-v5", "2449 ± 507"),
    "halfcheetah_sub_optimal": ("halfcheetah", "HalfCheetah-v5", "507 ± 352"),
    "halfcheetah_near_optimal": ("halfcheetah", "HalfCheetah-v5", "2003 ± 185"),
}
"""Zips that others trained: our task, Gymnasium's id, and what they are known to score on the same seeds."""


@dataclass(frozen=True)
class Trip:
    """Returns (episodes,) of one policy."""

    name: str
    known: str
    """What the zip is known to score; empty if it was trained here."""
    start: Any
    """The zip, read by us and played here."""
    start_there: Any
    """The zip in stock Stable-Baselines3; exported by us first if it is too old to be read there."""
    here: Any
    """The refined policy, here."""
    there: Any
    """The refined policy, exported, in stock Stable-Baselines3."""

    def row(self) -> str:
        """A row of the table."""
        equal = f"{int((self.here == self.there).sum())} of {len(self.here)}"
        returns = map(spread, (self.start, self.start_there, self.here, self.there))
        return "| " + " | ".join([self.name, self.known, *returns, equal]) + " |"


def spread(returns: Any) -> str:
    """Mean and standard deviation over episodes."""
    return f"{np.mean(returns):.1f} ± {np.std(returns):.1f}"


def scored_there(zipped: Path, env_id: str) -> Any:
    """Returns of a zip in stock Stable-Baselines3, with the statistics that lie beside it."""
    model = stable_baselines3.PPO.load(zipped, device="cpu")
    env = gymnasium.make(env_id)
    statistics = zipped.with_name(f"{zipped.stem}_vecnormalize.pkl")
    normal = VecNormalize.load(str(statistics), DummyVecEnv([lambda: env])) if statistics.is_file() else None
    returns = []
    for seed in SEEDS:
        observation, _ = env.reset(seed=seed)
        total, done = 0.0, False
        while not done:
            seen = observation if normal is None else normal.normalize_obs(observation)
            action, _ = model.predict(seen, deterministic=True)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return np.array(returns)


def scored_here(task: Task, policy: Policy) -> Any:
    return evaluate(task, policy, SEEDS, workers=1)[1]


def trip(name: str, zipped: Path, env_id: str, steps: int, folder: Path, known: str = "") -> Trip:
    """One policy on its way; `name` is our task."""
    task, start = get_task(name), open_policy(zipped).policy
    there = export_policy(start, task, folder / f"start-{zipped.stem}.zip")[0] if known else zipped
    config = RefineConfig(
        task=name, policy=str(zipped), steps=steps, workers=1, ppo=PPO, collect=CollectConfig(episodes=3),
        evaluate=EvaluateConfig(episodes=5),
    )  # fmt: skip
    api.refine(config, folder / f"run-{zipped.stem}")
    last = load_policy(folder / f"run-{zipped.stem}" / "policy" / "last")
    exported = export_policy(last, task, folder / f"refined-{zipped.stem}.zip")[0]
    found = Trip(
        f"{env_id}, `{zipped.name}`", known, scored_here(task, start), scored_there(there, env_id),
        scored_here(task, last), scored_there(exported, env_id),
    )  # fmt: skip
    print(found.row(), flush=True)
    return found


def trips(steps: int, given: Path, folder: Path) -> list[Trip]:
    """All policies, those of others last."""
    found = []
    for env_id, trained in TRAINED.items():
        model = stable_baselines3.PPO("MlpPolicy", env_id, device="cpu", seed=0).learn(trained)
        zipped = folder / f"ppo_{env_id.partition('-')[0].lower()}.zip"
        model.save(zipped)
        found.append(trip(env_id, zipped, env_id, steps, folder))
    for stem, (name, env_id, known) in GIVEN.items():
        if (given / f"{stem}.zip").is_file():
            found.append(trip(name, given / f"{stem}.zip", env_id, steps, folder, known))
    return found


def page(found: list[Trip], command: str, seconds: float) -> str:
    """The table, with how it was made."""
    known = versions() | {"stable-baselines3": stable_baselines3.__version__}
    names = ("ultra-refine", "stable-baselines3", "gymnasium", "mujoco", "numpy")
    return "\n".join(
        [
            "# From Stable-Baselines3 and back",
            "",
            f"Made by `{command}` on {time.strftime('%Y-%m-%d')} in {seconds:.0f} s: one core ({platform.machine()}), "
            f"Python {known['python']}, {', '.join(f'{name} {known[name]}' for name in names)}.",
            "",
            "| policy | known | zip, here | zip, there | refined, here | refined, there | equal episodes |",
            "|---|---|---|---|---|---|---|",
            *[item.row() for item in found],
            "",
        ]
    )


def main() -> None:
    """Measure, print, and write the page's table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", type=Path, default=Path(__file__).parents[2] / "shared" / "policies")
    parser.add_argument("--steps", type=int, default=8_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        found = trips(options.steps, options.policies, Path(folder))
    text = page(found, f"python benchmarks/sb3_round_trip.py --steps {options.steps}", time.monotonic() - began)
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
