"""Whole refinements by the methods compared with: their stages, their account of steps, resume, evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.policies import same
from tests.short_tasks import registered

import ultra
from ultra import api
from ultra.advice.records import load_states
from ultra.cli import main as cli
from ultra.collection.trajectories import Episodes
from ultra.common.errors import RunDirectoryError
from ultra.config import CollectConfig, EvaluateConfig, Method, PPOConfig, RefineConfig, RiceConfig, StateMaskConfig
from ultra.evaluation import evaluate as evaluation
from ultra.evaluation import starting
from ultra.evaluation.evaluate import evaluation_seeds
from ultra.pipeline import refinement as pipeline
from ultra.pipeline.progress import Reporter, TrainingLog
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.run import read_curve
from ultra.policies.io import load_policy
from ultra.policies.policy import Policy
from ultra.tasks import Task, shipped
from ultra.tasks.mujoco import MujocoBatch

pytestmark = pytest.mark.slow

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"
BASE = RefineConfig(
    task="brief-hopper",
    policy=str(POLICIES / "hopper"),
    method="rice",
    steps=2400,
    workers=1,
    collect=CollectConfig(share=0.2),
    statemask=StateMaskConfig(share=0.3),
    rice=RiceConfig(probability=0.5, bonus=0.1),
    ppo=PPOConfig(environments=2, rollout_steps=32, minibatch=32, epochs=2),
    evaluate=EvaluateConfig(episodes=2),
)
METHODS: tuple[Method, ...] = ("random", "jsrl", "statemask-r", "rice")


def brief_hopper() -> Task:
    return replace(shipped.hopper(), name="brief-hopper", time_limit=60)


@pytest.fixture(scope="module", autouse=True)
def _brief_task() -> Iterator[None]:
    """A shipped task with episodes that are cut off early."""
    with registered({"brief-hopper": f"{__name__}:brief_hopper"}):
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """One run of each method."""
    runs: dict[str, tuple[Path, dict[str, Any]]] = {}
    for method in METHODS:
        path = tmp_path_factory.mktemp(method) / "run"
        runs[method] = path, api.refine(replace(BASE, method=method), path)
    return runs


@pytest.mark.parametrize("method", METHODS)
def test_a_method_runs_through_its_stages_and_counts_its_steps(
    method: Method, finished: dict[str, tuple[Path, dict[str, Any]]]
) -> None:
    path, result = finished[method]
    budget = result["budget"]
    episodes = Episodes(path / "round-1" / "trajectories")
    assert 0 < budget["collect"] == sum(map(len, episodes)) <= 0.2 * BASE.steps
    assert budget["used"] == sum(budget[purpose] for purpose in ("collect", "analyse", "train")) <= BASE.steps
    assert budget["used"] > BASE.steps - BASE.ppo.samples  # the rest of the budget goes into training
    masked = method in ("statemask-r", "rice")
    assert budget["analyse"] == (0.3 * BASE.steps // BASE.ppo.samples * BASE.ppo.samples if masked else 0)
    assert result["method"] == method
    assert result["analyst"] is result["audit"] is None
    assert not same(load_policy(path / "policy" / "last"), load_policy(BASE.policy))
    if method == "jsrl":
        return
    states = load_states(path / "round-1" / "states.jsonl")
    assert len(states) == len(episodes)
    if masked:  # one from every episode
        assert sorted(state.episode for state in states) == list(range(len(episodes)))
        assert (path / "round-1" / "mask" / "policy.json").is_file()


def test_every_step_of_the_simulator_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mask training included, which published code leaves out."""
    path = tmp_path / "run"
    Refinement.start(path, BASE, Reporter(quiet=True))
    api.collect(path)
    taken = []
    original = MujocoBatch.step

    def step(self: MujocoBatch, actions: Any, live: Any = None) -> Any:
        taken.append(self.size if live is None else int(live.sum()))
        return original(self, actions, live)

    monkeypatch.setattr(MujocoBatch, "step", step)
    api.identify(path)
    budget = ultra.pipeline.run.Run.open(path).budget()
    assert budget.spent["analyse"] == sum(taken) > 0
    refinement = Refinement(ultra.pipeline.run.Run.open(path), Reporter(quiet=True))
    refinement.run_stage("finetune")
    assert refinement.budget.spent["analyse"] + refinement.budget.spent["train"] == sum(taken)


def test_the_mask_analyst_names_states_and_gives_no_advice(tmp_path: Path) -> None:
    config = replace(BASE, method="ultra-ra", analyst="statemask", collect=CollectConfig(episodes=2, share=0.2))
    result = api.refine(config, tmp_path / "run")
    states = load_states(tmp_path / "run" / "round-1" / "states.jsonl")
    assert 2 < len(states) <= config.analyse.states
    assert [s.importance for s in states] == sorted((s.importance for s in states), reverse=True)
    assert all(0 <= state.importance <= 1 for state in states)
    assert result["audit"]["suggestions"] == 0


