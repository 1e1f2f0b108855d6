"""The process around a run: threads, memory, device, and failures as one line."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

from faults import ConfigError, Fault, Interrupted, OutOfMemoryError, StorageError

if TYPE_CHECKING:
    import torch


MALLOPT = {"M_MMAP_THRESHOLD": (-3, 1 << 30), "M_TRIM_THRESHOLD": (-1, 1 << 30), "M_TOP_PAD": (-2, 1 << 26)}
"""glibc's malloc parameters (malloc.h): number and value in bytes."""
SPIN_COUNT = "300"
"""For how long torch's threads wait awake for their next work: some microseconds. Unless told otherwise they do so for
milliseconds, on processors that the environments' threads need: emulators then took up to two thirds longer. With none
at all, the policy does."""


def prepare(torch_threads: int) -> None:
    """Settings that must be made before torch is imported.

    Args:
        torch_threads: threads of one tensor operation; 0 means one per core.
    """
    threads = torch_threads or len(os.sched_getaffinity(0))
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    # Large tensors in pages of 2 MB, not 4 KB, cost fewer walks through the page table: 1 to 2 % of a gradient step.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Large tensors come and go at every gradient step. Unless told otherwise, glibc returns each to the kernel and
    # takes the page faults of getting it back.
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for parameter, bytes_ in MALLOPT.values():
            libc.mallopt(parameter, bytes_)

    warnings.formatwarning = lambda message, *_: f"warning: {' '.join(str(message).split())}\n"

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
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name}: {str(error).splitlines()[0]}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        raise ConfigError(f"device={name} is not on this machine; it has {', '.join(there)}")
    return device


def say(line: str) -> None:
    """Prints a line at once. A reader that has gone (`| head -1`) is no reason to stop."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        _discard_stdout()


def warn(line: str) -> None:
    """Prints a line on standard error; a terminal that has gone is no reason to stop."""
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr, flush=True)


def report(command: Callable[[], int], debug: bool) -> int:
    """Runs a command line; a foreseen failure becomes one line on standard error and its exit code."""
    try:
        code = command()
        sys.stdout.flush()
        return code
    except Fault as fault:
        failure: Fault = fault
    except KeyboardInterrupt:
        failure = Interrupted("interrupted before training or evaluation began; nothing is lost")
    except MemoryError:
        failure = OutOfMemoryError("out of memory; lower agent.replay_capacity, agent.batch_size or num_envs")
    except BrokenPipeError:
        _discard_stdout()  # the reader has gone: nothing to report to
        return 0
    except OSError as error:
        failure = StorageError(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}")
    except RuntimeError as error:  # torch has no class of its own for memory that the CPU lacks
        if "out of memory" not in str(error) and "can't allocate memory" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        failure = OutOfMemoryError(
            f"{reason}; lower agent.replay_capacity, agent.batch_size, num_envs or the network's size"
        )
    if debug:
        traceback.print_exc()
    if _may_speak():
        warn(f"error: {' '.join(str(failure).split())}")
    return failure.exit_code


def _may_speak() -> bool:
    """Whether no other learner has told yet why the run ends."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return True
    import learners

    return learners.has_last_word()


def _discard_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
