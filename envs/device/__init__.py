"""Environments that live on the device: state, steps and observations never leave it."""

from __future__ import annotations

import os
import platform
import sys

import warp as wp

wp.config.log_level = wp.LOG_ERROR
if platform.machine() in ("x86_64", "AMD64"):
    # LLVM turns conditional moves into branches, for processors that predict them. Nobody can predict whether the way
    # of a car is free: the cars took a fifth longer.
    wp.config.cpu_compiler_flags = f"{wp.config.cpu_compiler_flags} -mllvm=-x86-cmov-converter=false"


def _begin_quietly() -> None:
    """Starts Warp. A machine without a GPU is no reason for a warning, but Warp's library writes one past Python."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        wp.init()
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


_begin_quietly()
