"""What is written: files whole or not at all, and JSON without NaN or infinity."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import ultra
from ultra.advice.records import Advice, CriticalState, Verification, save_advice
from ultra.analysts.fidelity import Fidelity
from ultra.common.errors import UltraError
from ultra.common.files import to_json_text, write_json, write_json_lines
from ultra.common.ledger import canonical
from ultra.pipeline.run import CurveFile, read_curve
from ultra.policies.io import save_policy
from ultra.policies.policy import Architecture, create_policy
from ultra.tasks import states
from ultra.tasks.plans import Plan, Segment
from ultra.tasks.spaces import Discrete

NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.none() | st.text(max_size=3)
PLAIN = st.recursive(NUMBERS, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part))


@given(PLAIN)
def test_json_comes_back_as_it_was(value: Any) -> None:
    assert json.loads(to_json_text(value)) == value
    assert json.loads(to_json_text(value, style="canonical")) == value


@given(
    PLAIN, st.sampled_from([math.nan, math.inf, -math.inf]), st.lists(st.text("ab", min_size=1) | st.none(), max_size=4)
)
def test_a_number_that_is_not_finite_is_refused_by_its_name(other: Any, bad: float, way: list[str | None]) -> None:
    """However deep it lies in lists (None) and mappings, beside whatever else."""
    value: Any = bad
    path = ""
    for name in reversed(way):
        value = [other, value] if name is None else {"other": other, name: value}
        path = f"[1]{path}" if name is None else f".{name}{path}"
    with pytest.raises(UltraError) as error:
        to_json_text(value, "result.json")
    assert str(error.value).startswith(f"result.json{path} is {bad:g}, which cannot be written")


def test_a_file_stays_where_the_new_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"gain": {"mean": 1.0}})
    with pytest.raises(UltraError, match=r"result\.json\.gain\.mean is nan"):
        write_json(path, {"gain": {"mean": math.nan}})
    assert json.loads(path.read_text()) == {"gain": {"mean": 1.0}}
    with pytest.raises(UltraError, match=r"lines\.jsonl, line 2\.x is inf"):
        write_json_lines(tmp_path / "lines.jsonl", [{"x": 1.0}, {"x": math.inf}])
    assert [item.name for item in tmp_path.iterdir()] == ["result.json"]


def test_advice_whose_interval_is_unknown_is_refused(tmp_path: Path) -> None:
    """As after a single pair, when verification still allowed that."""
    one = Verification(1.0, math.nan, math.nan, 1, 1.0, "unclear", 10)
    advice = Advice(CriticalState(0, 0, 1.0, ""), Plan((Segment(1),)), 0.5, -0.5, "", "test", one)
    with pytest.raises(UltraError, match=r"advice\.jsonl, line 1\.verification\.low is nan"):
        save_advice([advice], tmp_path / "advice.jsonl")
    save_advice([replace(advice, verification=replace(one, low=0.5, high=1.5))], tmp_path / "advice.jsonl")


def test_a_policy_header_and_a_request_are_refused(tmp_path: Path) -> None:
    policy = create_policy(Architecture(3, Discrete(2), (4,)), np.random.default_rng(0))
    with pytest.raises(UltraError, match=r"policy\.json\.about\.return is nan"):
        save_policy(policy, tmp_path / "policy", {"return": math.nan})
    assert not (tmp_path / "policy" / "policy.json").exists()
    with pytest.raises(UltraError, match=r"a request\.temperature is inf"):
        canonical({"temperature": math.inf})


def test_a_learning_curve_is_refused(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "curve.csv")
    curve.add(100, 1.0, 0.5, 3)
    with pytest.raises(UltraError, match=r"curve\.csv\[1\] is nan"):
        curve.add(200, math.nan, 0.0, 0)
    with pytest.raises(UltraError, match=r"curve\.csv\[2\] is inf"):
        curve.add(200, 1.0, np.float32(np.inf), 1)  # type: ignore[arg-type]
    curve.close()
    assert read_curve(tmp_path / "curve.csv") == [[100, 1.0, 0.5, 3]]


def test_a_fidelity_of_minus_infinity_is_null() -> None:
    found = Fidelity(0.2, -math.inf, -math.inf, 1.5, 0.0, 10.0, 2, 100, (0.0, 0.0))
    assert json.loads(to_json_text(found.as_dict()))["score"] is None
    assert found.as_dict()["ci95"] == [None, 1.5]


def test_a_snapshot_keeps_infinities_of_an_environment_in_strict_json() -> None:
    """Environments may start their records at minus infinity; the snapshot's header is JSON all the same."""

    class Recorder(gymnasium.Wrapper[Any, Any, Any, Any]):
        best, worst, unknown, step_count = -math.inf, math.inf, math.nan, 3.5

        def __init__(self) -> None:
            super().__init__(gymnasium.make("CartPole-v1"))
            self.best, self.worst, self.unknown = -math.inf, math.inf, math.nan

    env = Recorder()
    env.reset(seed=0)
    state = states.take(env)
    length = int.from_bytes(state[:4], "little")

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    json.loads(state[4 : 4 + length], parse_constant=refuse)
    env.best = env.worst = env.unknown = 0.0
    states.put(env, state)
    assert (env.best, env.worst) == (-math.inf, math.inf)
    assert math.isnan(env.unknown)
    env.close()


def test_json_is_written_in_one_place() -> None:
    package = Path(ultra.__file__).parent
    found = [path for path in package.rglob("*.py") if "json.dump" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(package).as_posix() for path in found] == ["common/files.py"]
