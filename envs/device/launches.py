"""Recorded kernel launches."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import warp as wp

Launch = Callable[[], object]
Launches = Sequence[Launch]


def record(kernel: Any, dim: int, inputs: Sequence[Any], device: str) -> Launch:
    """Prepares a launch, to be made again and again.

    Args:
        kernel: what to launch.
        dim: how many threads.
        inputs: the arguments. Arrays are read where they lie at the moment of a launch; numbers are those of now.
        device: cpu, cuda or cuda:<index>.

    Returns:
        Makes the launch. On the CPU it comes back when the kernel has run.
    """
    command = wp.launch(kernel, dim, inputs=inputs, device=device, record_cmd=True)
    return laid_out(command) if device == "cpu" else command.launch


def laid_out(command: Any) -> Launch:
    """A recorded launch on the CPU as a call of the compiled function, its arguments laid out once and for all. Warp's
    own `launch` does that anew at every call and takes 10 us for it, while no other Python thread runs."""
    bounds, *values = command.params
    layout = [(f"argument_{k}", type(value)) for k, value in enumerate(values)]
    arguments = type("Arguments", (ctypes.Structure,), {"_fields_": layout})(*values)
    arguments.command = command  # which holds what the arguments point to, and the compiled function
    return partial(command.hooks.forward, ctypes.byref(bounds), ctypes.byref(arguments))