def interrupt(patch: pytest.MonkeyPatch, owner: type, name: str, call: int, about: str = "") -> None:
    """Press Ctrl-C after some calls of a method whose first argument speaks of something."""
    original, calls = getattr(owner, name), iter(range(1000))

    def replacement(self: Any, argument: Any) -> None:
        original(self, argument)
        if about in str(argument) and next(calls) == call:
            raise KeyboardInterrupt

    patch.setattr(owner, name, replacement)


@pytest.mark.parametrize(
    ("method", "where"),
    [
        ("rice", (Reporter, "say", 2, "mask network")),
        ("rice", (TrainingLog, "__call__", 5)),
        ("jsrl", (TrainingLog, "__call__", 5)),
    ],
    ids=["rice-mask", "rice-training", "jsrl-training"],
)
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    method: Method, where: Any, finished: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    config, path = replace(BASE, method=method), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt(patch, *where)
        api.refine(config, path)
    assert list((path / "round-1").glob("*checkpoint.npz"))
    result = api.refine(config, path)
    wanted_path, wanted = finished[method]
    assert same(load_policy(path / "policy" / "last"), load_policy(wanted_path / "policy" / "last"))
    assert {k: result[k] for k in ("budget", "returns")} == {k: wanted[k] for k in ("budget", "returns")}


def test_several_states_may_be_taken_from_an_episode(tmp_path: Path) -> None:
    config = replace(BASE, rice=replace(BASE.rice, states=9, episodes=2))
    api.refine(config, tmp_path / "run")
    states = load_states(tmp_path / "run" / "round-1" / "states.jsonl")
    assert len({(state.episode, state.t) for state in states}) == 9
    assert {state.episode for state in states} == {0, 1}


def test_statemask_r_is_rice_that_always_moves_and_has_no_bonus(
    finished: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path
) -> None:
    path, _ = finished["statemask-r"]
    result = api.refine(replace(BASE, rice=RiceConfig(probability=1.0, bonus=0.0)), tmp_path / "rice")
    assert same(load_policy(tmp_path / "rice" / "policy" / "last"), load_policy(path / "policy" / "last"))
    assert result["budget"] == finished["statemask-r"][1]["budget"]
    assert not read_curve(path / "curve.csv")  # no episode begins at the task's own start
    assert read_curve(finished["rice"][0] / "curve.csv")


def test_the_seed_decides(finished: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path) -> None:
    """In published code --seed had no effect. Here it decides every stage by itself."""
    path, result = finished["random"]
    other = api.refine(replace(BASE, method="random", seed=1), tmp_path / "other")
    assert other["returns"]["start"] != result["returns"]["start"]
    played = [{e.seed for e in Episodes(run / "round-1" / "trajectories")} for run in (path, tmp_path / "other")]
    assert not played[0] & played[1]
    trained = []
    for seed in (0, 1):
        api.refine(replace(BASE, method="ppo", seed=seed), tmp_path / f"ppo-{seed}")
        trained.append(load_policy(tmp_path / f"ppo-{seed}" / "policy" / "last"))
    assert not same(*trained)


def test_start_and_last_are_played_once_on_seeds_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Published code reports the best of many evaluations of five episodes."""
    played: list[list[int]] = []
    original = evaluation.evaluate

    def evaluate(task: Task, policy: Policy, seeds: list[int], *, workers: int, sampled: bool | None = None) -> Any:
        if sampled is None:  # otherwise it is the untrained policy's chance level
            played.append(seeds)
        return original(task, policy, seeds[:2], workers=workers, sampled=sampled)

    for module in (pipeline, starting):
        monkeypatch.setattr(module, "evaluate", evaluate)
    config = replace(BASE, method="random", evaluate=EvaluateConfig())
    result = api.refine(config, tmp_path / "run")
    assert len(played) == 2
    assert played[0] == played[1] == evaluation_seeds(config.seed, 20)
    assert len(set(played[0])) == 20
    collected = {episode.seed for episode in Episodes(tmp_path / "run" / "round-1" / "trajectories")}
    assert not collected & set(played[0])
    returns = result["return"]
    assert returns["best"] == returns["last" if result["improved"] else "start"]


@pytest.mark.parametrize("method", ["rice", "random"])
def test_critical_states_of_a_run_are_scored(
    method: str, finished: dict[str, tuple[Path, dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    """By the mask network's importance of every step, or by that of the states."""
    path, _ = finished[method]
    assert cli.run(["fidelity", str(path), "--json"]) == 0
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [score["share"] for score in printed] == [0.1, 0.2, 0.3, 0.4]
    assert all(score["steps"] > 0 and score["change"] >= 0 and score["random"]["change"] >= 0 for score in printed)
    assert json.loads((path / "round-1" / "fidelity-by-length.json").read_text()) == printed


def test_a_run_without_critical_states_has_no_fidelity(finished: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    with pytest.raises(RunDirectoryError, match="stage 'round-1/identify' is not done yet"):
        api.fidelity(finished["jsrl"][0])
