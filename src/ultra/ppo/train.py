"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347): the one training loop.

Where to start reading: `train` below, then `Environments.rollout` in `ultra.ppo.rollout`, which holds
the hooks through which a method guides training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from ultra.common.errors import DivergedError, UltraError
from ultra.config import AnchorConfig, PPOConfig
from ultra.evaluation.late_policies import LatePolicies
from ultra.policies.policy import Architecture, Params, Policy, actor_critic, entropy, log_prob, normalize
from ultra.ppo.anchor import FREE, Anchor, Hold, both
from ultra.ppo.checkpoint import CheckpointFile, Learner
from ultra.ppo.guidance import Guidance, LossTerm, NoGuidance
from ultra.ppo.rollout import Environments, Rollout
from ultra.ppo.standardize import standardize, unstandardize
from ultra.programs.compiled import Controller
from ultra.simulation.budget import StepBudget
from ultra.tasks.task import Task

NO_GUIDANCE = NoGuidance()

_Moving = tuple[Params, Any]
"""Parameters and optimiser state."""
_Moved = tuple[_Moving, dict[str, jax.Array]]
"""The same after a minibatch, and its metrics."""

FIGURES = ("loss", "policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction")
"""Metrics of a minibatch, logged under `train/`."""
ESTIMATED = ("rewards", "values", "next_values", "cut")
"""Arrays of a rollout that the update turns into advantages and returns."""


def check_rollouts(steps: int, config: PPOConfig) -> None:
    """Check that steps suffice for training.

    Raises:
        UltraError: if not even one rollout fits into them.
    """
    if steps < config.samples:
        raise UltraError(
            f"{steps} steps are left for training, less than one rollout of {config.samples}: "
            "raise --steps or lower --ppo.rollout-steps"
        )


@dataclass(frozen=True)
class Iteration:
    """One rollout and its update, for logs, curves and progress bars."""

    steps: int
    """Training steps so far."""
    total: int
    """Training steps of the whole training."""
    seconds: float
    """Duration of the iteration."""
    returns: tuple[float, ...]
    """Returns of recently finished episodes, in the task's own rewards."""
    metrics: dict[str, float]
    """TensorBoard names and values."""


def optimizer(config: PPOConfig) -> optax.GradientTransformation:
    """Adam with gradients clipped by their global norm; the learning rate is applied in the update.

    All weights are one vector to it: a tenth faster than a dozen small arrays.
    """
    return optax.flatten(
        optax.chain(optax.clip_by_global_norm(config.gradient_norm), optax.scale_by_adam(eps=1e-5), optax.scale(-1.0))
    )


