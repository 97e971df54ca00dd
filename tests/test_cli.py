"""The command line as a user meets it: real processes, one clear line for every mistake, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tests.gated import HANGS, TASK, Gate

import ultra
from ultra.cli.main import run as cli

POLICIES = Path(ultra.__file__).parent / "policies" / "shipped"
HOPPER, PONG = str(POLICIES / "hopper"), str(POLICIES / "pong")
SMALL = [
    "--steps", "1200", "--workers", "1", "--collect.episodes", "2", "--analyse.states", "2", "--analyse.share", "0.3",
    "--analyse.candidates", "2", "--analyse.plan-steps", "4", "--analyse.horizon", "8", "--verify.share", "0.2",
    "--verify.branches", "8", "--ppo.environments", "2", "--ppo.rollout-steps", "32", "--ppo.minibatch", "32",
    "--ppo.epochs", "1", "--evaluate.episodes", "2",
]  # fmt: skip


def start(*arguments: object, **options: object) -> subprocess.Popen[str]:
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, "-m", "ultra", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )
    return process


def complaint(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line that a wrong command gives, with exit status 2."""
    assert cli([str(argument) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith(f"ultra {arguments[0]}: ")
    return captured.err


# Help


def test_help_names_every_verb_and_imports_nothing_heavy() -> None:
    script = (
        "import sys, ultra, ultra.cli.main; status = ultra.cli.main.run(['--help']); "
        "heavy = {'jax', 'mujoco', 'gymnasium', 'ale_py', 'matplotlib', 'tyro', 'numpy', 'scipy'} & set(sys.modules); "
        "print(status, sorted(heavy))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert found.splitlines()[-1] == "0 []"
    for verb in ("quickstart", "tasks", "train", "refine", "collect", "identify", "advise", "verify", "finetune"):
        assert f"\n  {verb} " in found


@pytest.mark.parametrize("verb", ["train", "refine", "collect", "verify", "evaluate", "report", "prompt", "quickstart"])
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli([verb, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: ultra {verb}" in text
    assert len(text.splitlines()) > 5


def test_tasks_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["tasks"]) == 0
    listed = capsys.readouterr().out
    for name in ("pong", "hopper", "walker2d", "halfcheetah", "reacher"):
        assert f"{name} " in listed


# Mistakes


def test_an_unknown_verb_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean `ultra refine`?" in complaint(capsys, "refin")


def test_an_unknown_task_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = complaint(capsys, "refine", "hoper", "--policy", HOPPER, "--out", tmp_path / "run")
    assert "'hoper'" in error
    assert "hopper" in error.replace("hoper'", "")
    assert not (tmp_path / "run").exists()


def test_an_unknown_analyst_is_answered_with_the_closest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    command = ["refine", "hopper", "--policy", HOPPER, "--out", tmp_path / "run", *SMALL]
    assert "search" in complaint(capsys, *command, "--analyst", "serch", "--quiet")


def test_a_policy_for_other_spaces_is_refused_with_both_shapes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = complaint(capsys, "refine", "walker2d", "--policy", HOPPER, "--out", tmp_path / "run")
    assert "11" in error
    assert "17" in error
    assert not (tmp_path / "run").exists()
    assert "(8,)" in complaint(capsys, "evaluate", PONG, "--task", "hopper")


def copy_policy(path: Path) -> Path:
    path.mkdir()
    for file in Path(HOPPER).iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    return path


@pytest.mark.parametrize("name", ["policy.json", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0, 40])
def test_a_truncated_policy_is_refused(
    name: str, kept: int, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    policy = copy_policy(tmp_path / "policy")
    (policy / name).write_bytes((policy / name).read_bytes()[:kept])
    assert str(policy) in complaint(capsys, "evaluate", policy, "--task", "hopper")


def test_a_missing_policy_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert str(tmp_path / "none") in complaint(capsys, "evaluate", tmp_path / "none", "--task", "hopper")


def test_weights_that_are_not_finite_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    policy = copy_policy(tmp_path / "policy")
    weights = load_file(policy / "weights.safetensors")
    name = sorted(weights)[0]
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, policy / "weights.safetensors")
    error = complaint(capsys, "evaluate", policy, "--task", "hopper")
    assert name in error
    assert "finite" in error


@pytest.mark.parametrize(
    ("option", "value", "reason"),
    [
        ("--steps", "0", "--steps is 0, but must be at least 1"),
        ("--steps", "1e13", "--steps is 10,000,000,000,000, but must be at most 1,000,000,000,000"),
        ("--seed", "-1", "--seed is -1, but must be at least 0"),
        ("--verify-budget", "1.5", "--verify-budget is 1.5, but must be above 0 and below 1"),
        ("--verify.share", "1.5", "--verify.share is 1.5, but must be above 0 and below 1"),
        ("--lambda", "inf", "--lambda is inf, but must be at most 1,000,000,000"),
        ("--guidance.lambda", "-1", "--guidance.lambda is -1.0, but must be at least 0"),
        ("--collect.share", "0", "--collect.share is 0.0, but must be above 0 and below 1"),
        ("--ppo.minibatch", "77", "--ppo.minibatch is 77, but must be a divisor"),
        ("--ppo.minibatch", "0", "--ppo.minibatch is 0, but must be at least 1"),
        ("--ppo.clip", "nan", "--ppo.clip is nan, but must be above 0"),
        ("--ppo.clip_range", "-1", "--ppo.clip-range is -1.0, but must be above 0"),
        ("--ppo.gradient-norm", "-1", "--ppo.gradient-norm is -1.0, but must be above 0"),
        ("--env-kwargs", "x", "--env-kwargs is x, but must be NAME=VALUE"),
    ],
)
def test_settings_out_of_range_are_refused(
    option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = complaint(capsys, "refine", "hopper", "--policy", HOPPER, "--out", tmp_path / "run", option, value)
    assert reason in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "reason"), [("--analyse.states", "many", "many"), ("--ppo.minibach", "64", "--ppo.minibatch")]
)
def test_options_that_cannot_be_read_are_refused(
    option: str, value: str, reason: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli(["refine", "hopper", "--policy", HOPPER, "--out", str(tmp_path / "run"), option, value])
    assert ended.value.code == 2
    assert reason in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_budget_too_small_to_train_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    error = complaint(capsys, "train", "hopper", "--steps", "100", "--out", tmp_path / "run", "--quiet")
    assert "raise --steps" in error


def test_the_stages_tell_what_to_run_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "ultra collect" in complaint(capsys, "collect", tmp_path / "run")
    assert "is not a run directory" in complaint(capsys, "identify", tmp_path / "run")
    assert cli(["collect", str(tmp_path / "run"), "--task", "hopper", "--policy", HOPPER, *SMALL, "--quiet"]) == 0
    capsys.readouterr()
    assert "ultra identify" in complaint(capsys, "advise", tmp_path / "run")
    assert "result.json" in complaint(capsys, "report", tmp_path / "run")


# Settings from a file


def test_settings_come_from_a_file_and_options_overrule_them(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"task: hopper\npolicy: {HOPPER}\nsteps: 5000\nppo:\n  gamma: 0.9\ncollect:\n  episodes: 2\n")
    command = ["collect", str(tmp_path / "run"), "--config", str(file), "--quiet", "--workers", "1"]
    assert cli([*command, "--steps", "4000"]) == 0
    config = json.loads((tmp_path / "run" / "run.json").read_text())["config"]
    assert (config["steps"], config["ppo"]["gamma"], config["collect"]["episodes"]) == (4000, 0.9, 2)
    capsys.readouterr()
    file.write_text("stepz: 5\n")
    assert "stepz" in complaint(capsys, "refine", "hopper", "--config", file)
    assert str(tmp_path / "no.yaml") in complaint(capsys, "refine", "hopper", "--config", tmp_path / "no.yaml")


# Policies by name


def test_a_shipped_policy_is_named_wherever_a_policy_is(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = []
    for policy in ("shipped:hopper", HOPPER):
        assert cli(["evaluate", policy, "--task", "hopper", "--episodes", "2", "--workers", "1", "--json"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] == found[1]
    command = ["--policy", "shipped:hopper", "--steps", "4000", "--collect.episodes", "2", "--workers", "1", "--quiet"]
    assert cli(["collect", str(tmp_path / "run"), "--task", "hopper", *command]) == 0
    kept = tmp_path / "run" / "policy" / "start" / "weights.safetensors"
    assert kept.read_bytes() == (Path(HOPPER) / "weights.safetensors").read_bytes()
    capsys.readouterr()
    wrong = ["refine", "hopper", "--policy", "shipped:hoper", "--out", tmp_path / "other"]
    assert "no policy ships for 'hoper' (did you mean 'hopper'?)" in complaint(capsys, *wrong)
    assert not (tmp_path / "other").exists()


# A whole run


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("cli") / "run"
    assert cli(["refine", "hopper", "--policy", HOPPER, "--out", str(out), *SMALL, "--quiet"]) == 0
    return out


def test_a_refinement_leaves_result_and_report(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = json.loads((finished / "result.json").read_text())
    assert result["budget"]["used"] <= 1200
    assert (finished / "report" / "report.html").is_file()
    assert cli(["report", str(finished)]) == 0
    assert "ultra-ra (search)" in capsys.readouterr().out


def test_evaluate_speaks_json(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["evaluate", str(finished / "policy" / "best"), "--task", "hopper", "--episodes", "2", "--json"]
    assert cli([*command, "--workers", "1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["episodes"] == 2
    assert found["ci95"][0] <= found["mean"] <= found["ci95"][1]


def test_a_run_directory_of_another_command_is_left_alone(
    finished: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    before = (finished / "run.json").read_bytes()
    other = ["refine", "hopper", "--policy", HOPPER, "--out", finished, *SMALL, "--quiet", "--seed", "5"]
    assert "seed is 0, here 5" in complaint(capsys, *other)
    assert "belongs to `ultra refine`" in complaint(capsys, "train", "hopper", "--out", finished)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("precious")
    assert "is not a run directory" in complaint(capsys, "train", "hopper", "--out", tmp_path / "full")
    assert (finished / "run.json").read_bytes() == before
    assert (tmp_path / "full" / "thesis.tex").read_text() == "precious"


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    process = start("evaluate", tmp_path / "none", "--task", "hopper", "--traceback")
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert "Traceback" in error


# Interrupted, and out of space


def rows(curve: Path) -> list[int]:
    """The steps of a learning curve."""
    return [int(line.split(",")[0]) for line in curve.read_text().splitlines()[1:]]


@pytest.mark.slow
def test_ctrl_c_ends_with_130_and_the_same_command_continues(tmp_path: Path) -> None:
    out, gate = tmp_path / "run", Gate(tmp_path / "gate", tmp_path / "run")
    command = [
        "train", TASK, *gate.options, "--steps", "1500", "--workers", "1", "--evaluate.episodes", "2",
        "--ppo.environments", "4", "--ppo.rollout-steps", "64", "--out", out,
    ]  # fmt: skip
    process = start(*command)
    gate.wait_for(1, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 130, error
    assert "repeat the same command to continue" in error
    assert (out / "checkpoint.npz").is_file()
    assert rows(out / "curve.csv") == [256, 512]
    gate.open()
    assert cli([str(argument) for argument in command]) == 0
    assert rows(out / "curve.csv") == [256, 512, 768, 1024, 1280]
    assert json.loads((out / "result.json").read_text())["budget"]["train"] == 1280


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_what_was_saved_stays(tmp_path: Path) -> None:
    """A file may grow to 20 kB only: the episodes do not fit any more."""
    out = tmp_path / "run"

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    command = ["collect", out, "--task", "hopper", "--policy", HOPPER, "--workers", "1", "--quiet"]
    environment = os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"}
    process = start(*command, preexec_fn=limit, env=environment)
    _, error = process.communicate(timeout=HANGS)
    assert process.returncode == 2, error
    assert error.count("\n") == 1
    assert "cannot write" in error
    assert not list(tmp_path.rglob("*.tmp"))
    assert cli([str(argument) for argument in command]) == 0
