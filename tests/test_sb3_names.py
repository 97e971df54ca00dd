"""PPO's options under the names that Stable-Baselines3 gives them, wherever settings are given."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import pytest

from ultra.cli.arguments import RefineArguments, TrainArguments
from ultra.cli.main import _overlay, _parse
from ultra.common.errors import UltraError
from ultra.common.records import record_from
from ultra.config import PPOConfig, RefineConfig
from ultra.studies.plan import read_study

VALUES: dict[str, Any] = {
    "n_envs": 8, "n_steps": 128, "batch_size": 32, "n_epochs": 4, "clip_range": 0.1, "ent_coef": 0.01,
    "vf_coef": 0.7, "max_grad_norm": 1.0,
}  # fmt: skip
SAME = PPOConfig(
    environments=8, rollout_steps=128, minibatch=32, epochs=4, clip=0.1, entropy=0.01, value=0.7, gradient_norm=1.0
)


def test_every_alias_stands_for_a_setting() -> None:
    assert set(PPOConfig.ALIASES) == set(VALUES)
    assert set(PPOConfig.ALIASES.values()) <= {field.name for field in fields(PPOConfig)}


def test_files_may_use_either_name_and_keep_one() -> None:
    config = record_from(RefineConfig, {"task": "hopper", "ppo": VALUES})
    assert config.ppo == SAME
    assert record_from(RefineConfig, asdict(config)) == config  # as run.json keeps it
    assert not set(asdict(config)["ppo"]) & set(VALUES)


def test_a_setting_given_under_both_names_is_refused() -> None:
    with pytest.raises(UltraError, match=r"'ppo.n_envs' and 'ppo.environments' are the same setting: give it once"):
        record_from(RefineConfig, {"task": "hopper", "ppo": {"n_envs": 8, "environments": 8}})


def test_a_misspelt_name_is_offered_the_alias() -> None:
    with pytest.raises(UltraError, match=r"unknown setting 'ppo.clip_rang': did you mean 'clip_range'\?"):
        record_from(RefineConfig, {"task": "hopper", "ppo": {"clip_rang": 0.1}})


@pytest.mark.parametrize("kind", [RefineArguments, TrainArguments])
@pytest.mark.parametrize("sign", ["-", "_"])
def test_the_command_line_takes_either_name(kind: type[Any], sign: str) -> None:
    aliases = [word for name, value in VALUES.items() for word in (f"--ppo.{name.replace('_', sign)}", str(value))]
    assert _parse(kind, "x", ["hopper", *aliases]).ppo == SAME
    names = [
        word
        for name, value in VALUES.items()
        for word in (f"--ppo.{PPOConfig.ALIASES[name].replace('_', sign)}", str(value))
    ]
    assert _parse(kind, "x", ["hopper", *names]).ppo == SAME


def test_the_command_line_overrides_a_file_under_the_other_name(tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text("ppo: {n_envs: 8, clip_range: 0.1}\n")
    default, rest = _overlay(RefineArguments, ["hopper", "--config", str(file), "--ppo.environments", "16"])
    ppo = _parse(RefineArguments, "refine", rest, default).ppo
    assert (ppo.environments, ppo.clip) == (16, 0.1)


def test_a_later_layer_of_a_study_replaces_a_setting_under_its_other_name() -> None:
    study = read_study(
        {
            "tasks": {"hopper": {"settings": {"ppo": {"clip_range": 0.1}}}},
            "methods": {"ppo": {"settings": {"ppo": {"clip": 0.3}}}},
            "analysts": ["search"],
            "seeds": [0],
            "settings": {"ppo": {"n_envs": 4, "clip": 0.2}},
        },
        "study.yaml",
    )
    config = study.config(study.tasks[0], study.contenders[0], 0, Path("policies"))
    assert (config.ppo.environments, config.ppo.clip) == (4, 0.3)


def test_python_has_a_constructor_with_these_names() -> None:
    assert PPOConfig.from_sb3(**VALUES) == SAME
    assert PPOConfig.from_sb3() == PPOConfig()
