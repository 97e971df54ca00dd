"""Does ULTRA's PPO learn like that of Stable-Baselines3 with equal hyper-parameters?

    pip install "ultra-refine[sb3]"      (in a checkout: make install-sb3)
    python benchmarks/compare_with_sb3.py

Both train from scratch on the same tasks, each library, task and seed in a process of its own, one
after the other. A finished piece is kept in the CSV file and skipped when the command is given again;
delete the CSV after a change of settings. Table and chart are made of the CSV alone. What a person
wrote below the heading "Reading" of the Markdown file stays.
"""

from __future__ import annotations

import argparse
import csv
import io
import platform
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.speed import machine

from ultra.common.errors import UltraError
from ultra.common.files import write_atomically
from ultra.common.statistics import difference_interval
from ultra.config import PPOConfig
from ultra.ppo.rollout import RECENT_EPISODES

SETTINGS = PPOConfig(
    environments=8,
    rollout_steps=256,
    minibatch=64,
    epochs=10,
    learning_rate=3e-4,
    gamma=0.99,
    gae_lambda=0.95,
    clip=0.2,
    entropy=0.0,
    value=0.5,
    gradient_norm=0.5,
)
"""The one record from which both libraries take their hyper-parameters."""
HIDDEN = (64, 64)
EVALUATION_EPISODES = 20
ULTRA, SB3 = "ULTRA", "Stable-Baselines3"
LIBRARIES = (SB3, ULTRA)
COLOURS = {ULTRA: "#1f6fb4", SB3: "#d9772b"}
READING = "## Reading"
PACKAGES = ("jax", "numpy", "gymnasium", "mujoco", "torch", "stable-baselines3")


@dataclass(frozen=True)
class Contest:
    """One environment for both libraries."""

    env_id: str
    """Gymnasium's id; the final evaluation always runs there."""
    task: str
    """ULTRA's name for it."""
    rollouts: int
    """Length of the training, so that both take exactly the same number of steps."""

    @property
    def steps(self) -> int:
        """Environment steps of one training."""
        return self.rollouts * SETTINGS.samples


CONTESTS = (
    Contest("CartPole-v1", "CartPole-v1", 49),
    Contest("Hopper-v5", "hopper", 98),
    Contest("HalfCheetah-v5", "halfcheetah", 98),
)


class Row(NamedTuple):
    """A line of the CSV."""

    task: str
    library: str
    seed: int
    quantity: str
    """`return`: mean of the recent training episodes; `evaluation`: one final episode; `seconds`: of training."""
    steps: int
    value: float


Action = Callable[[NDArray[Any]], Any]
Curve = list[tuple[int, float]]


class Trained(NamedTuple):
    """What one training gave."""

    act: Action
    curve: Curve
    seconds: float


def train_ultra(contest: Contest, seed: int) -> Trained:
    """Train with ULTRA; observations and rewards are not normalised."""
    from ultra.policies.policy import Architecture, create_policy
    from ultra.ppo.train import Iteration, train
    from ultra.tasks import get_task

    curve: Curve = []

    def observe(iteration: Iteration) -> None:
        if iteration.returns:
            curve.append((iteration.steps, float(np.mean(iteration.returns))))

    began = time.perf_counter()
    task = get_task(contest.task)
    rng = np.random.default_rng(seed)
    policy = create_policy(Architecture(task.observation_size, task.action_space, HIDDEN), rng)
    policy = train(task, policy, SETTINGS, contest.steps, rng, learn_statistics=False, observer=observe)
    seconds = time.perf_counter() - began
    silence = np.zeros((1, task.action_space.size), np.float32)

    def act(observation: NDArray[Any]) -> Any:
        decision = policy.decide(observation[None].astype(np.float32), silence)
        return task.action_space.clip(decision.actions)[0]

    return Trained(act, curve, seconds)


