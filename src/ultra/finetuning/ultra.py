"""ULTRA-A, ULTRA-R and ULTRA-RA (arXiv 2505.20671): advice at critical states modulates actions, rewards or both.

    (1)  a_true(t) = a_LLM(t) if s_t is critical, else a_t ~ pi(.|s_t)
    (2)  r'(t) = r_t + lambda * r_LLM(t) if s_t is critical, else r_t

A state is critical if the episode started from its snapshot, or if its facts lie within the book's radius of an
entry. Advice is a plan of L steps: for its duration the environment counts as critical, and the reward of
equation 2 is spread evenly over its steps.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from ultra.advice.records import Advice, AdviceBook, trusted
from ultra.config import GuidanceConfig
from ultra.finetuning.implicit import ImplicitRewards
from ultra.finetuning.nearest import Nearest
from ultra.policies.policy import Policy, log_prob
from ultra.ppo.guidance import Intervention, LossTerm
from ultra.programs.compiled import Controller
from ultra.programs.executor import Executor
from ultra.tasks.batch import Facts, Indices, Observations, Snapshot, Step
from ultra.tasks.plans import PlanTable
from ultra.tasks.spaces import Actions, ActionSpace
from ultra.verification.recheck import Recheck


class UltraGuidance:
    """Modulates training by a book of advice.

    Args:
        book: advice with its states; the matching radius is the book's.
        space: actions of the task.
        config: strengths; `strength` 0 gives plain PPO, bit for bit.
        environments: number of parallel environments.
        on_actions: overwrite actions (ULTRA-A, ULTRA-RA).
        on_rewards: change rewards (ULTRA-R, ULTRA-RA).
        rng: source of the guidance's randomness, apart from training's.
        recheck: verifies the most used advice again during training; None does not.
    """

    def __init__(
        self,
        book: AdviceBook,
        space: ActionSpace,
        config: GuidanceConfig,
        environments: int,
        *,
        on_actions: bool,
        on_rewards: bool,
        rng: np.random.Generator,
        recheck: Recheck | None = None,
    ) -> None:
        self._trusted = [row for row, entry in enumerate(book.entries) if trusted(entry.advice, config.trust)]
        book = book.trusted(config.trust)
        self._book, self._config, self._rng, self._recheck = book, config, rng, recheck
        advice = [entry.advice for entry in book.entries]
        self._controllers = [Controller.of_plan(item.plan, space, item.strength) for item in advice]
        programs = list(dict.fromkeys(controller.program for controller in self._controllers))
        self._programs = [programs.index(controller.program) for controller in self._controllers]
        self._executor = Executor(programs, space, environments)
        table = PlanTable([item.plan for item in advice], [item.strength for item in advice], space)
        self._lengths = table.lengths
        self._nearest = Nearest(book) if len(book) else None
        # Advice that is not known to help acts through rewards alone, unless everything is trusted.
        self._executable = np.array(
            [on_actions and (config.trust == "all" or item.verdict == "helps") for item in advice], dtype=np.bool_
        )
        self._gains = np.array([_gain(item) for item in advice])
        self._worth = _worth(self._gains)
        taken = [entry.taken for entry in book.entries]
        rewarded = on_rewards and config.lam > 0
        self._implicit = ImplicitRewards(advice, taken, table, space) if rewarded else None
        self._beta = config.strength
        self._active = np.full(environments, -1, dtype=np.int64)
        self._position = np.zeros(environments, dtype=np.int64)
        self._following = np.zeros(environments, dtype=np.bool_)
        self._under_way = np.zeros(0, dtype=np.intp)  # where plans are, in the present step
        self._uses = np.zeros(len(advice), dtype=np.int64)
        self._counts = np.zeros(3)
        self._loss = imitation_loss(config.imitation) if self._imitates else None

    @property
    def needs_facts(self) -> bool:
        """Whether there is advice to look up and its strength has not fallen to zero."""
        return self._beta > 0 and len(self._book) > 0

    @property
    def _imitates(self) -> bool:
        config = self._config
        return (
            config.estimator == "corrected"
            and config.imitation > 0
            and config.strength > 0
            and bool((self._executable & (self._worth > 0)).any())
        )

    @property
    def drops_replaced(self) -> bool:
        """Whether overwritten steps are left out of the surrogate: yes with the corrected estimator."""
        return self._config.estimator == "corrected"

    @property
    def loss(self) -> LossTerm | None:
        """Imitation of verified advice, weighted by its measured advantage."""
        return self._loss

    def progress(self, fraction: float, policy: Policy) -> None:
        """Anneal the strength linearly to zero by `anneal_until`; recheck the most used advice when it is due."""
        self._beta = self._config.strength * max(0.0, 1.0 - fraction / self._config.anneal_until)
        if self._recheck is not None and self._beta > 0 and self._recheck.due(fraction / self._config.anneal_until):
            self._check_again(policy, self._recheck)

    def _check_again(self, policy: Policy, recheck: Recheck) -> None:
        """Stop executing advice that no longer shows an advantage."""
        used = np.flatnonzero(self._executable & (self._uses > 0))
        rows = used[np.argsort(-self._uses[used], kind="stable")]
        for row, found in zip(rows, recheck.run(policy, [self._trusted[row] for row in rows]), strict=True):
            if found is not None:
                self._gains[row] = max(0.0, found.advantage)
                self._executable[row] = found.advantage > 0
        self._worth = _worth(self._gains)
        self._uses[:] = 0

    def start(self, indices: Indices) -> list[Snapshot | None]:
        """Let some of the starting episodes begin at critical states."""
        starts: list[Snapshot | None] = []
        for index in indices:
            self._active[index] = -1
            self._executor.release(index)
            if len(self._book) and self._rng.random() < self._config.restart * self._beta:
                entry = int(self._rng.integers(len(self._book)))
                self._engage(np.array([index]), np.array([entry]))
                starts.append(self._book.entries[entry].snapshot)
            else:
                starts.append(None)
        return starts

    def _engage(self, environments: NDArray[Any], entries: NDArray[Any]) -> None:
        self._active[environments] = entries
        self._position[environments] = 0
        np.add.at(self._uses, entries, 1)
        heeded = self._rng.random(len(entries)) < self._beta
        self._following[environments] = followed = heeded & self._executable[entries]
        for environment, entry in zip(environments[followed], entries[followed], strict=True):
            self._executor.assign(environment, self._programs[entry], self._controllers[entry].settings)

    def act(self, observations: Observations, facts: Facts | None, actions: Actions) -> Intervention:
        """Execute plans where a state is critical and the advice is followed."""
        if not self.needs_facts:
            self._active[:], self._under_way = -1, self._under_way[:0]
            self._executor.release(slice(None))
            return Intervention.none(actions)
        assert facts is not None
        self._match(facts)
        self._under_way = np.flatnonzero(self._active >= 0)
        self._counts[0] += len(actions)
        self._counts[1] += len(self._under_way)
        if not len(self._under_way):
            return Intervention.none(actions)
        done, _ = self._executor.act(facts, actions)
        change = Intervention.none(done)
        where = self._under_way[self._following[self._under_way]]
        if len(where):
            self._counts[2] += len(where)
            change.replaced[where] = True
            change.weights[where] = self._beta * self._worth[self._active[where]]
        return change

    def observe(self, step: Step, facts: Facts | None) -> None:
        """Where a step leads is of no concern to advice."""

    def _match(self, facts: Facts) -> None:
        """Engage free environments whose state is near an entry."""
        free = np.flatnonzero(self._active < 0)
        if self._nearest is not None and len(free):
            near, entries = self._nearest.of(facts, free)
            if len(near):
                self._engage(near, entries)

    def reward(self, facts: Facts | None, actions: Actions, rewards: NDArray[np.float64]) -> NDArray[np.float64]:
        """Equation 2 at critical states; then move on in the plans."""
        where = self._under_way
        if not len(where):
            return rewards
        entries, positions = self._active[where], self._position[where]
        if self._implicit is not None:
            earned = self._implicit.of(entries, positions, self._following[where], actions[where])
            rewards = rewards.copy()
            rewards[where] += self._beta * self._config.lam * earned
        self._position[where] = positions + 1
        over = where[positions + 1 >= self._lengths[entries]]
        self._active[over] = -1
        self._executor.release(over)
        return rewards

    def metrics(self) -> dict[str, float]:
        """Strength, and the shares of steps that were critical and overwritten."""
        steps, critical, replaced = self._counts
        self._counts = np.zeros(3)
        return {
            "guidance/strength": self._beta,
            "guidance/critical_share": critical / steps if steps else 0.0,
            "guidance/replaced_share": replaced / steps if steps else 0.0,
        }

    def state(self) -> dict[str, Any]:
        """Plans under way, what was found of advice since, and the random generator."""
        return {
            "active": self._active.tolist(),
            "position": self._position.tolist(),
            "following": self._following.tolist(),
            "executor": self._executor.state(),
            "uses": self._uses.tolist(),
            "gains": self._gains.tolist(),
            "executable": self._executable.tolist(),
            "recheck": self._recheck.state() if self._recheck else None,
            "rng": self._rng.bit_generator.state,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""
        self._active[:] = state["active"]
        self._position[:] = state["position"]
        self._following[:] = state["following"]
        self._executor.load_state(state["executor"])
        self._uses[:] = state["uses"]
        self._gains[:], self._executable[:] = state["gains"], state["executable"]
        self._worth = _worth(self._gains)
        if self._recheck is not None:
            self._recheck.load_state(state["recheck"])
        self._rng.bit_generator.state = state["rng"]


def _gain(advice: Advice) -> float:
    """The measured advantage of advice that helps, else 0."""
    found = advice.verification
    return max(0.0, found.advantage) if found is not None and found.verdict == "helps" else 0.0


def _worth(gains: NDArray[np.float64]) -> NDArray[np.float32]:
    """How much each advice is worth imitating, 0 to 1: its measured advantage by the largest one."""
    most = gains.max(initial=0.0)
    return (gains / most if most > 0 else gains).astype(np.float32)


def imitation_loss(weight: float) -> LossTerm:
    """Advantage-weighted imitation of executed advice; the exploration noise is left alone."""

    def loss(params: dict[str, Any], batch: Any) -> jax.Array:
        if "log_std" in params:
            params = {**params, "log_std": jax.lax.stop_gradient(params["log_std"])}
        likelihood = log_prob(params, batch["outputs"], batch["actions"])
        return -weight * jnp.mean(batch["weights"] * batch["replaced"] * likelihood)

    return loss
