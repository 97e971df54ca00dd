"""The tasks that ship with the package, and any Gymnasium environment as a task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import numpy as np
import yaml

from ultra.common.errors import UltraError
from ultra.tasks.atari_objects import why_bytes
from ultra.tasks.card import Card, load_card, shipped_card
from ultra.tasks.derive import derive_card
from ultra.tasks.sources import Reader, SourceError, compile_source
from ultra.tasks.spaces import ActionSpace, Continuous, Discrete, from_gymnasium
from ultra.tasks.task import Task

if TYPE_CHECKING:
    from ultra.tasks.replaying import Means


def pong(sticky: float = 0.0) -> Task:
    """Pong with object-centric observations.

    Args:
        sticky: probability that the console repeats the previous action in a frame.
    """
    from ultra.tasks import pong as module

    return Task(
        name="pong",
        card=shipped_card("pong"),
        observation_size=module.OBSERVATION_SIZE,
        action_space=Discrete(len(module.GYMNASIUM_ACTIONS)),
        time_limit=module.TIME_LIMIT,
        make_local_batch=partial(module.PongBatch, sticky=sticky),
        make_environment=partial(module.ObjectPong, sticky=sticky),
        readers=(module.environment_facts,),
        in_workers=True,
        snapshot_every=16,
        sampled_evaluation=True,
    )


def pong_pixels(sticky: float = 0.0) -> Task:
    """Pong with the last four screens in grey as observations, and the facts of `pong`.

    Args:
        sticky: probability that the console repeats the previous action in a frame.
    """
    from ultra.tasks import pong_pixels as module

    return replace(
        pong(sticky),
        name="pong-pixels",
        card=replace(shipped_card("pong"), name="pong-pixels"),
        observation_size=module.OBSERVATION_SIZE,
        make_local_batch=partial(module.PixelPongBatch, sticky=sticky),
        make_environment=partial(module.PixelPong, sticky=sticky),
        image=module.IMAGE,
    )


def _mujoco(name: str, observation_size: int, actuators: int, time_limit: int) -> Task:
    from ultra.tasks import mujoco as module

    physics: module.Physics = getattr(module, name.upper())
    return Task(
        name=name,
        card=shipped_card(name),
        observation_size=observation_size,
        action_space=Continuous((-1.0,) * actuators, (1.0,) * actuators),
        time_limit=time_limit,
        make_local_batch=partial(module.MujocoBatch, physics, threads=1),
        make_threaded_batch=partial(module.MujocoBatch, physics),
        make_environment=partial(gymnasium.make, physics.env_id),
        readers=(physics.environment_facts,),
    )


hopper = partial(_mujoco, "hopper", 11, 3, 1000)
walker2d = partial(_mujoco, "walker2d", 17, 6, 1000)
halfcheetah = partial(_mujoco, "halfcheetah", 17, 6, 1000)
reacher = partial(_mujoco, "reacher", 10, 2, 50)


def _sparse(dense: Task, threshold: float) -> Task:
    """A runner that is rewarded for nothing but being `threshold` metres away from its start.

    Raises:
        UltraError: if the threshold is not positive.
    """
    from ultra.tasks import mujoco as module
    from ultra.tasks.sparse import SparseReward, sparse

    if not threshold > 0:
        raise UltraError(f"--threshold is {threshold:g}, but must be positive: a distance in metres")
    physics: module.Physics = getattr(module, dense.name.upper())
    batch = partial(module.MujocoBatch, sparse(physics, threshold))
    reward = f"Each step that ends with |x_position| of at least {threshold:g} m gives 1, every other step 0."
    return replace(
        dense,
        name=f"sparse-{dense.name}",
        card=replace(
            dense.card,
            name=f"sparse-{dense.card.name}",
            title=f"{dense.card.title}, sparse reward",
            goal=f"{dense.card.goal} Only steps at least {threshold:g} m from the start count.",
            reward=reward,
        ),
        make_local_batch=partial(batch, threads=1),
        make_threaded_batch=batch,
        make_environment=partial(SparseReward, physics.env_id, threshold),
        note=f"reward 1 for each step with |x| >= {threshold:g} m, else 0",
    )


def sparse_hopper(threshold: float = 0.6) -> Task:
    """Hopper with a sparse reward from `threshold` metres on."""
    return _sparse(hopper(), threshold)


def sparse_walker2d(threshold: float = 0.6) -> Task:
    """Walker2d with a sparse reward from `threshold` metres on."""
    return _sparse(walker2d(), threshold)


def sparse_halfcheetah(threshold: float = 5.0) -> Task:
    """HalfCheetah with a sparse reward from `threshold` metres on."""
    return _sparse(halfcheetah(), threshold)


def gymnasium_task(
    env_id: str, card: str = "", module: str = "", kwargs: Sequence[str] = (), snapshots: Means | None = None
) -> Task:
    """A task for any Gymnasium id.

    Args:
        env_id: as Gymnasium knows it.
        card: file that describes the environment; by default the shipped card of this id, or one that is
            derived from the environment.
        module: module or .py file that registers the id.
        kwargs: arguments of the environment, each NAME=VALUE with the value as in YAML.
        snapshots: how snapshots are taken; None finds out.

    Raises:
        UltraError: if the environment cannot be made, its spaces are not supported, or the card does not fit.
    """
    from ultra.tasks.gymnasium import GymnasiumBatch, import_module, make_environment
    from ultra.tasks.replaying import choose_snapshots

    if module:
        import_module(module, env_id)
    make = partial(make_environment, env_id, parse_arguments(kwargs))
    with closing(make()) as env:
        shape, space = env.observation_space.shape, from_gymnasium(env.action_space)
        limit = env.spec.max_episode_steps if env.spec else None
        if shape is None or len(shape) != 1:
            raise UltraError(f"{env_id}: observations of shape {shape} cannot be flattened to one dimension")
        found = load_card(Path(card)) if card else derive_card(env_id, env)
        atari = hasattr(env.unwrapped, "ale")
        bytes_alone = atari and bool(found.facts) and found.facts[0].source == "ram[0]"
    assert limit is not None  # `make_environment` sets one
    means = snapshots or choose_snapshots(make, space)
    readers = fact_readers(found, shape[0], space)
    if card and snapshots is None:  # in worker processes it has been done
        check_facts(make, found, readers, card)
    return Task(
        name=env_id,
        card=found,
        observation_size=shape[0],
        action_space=space,
        time_limit=limit,
        make_local_batch=partial(
            GymnasiumBatch, make, readers=readers, snapshots="replay" if means == "none" else means
        ),
        make_environment=make,
        readers=readers,
        in_workers=True,
        snapshot_every=4 if means == "state" else 16,
        sampled_evaluation=atari,
        snapshots=means,
        note=why_bytes() if bytes_alone and not card else "",
    )


def check_facts(make: Callable[[], gymnasium.Env[Any, Any]], card: Card, readers: Sequence[Reader], file: str) -> None:
    """Read every fact of a user's card once, so that a mistake shows at once and not in the middle of a run.

    Raises:
        UltraError: naming the card and the fact that cannot be read.
    """
    with closing(make()) as env:
        observation, _ = env.reset(seed=0)
        for fact, reader in zip(card.facts, readers, strict=bool(readers)):
            try:
                reader([env], np.asarray(observation, np.float32)[None])
            except SourceError as error:
                raise UltraError(f"card {file}: fact {fact.name!r}: {error}") from error


def parse_arguments(items: Sequence[str]) -> dict[str, Any]:
    """Arguments of an environment from NAME=VALUE, the values as in YAML.

    Raises:
        UltraError: if an item is none.
    """
    arguments = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator or not name.isidentifier():
            raise UltraError(f"--env-kwargs is {item}, but must be NAME=VALUE")
        try:
            arguments[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UltraError(f"--env-kwargs {item}: the value is no YAML") from error
    return arguments


def fact_readers(card: Card, observation_size: int, space: ActionSpace) -> list[Reader]:
    """Functions that read a card's facts.

    A fact without a source is the entry of the observation at the fact's own place.

    Raises:
        UltraError: if the card does not fit the environment, or a source cannot be read.
    """
    if len(card.actions) != space.size:
        raise UltraError(f"card {card.name!r} has {len(card.actions)} actions, but the environment takes {space}")
    sources = [fact.source or f"obs[{place}]" for place, fact in enumerate(card.facts)]
    if sources == [f"obs[{place}]" for place in range(observation_size)]:
        return []
    readers = []
    for fact, source in zip(card.facts, sources, strict=True):
        try:
            readers.append(compile_source(source, observation_size))
        except SourceError as error:
            raise UltraError(f"card {card.name!r}: fact {fact.name!r}: {error}") from error
    return readers
