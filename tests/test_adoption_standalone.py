"""Export as one module of NumPy alone: it acts as the policy does under its program."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.test_adoption_graft import ARM, NAMES, controller, policy_of, visited

from ultra.adoption.reading import Reading
from ultra.adoption.standalone import ExportError, export_standalone, observation_reading
from ultra.policies.policy import Architecture, Policy, create_policy
from ultra.programs.compiled import Controller
from ultra.programs.executor import Executor
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete

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


def exported(path: Path, policy: Policy, chosen: Controller | None = None, reading: Reading | None = None) -> Any:
    """An instance of the class in the exported module."""
    export_standalone(path, policy, chosen, reading)
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
    reading = observation_reading(NAMES, seen, facts)
    same_actions(exported(tmp_path / "p.py", policy, chosen, reading), policy, chosen, seen, facts)


@pytest.mark.parametrize("space", [Discrete(3), Discrete(6, (3, 1))])
def test_discrete_actions_are_chosen_as_they_were(tmp_path: Path, space: Discrete) -> None:
    seen, facts = visited()
    rules = [*CHOICES["rules"], *([{"when": "gap > 1", "action": {"choice1": 1}}] if space.parts else [])]
    policy, chosen = policy_of(space), controller(space=space, **CHOICES | {"rules": rules})
    reading = observation_reading(NAMES, seen, facts)
    same_actions(exported(tmp_path / "p.py", policy, chosen, reading), policy, chosen, seen, facts)


def test_a_plan_is_exported_like_any_program(tmp_path: Path) -> None:
    seen, facts = visited()
    policy, plan = policy_of(ARM), Plan((Segment((0.3, -0.2), 3), Segment((0.1, 0.4), 2)), relative=True)
    chosen = Controller.of_plan(plan, ARM)
    same_actions(exported(tmp_path / "p.py", policy, chosen), policy, chosen, seen, facts)


def test_it_runs_where_there_is_numpy_alone(tmp_path: Path) -> None:
    seen, facts = visited()
    reading = observation_reading(NAMES, seen, facts)
    path = tmp_path / "alone.py"
    export_standalone(path, policy_of(ARM), controller([{"add": {"hip": "0.1 * b"}}]), reading)
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
    reading = observation_reading(NAMES, seen, facts)
    chosen = controller([{"add": {"hip": "square + b"}}])
    with pytest.raises(ExportError, match="no affine function of the observation: square; distil"):
        export_standalone(tmp_path / "p.py", policy_of(ARM), chosen, reading)
    with pytest.raises(ExportError, match="give the reading"):
        export_standalone(tmp_path / "p.py", policy_of(ARM), chosen)
    images = create_policy(
        Architecture(36 * 36, Continuous((-1.0,), (1.0,)), image=(36, 36, 1)), np.random.default_rng()
    )
    with pytest.raises(ExportError, match="images"):
        export_standalone(tmp_path / "p.py", images)
    assert not (tmp_path / "p.py").exists()