def advantages(rollout: Mapping[str, jax.Array], gamma: float, lam: float) -> jax.Array:
    """Generalised advantage estimates (T, n) (Schulman et al., arXiv 1506.02438).

    Args:
        rollout: `rewards`, `values`, `next_values` (T, n), and `cut` (T, n): 1 where the
            lambda-return must not look beyond the step.
        gamma: discount.
        lam: decay of the lambda-return.
    """
    errors = rollout["rewards"] + gamma * rollout["next_values"] - rollout["values"]

    def backward(later: jax.Array, row: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, cut = row
        now = error + gamma * lam * (1.0 - cut) * later
        return now, now

    _, result = jax.lax.scan(backward, jnp.zeros_like(errors[0]), (errors, rollout["cut"]), reverse=True)
    return result


def surrogate(
    params: Params, batch: Mapping[str, jax.Array], config: PPOConfig, extra: LossTerm | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's loss on a minibatch, with metrics for the logs. `kept` masks samples (0: left out)."""
    outputs, values = actor_critic(params, batch["observations"])
    kept = batch["kept"]
    count = jnp.maximum(kept.sum(), 1.0)

    def mean(x: jax.Array) -> jax.Array:
        return (kept * x).sum() / count

    advantage = batch["advantages"]
    centre = mean(advantage)
    spread = jnp.sqrt((kept * (advantage - centre) ** 2).sum() / jnp.maximum(count - 1.0, 1.0))
    advantage = (advantage - centre) / (spread + 1e-8)
    # Zero where a sample takes no part: an action that was replaced may lie so far off that its ratio overflows.
    log_ratio = kept * (log_prob(params, outputs, batch["actions"]) - batch["log_probs"])
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - config.clip, 1 + config.clip)
    policy_loss = -mean(jnp.minimum(ratio * advantage, clipped * advantage))
    value_loss = mean((values - batch["returns"]) ** 2)
    bonus = mean(entropy(params, outputs))
    loss = policy_loss + config.value * value_loss - config.entropy * bonus
    if extra is not None:
        loss = loss + extra(params, {**batch, "outputs": outputs})
    return loss, {
        "train/loss": loss,
        "train/policy_gradient_loss": policy_loss,
        "train/value_loss": value_loss,
        "train/entropy_loss": -bonus,
        "train/approx_kl": mean(ratio - 1 - log_ratio),
        "train/clip_fraction": mean((jnp.abs(ratio - 1) > config.clip).astype(jnp.float32)),
    }


@lru_cache(maxsize=32)
def make_update(
    architecture: Architecture, config: PPOConfig, extra: LossTerm | None, critic_only: bool = False
) -> Any:
    """Compile one update: advantages, then all epochs and minibatches in a single call.

    Args:
        architecture: of the policy.
        config: hyper-parameters.
        extra: an additional term of the loss.
        critic_only: whether everything but the critic's own layers stays as it is.

    Returns:
        (params, optimizer state, normalizer arrays, rollout arrays, permutations
        (epochs, samples), learning rate) -> (params, optimizer state, metrics, whether all weights are finite).
    """
    step = optimizer(config)

    @jax.jit
    def update(
        params: Params,
        state: Any,
        arrays: Any,
        rollout: dict[str, jax.Array],
        order: jax.Array,
        rate: jax.Array,
    ) -> tuple[Params, Any, dict[str, jax.Array], jax.Array]:
        advantage = advantages(rollout, config.discount, config.gae_lambda)
        samples = {
            name: array.reshape(-1, *array.shape[2:]) for name, array in rollout.items() if name not in ESTIMATED
        }
        samples["advantages"] = advantage.reshape(-1)
        samples["returns"] = (advantage + rollout["values"]).reshape(-1)

        def learn(carry: _Moving, batch: dict[str, jax.Array]) -> _Moved:
            params, state = carry
            gradients, metrics = jax.grad(surrogate, has_aux=True)(params, batch, config, extra)
            if critic_only:
                gradients = {**jax.tree.map(jnp.zeros_like, gradients), "critic": gradients["critic"]}
            changes, state = step.update(gradients, state, params)
            changes = jax.tree.map(lambda change: rate * change, changes)
            return (optax.apply_updates(params, changes), state), metrics

        def skip(carry: _Moving, batch: dict[str, jax.Array]) -> _Moved:
            return carry, {f"train/{name}": jnp.zeros(()) for name in FIGURES}

        def minibatch(carry: _Moving, batch: dict[str, jax.Array]) -> _Moved:
            # Here and not before: a rollout of images is kept as bytes.
            batch = {**batch, "observations": normalize(arrays, batch["observations"])}
            if extra is not None:
                return learn(carry, batch)
            # Without a sample to learn from nothing moves, not even by Adam's momentum.
            result: _Moved = jax.lax.cond(batch["kept"].any(), learn, skip, carry, batch)
            return result

        def epoch(carry: _Moving, indices: jax.Array) -> tuple[_Moving, Any]:
            # Shuffled in one go: faster than fetching every minibatch by itself.
            shuffled = {name: array[indices] for name, array in samples.items()}
            moved, metrics = jax.lax.scan(minibatch, carry, shuffled)
            return moved, (metrics, shuffled["kept"].any(axis=1))

        minibatches = order.reshape(config.epochs, -1, config.minibatch)
        (params, state), (metrics, taught) = jax.lax.scan(epoch, (params, state), minibatches)
        explained = 1 - jnp.var(samples["returns"] - rollout["values"].reshape(-1)) / jnp.maximum(
            jnp.var(samples["returns"]), 1e-12
        )
        figures = {k: v.sum(where=taught) / jnp.maximum(taught.sum(), 1) for k, v in metrics.items()}
        finite = jnp.all(jnp.array([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(params)]))
        return params, state, figures | {"train/explained_variance": explained}, finite

    return update


def _arrays(rollout: Rollout, scale: float, drops_replaced: bool) -> dict[str, Any]:
    """A rollout as float32 arrays for the compiled update, rewards divided by the reward scale."""
    replaced = rollout.replaced.astype(np.float32)
    cut = rollout.done.astype(np.float32)
    kept = np.ones_like(replaced)
    if drops_replaced:
        # A replaced action says nothing about the policy, and what follows it does not follow from
        # the policy's own earlier actions: the lambda-return of the step before ends there.
        kept = 1.0 - replaced
        cut[:-1] = np.maximum(cut[:-1], replaced[1:])
    return {
        "observations": rollout.observations,
        "actions": rollout.actions,
        "log_probs": rollout.log_probs,
        "values": rollout.values,
        "next_values": rollout.next_values,
        "rewards": (rollout.rewards / scale).astype(np.float32),
        "cut": cut,
        "kept": kept,
        "replaced": replaced,
        "weights": rollout.weights,
    }


def _kept_first(order: NDArray[Any], kept: NDArray[np.float32]) -> NDArray[Any]:
    """Permutations (epochs, samples) with what is kept in front, so that minibatches are full of it."""
    return np.take_along_axis(order, np.argsort(kept[order] == 0, axis=1, kind="stable"), axis=1)


def improve(
    learner: Learner,
    rollout: Rollout,
    config: PPOConfig,
    rng: np.random.Generator,
    guidance: Guidance,
    learning_rate: float,
    hold: Hold = FREE,
) -> dict[str, float]:
    """One update from one rollout, perhaps anchored to a reference policy; returns metrics for the logs.

    Raises:
        DivergedError: if the update produces numbers that are not finite; the learner is unchanged.
    """
    policy = learner.policy
    extra = None if hold.critic_only else both(guidance.loss, hold.loss)
    update = make_update(policy.architecture, config, extra, hold.critic_only)
    order = np.stack([rng.permutation(config.samples) for _ in range(config.epochs)])
    arrays = _arrays(rollout, policy.normalizer.reward_scale, guidance.drops_replaced)
    if extra is None:
        order = _kept_first(order, arrays["kept"].reshape(-1))
    # Steps of the critic alone leave no momentum behind for the actor.
    state = optimizer(config).init(policy.params) if hold.critic_only else learner.optimizer_state
    params, state, metrics, finite = update(
        policy.params,
        state,
        policy.normalizer.arrays(),
        arrays | hold.columns,
        order,
        np.float32(learning_rate),
    )
    figures = {name: float(value) for name, value in jax.device_get(metrics).items()}
    bad = [name for name, value in figures.items() if not np.isfinite(value)]
    if bad or not finite:
        raise DivergedError(
            f"training diverged after {learner.steps} steps ({', '.join(bad) or 'weights'} not finite): "
            "lower --ppo.learning-rate; the last checkpoint is kept"
        )
    learner.policy = replace(policy, params=params)
    if not hold.critic_only:
        learner.optimizer_state = state
    learner.steps += rollout.steps
    return figures | hold.figures


def train(
    task: Task,
    policy: Policy,
    config: PPOConfig,
    steps: int,
    rng: np.random.Generator,
    *,
    guidance: Guidance = NO_GUIDANCE,
    learn_statistics: bool = False,
    standardized: bool = False,
    budget: StepBudget | None = None,
    observer: Callable[[Iteration], None] = lambda iteration: None,
    checkpoint: Path | None = None,
    late: LatePolicies | None = None,
    keep: AnchorConfig | None = None,
    underneath: Sequence[Controller] | None = None,
    workers: int = 0,
) -> Policy:
    """Train a policy with PPO.

    Args:
        task: environment to train in.
        policy: initial policy.
        config: hyper-parameters.
        steps: environment steps, rounded down to whole rollouts.
        rng: source of all randomness.
        guidance: modulates training; plain PPO by default.
        learn_statistics: whether to keep updating the normalisation of observations and rewards.
        standardized: whether to standardise a policy without statistics while it is trained
            (`ultra.ppo.standardize`); one that has them is trained as it is.
        budget: charged `train` steps.
        observer: called after every iteration.
        checkpoint: file to resume from if it exists, and to write.
        late: keeps some of the last policies.
        keep: anchors training to the initial policy; None trains freely.
        underneath: programs that turn the network's actions into what is executed; by default the policy's own.
        workers: cores for stepping; 0 uses all.

    Returns:
        The trained policy.

    Raises:
        UltraError: if not even one rollout fits into `steps`.
        DivergedError: if losses or weights are not finite.
    """
    check_rollouts(steps, config)
    iterations = steps // config.samples
    total = iterations * config.samples
    budget = budget or StepBudget(steps)

    def trained() -> Policy:
        return unstandardize(learner.policy, policy.normalizer) if standardized else learner.policy

    anchor = None if keep is None else Anchor(policy, keep)
    learner = Learner(policy if anchor is None else anchor.policy, optimizer(config).init(policy.params))
    file = CheckpointFile(checkpoint)
    batch = task.make_batch(config.environments, workers or None)
    try:
        environments = Environments(batch, guidance, rng, policy.controllers if underneath is None else underneath)
        if file.resume(learner, environments):
            budget.charge("train", learner.steps)
        else:
            environments.begin()
        while learner.steps < total:
            began = time.monotonic()
            fraction = learner.steps / total
            # Kept first: `progress` may change guidance's state, and a resumed training calls it again.
            file.keep(learner, environments)
            guidance.progress(fraction, learner.policy)
            rollout = environments.rollout(learner.policy, config.rollout_steps, config.discount)
            if standardized and not learner.steps:
                learner.policy, rollout = standardize(learner.policy, rollout)
            if learn_statistics:
                normalizer = learner.policy.normalizer.with_returns(rollout.discounted)
                learner.policy = replace(learner.policy, normalizer=normalizer)
            rate = config.learning_rate * (1 - fraction if config.anneal else 1)
            held = FREE
            if anchor is not None:
                held = anchor.hold(learner.policy, rollout, learner.steps // config.samples, iterations)
            figures = improve(learner, rollout, config, rng, guidance, rate, held)
            if learn_statistics and task.image is None:
                seen = rollout.observations.reshape(-1, task.observation_size)
                learner.policy = replace(learner.policy, normalizer=normalizer.with_observations(seen))
            budget.charge("train", rollout.steps)
            seconds = time.monotonic() - began
            metrics = figures | {"train/learning_rate": rate, "time/fps": rollout.steps / seconds}
            metrics |= _metrics(learner.policy, environments)
            returns = tuple(environments.episodes.recent_returns)
            observer(Iteration(learner.steps, total, seconds, returns, metrics))
            if late is not None and late.wants(learner.steps // config.samples, iterations):
                late.keep(learner.steps, trained())
    except BaseException:
        file.flush()
        raise
    finally:
        batch.close()
    return trained()


def _metrics(policy: Policy, environments: Environments) -> dict[str, float]:
    """Figures of the policy, its episodes and its guidance, under TensorBoard's usual names."""
    episodes = environments.episodes
    metrics: dict[str, float] = {}
    if "log_std" in policy.params:
        metrics["train/std"] = float(jnp.exp(policy.params["log_std"]).mean())
    if episodes.recent_returns:
        metrics["rollout/ep_rew_mean"] = float(np.mean(episodes.recent_returns))
        metrics["rollout/ep_len_mean"] = float(np.mean(episodes.recent_lengths))
    return metrics | environments.guidance.metrics()
