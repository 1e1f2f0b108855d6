"""Environments of a batch on the CPU, shared out among threads: a CPU launch runs on one."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Sequence
from queue import SimpleQueue

from envs.device.launches import Launches


class Slices:
    """Equal parts of a batch that are stepped side by side: the first by the caller, each other one by a thread.

    A part is worth a thread only if stepping it takes longer than waking the thread. On CUDA there is one part.
    """

    def __init__(self, size: int, min_per_thread: int, device: str) -> None:
        """Cuts the batch.

        Args:
            size: how many things there are to share out.
            min_per_thread: of them.
            device: cpu, cuda or cuda:<index>.
        """
        threads = len(os.sched_getaffinity(0)) if device == "cpu" else 1
        threads = max(1, min(threads, size // min_per_thread))
        bounds = [size * k // threads for k in range(threads + 1)]
        self.parts = [(a, b - a) for a, b in itertools.pairwise(bounds)]
        """(first, count) of each."""
        self.helpers = [_Helper() for _ in range(threads - 1)]

    def run(self, launches: Sequence[Launches]) -> None:
        """Runs the launches of every part, in their order, and waits for all.

        Args:
            launches: for each part, what it launches.
        """
        for helper, part in zip(self.helpers, launches[1:], strict=True):
            helper.begin(part)
        try:
            _run_all(launches[0])
        finally:
            errors = [helper.finish() for helper in self.helpers]  # of all, lest one is still at work
        for error in errors:
            if error is not None:
                raise error

    def close(self) -> None:
        for helper in self.helpers:
            helper.close()


class _Helper:
    """A thread that runs what it is given. A batch is stepped in about a millisecond, and an executor of the standard
    library takes a tenth of that to hand over."""

    def __init__(self) -> None:
        self._given: SimpleQueue[Launches | None] = SimpleQueue()
        self._done: SimpleQueue[Exception | None] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def begin(self, launches: Launches) -> None:
        self._given.put(launches)

    def finish(self) -> Exception | None:
        """Waits until all has run, and returns what it raised."""
        return self._done.get()

    def close(self) -> None:
        self._given.put(None)

    def _work(self) -> None:
        while (launches := self._given.get()) is not None:
            try:
                _run_all(launches)
                self._done.put(None)
            except Exception as error:  # noqa: BLE001 - it is the caller's
                self._done.put(error)


def _run_all(launches: Launches) -> None:
    for launch in launches:
        launch()
