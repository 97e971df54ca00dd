"""Settings of JAX's compiler and runtime; JAX's own environment variables go before them."""

from __future__ import annotations

import os

import jax
import platformdirs


def configure() -> None:
    """Run small calls at once, and keep compiled code on disk so that the same shapes compile once.

    Handing a call to another thread takes longer than a small network (`JAX_CPU_ENABLE_ASYNC_DISPATCH`).
    Compiled code lies in the user's cache folder: `JAX_COMPILATION_CACHE_DIR` names another one,
    `JAX_ENABLE_COMPILATION_CACHE=false` turns it off.
    """
    if "JAX_CPU_ENABLE_ASYNC_DISPATCH" not in os.environ:
        jax.config.update("jax_cpu_enable_async_dispatch", False)  # type: ignore[no-untyped-call]
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    jax.config.update("jax_compilation_cache_dir", str(platformdirs.user_cache_path("ultra-refine") / "xla"))  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)  # type: ignore[no-untyped-call]
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)  # type: ignore[no-untyped-call]
