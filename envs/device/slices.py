"""Environments of a batch on the CPU, shared out among threads: a CPU launch runs on one."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor


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
        self.pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def run(self, launches: Sequence[Sequence[Callable[[], object]]]) -> None:
        """Runs the launches of every part, in their order, and waits for all.

        Args:
            launches: for each part, what it launches.
        """
        others = [self.pool.submit(_run_all, part) for part in launches[1:]] if self.pool is not None else []
        _run_all(launches[0])
        for done in others:
            done.result()

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown()


def _run_all(launches: Sequence[Callable[[], object]]) -> None:
    for launch in launches:
        launch()
