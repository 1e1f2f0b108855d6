"""The process around a run: threads, memory, device, and failures as one line."""

from __future__ import annotations

import ctypes
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from faults import ConfigError, Fault, OutOfMemoryError, StorageError

if TYPE_CHECKING:
    import torch


MALLOPT = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, 1 << 30), "M_TOP_PAD": (-2, 1 << 26)}
"""glibc's malloc parameters (malloc.h): number and value in bytes."""


def prepare(torch_threads: int) -> None:
    """Settings that must be made before torch is imported.

    Args:
        torch_threads: threads of one tensor operation; 0 means one per core.
    """
    threads = torch_threads or len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    # Large tensors come and go at every gradient step. Unless told otherwise, glibc returns each to the kernel and
    # takes the page faults of getting it back.
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for parameter, bytes_ in MALLOPT.values():
            libc.mallopt(parameter, bytes_)

    import torch

    torch.set_num_threads(threads)


def choose_device(name: str) -> torch.device:
    """The device that `name` means.

    Raises:
        ConfigError: naming what there is, if this machine lacks it.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ConfigError(f"device={name} is not on this machine; it has {', '.join(there)}")
    return device


def report(command: Callable[[], int], debug: bool) -> int:
    """Runs a command line; a foreseen failure becomes one line on standard error and its exit code."""
    try:
        return command()
    except Fault as fault:
        failure: Fault = fault
    except MemoryError:
        failure = OutOfMemoryError("out of memory; lower agent.replay_capacity, agent.batch_size or num_envs")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone: nothing to report to
        return 0
    except OSError as error:
        failure = StorageError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    if debug:
        traceback.print_exc()
    print(f"error: {' '.join(str(failure).split())}", file=sys.stderr)
    return failure.exit_code
