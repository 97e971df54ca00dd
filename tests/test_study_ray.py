"""A study on a Ray cluster of two nodes, one of which dies in the middle."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.gated import TASK, Gate

from ultra import study
from ultra.api import report

ray: Any = pytest.importorskip("ray", reason="needs the extra `ray` (make install-ray)")

PPO = {"environments": 4, "rollout_steps": 64, "minibatch": 64}
SETTINGS = {"steps": 1500, "evaluate": {"episodes": 3}, "ppo": PPO}


@pytest.fixture
def cluster() -> Iterator[Any]:
    """A head without room for runs; nodes are added by the test."""
    from ray.cluster_utils import Cluster

    made: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 80_000_000})
    ray.init(address=made.address, log_to_driver=False, logging_level=logging.ERROR)
    try:
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def attempts(run: Path) -> list[dict[str, Any]]:
    path = run / "attempts.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_every_run_is_done_once_although_a_node_dies(cluster: Any, policy: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "s.yaml", tmp_path / "out"
    gate = Gate(tmp_path / "gate", out / "runs" / "*")
    value = {
        "tasks": {TASK: {"policy": str(policy), "reference": 500}},
        "methods": ["ppo"],
        "seeds": [0, 1, 2],
        "settings": SETTINGS | {"env": gate.settings},
    }
    file.write_text(yaml.safe_dump(value))
    nodes = [cluster.add_node(num_cpus=1, object_store_memory=80_000_000) for _ in range(2)]
    cluster.wait_for_nodes()
    runs = [out / "runs" / f"Gated_v0-ppo-{seed}" for seed in (0, 1, 2)]
    killed: list[float] = []

    def kill_a_node() -> None:
        """While a run waits on each."""
        gate.wait_for(2)
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed.append(time.time())
        gate.open()

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_a_node)
        outcome = study(file, out, on="ray")
        killing.result()
    assert (outcome.done, outcome.failed) == (3, {})
    tried = [attempts(run) for run in runs]
    assert [len(entries) for entries in tried] == [1, 1, 1]  # what was killed has left no line
    assert sum(entries[0]["began"] > killed[0] for entries in tried) >= 2  # the third run, and the one that was killed
    table = json.loads((report(out) / "runs.json").read_text())
    assert [entry["seed"] for entry in table["runs"]] == [0, 1, 2]
    assert table["missing"] == []
    for entry in table["runs"]:
        assert entry["budget"]["used"] <= 1500
