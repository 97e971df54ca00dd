"""Export as one module of NumPy alone: it acts as the policy does under its program."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tests.test_adoption_graft import ARM, JOINTS, NAMES, controller, policy_of, visited

from ultra.adoption.reading import with_observed_facts
from ultra.adoption.standalone import ExportError, export_standalone
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.programs.attached import AttachedPrograms
from ultra.programs.compiled import Controller
from ultra.programs.executor import Executor
from ultra.tasks.card import ActionMeaning, Card, Fact
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

CARD = Card(
    "task", "", "", "", "",
    (
        Fact("a", "m", ""), Fact("b", "m", "", source="obs[1]"), Fact("gap", "m", ""),
        Fact("square", "m", "", source="env.square"),
    ),
    (ActionMeaning("hip", ""), ActionMeaning("knee", "")),
)  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "clocks": {"c": "0.2 + 0.1 * abs(b)"},
    "memory": {"m": {"start": 1, "update": "0.5 * m + agent(hip)"}, "n": {"start": 0, "update": "1 / (b - prev(b))"}},
    "let": {
        "many": "min(a / 80, 1, gap) + max(b, -1) - clip(gap, -1, p) + tanh(a - start(a)) + sign(b)",
        "more": "sin(c) * cos(b) + atan2(gap, b) + wrap(a) + floor(b) % 3 + exp(-gap ** 2) + log(abs(b) + 1) + tan(p)",
    },
    "rules": [
        {"when": "not (b > 0 and gap != 0) or true == (a <= 80)", "set": {"hip": "0.1 * many - 0.05 * more"}},
        {"when": "a >= 70", "add": {"hip": "0.1 * m", "knee": "n if n < 1 else pick(2 * b, p, 0.5, sqrt(gap))"}},
        {"when": "sqrt(b) > 0.5", "add": {"knee": "0.2 * (a == a) + agent(hip)"}},
    ],
}
CHOICES: dict[str, Any] = {
    "memory": {"m": {"start": 0, "update": "m + agent(take_2)"}},
    "rules": [{"when": "b > 0.5", "action": "take_1"}, {"when": "m % 3 == 1", "action": "take_0"}],
}


def with_programs(policy: Policy, chosen: Controller, seen: Any, facts: Any) -> Policy:
    """The policy with a program, and with what can be known of its facts."""
    space = policy.architecture.action_space
    named = JOINTS if isinstance(space, Continuous) else tuple(f"take_{k}" for k in range(space.n))
    attached = AttachedPrograms((chosen.program.programs,), NAMES, named)
    parts = [SimpleNamespace(observations=seen[k::6], facts=facts[k::6]) for k in range(6)]
    return with_observed_facts(replace(policy, attached=attached), CARD, parts)


def exported(path: Path, policy: Policy) -> Any:
    """An instance of the class in the exported module."""
    export_standalone(path, policy)
    scope: dict[str, Any] = {"__name__": "exported"}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    return scope["Policy"]()


def same_actions(alone: Any, policy: Policy, chosen: Controller | None, seen: Any, facts: Any) -> None:
    """Compare over two episodes."""
    space = policy.architecture.action_space
    executor = Executor([chosen.program] if chosen else [], space, 1)
    if chosen is not None:
        executor.assign(0, 0, chosen.settings)
    for begin in (0, 40):
        executor.begin(0)
        alone.reset()
        for row in range(begin, begin + 40):
            own = policy.decide(seen[[row]], np.zeros((1, space.size), np.float32)).actions
            expected = space.clip(executor.act(facts[[row]], own)[0])[0]
            assert np.allclose(alone.act(seen[row]), expected, atol=2e-4), row


@pytest.mark.parametrize("activation", ["tanh", "relu", "elu", "silu", "leaky_relu"])
@pytest.mark.parametrize("space", [ARM, Discrete(3), Discrete(6, (3, 1))])
def test_a_policy_alone_acts_as_it_did(tmp_path: Path, activation: str, space: ActionSpace) -> None:
    policy = policy_of(space, activation, shared=(8,))
    same_actions(exported(tmp_path / "p.py", policy), policy, None, *visited())


def test_a_program_of_everything_acts_as_it_did(tmp_path: Path) -> None:
    seen, facts = visited()
    facts[:, 3] = 0.0
    facts = np.round(facts, 9)
    policy, chosen = policy_of(ARM), controller(**EVERYTHING)
    assert chosen.program.reads(1) and chosen.program.reads(2)
    same_actions(exported(tmp_path / "p.py", with_programs(policy, chosen, seen, facts)), policy, chosen, seen, facts)


@pytest.mark.parametrize("space", [Discrete(3), Discrete(6, (3, 1))])
def test_discrete_actions_are_chosen_as_they_were(tmp_path: Path, space: Discrete) -> None:
    seen, facts = visited()
    rules = [*CHOICES["rules"], *([{"when": "gap > 1", "action": {"choice1": 1}}] if space.parts else [])]
    policy, chosen = policy_of(space), controller(space=space, **CHOICES | {"rules": rules})
    same_actions(exported(tmp_path / "p.py", with_programs(policy, chosen, seen, facts)), policy, chosen, seen, facts)


def test_one_layer_of_programs_acts_on_what_the_layer_before_made(tmp_path: Path) -> None:
    seen, facts = visited()
    first = controller([{"set": {"hip": "0.5 * sin(c)"}}], clocks={"c": "0.3"})
    second = controller(
        [{"add": {"knee": "agent(hip) + m"}}], memory={"m": {"start": 0.1, "update": "0.5 * m + b / 9"}}
    )
    policy = with_programs(policy_of(ARM), first, seen, facts)
    assert policy.attached is not None
    policy = replace(policy, attached=policy.attached.on_top(second.program.programs))
    policy = with_observed_facts(policy, CARD, [SimpleNamespace(observations=seen, facts=facts)] * 3)
    alone, actor = exported(tmp_path / "p.py", policy), policy.actor()
    for begin in (0, 20):
        alone.reset()
        actor.reset()
        for row in range(begin, begin + 20):
            assert np.allclose(alone.act(seen[row]), actor.act(seen[row]), atol=2e-4)


def test_it_runs_where_there_is_numpy_alone(tmp_path: Path) -> None:
    seen, facts = visited()
    path = tmp_path / "alone.py"
    export_standalone(path, with_programs(policy_of(ARM), controller([{"add": {"hip": "0.1 * b"}}]), seen, facts))
    code = (
        "import sys, alone, numpy; policy = alone.Policy(); print(policy.act(numpy.ones(3)).shape); "
        "print(sorted({'jax', 'ultra', 'gymnasium', 'scipy'} & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-I", "-c", f"import sys; sys.path.insert(0, {str(tmp_path)!r}); {code}"],
                          capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stdout.split("\n")[:2] == ["(2,)", "[]"]
    text = path.read_text()
    assert "eval(" not in text
    assert "exec(" not in text
    with pytest.raises(ValueError, match="has 4 entries, but the policy takes 3"):
        exported(path, policy_of(ARM)).act(np.ones(4))


def test_what_cannot_be_exported_is_said(tmp_path: Path) -> None:
    seen, facts = visited()
    policy = with_programs(policy_of(ARM), controller([{"add": {"hip": "square + b"}}]), seen, facts)
    with pytest.raises(ExportError, match=r"not in the observation: square; teach them to the network"):
        export_standalone(tmp_path / "p.py", policy)
    assert policy.attached is not None
    with pytest.raises(ExportError, match=r"how b, square are read .* `ultra.observe_facts"):
        export_standalone(tmp_path / "p.py", replace(policy, attached=replace(policy.attached, observed=None)))
    images = create_policy(
        Architecture(36 * 36, Continuous((-1.0,), (1.0,)), image=(36, 36, 1)), np.random.default_rng()
    )
    with pytest.raises(ExportError, match="images"):
        export_standalone(tmp_path / "p.py", images)
    assert not (tmp_path / "p.py").exists()
