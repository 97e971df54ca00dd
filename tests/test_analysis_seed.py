"""One analysis for many training seeds: drawn from a seed of its own, shared by the runs of a study."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.llm_runs import make_policy
from tests.policies import same
from tests.short_tasks import registered
from tests.test_programs_run import BALANCE, HARM, TASK, written

from ultra import api
from ultra.config import (
    AnalyseConfig,
    AuditConfig,
    CollectConfig,
    EvaluateConfig,
    PPOConfig,
    ProgramsConfig,
    RefineConfig,
)
from ultra.pipeline.program_search import ProgramSearch
from ultra.pipeline.progress import Reporter
from ultra.pipeline.refinement import Refinement
from ultra.pipeline.run import Run
from ultra.policies.io import load_policy

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _tasks() -> Iterator[None]:
    with registered({TASK: "tests.test_programs_run:short_cartpole"}):
        yield


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh policy, which soon falls."""
    return make_policy(tmp_path_factory.mktemp("policy"), "CartPole-v1", (16, 16))


@pytest.fixture(scope="module")
def config(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> RefineConfig:
    return RefineConfig(
        task=TASK,
        policy=str(policy),
        analyst=written(tmp_path_factory.mktemp("programs") / "programs.json", [HARM[0], BALANCE]),
        steps=12_000,
        analysis_seed=7,
        workers=1,
        collect=CollectConfig(episodes=4),
        analyse=AnalyseConfig(states=2, candidates=2, plan_steps=4, horizon=8),
        audit=AuditConfig(replays=2),
        programs=ProgramsConfig(share=0.5, ask="first", structures=False, adopt="program"),
        ppo=PPOConfig(environments=4, rollout_steps=32, minibatch=32, epochs=1),
        evaluate=EvaluateConfig(episodes=4),
    )


def refined(config: RefineConfig, out: Path, shared: Path | None = None) -> dict[str, Any]:
    return Refinement.start(out, config, Reporter(quiet=True), shared).run_all()


@pytest.fixture(scope="module")
def alone(config: RefineConfig, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs with two seeds that each did the analysis themselves."""
    folder = tmp_path_factory.mktemp("alone")
    for seed in (0, 1):
        refined(replace(config, seed=seed), folder / str(seed))
    return {seed: folder / str(seed) for seed in (0, 1)}


def files_of_analysis(run: Path) -> dict[str, bytes]:
    """What the analysis of the first round wrote, by name."""
    folder = run / "round-1"
    names = ("states.jsonl", "advice.jsonl", "verified.jsonl", "turn-1.json", "programs.json", "potentials.json")
    paths = [*(folder / name for name in names), *sorted((folder / "trajectories").iterdir())]
    return {path.name: path.read_bytes() for path in paths}


def same_run(first: Path, second: Path) -> None:
    assert files_of_analysis(first) == files_of_analysis(second)
    assert (first / "result.json").read_bytes() == (second / "result.json").read_bytes()
    assert (first / "curve.csv").read_bytes() == (second / "curve.csv").read_bytes()
    assert Run.open(first).done == Run.open(second).done
    assert same(load_policy(first / "policy" / "last"), load_policy(second / "policy" / "last"))


def test_seeds_with_one_analysis_seed_analyse_alike_and_train_apart(alone: dict[int, Path]) -> None:
    first, second = alone[0], alone[1]
    assert files_of_analysis(first) == files_of_analysis(second)
    assert not same(load_policy(first / "policy" / "last"), load_policy(second / "policy" / "last"))


def test_without_an_analysis_seed_the_seed_decides(
    config: RefineConfig, alone: dict[int, Path], tmp_path: Path
) -> None:
    api.refine(replace(config, seed=7, analysis_seed=None, method="ultra-ra"), tmp_path / "run")
    assert files_of_analysis(tmp_path / "run") == files_of_analysis(alone[0])


def test_a_run_that_takes_an_analysis_ends_as_if_it_had_done_it(
    config: RefineConfig, alone: dict[int, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    refined(replace(config, seed=0), tmp_path / "0", tmp_path / "shared")
    monkeypatch.setattr(ProgramSearch, "turn", None)  # whoever does it again fails
    refined(replace(config, seed=1), tmp_path / "1", tmp_path / "shared")
    for seed in (0, 1):
        same_run(alone[seed], tmp_path / str(seed))


def test_an_analysis_is_done_by_the_next_one_where_the_first_was_interrupted(
    config: RefineConfig, alone: dict[int, Path], tmp_path: Path
) -> None:
    def interrupted(*arguments: Any) -> bool:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgramSearch, "turn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            refined(replace(config, seed=0), tmp_path / "0", tmp_path / "shared")
    assert Run.open(tmp_path / "0").finished("round-1/advise")
    refined(replace(config, seed=1), tmp_path / "1", tmp_path / "shared")
    refined(replace(config, seed=0), tmp_path / "0", tmp_path / "shared")
    for seed in (0, 1):
        same_run(alone[seed], tmp_path / str(seed))
    assert len(list((tmp_path / "shared").iterdir())) == 1


def test_what_differs_is_not_shared(config: RefineConfig, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    small = replace(config, steps=6000)
    refined(small, tmp_path / "first", shared)
    refined(replace(small, steps=6100), tmp_path / "steps", shared)
    refined(replace(small, seed=1, programs=replace(small.programs, share=0.4)), tmp_path / "share", shared)
    path = Path(config.analyst.partition(":")[2])
    before = path.read_text()
    try:
        written(path, [BALANCE])
        refined(replace(small, seed=2), tmp_path / "file", shared)
    finally:
        path.write_text(before)
    assert len(list(shared.iterdir())) == 4
    refined(replace(small, seed=2, programs=replace(small.programs, ask="last")), tmp_path / "last", shared)
    assert len(list(shared.iterdir())) == 5  # of the round before training alone
    assert (tmp_path / "last" / "round-2" / "programs.json").is_file()


def test_a_study_shares_an_analysis_among_its_seeds(policy: Path, tmp_path: Path) -> None:
    settings = {
        "steps": 2500, "analysis_seed": 3, "collect": {"episodes": 2}, "evaluate": {"episodes": 2},
        "analyse": {"states": 2, "candidates": 2, "plan_steps": 4, "horizon": 8}, "audit": {"replays": 0},
        "ppo": {"environments": 4, "rollout_steps": 32, "minibatch": 32}, "programs": {"ask": "first"},
    }  # fmt: skip
    study = {
        "tasks": {"CartPole-v1": {"policy": str(policy)}}, "methods": ["ppo", "ultra-ra"], "seeds": [0, 1, 2],
        "settings": settings,
    }  # fmt: skip
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    assert api.study(file, tmp_path / "out", jobs=2).done == 6
    assert len(list((tmp_path / "out" / "analyses").iterdir())) == 1
    runs = [tmp_path / "out" / "runs" / f"CartPole_v1-ultra_ra-search-{seed}" for seed in (0, 1, 2)]
    assert len({json.dumps(Run.open(run).done["round-1/verify"]["verify"]) for run in runs}) == 1
    logs = [(tmp_path / "out" / "logs" / f"{run.name}.txt").read_text() for run in runs]
    assert sum("differs in the seed alone" in log for log in logs) == 2
    api.refine(Run.open(runs[1]).config, tmp_path / "alone")
    assert json.loads((runs[1] / "result.json").read_text()) == json.loads(
        (tmp_path / "alone" / "result.json").read_text()
    )
