"""Where metrics go: metrics.jsonl, TensorBoard, and a live line on a terminal. Logging never stops a run."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from contract import Episode, Metrics, State
from training.process import warn

WINDOW_EPISODES = 100
"""`rollout/ep_rew_mean` is the mean over this many episodes, as in Stable-Baselines3."""


class Means:
    """Means of metrics between two rows of the log. Part of the checkpoint."""

    def __init__(self) -> None:
        self._pending: list[Metrics] = []
        self._sum: dict[str, float] = {}
        self._count: dict[str, int] = {}

    def add(self, metrics: Iterable[Metrics]) -> None:
        self._pending.extend(m for m in metrics if m)

    def row(self) -> dict[str, float]:
        """The means since the last row."""
        self._reduce()
        row = {name: total / self._count[name] for name, total in self._sum.items()}
        self._sum, self._count = {}, {}
        return row

    def _reduce(self) -> None:
        """Turns pending tensors into sums: the one place where logging waits for the device."""
        for metrics in self._pending:
            for name, value in metrics.items():
                self._sum[name] = self._sum.get(name, 0.0) + float(value)
                self._count[name] = self._count.get(name, 0) + 1
        self._pending = []

    def state_dict(self) -> State:
        self._reduce()
        return {
            "names": list(self._sum),
            "sums": np.array(list(self._sum.values()), np.float64),  # JSON has no NaN
            "counts": list(self._count.values()),
        }

    def load_state_dict(self, state: State) -> None:
        self._sum = dict(zip(state["names"], np.asarray(state["sums"]).tolist(), strict=True))
        self._count = dict(zip(state["names"], state["counts"], strict=True))


class Tally:
    """Running figures between two rows of the log, and the recent episodes. Part of the checkpoint."""

    def __init__(self) -> None:
        self._episodes: deque[Episode] = deque(maxlen=WINDOW_EPISODES)
        self._episodes_finished = 0
        self._means = Means()

    def add(self, episodes: Iterable[Episode], metrics: Iterable[Metrics]) -> None:
        for episode in episodes:
            self._episodes.append(episode)
            self._episodes_finished += 1
        self._means.add(metrics)

    @property
    def episode_return(self) -> float | None:
        """Mean return of the recent episodes."""
        return float(np.mean([e.episode_return for e in self._episodes])) if self._episodes else None

    def row(self) -> dict[str, float]:
        """Means of the metrics since the last row, and of the recent episodes."""
        row: dict[str, float] = {}
        if self._episodes:
            row["rollout/ep_rew_mean"] = float(np.mean([e.episode_return for e in self._episodes]))
            row["rollout/ep_len_mean"] = float(np.mean([e.length_env_steps for e in self._episodes]))
            known = [e.success for e in self._episodes if e.success is not None]
            if known:
                row["rollout/success_rate"] = float(np.mean(known))
            for name in self._episodes[-1].extras:
                row[f"rollout/{name}"] = float(np.mean([e.extras[name] for e in self._episodes if name in e.extras]))
        row["rollout/episodes"] = float(self._episodes_finished)
        return row | self._means.row()

    def state_dict(self) -> State:
        recent = [
            [e.env_index, e.episode_return, e.length_env_steps, e.success, dict(e.extras)] for e in self._episodes
        ]
        return {"recent": recent, "finished": self._episodes_finished, **self._means.state_dict()}

    def load_state_dict(self, state: State) -> None:
        self._episodes.extend(Episode(i, r, length, s, extras) for i, r, length, s, extras in state["recent"])
        self._episodes_finished = state["finished"]
        self._means.load_state_dict(state)


class Writer:
    """Appends rows to metrics.jsonl and TensorBoard. The first failure is one warning; training goes on without."""

    def __init__(self, path: Path, tensorboard: bool, resume: State | None = None, axis: str = "env_steps") -> None:
        """Opens the files of a run folder.

        Args:
            path: the run folder.
            tensorboard: whether to write event files too.
            resume: `state_dict` of the checkpoint being resumed: what was written after it is dropped.
            axis: what is counted in steps, as each row of metrics.jsonl names it.
        """
        self._axis = axis
        self._file: Any = None
        self._board: Any = None
        self._metrics_bytes = 0 if resume is None else int(resume["metrics_bytes"])
        try:
            self._file = (path / "metrics.jsonl").open("ab")
            if resume is not None:
                self._file.truncate(self._metrics_bytes)
            if tensorboard:
                from torch.utils.tensorboard import SummaryWriter

                threading.excepthook = _thread_failed
                purge_step = None if resume is None else resume[axis] + 1
                self._board = SummaryWriter(str(path), purge_step=purge_step)
        except (OSError, ImportError) as error:
            self._give_up(error)

    def write(self, steps: int, row: dict[str, float]) -> None:
        """Adds one row; values that are not finite are written as null."""
        try:
            if self._file is not None:
                plain = {k: (v if np.isfinite(v) else None) for k, v in row.items()}
                line = json.dumps({self._axis: steps, **plain}, allow_nan=False).encode() + b"\n"
                self._file.write(line)
                self._file.flush()
                self._metrics_bytes += len(line)
            if self._board is not None:
                for name, value in row.items():
                    self._board.add_scalar(name, value, steps)
        except OSError as error:
            self._give_up(error)

    def picture(self, steps: int, name: str, draw: Callable[[], np.ndarray | None]) -> None:
        """Adds a picture, (height, width, 3) uint8, to TensorBoard. It is drawn only if someone will see it."""
        picture = None if self._board is None else draw()
        if self._board is not None and picture is not None:
            try:
                self._board.add_image(name, picture, steps, dataformats="HWC")
            except OSError as error:
                self._give_up(error)

    def text(self, name: str, content: str) -> None:
        """Adds a text to TensorBoard."""
        if self._board is not None:
            self._board.add_text(name, content)

    def flush(self) -> None:
        """Brings everything written so far to the disk."""
        try:
            if self._file is not None:
                os.fsync(self._file.fileno())
            if self._board is not None:
                self._board.flush()
        except OSError as error:
            self._give_up(error)

    def state_dict(self, steps: int) -> State:
        self.flush()
        return {"metrics_bytes": self._metrics_bytes, self._axis: steps}

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        self.flush()
        try:
            if self._board is not None:
                self._board.close()
            if self._file is not None:
                self._file.close()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        if self._file is not None or self._board is not None:
            warn(f"warning: metrics can no longer be written ({error}); training goes on")
        files, self._file, self._board = (self._file, self._board), None, None
        for file in files:
            with contextlib.suppress(OSError):  # closing tries once more to write
                if file is not None:
                    file.close()


def _thread_failed(args: Any) -> None:
    """TensorBoard's thread tells of a full disk in a traceback; the next write says it in one line."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


