"""Ask first or train first: is the starting policy stuck, or does it still learn?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ultra.common.files import write_json
from ultra.common.statistics import rises
from ultra.config import RefineConfig
from ultra.pipeline.run import read_curve
from ultra.pipeline.schedule import Order

FILE = "order.json"
PROBE_SHARE = 0.1
"""Most of the budget for the training that shows whether a policy without a learning curve still learns."""
PROBE_ROLLOUTS = 8
"""Fewest rollouts that say anything."""
RECENT = 0.3
"""A curve is judged by this last part."""


@dataclass(frozen=True)
class Decision:
    """Whether programs are asked for before training, and why.

    Attributes:
        order: of programs and training.
        why: for people.
        probe: whether a short training is to decide it, or decided it.
        steps: that the probe took.
    """

    order: Order
    why: str
    probe: bool = False
    steps: int = 0

    def save(self, run: Path) -> None:
        """Keep it in the run directory."""
        write_json(run / FILE, asdict(self))


def load_decision(run: Path) -> Decision | None:
    """The decision of a run; None if it has not been made."""
    path = run / FILE
    return Decision(**json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


def probe_steps(config: RefineConfig) -> int:
    """Steps of the training that decides, in whole rollouts; 0 if too few would fit into its share."""
    rollouts = int(PROBE_SHARE * config.steps) // config.ppo.samples
    return rollouts * config.ppo.samples if rollouts >= PROBE_ROLLOUTS else 0


def from_settings(config: RefineConfig) -> Decision | None:
    """The decision where settings make it: nothing is asked, or the order was given."""
    if not config.uses_programs:
        return Decision("first", "no programs are asked for")
    if config.programs.ask != "auto":
        return Decision(config.programs.ask, f"--ask {config.programs.ask}")
    return None


def from_curve(policy: Path) -> Decision | None:
    """The decision from the learning curve beside a policy that `ultra train` made; None if there is none."""
    rows = read_curve(policy / "curve.csv")
    recent = rows[int((1 - RECENT) * len(rows)) :]
    if len(recent) < PROBE_ROLLOUTS:
        return None
    if rises(recent):
        return Decision("last", "the starting policy's learning curve still rises: training comes first")
    return Decision("first", "the starting policy's learning curve is flat: programs come first")


def from_probe(curve: Path, steps: int) -> Decision:
    """The decision from the curve of the probing training."""
    if rises([row for row in read_curve(curve) if row[0] <= steps]):
        return Decision("last", f"the return rose in {steps:,} steps of training, which goes on first", True, steps)
    return Decision(
        "first", f"the return did not rise in {steps:,} steps of training: programs come first", True, steps
    )


def from_episodes(ends_early: bool) -> Decision:
    """The decision where there are too few steps to try: falls cost a lot, so learning to stay up comes first."""
    if ends_early:
        return Decision("last", "episodes end early and the budget is small: training comes first")
    return Decision("first", "no episode ends early and the budget is small: programs come first")
