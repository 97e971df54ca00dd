"""What is refined: environments with cards, facts and exact snapshots."""

from ultra.tasks.batch import Batch, Snapshot, Step
from ultra.tasks.card import Card, Fact
from ultra.tasks.task import Task, get_task, known_tasks, register

__all__ = ["Batch", "Card", "Fact", "Snapshot", "Step", "Task", "get_task", "known_tasks", "register"]

register("pong", "ultra.tasks.shipped:pong", "ALE/Pong-v5, ball and paddles read from RAM, actions stay/up/down")
register("pong-pixels", "ultra.tasks.shipped:pong_pixels", "the same, observed as four grey images of 84 x 84")
register("hopper", "ultra.tasks.shipped:hopper", "Hopper-v5: hop forward on one leg without falling")
register("walker2d", "ultra.tasks.shipped:walker2d", "Walker2d-v5: walk forward on two legs without falling")
register("halfcheetah", "ultra.tasks.shipped:halfcheetah", "HalfCheetah-v5: run forward as fast as possible")
register("reacher", "ultra.tasks.shipped:reacher", "Reacher-v5: move a fingertip to a target")
register("sparse-hopper", "ultra.tasks.shipped:sparse_hopper", "Hopper-v5, rewarded only beyond --threshold (0.6 m)")
register("sparse-walker2d", "ultra.tasks.shipped:sparse_walker2d", "Walker2d-v5, the same")
register("sparse-halfcheetah", "ultra.tasks.shipped:sparse_halfcheetah", "HalfCheetah-v5, the same (5 m)")
