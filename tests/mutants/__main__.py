"""Mutation score: breaks one line at a time in a copy of the tree and asks whether the named tests notice.

    python -m tests.mutants                # about two minutes on one core
    python -m tests.mutants prioritized    # those whose bug or file has this word

A mutant is killed if every test that it names fails by itself: a collection error or a timeout does not count.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.mutants.mutants import MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300


def run_tests(tree: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Exit code and output of pytest."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line", *tests]
    try:
        done = subprocess.run(command, cwd=tree, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return -1, "timeout"
    return done.returncode, done.stdout


def survives(tree: Path, mutant: Mutant) -> str | None:
    """Why a mutant is not killed, None if it is."""
    path = tree / mutant.file
    sound = path.read_text()
    path.write_text(sound.replace(mutant.old, mutant.new))
    try:
        code, output = run_tests(tree, mutant.tests)
    finally:
        path.write_text(sound)
    if code != 1:
        return "timeout" if code == -1 else "the tests pass" if code == 0 else f"pytest ended with {code}"
    failed = re.findall(r"^FAILED (\S+?)(?:\[.*)?(?: - .*)?$", output, re.MULTILINE)
    quiet = [test for test in mutant.tests if test not in failed]
    return f"{', '.join(quiet)} passes" if quiet else None


def main(words: list[str]) -> int:
    chosen = [m for m in MUTANTS if all(word.lower() in f"{m.bug} {m.file}".lower() for word in words)]
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "__pycache__", "runs", "pretrained"))
        code, output = run_tests(tree, sorted({test for m in chosen for test in m.tests}))
        if code != 0:
            print(f"{output}\nerror: the tests must pass before anything is broken")
            return 1
        killed = 0
        for mutant in chosen:
            why = survives(tree, mutant)
            killed += why is None
            print(
                f"{'killed  ' if why is None else 'SURVIVED'}  {mutant.bug}{'' if why is None else f': {why}'}",
                flush=True,
            )
    print(f"{killed} of {len(chosen)} mutants killed")
    return 0 if killed == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
