"""What others met and reported, tried again: policies, environments and first commands as people bring them.

    python benchmarks/first_use.py [--out docs/results/first-use.md]

Each case stands for a kind; tests/test_cases.py holds more of each. "Before" is what commit c7e90e3 did. Needs the
extra `sb3`; takes half a minute.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from ultra.cli import main as cli
from ultra.config import RefineConfig, TrainConfig
from ultra.policies.io import save_policy
from ultra.policies.opening import open_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks.spaces import Discrete

FAULTY = """
import os
import sys
import gymnasium
import numpy as np
from gymnasium import spaces

class Plain(gymnasium.Env):
    observation_space = spaces.Box(-10, 10, (3,), np.float32)
    action_space = spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.look(), {}
    def look(self):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)
    def step(self, action):
        self.t += 1
        return self.look(), 1.0, self.t >= 10, False, {}

class FourValues(Plain):
    def step(self, action):
        return super().step(action)[:3] + ({},)

class NoSeed(Plain):
    def reset(self):
        return super().reset()

class NeedsOptions(Plain):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=options["seed"])

class RewardInArray(Plain):
    def step(self, action):
        observation, reward, *rest = super().step(action)
        return observation, np.array([reward]), *rest

class InAList(Plain):
    def look(self):
        return [0.1, 0.2, 0.3]

class NotANumber(Plain):
    def look(self):
        return np.array([0.1, np.nan if self.t == 5 else 0.2, 0.3], np.float32)

class Crashes(Plain):
    def step(self, action):
        if self.t == 4 and os.getpid() != int(os.environ["MAIN_PROCESS"]):
            os.abort()
        return super().step(action)

class Leaves(Plain):
    def step(self, action):
        if self.t == 4:
            sys.exit(3)
        return super().step(action)

class WholeNumbers(gymnasium.Env):
    observation_space = spaces.Box(-10.0, 10.0, (1,), np.float32)
    action_space = spaces.Box(-10, 10, (1,), int)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 1)
        return self.place.astype(np.float32), {}
    def step(self, action):
        self.place = np.clip(self.place + action / 10, -10, 10)
        return self.place.astype(np.float32), -float(abs(self.place[0])), False, False, {}

for kind in [*Plain.__subclasses__(), WholeNumbers]:
    gymnasium.register(kind.__name__ + "-v0", kind, max_episode_steps=20)
"""
"""A module of environments, each with a fault of its own."""


@dataclass(frozen=True)
class Case:
    """One case, with what should happen and what did."""

    what: str
    expected: str
    before: str
    now: Callable[[], str]


def said(*words: object) -> str:
    """What a command prints, on one line, with its exit status if it is not 0."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status: object = cli.run([str(word) for word in words])
        except SystemExit as end:
            status = end.code
        except Exception as error:
            status = f"traceback, {error!r}"
    text = " ".join(f"{err.getvalue()} {out.getvalue()}".split())
    return text if not status else f"[{status}] {text}"


def evaluated(policy: object, task: str, *options: object) -> str:
    """What `ultra evaluate` prints."""
    return said("evaluate", policy, "--task", task, "--episodes", "2", "--workers", "1", *options)


def opened(path: str, statistics: str = "") -> str:
    """What is told of a policy that is opened, or why it is not."""
    try:
        found = open_policy(path, statistics)
    except ValueError as error:
        return str(error)
    return "; ".join(["read", *found.notes, *found.warnings])


def made(make: Callable[[], object]) -> str:
    """What Python says of settings."""
    try:
        return f"accepted: {make()}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


