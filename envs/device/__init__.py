"""Environments that live on the device: state, steps and observations never leave it."""

from __future__ import annotations

import warp as wp

wp.config.log_level = wp.LOG_ERROR  # a machine without a GPU is no reason for a warning