def train_sb3(contest: Contest, seed: int) -> Trained:
    """Train with Stable-Baselines3, without VecNormalize.

    Raises:
        UltraError: if it is not installed.
    """
    try:
        import torch
        from stable_baselines3 import PPO
        from stable_baselines3.common.env_util import make_vec_env
    except ImportError as error:
        raise UltraError(
            f"{error.name} is not installed: run `make install-sb3`, or `pip install 'ultra-refine[sb3]'`"
        ) from error
    torch.set_num_threads(1)  # more threads slow down networks as small as these
    curve: Curve = []
    began = time.perf_counter()
    model: Any = PPO(
        "MlpPolicy",
        make_vec_env(contest.env_id, n_envs=SETTINGS.environments, seed=seed),
        n_steps=SETTINGS.rollout_steps,
        batch_size=SETTINGS.minibatch,
        n_epochs=SETTINGS.epochs,
        learning_rate=SETTINGS.learning_rate,
        gamma=SETTINGS.discount,
        gae_lambda=SETTINGS.gae_lambda,
        clip_range=SETTINGS.clip,
        ent_coef=SETTINGS.entropy,
        vf_coef=SETTINGS.value,
        max_grad_norm=SETTINGS.gradient_norm,
        normalize_advantage=True,
        stats_window_size=RECENT_EPISODES,
        policy_kwargs={
            "net_arch": {"pi": list(HIDDEN), "vf": list(HIDDEN)},
            "activation_fn": torch.nn.Tanh,
            "ortho_init": True,
            "optimizer_class": torch.optim.Adam,
            "optimizer_kwargs": {"eps": 1e-5},
        },
        seed=seed,
        device="cpu",
    )
    # Each call is one rollout and its update; environments and counters go on where they were.
    while model.num_timesteps < contest.steps:
        model.learn(SETTINGS.samples, reset_num_timesteps=False)
        if model.ep_info_buffer:
            curve.append((model.num_timesteps, float(np.mean([episode["r"] for episode in model.ep_info_buffer]))))
    seconds = time.perf_counter() - began
    model.env.close()
    return Trained(lambda observation: model.predict(observation, deterministic=True)[0], curve, seconds)


def play(env_id: str, act: Action, seeds: Iterable[int]) -> list[float]:
    """Returns of whole episodes in Gymnasium's own environment, one for each seed."""
    env = gymnasium.make(env_id)
    returns = []
    for seed in seeds:
        observation, _ = env.reset(seed=seed)
        total, over = 0.0, False
        while not over:
            observation, reward, terminated, truncated, _ = env.step(act(observation))
            total += float(reward)
            over = terminated or truncated
        returns.append(total)
    env.close()
    return returns


def piece(contest: Contest, library: str, seed: int) -> list[Row]:
    """One training and its evaluation, as rows of the CSV."""
    from ultra.evaluation.evaluate import evaluation_seeds

    trained = {ULTRA: train_ultra, SB3: train_sb3}[library](contest, seed)
    returns = play(contest.env_id, trained.act, evaluation_seeds(seed, EVALUATION_EPISODES))

    def row(quantity: str, steps: int, value: float) -> Row:
        return Row(contest.env_id, library, seed, quantity, steps, round(value, 3))

    return [
        *(row("return", steps, value) for steps, value in trained.curve),
        *(row("evaluation", contest.steps, value) for value in returns),
        row("seconds", contest.steps, trained.seconds),
    ]


def read(path: Path) -> list[Row]:
    """The rows of all finished pieces."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(line["task"], line["library"], int(line["seed"]), line["quantity"], int(line["steps"]),
                float(line["value"]))
            for line in csv.DictReader(file)
        ]  # fmt: skip


def write(path: Path, rows: list[Row]) -> None:
    """All rows, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