class Given(gymnasium.Env[Any, Any]):
    """An environment of given spaces, for models to be saved."""

    def __init__(self, observations: spaces.Space[Any], actions: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Do nothing."""
        return self.observation_space.sample(), 0.0, False, False, {}


BOX = spaces.Box(-1.0, 1.0, (3,), np.float32)


def model(env: gymnasium.Env[Any, Any], kind: str = "MlpPolicy", **settings: Any) -> Any:
    return stable_baselines3.PPO(kind, env, device="cpu", seed=0, **settings)


# -- policies --------------------------------------------------------------------------------------


def whole_numbers() -> str:
    from faulty import WholeNumbers  # type: ignore[import-not-found]

    found = model(WholeNumbers())
    with torch.no_grad():
        found.policy.action_net.bias.fill_(0.7)
    found.save("whole.zip")
    env, returns = gymnasium.make("WholeNumbers-v0"), []
    policy = open_policy("whole.zip").policy
    from ultra.evaluation.evaluate import evaluate
    from ultra.tasks import get_task

    _, ours, _ = evaluate(get_task("WholeNumbers-v0"), policy, [0, 1, 2], workers=1)
    for seed in range(3):
        (observation, _), done, total = env.reset(seed=seed), False, 0.0
        while not done:
            observation, reward, terminated, truncated, _ = env.step(found.predict(observation, deterministic=True)[0])
            total, done = total + float(reward), terminated or truncated
        returns.append(total)
    return f"same seeds: {np.mean(ours):.2f} here, {np.mean(returns):.2f} in Stable-Baselines3"


def discount() -> str:
    model(gymnasium.make("CartPole-v1"), gamma=0.9).save("gamma.zip")
    said("refine", "CartPole-v1", "--policy", "gamma.zip", "--method", "none", "--evaluate.episodes", 2,
         "--workers", 1, "--out", "gamma")  # fmt: skip
    from ultra.pipeline.run import Run

    return f"goes on with gamma {Run.open(Path('gamma')).config.ppo.gamma}"


def noise() -> str:
    model(gymnasium.make("Pendulum-v1"), use_sde=True).save("gsde.zip")
    return f"{opened('gsde.zip')}; {evaluated('gsde.zip', 'Pendulum-v1')}"


def mismatch(task: str, size: int) -> str:
    space = gymnasium.make(task).action_space
    model(Given(spaces.Box(-1, 1, (size,)), space)).save("mismatch.zip")
    return evaluated("mismatch.zip", task)


def parts() -> str:
    env = Given(spaces.Dict({"a": BOX, "mode": spaces.Discrete(3)}), spaces.Discrete(2))
    vectorized = VecNormalize(DummyVecEnv([lambda: env]), norm_obs_keys=["a"])
    found = stable_baselines3.PPO("MultiInputPolicy", vectorized, n_steps=8, batch_size=8, device="cpu")
    found.learn(8)
    found.save("parts.zip")
    vectorized.save("parts_vecnormalize.pkl")
    return f"{opened('parts.zip')}; entries left as they are: {open_policy('parts.zip').policy.normalizer.plain}"


def model_as_statistics() -> str:
    model(gymnasium.make("CartPole-v1")).save("m.zip")
    shutil.copy("m.zip", "saved-by-mistake.pkl")
    return opened("m.zip", "saved-by-mistake.pkl")


def beside_a_folder() -> str:
    Path("zoo/CartPole-v1").mkdir(parents=True)
    model(gymnasium.make("CartPole-v1")).save("zoo/CartPole-v1.zip")
    return opened("zoo/CartPole-v1")


def flat_image() -> str:
    model(Given(spaces.Box(0, 255, (8, 8, 3), np.uint8), spaces.Discrete(2))).save("image.zip")
    return opened("image.zip")


def quiet() -> str:
    vectorized = VecNormalize(DummyVecEnv([lambda: gymnasium.make("Pendulum-v1")]))
    found = stable_baselines3.PPO("MlpPolicy", vectorized, n_steps=32, batch_size=32, device="cpu")
    found.learn(32)
    found.save("lost.zip")
    text = said("refine", "Pendulum-v1", "--policy", "lost.zip", "--method", "none", "--evaluate.episodes", 2,
                "--workers", 1, "--out", "lost", "--quiet")  # fmt: skip
    return text.partition(" start ")[0]


# -- environments and first use --------------------------------------------------------------------


def faulty(name: str, *options: object) -> str:
    return evaluated("policy", f"{name}-v0", "--env-module", "faulty.py", *options)


def cheetah() -> str:
    folder = Path("cheetah")
    folder.mkdir()
    code = "from ultra.tasks import get_task; get_task('HalfCheetah-v5')"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return f"{len(done.stderr.splitlines())} lines of warnings, files left: {[path.name for path in folder.iterdir()]}"


def typo() -> str:
    said("train", "CartPole-v1", "--steps", 100, "--out", "typo")
    left = Path("typo").exists()
    return f"the directory {'is there' if left else 'was not made'}; " + said(
        "train", "CartPole-v1", "--steps", 2048, "--evaluate.episodes", 2, "--workers", 1, "--out", "typo", "--quiet"
    )


def early(analyst: str, *options: object) -> str:
    text = said("refine", "CartPole-v1", "--policy", "m.zip", "--analyst", analyst, "--out", "early", *options)
    return f"{text}; {'a directory was left' if Path('early').exists() else 'nothing was written'}"


def damaged() -> str:
    Path("damaged").mkdir()
    Path("damaged/run.json").write_text("[]", encoding="utf-8")
    return said("report", "damaged")


TRAIN = ("train", "CartPole-v1", "--out", "numbers")

CASES = {
    "Policies": [
        Case("`Box(-10, 10, dtype=int)`", "the real numbers, as from Stable-Baselines3",
             "cut towards zero without a word", whole_numbers),
        Case("a zip trained with gamma 0.9", "training goes on with it", "0.99 is used", discount),
        Case("gSDE", "evaluated by the mean action", "refused", noise),
        Case("Swimmer, 9 inputs for 8", "the likely wrapper named", "was it trained on another task?",
             lambda: mismatch("Swimmer-v5", 9)),
        Case("MountainCar, 8 inputs for 2", "the likely wrapper named", "was it trained on another task?",
             lambda: mismatch("MountainCar-v0", 8)),
        Case("Ant of Gym's days behind TimeFeatureWrapper, 112 for 105", "both named",
             "was it trained on another task?", lambda: mismatch("Ant-v5", 112)),
        Case("Reacher of Gym's days, 11 for 10", "Reacher-v4 named", "was it trained on another task?",
             lambda: mismatch("Reacher-v5", 11)),
        Case("`VecNormalize(norm_obs_keys=[...])`", "the other parts as they are", "all parts are needed", parts),
        Case("a model where statistics should be", "called a model", "damaged ... add --trust-pickle",
             model_as_statistics),
        Case("`zoo/CartPole-v1` without `.zip` beside a folder", "the zip", "holds no policy.json", beside_a_folder),
        Case("8 x 8 x 3 bytes with MlpPolicy", "read", "train with CnnPolicy", flat_image),
        Case("`--quiet`, statistics missing", "warned", "nothing is said", quiet),
    ],
    "Environments": [
        Case("step returns four values", "one line: which, where, why", "60 to 120 lines of tracebacks",
             lambda: faulty("FourValues")),
        Case("reset takes no seed", "the same", "the same", lambda: faulty("NoSeed")),
        Case("reset needs options", "the same", "the same", lambda: faulty("NeedsOptions")),
        Case("reward an array of one", "the same", "the same", lambda: faulty("RewardInArray")),
        Case("observation a list", "the same", "the same", lambda: faulty("InAList")),
        Case("NaN in an observation", "the observation named", "return -20.4, exit 0", lambda: faulty("NotANumber")),
        Case("`sys.exit` in step", "one line", "ends with status 3, without a word", lambda: faulty("Leaves")),
        Case("a worker process crashes", "one line", "traceback (`WorkerError`)",
             lambda: faulty("Crashes", "--workers", 2)),
        Case("HalfCheetah", "quiet", "a warning five times, MUJOCO_LOG.TXT", cheetah),
    ],
    "First use": [
        Case("too few steps, then enough, in the same `--out`", "the second works",
             "belongs to another command: there steps is 100", typo),
        Case("`--analyst foo`", "before the first step", "after episodes were collected", lambda: early("foo")),
        Case("a missing key", "before the first step", "after episodes were collected",
             lambda: early("llm:openai/gpt-5")),
        Case("a server that is not there", "before the first step", "after episodes were collected",
             lambda: early("llm:local/m", "--base-url", "http://127.0.0.1:9/v1")),
        Case("`--seed -1`", "one line", "traceback", lambda: said(*TRAIN, "--seed", "-1")),
        Case("`evaluate --episodes 0`", "one line", "traceback", lambda: evaluated("policy", "X", "--episodes", 0)),
        Case("`--ppo.clip nan`", "one line", "traceback", lambda: said(*TRAIN, "--ppo.clip", "nan")),
        Case("`--ppo.clip -1`", "one line", "accepted", lambda: said(*TRAIN, "--ppo.clip", "-1")),
        Case("`--ppo.gradient-norm -1`", "one line", "accepted", lambda: said(*TRAIN, "--ppo.gradient-norm", "-1")),
        Case("`--lambda inf`", "one line", "traceback",
             lambda: said("refine", "CartPole-v1", "--policy", "m.zip", "--lambda", "inf")),
        Case("`--hidden -5`", "one line", "traceback", lambda: said(*TRAIN, "--hidden", "-5")),
        Case("`--hidden 0`", "one line", "accepted", lambda: said(*TRAIN, "--hidden", "0")),
        Case("`TrainConfig(seed=-1)` in Python", "the same error", "accepted",
             lambda: made(lambda: TrainConfig("CartPole-v1", seed=-1))),
        Case("`RefineConfig(policy=Path(...))` in Python", "accepted", "traceback",
             lambda: made(lambda: repr(RefineConfig("CartPole-v1", policy=Path("m.zip")).policy))),  # type: ignore[arg-type]
        Case("`run.json` holding `[]`", "called damaged", "traceback", damaged),
        Case("`--steps 1e2`", "a hundred", "not a whole number", lambda: said(*TRAIN, "--steps", "1e2")),
        Case("`--steps 1_00`", "a hundred", "not a whole number", lambda: said(*TRAIN, "--steps", "1_00")),
        Case("`tasks --quiet`", "works", "unrecognized option", lambda: f"{said('tasks', '--quiet')[:40]}..."),
        Case("`--sticky` for CartPole", "the task named", "gymnasium_task takes no --sticky",
             lambda: evaluated("policy", "CartPole-v1", "--sticky", 0.5)),
    ],
}  # fmt: skip


def table(folder: Path) -> str:
    """All cases as Markdown."""
    os.environ["MAIN_PROCESS"] = str(os.getpid())
    for name in ("OPENAI_API_KEY", "ULTRA_LEDGER"):
        os.environ.pop(name, None)
    os.environ["ULTRA_LEDGER"] = str(folder / "ledger.sqlite")
    (folder / "faulty.py").write_text(FAULTY, encoding="utf-8")
    sys.path.insert(0, str(folder))
    save_policy(create_policy(Architecture(3, Discrete(2)), np.random.default_rng(0)), Path("policy"))
    lines = ABOUT.splitlines()
    for title, cases in CASES.items():
        lines += ["", f"## {title}", "", "| case | expected | before | now |", "|---|---|---|---|"]
        for case in cases:
            now = case.now().replace(str(folder), ".").replace("|", r"\|")
            lines.append(f"| {case.what} | {case.expected} | {case.before} | {now} |")
    return "\n".join(lines) + "\n"


ABOUT = """\
What others met and reported, tried again: policies, environments and first commands as people bring them. Made by
`benchmarks/first_use.py`. "Before" is commit c7e90e3. Numbers in brackets are the exit statuses of commands that were
refused; everything else is what was printed. Each case stands for a kind, of which `tests/test_cases.py` holds more.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file to write; by default the table is printed")
    out = parser.parse_args().out
    place = out.resolve() if out else None
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        text = f"# First use\n\n{table(Path(name))}"
    if place is None:
        print(text, end="")
    else:
        place.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