class Speed:
    """Environment steps per second since the last reading, learning included."""

    def __init__(self, env_steps: int) -> None:
        self._env_steps = env_steps
        self._time_s = time.monotonic()

    def read(self, env_steps: int) -> float:
        now = time.monotonic()
        fps = (env_steps - self._env_steps) / max(now - self._time_s, 1e-9)
        self._env_steps, self._time_s = env_steps, now
        return fps


class LiveLine:
    """Steps, speed, latest return (or another figure) and time left in one line; silent where standard error is not a
    terminal."""

    def __init__(self, total_steps: int, done_steps: int, enabled: bool, figure: str = "return") -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TextColumn("{task.fields[fps]} steps/s"),
            TextColumn(f"{figure} {{task.fields[latest]}}"),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not (enabled and console.is_terminal),
        )
        self._task = self._progress.add_task("training", total=total_steps, completed=done_steps, fps="-", latest="-")
        self._first = (time.monotonic(), done_steps)

    def __enter__(self) -> LiveLine:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(OSError):  # the terminal may have gone
            self._progress.stop()

    def update(self, steps: int, figure: float | None) -> None:
        began_s, began_steps = self._first
        fps = (steps - began_steps) / max(time.monotonic() - began_s, 1e-9)
        shown = "-" if figure is None else f"{figure:.3g}" if abs(figure) < 10 else f"{figure:.1f}"
        with contextlib.suppress(OSError):
            self._progress.update(self._task, completed=steps, fps=f"{fps:,.0f}", latest=shown)
