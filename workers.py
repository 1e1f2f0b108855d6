"""Worker processes that never hang their parent, never outlive it, and fail in one line.

A worker is an object that lives in a process of its own. The parent calls its methods by messages on a pipe:

    crew = Crew(Counter, [(0,), (10,)], timeout_s=60)   # Counter(0) in one process, Counter(10) in another
    crew.call(1, "add", 5)                               # returns at once
    for index, answer in crew.answers(): ...             # waits for at least one

Nothing is locked and nothing is shared but what the arguments share (tensors in shared memory, for one), so a process
may be killed at any moment without harm to the others.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.util import Finalize
from typing import Any

import faults
from faults import EnvError, Fault

START_METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
"""Both start from a clean process, without this one's threads and handles; a forkserver imports torch only once."""


class Crew:
    """Workers, one process each. They end with this object, with this process, or with `close`."""

    def __init__(
        self, build: Callable[..., Any], arguments: Sequence[tuple[Any, ...]], timeout_s: float, role: str = "worker"
    ) -> None:
        """Starts the processes.

        Args:
            build: what makes a worker; importable by its name.
            arguments: of `build`, one tuple for each worker; they travel as messages do.
            timeout_s: seconds after which a call that has no answer counts as hung.
            role: what error lines call a worker.

        Raises:
            Fault: if a worker cannot read its arguments. That it cannot build what it is to be, `answers` says.
        """
        context: Any = multiprocessing.get_context(START_METHOD)
        if START_METHOD == "forkserver":
            context.set_forkserver_preload([build.__module__])
        self._timeout_s, self._role = timeout_s, role
        self._pipes: list[Connection] = []
        self._processes: list[Any] = []
        # Not daemons, so that they may have children; ended here, before Python would wait for them.
        self._end = Finalize(self, _end, (self._processes, self._pipes), exitpriority=10)
        self._waiting: list[list[float]] = [[] for _ in arguments]  # when each unanswered call was sent
        self._answers: list[tuple[int, Any]] = []  # received, not yet returned
        self._last_words = [""] * len(arguments)
        self._said: set[str] = set()
        for index, own in enumerate(arguments):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs,), name=f"{role}-{index}", daemon=False)
            process.start()
            theirs.close()  # so that the pipe ends when the worker does
            self._pipes.append(ours)
            self._processes.append(process)
            self._send(index, (build, own))
        for index in range(len(arguments)):
            self._await_arrival(index)

    def __len__(self) -> int:
        return len(self._processes)

    @property
    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    @property
    def unanswered(self) -> list[int]:
        """Calls that have no answer yet, of each worker."""
        return [len(sent) for sent in self._waiting]

    def call(self, index: int, method: str, *arguments: Any) -> None:
        """Asks one worker to call a method of its object. Calls of one worker are answered in order."""
        self._waiting[index].append(time.monotonic())
        self._send(index, (method, arguments))

    def answers(self) -> list[tuple[int, Any]]:
        """Waits until a call is answered; returns all answers that are there, each with its worker's index.

        Raises:
            Fault: what a worker raised, or EnvError if one broke, was killed or does not answer. The others go on.
        """
        while not self._answers:
            self._receive_some()
        answers, self._answers = self._answers, []
        return answers

    def last_answers(self) -> list[tuple[int, Any]]:
        """Waits for every call that can still be answered. Workers that fail are left out."""
        while any(self._waiting):
            with contextlib.suppress(Fault):
                self._receive_some()
        answers, self._answers = self._answers, []
        return answers

    def ask_all(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Calls a method of every worker, which must be idle, and returns the answers in order."""
        for index, own in enumerate(arguments):
            self.call(index, method, *own)
        found: dict[int, Any] = {}
        while len(found) < len(self):
            found |= dict(self.answers())
        return [found[index] for index in range(len(self))]

    def close(self) -> None:
        """Ends the processes at once."""
        self._end()

    def _send(self, index: int, message: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended; `answers` says how
            self._pipes[index].send(message)

    def _await_arrival(self, index: int) -> None:
        """Waits until a worker has its arguments. Tensors in shared memory are fetched from a thread of this process,
        which prints a traceback if the worker is ended meanwhile."""
        pipe = self._pipes[index]
        try:
            while pipe.poll(self._timeout_s):
                kind, content = pipe.recv()
                if kind == "arrived":
                    return
                self._understand(index, kind, content)
        except (EOFError, OSError):
            pass  # `answers` says how it ended
        except Fault:
            self.close()
            raise

    def _receive_some(self) -> None:
        """Waits for messages and takes one from each pipe that has any."""
        busy = {self._pipes[i]: i for i, sent in enumerate(self._waiting) if sent}
        first = min(busy.values(), key=lambda i: self._waiting[i][0])
        deadline = self._waiting[first][0] + self._timeout_s
        ready = wait(list(busy), max(0.0, deadline - time.monotonic()))
        if not ready:
            raise self._lost(first, f"did not answer within {self._timeout_s:g} s")
        for pipe in ready:
            self._receive(busy[pipe])  # type: ignore[index]

    def _receive(self, index: int) -> None:
        try:
            kind, content = self._pipes[index].recv()
        except (EOFError, OSError):
            raise self._lost(index, self._how_it_ended(index)) from None
        self._understand(index, kind, content)

    def _understand(self, index: int, kind: str, content: Any) -> None:
        if kind == "answer":
            self._answers.append((index, content))
            self._waiting[index].pop(0)
            if self._waiting[index]:  # the next call begins only now
                self._waiting[index][0] = time.monotonic()
        elif kind == "said":
            self._hear(index, content)
        else:
            name, line, remote = content
            raise self._lost(index, line, getattr(faults, name)) from RuntimeError(remote)

    def _hear(self, index: int, line: str) -> None:
        """A line that a worker wrote to standard error: its last words, or a warning, which is passed on once."""
        if line.startswith("error: "):
            self._last_words[index] = line.removeprefix("error: ").partition(";")[0]
        elif line not in self._said:
            self._said.add(line)
            sys.stderr.write(f"{line}\n")

    def _how_it_ended(self, index: int) -> str:
        if self._last_words[index]:
            return f"ended: {self._last_words[index]}"
        self._processes[index].join(5.0)
        code = self._processes[index].exitcode
        if code is not None and code < 0:
            return f"was killed ({signal.Signals(-code).name})"
        return f"ended unexpectedly (exit code {code})"

    def _lost(self, index: int, how: str, kind: type[Fault] = EnvError) -> Fault:
        self._processes[index].kill()
        self._waiting[index] = []
        return kind(f"{self._name(index)} {how}")

    def _name(self, index: int) -> str:
        return f"{self._role} {index + 1} of {len(self)}"


def _end(processes: list[Any], pipes: list[Connection]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    for pipe in pipes:
        pipe.close()


def _work(pipe: Connection) -> None:
    """The life of one worker."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # a terminal sends them to all; the parent decides
        signal.signal(number, signal.SIG_IGN)
    voice = _ToParent(pipe)
    sys.stderr = voice
    warnings.simplefilter("ignore")  # the parent builds the same environments, and has warned
    try:
        build, arguments = pipe.recv()
        voice.send("arrived", None)
        worker = build(*arguments)
        while True:
            method, own = pipe.recv()
            voice.send("answer", getattr(worker, method)(*own))
    except EOFError:  # the parent has closed the pipe
        pass
    except Fault as fault:
        voice.send("fault", (type(fault).__name__, f"stopped: {fault}", traceback.format_exc()))
    except Exception as error:  # noqa: BLE001 - environments raise anything; the parent turns it into one line
        line = f"broke: {type(error).__name__}: {' '.join(str(error).split())}"
        voice.send("fault", ("EnvError", line, traceback.format_exc()))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(1)


class _ToParent:
    """A worker's end of the pipe, and its standard error: lines written here go to the parent."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def send(self, kind: str, content: Any) -> None:
        with self._lock, contextlib.suppress(OSError):  # a parent that has gone wants no answer
            self._pipe.send((kind, content))

    def write(self, text: str) -> int:
        for line in filter(str.strip, text.splitlines()):
            self.send("said", line)
        return len(text)

    def flush(self) -> None:
        pass
