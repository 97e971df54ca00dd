"""What several test files share."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.llm_runs import make_policy, make_run

# What an example may take depends on what else the machine does.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# In the background of a shell script Ctrl-C is ignored, also by the processes that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def own_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's ledger or keys."""
    monkeypatch.setenv("ULTRA_LEDGER", str(tmp_path / "ledger.sqlite"))
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GOOGLE_API_KEY", "GEMINI_API_KEY", "ULTRA_LOCAL_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained CartPole policy."""
    return make_policy(tmp_path_factory.mktemp("policy") / "cartpole")


@pytest.fixture(scope="session")
def collected(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """A CartPole run of three episodes."""
    return make_run(tmp_path_factory.mktemp("runs") / "three", policy, 3)


@pytest.fixture(scope="session")
def collected_many(tmp_path_factory: pytest.TempPathFactory, policy: Path) -> Path:
    """A CartPole run of twenty episodes."""
    return make_run(tmp_path_factory.mktemp("runs") / "twenty", policy, 20)