def run_missing(path: Path, contests: list[Contest], seeds: range) -> list[Row]:
    """Run what the CSV does not hold yet; libraries take turns, so that both see the same load of the machine."""
    rows = read(path)
    finished = {row[:3] for row in rows}
    for seed in seeds:
        for contest in contests:
            for library in LIBRARIES:
                if (contest.env_id, library, seed) in finished:
                    continue
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                    found = fresh.submit(piece, contest, library, seed).result()
                rows += found
                write(path, rows)
                evaluation = np.mean([row.value for row in found if row.quantity == "evaluation"])
                speed = contest.steps / found[-1].value
                print(
                    f"{contest.env_id:<12} {library:<18} seed {seed}: return {evaluation:7.1f}, {speed:6,.0f} steps/s",
                    flush=True,
                )
    return rows


def per_seed(rows: list[Row], task: str, library: str, quantity: str) -> dict[int, list[Row]]:
    """The rows of one quantity for each seed."""
    found: dict[int, list[Row]] = {}
    for row in rows:
        if (row.task, row.library, row.quantity) == (task, library, quantity):
            found.setdefault(row.seed, []).append(row)
    return found


def figures(rows: list[Row], task: str, library: str) -> dict[str, list[float]]:
    """The three measures of a library on a task, one value for each seed."""

    def means(quantity: str) -> list[float]:
        return [
            float(np.mean([row.value for row in part])) for part in per_seed(rows, task, library, quantity).values()
        ]

    seconds = per_seed(rows, task, library, "seconds").values()
    return {
        "final evaluation": means("evaluation"),
        "area under the curve": means("return"),
        "steps/s": [part[0].steps / part[0].value for part in seconds],
    }


