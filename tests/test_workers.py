"""Processes that break in every way a process can, and a parent that dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults import EnvError, NonFiniteError
from tests.breaking import Counter, SlowToRead, Unreadable
from workers import Crew

ROOT = Path(__file__).resolve().parent.parent


def alive(pid: int) -> bool:
    """Whether a process exists and is more than a name in the table of processes."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def assert_gone(pids: list[int], within_s: float = 5.0) -> None:
    deadline = time.monotonic() + within_s
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not [pid for pid in pids if alive(pid)]


def test_each_worker_has_a_state_of_its_own_and_answers_in_order() -> None:
    crew = Crew(Counter, [(0,), (100,)], timeout_s=60)
    for number in (1, 2, 3):
        crew.call(0, "add", number)
    crew.call(1, "add", 5)
    assert crew.unanswered == [3, 1]
    answers = [answer for _ in range(4) for answer in (crew.answers() if any(crew.unanswered) else [])]
    assert [value for index, value in answers if index == 0] == [1, 3, 6]
    assert [value for index, value in answers if index == 1] == [105]
    assert crew.ask_all("add", [(10,), (20,)]) == [16, 125]


def test_every_worker_has_its_arguments_before_anything_can_end_it(tmp_path: Path) -> None:
    crew = Crew(Counter, [(0, SlowToRead(tmp_path / f"{k}")) for k in range(2)], timeout_s=60)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    crew.close()


def test_arguments_that_cannot_be_read_are_one_line() -> None:
    with pytest.raises(EnvError, match="worker 1 of 2 broke: ValueError: this cannot be read"):
        Crew(Counter, [(0, Unreadable()), (0,)], timeout_s=60)


@pytest.mark.parametrize(
    ("kind", "fault", "line"),
    [
        ("raises", EnvError, "worker 2 of 2 broke: ValueError: the pole fell through the floor"),
        ("finds a NaN", NonFiniteError, "worker 2 of 2 stopped: the loss is nan"),
        ("exits", EnvError, "worker 2 of 2 ended unexpectedly (exit code 9)"),
        ("is killed", EnvError, "worker 2 of 2 was killed (SIGKILL)"),
        ("hangs", EnvError, "worker 2 of 2 did not answer within 0.7 s"),
    ],
)
def test_a_broken_worker_is_one_line_and_the_others_work_on(kind: str, fault: type[Exception], line: str) -> None:
    crew = Crew(Counter, [(0,), (100,)], timeout_s=60)
    crew.ask_all("add", [(0,), (0,)])
    crew = Crew(Counter, [(0,), (100,)], timeout_s=0.7)  # no import takes its time now
    pids = crew.pids
    crew.call(1, "break_down", kind)
    with pytest.raises(fault) as caught:
        crew.answers()
    assert str(caught.value) == line
    crew.call(0, "add", 7)
    assert crew.last_answers() == [(0, 7)]
    crew.close()
    assert_gone(pids)


def test_what_is_answered_beside_a_fault_is_not_lost() -> None:
    crew = Crew(Counter, [(0,), (100,)], timeout_s=60)
    crew.ask_all("add", [(0,), (0,)])
    for _ in range(2):
        crew.call(0, "add", 1)
    crew.call(1, "break_down", "raises")
    told: list[tuple[int, Any]] = []

    def listen() -> None:
        while True:
            told.extend(crew.answers())

    with pytest.raises(EnvError, match="broke"):  # which may come before, between or after the answers
        listen()
    assert [*told, *crew.last_answers()] == [(0, 1), (0, 2)]


def test_a_worker_that_was_killed_while_it_had_nothing_to_do_is_noticed_at_the_next_call() -> None:
    crew = Crew(Counter, [(0,), (100,)], timeout_s=60)
    crew.ask_all("add", [(0,), (0,)])
    os.kill(crew.pids[0], signal.SIGKILL)
    assert_gone(crew.pids[:1])
    crew.call(0, "add", 1)
    with pytest.raises(EnvError, match=r"worker 1 of 2 was killed \(SIGKILL\)"):
        crew.answers()


def test_signals_to_the_whole_terminal_leave_workers_to_their_parent() -> None:
    crew = Crew(Counter, [(0,)], timeout_s=60)
    crew.ask_all("add", [(0,)])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        os.kill(crew.pids[0], number)
    assert crew.ask_all("add", [(3,)]) == [3]


def test_warnings_of_workers_are_passed_on_once_and_last_words_explain_an_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    crew = Crew(Counter, [(0,), (0,)], timeout_s=60)
    crew.ask_all("say", [("warning: new episodes begin here",)] * 2)
    assert capsys.readouterr().err == "warning: new episodes begin here\n"
    crew.ask_all("say", [("error: the game did not answer within 60 s; the last checkpoint is kept",)] * 2)
    crew.call(1, "break_down", "exits")
    with pytest.raises(EnvError, match=r"^worker 2 of 2 ended: the game did not answer within 60 s$"):
        crew.answers()
    assert capsys.readouterr().err == ""


def test_workers_end_with_their_crew() -> None:
    crew = Crew(Counter, [(0,), (0,)], timeout_s=60)
    pids = crew.pids
    del crew
    assert_gone(pids)


@pytest.mark.parametrize(("code", "ending"), [("os.kill(os.getpid(), 9)", -9), ("sys.exit(0)", 0), ("1 / 0", 1)])
def test_no_worker_outlives_its_parent_not_even_a_hung_one(code: str, ending: int) -> None:
    script = (
        "import os, signal, sys\n"
        "from workers import Crew\n"
        "from tests.breaking import Counter\n"
        "if __name__ == '__main__':\n"
        "    crew = Crew(Counter, [(0,), (0,)], timeout_s=60)\n"
        "    crew.ask_all('add', [(0,), (0,)])\n"
        "    crew.call(1, 'break_down', 'hangs')\n"
        "    print(*crew.pids, flush=True)\n"
        f"    {code}\n"
    )
    parent = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert parent.returncode == ending, parent.stderr
    pids = [int(pid) for pid in parent.stdout.split()]
    assert len(pids) == 2
    assert_gone(pids)
