"""MuJoCo's warnings go into a log: otherwise it prints them, and writes MUJOCO_LOG.TXT where it is run."""

from __future__ import annotations

import logging

import mujoco

_log = logging.getLogger(__name__)


def log_warnings() -> None:
    """From now on in this process, unless somebody else has taken care of them."""
    if mujoco.get_mju_user_warning() is None:
        mujoco.set_mju_user_warning(lambda message: _log.debug("MuJoCo: %s", message))
