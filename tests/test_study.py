"""Studies on this machine: files that are checked, runs that fail, are killed and go on, and their report."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scipy import stats
from tests.gated import HANGS, Gate
from tests.gated import TASK as GATED

from ultra import study
from ultra.api import refine, report
from ultra.cli.main import run
from ultra.common.errors import RunDirectoryError, UltraError
from ultra.common.files import make_directory
from ultra.common.locks import Permits, hold_directory, make_permits
from ultra.common.records import record_from
from ultra.config import RefineConfig
from ultra.pipeline.run import Run, read_curve
from ultra.policies.io import load_policy
from ultra.policies.policy import flatten
from ultra.studies.figures import draw_profiles, draw_task_curves
from ultra.studies.plan import Job, Study, load_study, read_study, slug
from ultra.studies.report import notes, tables
from ultra.studies.runner import plain, prepare
from ultra.studies.summary import summarize
from ultra.studies.work import work
from ultra.tasks import known_tasks

PPO = {"environments": 4, "rollout_steps": 64, "minibatch": 64}
SETTINGS = {"steps": 1500, "collect": {"episodes": 2}, "evaluate": {"episodes": 3}, "ppo": PPO}


def content(policy: Path, **changes: Any) -> dict[str, Any]:
    """A study of CartPole whose runs take a second each."""
    task = {"policy": str(policy), "reference": 500}
    return {"tasks": {"CartPole-v1": task}, "methods": ["ppo"], "seeds": [0, 1], "settings": SETTINGS} | changes


def write(path: Path, value: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


def result(out: Path, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((out / "runs" / name / "result.json").read_text())
    return loaded


def begin(file: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """`ultra study` in a process group of its own."""
    command = [sys.executable, "-c", "from ultra.cli.main import main; main()"]
    command += ["study", str(file), "--out", str(out), "--quiet", "--jobs", "1", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


# Records from plain values


def test_settings_keep_their_types() -> None:
    config = record_from(RefineConfig, {"task": "hopper", "ppo": {"learning_rate": "1e-5", "gamma": 1}, "steps": 5})
    assert config.ppo.learning_rate == 1e-5  # YAML reads it as text
    assert (config.ppo.gamma, type(config.ppo.gamma)) == (1.0, float)
    assert config.ppo.environments == 32


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"task": "hopper", "step": 5}, "unknown setting 'step': did you mean 'steps'?"),
        ({"task": "hopper", "ppo": {"gama": 1}}, "unknown setting 'ppo.gama': did you mean 'gamma'?"),
        ({"task": "hopper", "steps": "many"}, "steps is 'many', but must be a whole number"),
        ({"task": "hopper", "steps": True}, "steps is True, but must be a whole number"),
        ({"task": "hopper", "method": "pppo"}, "method is 'pppo': did you mean 'ppo'?"),
        ({"task": "hopper", "ppo": 3}, "ppo must hold settings by name, not 3"),
        ({}, "setting 'task' is missing"),
    ],
)
def test_errors_in_settings_say_where_and_what(value: dict[str, Any], message: str) -> None:
    with pytest.raises(UltraError, match=re.escape(message)):
        record_from(RefineConfig, value)


# Study files


def test_methods_without_advice_are_not_multiplied_by_analysts() -> None:
    analysts = {"search": None, "control": {"analyst": "random"}}
    value = {"tasks": ["hopper", "pong"], "methods": ["none", "ppo", "ultra-a"], "analysts": analysts, "seeds": [3, 5]}
    plan = read_study(value, "s")
    assert [contender.name for contender in plan.contenders] == ["none", "ppo", "ultra-a (search)", "ultra-a (control)"]
    jobs = plan.refinements(Path("out"))
    assert len(jobs) == 2 * 4 * 2
    assert [job.name for job in jobs[:3]] == ["hopper-none-3", "hopper-ppo-3", "hopper-ultra_a-search-3"]
    assert [job.config.seed for job in jobs] == [3] * 8 + [5] * 8
    control = jobs[3].config
    assert isinstance(control, RefineConfig)
    assert (control.method, control.analyst, control.workers) == ("ultra-a", "random", 1)


def test_tasks_of_an_earlier_turn_get_all_their_seeds_first() -> None:
    value = {"tasks": {"hopper": {"turn": 2}, "pong": {}}, "methods": ["none", "ppo"], "seeds": [0, 1]}
    names = [job.name for job in read_study(value, "s").refinements(Path("out"))]
    assert names == [f"{task}-{method}-{seed}" for task in ("pong", "hopper") for seed in (0, 1)
                     for method in ("none", "ppo")]  # fmt: skip


def test_settings_of_the_closer_part_take_precedence() -> None:
    value = {
        "tasks": {"hopper": {"settings": {"steps": 2, "ppo": {"gamma": 0.5}}}},
        "methods": {"ppo": None, "slow": {"method": "ppo", "settings": {"ppo": {"learning_rate": 1e-5}}}},
        "settings": {"steps": 1, "ppo": {"entropy": 0.1, "gamma": 0.9}},
    }
    ppo, slow = (job.config for job in read_study(value, "s").refinements(Path("out"))[:2])
    assert isinstance(slow, RefineConfig)
    assert slow.steps == 2
    assert (slow.ppo.entropy, slow.ppo.gamma, slow.ppo.learning_rate) == (0.1, 0.5, 1e-5)
    assert ppo.ppo.learning_rate == 3e-4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, "unknown setting 'seed': did you mean 'seeds'?"),
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [1, 1]}, "seeds has 1 twice"),
        ({"seeds": 3}, "seeds is 3, but must be a list"),
        ({"methods": "ppo"}, "methods is 'ppo', but must be a list of names"),
        ({"methods": ["ppq"]}, "method is 'ppq': did you mean 'ppo'?"),
        ({"methods": {"ppo": {"setings": {}}}}, "unknown setting 'methods.ppo.setings': did you mean 'settings'?"),
        ({"methods": {"ppo": 3}}, "methods.ppo must hold settings by name, not 3"),
        ({"tasks": {"hopper": {"settings": {"ppo": {"gama": 1}}}}}, "'tasks.hopper.settings.ppo.gama'"),
        ({"settings": {"seed": 1}}, "settings.seed cannot be set"),
        ({"settings": {"steps": 0}}, "steps is 0, but must be at least 1"),
        ({"baseline": "pp"}, "baseline 'pp' is not in the study: did you mean 'ppo'?"),
        ({"methods": ["ultra-a"], "analysts": [], "baseline": "ultra-a"}, "analysts is empty"),
        ({"cores": 0}, "cores is 0"),
    ],
)
def test_a_wrong_study_is_one_line_that_says_how_to_mend_it(
    changes: dict[str, Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "s.yaml", {"tasks": ["hopper"], "methods": ["ppo"]} | changes)
    assert run(["study", str(file), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": {"hoper": {"policy": "shipped:hopper"}}}, "unknown task 'hoper': did you mean hopper"),
        ({"tasks": {"CartPole-v1": None}}, "no policy ships for 'CartPole-v1'"),
        ({"tasks": {"CartPole-v1": {"policy": "nowhere"}}}, "tasks.CartPole-v1: no policy at"),
        ({"tasks": {"hopper": {"policy": "shipped:pong"}}}, "was it trained on another task?"),
        ({"methods": ["ppo", "ultra-a"], "analysts": ["serch"]}, "unknown analyst 'serch': did you mean search?"),
        (
            {"methods": ["ppo", "rice"], "settings": {"steps": 6000}},
            "hopper-rice-0: 1200 steps are too few to train the mask network",
        ),
        ({"settings": {"steps": 2000}}, "hopper-ppo-0: 2000 steps a round are less than one rollout of 2048"),
    ],
)
def test_what_cannot_work_is_found_before_anything_runs(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "s.yaml", {"tasks": ["hopper"], "methods": ["ppo"]} | changes)
    with pytest.raises(UltraError, match=re.escape(message)):
        study(file, tmp_path / "out")
    assert not (tmp_path / "out" / "runs").exists()


@pytest.mark.parametrize("file", sorted((Path(__file__).parents[1] / "studies").glob("*.yaml")), ids=lambda f: f.stem)
def test_the_shipped_studies_are_good(file: Path) -> None:
    plan = load_study(file)
    assert {task.environment for task in plan.tasks} <= set(known_tasks())
    # After a million steps a policy is beyond the references that were published.
    assert all(task.reference for task in plan.tasks if (task.train or {}).get("steps", 0) < 1_000_000)


def test_names_become_directories() -> None:
    assert slug("llm:openai/gpt-5 (mini)") == "llm_openai_gpt_5_mini"
    assert slug("../..") == "_"


# Running


@pytest.mark.slow
def test_a_study_runs_fails_in_part_and_goes_on(
    policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run fails; the others and the report do not mind, and once the cause is mended only it is done again."""
    analysts = {"random": {"settings": {"guidance": {"trust": "all"}}}, "gone": {"analyst": "recorded:answers.jsonl"}}
    value = content(policy, methods=["ppo", "ultra-r"], analysts=analysts, seeds=[0])
    file, out = write(tmp_path / "s.yaml", value), tmp_path / "out"
    assert run(["study", str(file), "--out", str(out), "--quiet", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    failed = out / "runs" / "CartPole_v1-ultra_r-gone-0"
    error = (failed / "error.txt").read_text().strip()
    assert "\n" not in error
    assert "answers.jsonl" in error
    assert f"failed: {error}" in printed.err
    assert "[3/3]" in printed.err
    assert "Traceback" in (out / "logs" / "CartPole_v1-ultra_r-gone-0.txt").read_text()
    table = (out / "report" / "table.md").read_text()
    assert error in table
    assert "1 of 3 runs are missing, 1 of them failed" in table

    good = [result(out, f"CartPole_v1-{name}-0") for name in ("ppo", "ultra_r-random")]
    stamp = (out / "runs" / "CartPole_v1-ppo-0" / "result.json").stat().st_mtime_ns
    del value["analysts"]["gone"]
    outcome = study(write(file, value), out, jobs=1)
    assert (outcome.done, outcome.failed) == (2, {})
    assert [result(out, f"CartPole_v1-{name}-0") for name in ("ppo", "ultra_r-random")] == good
    assert (out / "runs" / "CartPole_v1-ppo-0" / "result.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_failed_run_is_tried_again(policy: Path, tmp_path: Path) -> None:
    file, out = write(tmp_path / "s.yaml", content(policy, seeds=[0])), tmp_path / "out"
    run_directory = out / "runs" / "CartPole_v1-ppo-0"
    study(file, out, jobs=1)
    whole = result(out, "CartPole_v1-ppo-0")
    for path in sorted(run_directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    (run_directory / "error.txt").write_text("the disk was full\n")
    assert study(file, out, jobs=1).done == 1
    assert result(out, "CartPole_v1-ppo-0") == whole
    assert not (run_directory / "error.txt").exists()


def gated(policy: Path, gate: Gate) -> dict[str, Any]:
    """A study of one run that waits at a gate."""
    value = content(policy, seeds=[0], settings=SETTINGS | {"env": gate.settings})
    return value | {"tasks": {GATED: value["tasks"]["CartPole-v1"]}}


@pytest.fixture(scope="module")
def uninterrupted(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The result of the same run, made in one go in this process."""
    path = tmp_path_factory.mktemp("uninterrupted")
    gate = Gate(path / "gate", path / "run")
    gate.open()
    given = {"task": GATED, "policy": str(policy), "method": "ppo", "workers": 1, "env": gate.settings}
    loaded: dict[str, Any] = json.loads(json.dumps(refine(record_from(RefineConfig, given | SETTINGS), path / "run")))
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_study_goes_on_to_the_same_results(
    policy: Path, tmp_path: Path, number: int, uninterrupted: dict[str, Any]
) -> None:
    """Ctrl-C ends the runs; when the study is killed outright, they end by themselves."""
    out = tmp_path / "out"
    run_directory = out / "runs" / "Gated_v0-ppo-0"
    gate = Gate(tmp_path / "gate", run_directory)
    file = write(tmp_path / "s.yaml", gated(policy, gate))
    process = begin(file, out)
    (own,) = gate.wait_for(1, process)
    os.kill(process.pid, number)
    assert process.wait(HANGS) == (130 if number == signal.SIGINT else -signal.SIGKILL)
    with hold_directory(run_directory, patience=HANGS):  # free when the run's process has ended
        assert not (run_directory / "result.json").exists()
        assert (run_directory / "round-1" / "checkpoint.npz").exists()
        assert len(read_curve(run_directory / "curve.csv")) == 2
    gate.open()
    assert study(file, out, jobs=1).done == 1
    assert gate.waiting() == {own}
    assert result(out, "Gated_v0-ppo-0") == uninterrupted


@pytest.mark.slow
def test_a_study_that_changed_its_runs_needs_another_directory(policy: Path, tmp_path: Path) -> None:
    file, out = (
        write(tmp_path / "s.yaml", content(policy, seeds=[0], methods=["none"], baseline="none")),
        tmp_path / "o",
    )
    study(file, out, jobs=1)
    changed = content(policy, seeds=[0], methods=["none"], baseline="none", settings=SETTINGS | {"steps": 1600})
    with pytest.raises(UltraError, match="there steps is 1500, here 1600"):
        study(write(file, changed), out, jobs=1)
    other = content(policy, seeds=[0], methods=["none"], baseline="none")
    other["tasks"]["CartPole-v1"]["policy"] = "elsewhere"
    with pytest.raises(UltraError, match="another task, policy or training"):
        study(write(file, other), out, jobs=1)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").touch()
    with pytest.raises(UltraError, match="exists and is not a study"):
        study(file, tmp_path / "else")


@pytest.mark.slow
def test_a_study_that_was_moved_goes_on(policy: Path, tmp_path: Path) -> None:
    """Nothing is done again, and what was missing is done where the study is now."""
    file, out, moved = tmp_path / "s.yaml", tmp_path / "out", tmp_path / "elsewhere" / "moved"
    study(write(file, content(policy, seeds=[0])), out, jobs=1)
    moved.parent.mkdir()
    out.rename(moved)
    stamps = {path: path.stat().st_mtime_ns for path in moved.rglob("result.json")}
    assert len(stamps) == 1
    assert study(file, moved, jobs=1).done == 1
    assert study(write(file, content(policy, seeds=[0, 1])), moved, jobs=1).done == 2
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert not out.exists()


def test_a_run_that_was_moved_with_its_policy_goes_on_but_not_with_another(policy: Path, tmp_path: Path) -> None:
    config = RefineConfig("CartPole-v1", policy=str(policy))
    (tmp_path / "a").mkdir()
    copied = shutil.copytree(policy, tmp_path / "a" / "policy")
    Run.start(tmp_path / "a" / "run", "refine", replace(config, policy=str(copied)))
    (tmp_path / "a").rename(tmp_path / "b")
    Run.start(tmp_path / "b" / "run", "refine", replace(config, policy=str(tmp_path / "b" / "policy")))
    with pytest.raises(RunDirectoryError, match="there policy is"):
        Run.start(tmp_path / "b" / "run", "refine", config)


@pytest.mark.slow
def test_a_study_starts_from_a_zip_of_stable_baselines3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("stable_baselines3")
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    env: Any = VecNormalize(make_vec_env("CartPole-v1", n_envs=1))
    env.reset()
    model: Any = PPO("MlpPolicy", env, n_steps=8, batch_size=8, device="cpu", seed=0)
    model.save(tmp_path / "model.zip")
    env.save(str(tmp_path / "own.pkl"))
    value = content(tmp_path, seeds=[0], methods=["none"], baseline="none")
    value["tasks"]["CartPole-v1"] |= {"policy": "model.zip", "vecnormalize": "own.pkl"}
    file, out = write(tmp_path / "s.yaml", value), tmp_path / "out"
    assert run(["study", str(file), "--out", str(out), "--quiet", "--jobs", "1"]) == 0
    assert "CartPole-v1: " in capsys.readouterr().err
    weights = model.policy.action_net.weight.detach().numpy()
    copied = load_policy(out / "policies" / "CartPole_v1")
    assert any(np.array_equal(np.asarray(array), weights.T) for array in flatten(copied.params).values())
    assert copied.normalizer.count == pytest.approx(env.obs_rms.count)
    value["tasks"]["CartPole-v1"]["vecnormalize"] = "other.pkl"
    with pytest.raises(UltraError, match="another task, policy or training"):
        study(write(file, value), out, jobs=1)


def test_a_second_study_in_the_same_directory_is_turned_away(policy: Path, tmp_path: Path) -> None:
    file, out = write(tmp_path / "s.yaml", content(policy)), tmp_path / "out"
    with hold_directory(out), pytest.raises(UltraError, match=f"is in use by process {os.getpid()} on "):
        study(file, out)


def test_a_run_of_a_study_waits_for_whoever_is_at_it(policy: Path, tmp_path: Path) -> None:
    """A machine that was given up too early and its successor never write at the same time."""
    plan = read_study(content(policy, methods=["none"], baseline="none", seeds=[0]), "s")
    make_directory(tmp_path / "out")
    prepare(plan, tmp_path, tmp_path / "out")
    (job,) = plan.refinements(tmp_path / "out")
    with ThreadPoolExecutor(1) as pool:
        with hold_directory(job.path):
            waiting = pool.submit(work, job)
            assert not wait([waiting], timeout=1.0).done
            assert not job.log.exists()
        waiting.result()
    assert job.finished


def test_a_run_on_a_machine_without_the_directory_says_so(tmp_path: Path) -> None:
    job = Job("x", tmp_path / "runs" / "x", tmp_path / "logs" / "x.txt", RefineConfig("hopper"))
    assert "is not visible on this machine" in work(job)


def test_what_language_models_may_cost_is_said_before_they_are_asked(
    policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ultra.pipeline.progress import Reporter
    from ultra.studies.display import Display

    value = content(policy, methods=["ppo", "ultra-a"], analysts=["llm:openai/gpt-5", "search"])
    Display(Reporter(quiet=True)).expect(read_study(value, "s").refinements(Path("out")))
    assert "2 of them ask a language model and may spend $10.00 in all" in capsys.readouterr().err


def test_the_live_table_shows_what_is_done_failed_and_under_way(policy: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from ultra.studies.display import Display

    jobs = read_study(content(policy, seeds=[0, 1, 2]), "s").refinements(tmp_path)
    display = Display(None)
    display.expect(jobs)
    display.ended(jobs[0], "no [space] left")
    jobs[1].path.mkdir(parents=True)
    progress = {"stage": "train", "steps": 512, "total": 1500, "rate": 1234.5, "remark": "return 9.3"}
    (jobs[1].path / "progress.json").write_text(json.dumps(progress))
    console = Console(width=120, record=True, quiet=False, file=(tmp_path / "screen").open("w"))
    console.print(display._table())
    text = console.export_text()
    assert re.search(r"CartPole_v1-ppo-0 +failed +no \[space\] left", text)
    assert re.search(r"CartPole_v1-ppo-1 +train +512/1,500 +1,234 +return 9.3", text)
    assert "0 of 3 done, 1 under way, 1 failed" in text


# Starting policies, and the report


@pytest.mark.slow
def test_a_study_trains_its_starting_policies_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = {"train": {"steps": 1000, "ppo": PPO}, "reference": 500}
    value = content(tmp_path, tasks={"<b>Cart</b>": {"task": "CartPole-v1", **task}})
    value |= {"methods": {"a|b": {"method": "ppo"}}, "baseline": "a|b"}
    file, out = write(tmp_path / "s.yaml", value), tmp_path / "out"
    assert run(["study", str(file), "--out", str(out), "--quiet", "--jobs", "1"]) == 0
    assert run(["report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "0 is the starting policy's" in printed
    assert "1 is 500.0 (given in the study)" in printed
    assert "2 seeds are too few" in printed
    folder = report(out, tmp_path / "elsewhere")
    lines = (folder / "runs.csv").read_text().splitlines()
    assert len(lines) == 3
    runs = json.loads((folder / "runs.json").read_text())
    assert [entry["seed"] for entry in runs["runs"]] == [0, 1]
    name = "b_Cart_b"
    for picture in (folder / f"curves-{name}.png", folder / "profiles.png"):
        assert picture.read_bytes()[:4] == b"\x89PNG"
    html = (folder / "report.html").read_text()
    assert "<b>Cart" not in html
    assert "&lt;b&gt;Cart" in html
    assert not re.search(r"(src|href)=\"(?!data:)", html)
    assert html.count("data:image/png;base64,") == 2
    assert "| a\\|b | " in printed


@pytest.mark.slow
def test_when_no_run_could_start_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The starting policies are trained, but nothing that a report could compare is there; one line for one cause."""
    task = {"train": {"steps": 1000, "ppo": PPO}, "reference": 500}
    analysts = {"gone": {"analyst": "recorded:answers.jsonl"}}
    value = content(tmp_path, tasks={"CartPole-v1": task}, methods=["ultra-a"], analysts=analysts)
    file, out = write(tmp_path / "s.yaml", value | {"baseline": "ultra-a (gone)"}), tmp_path / "out"
    assert run(["study", str(file), "--out", str(out), "--quiet", "--jobs", "1"]) == 1
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("failed: CartPole_v1-ultra_a-gone-0, CartPole_v1-ultra_a-gone-1: ")
    assert "answers.jsonl" in last
    assert not printed.out


def finished_runs(study: Study, out: Path, scores: dict[tuple[str, str], list[float]]) -> None:
    """Results as of finished runs, for seeds from 0 on."""
    for (task, method), values in scores.items():
        for seed, value in enumerate(values):
            name = f"{task}-{method.replace('-', '_')}-{seed}"
            config = next(job.config for job in study.refinements(out) if job.name == name)
            made = Run.start(out / "runs" / name, "refine", config)
            estimate = {"mean": value, "ci95": [value - 1, value + 1], "episodes": 3 if task == "hopper" else 2}
            budget = {"used": 1000, **dict.fromkeys(("collect", "analyse", "verify", "train", "evaluation"), 0)}
            result = {
                "task": task, "method": method, "analyst": None, "seed": seed, "improved": value > 10, "audit": None,
                "return": {"start": estimate | {"mean": 10}, "last": estimate}, "budget": budget, "versions": {},
            }  # fmt: skip
            made.result.write_text(json.dumps(result))
            curve = "".join(f"{steps},{value * steps / 1000},1,3\n" for steps in (200, 600, 1000))
            (made.path / "curve.csv").write_text("steps,mean,std,episodes\n" + curve)
            made.complete("evaluate", made.budget())


def test_a_stopped_study_scores_together_what_was_compared(tmp_path: Path) -> None:
    """A task that has only begun does not take their seeds from the others, and says so."""
    tasks = {name: {"reference": 20} for name in ("hopper", "pong", "reacher")}
    study = read_study({"tasks": tasks, "methods": ["ppo", "jsrl"], "seeds": [0, 1, 2]}, "s")
    scores = {
        ("hopper", "ppo"): [10.0, 12.0, 14.0], ("hopper", "jsrl"): [20.0, 20.0, 20.0],
        ("pong", "ppo"): [12.0, 12.0], ("pong", "jsrl"): [15.0, 15.0], ("reacher", "ppo"): [11.0],
    }  # fmt: skip
    finished_runs(study, tmp_path, scores)
    found = summarize(study, tmp_path)
    assert found.together == ["hopper", "pong"]
    assert [line.name for line in found.overall] == ["ppo", "jsrl"]
    np.testing.assert_allclose(found.overall[0].values, [[0.0, 0.2], [0.2, 0.2]])
    np.testing.assert_allclose(found.overall[1].values, [[1.0, 0.5], [1.0, 0.5]])
    remarks = " ".join(found.remarks)
    assert "leave out reacher" in remarks
    assert "hopper: 3 seeds are too few" in remarks
    assert "reacher: One seed has no interval" in remarks
    assert "over 3 (hopper), 2 (pong), 2 (reacher) episodes" in " ".join(notes(found))


def test_claims_are_adjusted_for_the_number_of_tasks(tmp_path: Path) -> None:
    """On one task of two p is 0.04: twice that is no claim. Only the planned comparison is the main one."""
    tasks = {name: {"reference": 20} for name in ("hopper", "pong")}
    methods = ["ppo", "jsrl", "random"]
    study = read_study({"tasks": tasks, "methods": methods, "main": {"method": "jsrl"}, "seeds": [0, 1, 2]}, "s")
    assert read_study(plain(study), "s") == study
    scores = {
        ("hopper", "ppo"): [10.0, 11.0, 12.0], ("hopper", "jsrl"): [12.5, 13.5, 14.5],
        ("hopper", "random"): [20.0, 21.0, 22.0], ("pong", "ppo"): [10.0, 11.0, 12.0],
        ("pong", "jsrl"): [11.0, 12.0, 10.0],
    }  # fmt: skip
    finished_runs(study, tmp_path, scores)
    found = summarize(study, tmp_path)
    main, exploratory = found.claims
    alone = stats.ttest_ind([12.5, 13.5, 14.5], [10, 11, 12], equal_var=False).pvalue
    assert 0.02 < alone < 0.05
    assert main.tests["hopper"].difference.p_value == pytest.approx(alone)
    assert main.tests["hopper"].adjusted == pytest.approx(2 * alone)
    assert str(main).startswith(
        "Main comparison: jsrl against ppo over 2 tasks: better on none and worse on none, Holm-adjusted at 5%. "
        "Mean difference of normalised scores +0.25 ["
    )
    assert str(exploratory).startswith(
        "Exploratory: random against ppo over 2 tasks: better on hopper (p < 0.001) and worse on none, Holm-adjusted "
        "at 5%; 1 not tested for want of seeds"
    )
    _, header, rows = next(table for table in tables(found) if table[0] == "hopper")
    column = header.index("better than ppo, Holm-adjusted over the tasks")
    assert [row[column] for row in rows] == ["", f"not shown, p = {2 * alone:.3f}", "better, p < 0.001, exploratory"]
    assert str(main) in notes(found)


@pytest.mark.parametrize(
    ("main", "message"),
    [
        ({"method": "jslr"}, "main.method 'jslr' is not in the study: did you mean 'jsrl'?"),
        ({"method": "jsrl", "against": "pop"}, "main.against 'pop' is not in the study"),
        ({"method": "ppo"}, "main compares 'ppo' with itself"),
    ],
)
def test_a_main_comparison_must_be_in_the_study(main: dict[str, str], message: str) -> None:
    with pytest.raises(UltraError, match=re.escape(message)):
        read_study({"tasks": ["hopper"], "methods": ["ppo", "jsrl"], "main": main}, "s")


@pytest.mark.parametrize("contenders", [3, 9])
def test_pictures_of_few_and_of_many_methods(contenders: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many get a panel each; a method without a learning curve is shown all the same."""
    names = [f"ppo-{number}" for number in range(contenders)]
    methods = {name: {"method": "ppo"} for name in names}
    study = read_study({"tasks": {"hopper": {"reference": 20}}, "methods": methods, "baseline": names[1]}, "s")
    runs = {("hopper", name): [10.0 + number, 12.0 + number] for number, name in enumerate(names)}
    finished_runs(study, tmp_path, runs)
    for seed in (0, 1):
        (tmp_path / "runs" / f"hopper-ppo_0-{seed}" / "curve.csv").unlink()
    found = summarize(study, tmp_path)
    drawn: list[Any] = []
    monkeypatch.setattr("ultra.studies.figures.save_figure", lambda figure, path: drawn.append(figure))
    draw_task_curves(found, "hopper", tmp_path / "curves.png")
    draw_profiles(found, tmp_path / "profiles.png")
    curves, profiles = ([axes for axes in figure.axes if axes.get_visible()] for figure in drawn)
    assert len(curves) == len(profiles) == (1 if contenders == 3 else 8)
    legends = [text.get_text() for legend in drawn[0].legends for text in legend.texts]
    titles = legends or [axes.get_title() for axes in curves]
    assert set(titles) == {f"{name} (2)" for name in names if legends or name != "ppo-1"}
    # A dot for the score of each seed; and where there is a learning curve, its mean up to the budget.
    dots = [line.get_ydata() for axes in curves for line in axes.lines if line.get_marker() == "o"]
    assert all(any(np.array_equal(dot, [10.0 + k, 12.0 + k]) for dot in dots) for k in range(contenders))
    lines = [line for axes in curves for line in axes.lines if len(line.get_xdata()) > 9]
    means = {line.get_label(): line.get_ydata()[-1] for line in lines}
    assert means == {f"ppo-{k} (2)": pytest.approx(11.0 + k) for k in range(1, contenders)}
    shares = [line.get_ydata() for axes in profiles for line in axes.lines if len(line.get_xdata()) > 9]
    assert all(share[0] == 1 and share[-1] == 0 for share in shares)


def test_a_report_before_any_run_says_so(tmp_path: Path, policy: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    prepare(load_study(write(tmp_path / "s.yaml", content(policy))), tmp_path, out)
    with pytest.raises(UltraError, match="has no finished run yet"):
        report(out)


# Requests to language models, over all runs


def test_permits_bound_what_processes_do_together(tmp_path: Path) -> None:
    make_permits(tmp_path / "p", 5)
    make_permits(tmp_path / "p", 2)
    under_way = most = 0

    async def one(permits: Permits) -> None:
        nonlocal under_way, most
        async with permits.hold():
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.05)
            under_way -= 1

    async def all_of_them() -> None:
        await asyncio.gather(*(one(Permits(tmp_path / "p")) for _ in range(7)), one(Permits(tmp_path / "p")))

    asyncio.run(all_of_them())
    assert most == 2
    with pytest.raises(UltraError, match="there are no permits"):
        asyncio.run(one(Permits(tmp_path / "nothing")))
