"""Compiled code is kept on disk: a second run of the same shapes does not compile again."""

from __future__ import annotations

import os

import jax
import platformdirs


def keep_compiled_code() -> None:
    """Let JAX keep what it compiles in the user's cache folder, unless JAX's own settings say where.

    `JAX_COMPILATION_CACHE_DIR` names another folder, `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("ultra-refine") / "xla"))  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)  # type: ignore[no-untyped-call]