def table(rows: list[Row], tasks: list[str]) -> str:
    """Markdown: each measure on each task, with Welch's interval of the difference."""
    lines = [
        "| task | measure | ULTRA | Stable-Baselines3 | difference [95%] |",
        "|---|---|---|---|---|",
    ]
    for task in tasks:
        ours, theirs = figures(rows, task, ULTRA), figures(rows, task, SB3)
        for measure, a in ours.items():
            b = theirs[measure]
            if measure == "steps/s":
                difference = f"{np.mean(a) / np.mean(b):.1f} times as fast"
            else:
                gap = difference_interval(a, b)
                difference = f"{gap.mean:+.1f} [{gap.low:.1f}, {gap.high:.1f}]"
            lines.append(f"| {task} | {measure} | {spread(a)} | {spread(b)} | {difference} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{np.mean(values):,.1f} ± {np.std(values, ddof=1):,.1f}"


def chart(rows: list[Row], tasks: list[str], path: Path) -> None:
    """Learning curves: mean and range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(tasks), figsize=(5.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        for library, colour in COLOURS.items():
            curves = list(per_seed(rows, task, library, "return").values())
            steps = np.array([row.steps for row in curves[0]]) / 1000
            values = np.array([[row.value for row in curve] for curve in curves])
            axis.fill_between(steps, values.min(axis=0), values.max(axis=0), color=colour, alpha=0.16, linewidth=0)
            axis.plot(steps, values.mean(axis=0), color=colour, linewidth=2, label=library)
        axis.set_title(task, loc="left")
        axis.set_xlabel("thousand environment steps")
        axis.set_xlim(0)
        axis.set_ylim(0)
        axis.grid(axis="y", color="#e4e4e4", linewidth=0.8)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel(f"mean return of the last {RECENT_EPISODES} episodes")
    axes[0][0].legend(frameon=False, loc="upper left")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def report(rows: list[Row], contests: list[Contest], seeds: range, path: Path) -> str:
    """The Markdown file; returns what it says above the reading."""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    lengths = ", ".join(f"{contest.env_id} {contest.steps:,}" for contest in contests)
    settings = SETTINGS
    first = f" --first-seed {seeds[0]}" if seeds[0] else ""
    text = f"""# PPO: ULTRA and Stable-Baselines3 with equal hyper-parameters

![Learning curves of both libraries]({path.with_suffix(".png").name})

Lines are means over {len(seeds)} seeds, bands the range from the lowest to the highest.

{table(rows, [contest.env_id for contest in contests])}

Mean ± standard deviation over seeds; the difference is ULTRA minus Stable-Baselines3 with Welch's 95% interval.

- *Final evaluation*: mean return of {EVALUATION_EPISODES} episodes with the most likely actions, in Gymnasium's own
  environment, on the same episode seeds for both.
- *Area under the curve*, divided by its length: the mean over training of the curve in the chart. Its points are
  taken after every rollout: the mean return of the last {RECENT_EPISODES} finished training episodes, without any
  smoothing beyond that.
- *Steps/s*: wall clock of the whole training, start-up and compilation included, on a machine that did other work
  at the same time: read it as an order of magnitude. Each library as it comes: Stable-Baselines3 steps its
  environments in one process (torch on one thread, which is fastest for networks of this size); ULTRA steps them on
  all cores.

## Settings

The same on both sides, all constant: {settings.environments} environments, rollouts of {settings.rollout_steps} steps,
minibatches of {settings.minibatch}, {settings.epochs} epochs, learning rate {settings.learning_rate:g},
gamma {settings.discount:g}, GAE lambda {settings.gae_lambda:g}, clip {settings.clip:g}, no clipping of the value loss,
entropy weight {settings.entropy:g}, value weight {settings.value:g}, gradient norm {settings.gradient_norm:g},
advantages normalised in each minibatch, Adam with eps 1e-5, actor and critic separate with
{" x ".join(map(str, HIDDEN))} tanh units, orthogonal initial weights. Neither observations nor rewards are normalised
on either side (no `VecNormalize`; `learn_statistics=False`). These are Stable-Baselines3's defaults, but for
{settings.environments} environments of {settings.rollout_steps} steps in place of one of {settings.samples:,}.

- Environment steps: {lengths}
- Seeds: {seeds[0]} to {seeds[-1]} for each library; equal seeds give unrelated random numbers in the two libraries
- Versions: python {platform.python_version()}, {versions}
- Machine: {machine()}, {platform.system()}, shared with other work
- Date: {date.today()}
- Command: `python benchmarks/compare_with_sb3.py --seeds {len(seeds)}{first}`; all figures are in
  [{path.with_suffix(".csv").name}]({path.with_suffix(".csv").name})
"""
    old = path.read_text(encoding="utf-8") if path.exists() else ""
    reading = READING + old.partition(READING)[2] if READING in old else ""
    write_atomically(path, (text + ("\n" + reading if reading else "")).encode())
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare ULTRA's PPO with that of Stable-Baselines3.")
    parser.add_argument("--seeds", type=int, default=5, help="trainings of each library on each task (default: 5)")
    parser.add_argument("--first-seed", type=int, default=0, help="further ones follow it (default: 0)")
    parser.add_argument(
        "--tasks",
        nargs="+",
        choices=[contest.env_id for contest in CONTESTS],
        default=[contest.env_id for contest in CONTESTS],
        help="default: all",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("docs/results/ppo-vs-sb3"),
        help="the files to write, without ending (default: docs/results/ppo-vs-sb3)",
    )
    options = parser.parse_args()
    if options.seeds < 2:
        parser.error("--seeds must be at least 2: one training gives no interval")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    contests = [contest for contest in CONTESTS if contest.env_id in options.tasks]
    try:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        rows = run_missing(options.out.with_suffix(".csv"), contests, seeds)
    except UltraError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    rows = [row for row in rows if row.seed in seeds]
    chart(rows, options.tasks, options.out.with_suffix(".png"))
    report(rows, contests, seeds, options.out.with_suffix(".md"))
    print("\n" + table(rows, options.tasks))
    print("\nsteps/s were measured on a machine that may have done other work at the same time")
    return 0


if __name__ == "__main__":
    sys.exit(main())
