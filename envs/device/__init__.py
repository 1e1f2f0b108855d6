"""Environments that live on the device: state, steps and observations never leave it."""

from __future__ import annotations

import os
import sys

import warp as wp

wp.config.log_level = wp.LOG_ERROR


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
