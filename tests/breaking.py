"""A worker that breaks in every way, in a module that a process imports without torch."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from faults import NonFiniteError


def break_down(kind: str) -> None:
    """Breaks this process in one of the ways in which processes break."""
    if kind == "raises":
        raise ValueError("the pole fell\nthrough the floor")
    if kind == "hangs":
        time.sleep(1000)
    elif kind == "exits":
        os._exit(9)
    elif kind == "finds a NaN":
        raise NonFiniteError("the loss is nan")
    elif kind == "is killed":
        os.kill(os.getpid(), signal.SIGKILL)


class Counter:
    """A worker with something to count, and the ways to break."""

    def __init__(self, start: int, extra: object = None) -> None:
        self._count = start

    def add(self, number: int) -> int:
        self._count += number
        return self._count

    def break_down(self, kind: str) -> None:
        break_down(kind)

    def say(self, line: str) -> None:
        sys.stderr.write(f"{line}\n")


class SlowToRead:
    """An argument that takes a while to arrive, and leaves a file when it has."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __setstate__(self, state: dict[str, Path]) -> None:
        time.sleep(0.3)
        state["_path"].touch()


class Unreadable:
    """An argument that does not arrive."""

    def __getstate__(self) -> dict[str, int]:
        return {"something": 1}

    def __setstate__(self, state: dict[str, int]) -> None:
        raise ValueError("this cannot be read")
