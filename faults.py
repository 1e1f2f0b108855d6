"""Failures that a user can cause or cure: each is one line on standard error and one documented exit code.

==== =============================================================
code meaning
==== =============================================================
0    success
2    bad configuration or usage
3    environment or ROM
4    checkpoint unusable
5    storage: full, read-only, permission, directory gone
6    non-finite numbers
7    out of memory
8    another learner (torchrun) has ended
9    data set missing or damaged
130  interrupted (SIGINT), checkpoint saved
143  terminated (SIGTERM, SIGHUP), checkpoint saved
==== =============================================================
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class Fault(Exception):
    """A foreseen failure. The message is one line that says what is wrong and how to mend it."""

    exit_code = 1


class ConfigError(Fault):
    """The configuration or the command line asks for something impossible."""

    exit_code = 2


class EnvError(Fault):
    """An environment cannot be built, broke, or stopped answering."""

    exit_code = 3


class CheckpointError(Fault):
    """A run or a checkpoint cannot be used."""

    exit_code = 4


class StorageError(Fault):
    """The disk is full, read-only or gone."""

    exit_code = 5


class NonFiniteError(Fault):
    """A reward, an observation, a loss or a gradient is NaN or infinite."""

    exit_code = 6


class OutOfMemoryError(Fault):
    """What was asked for does not fit into memory."""

    exit_code = 7


class LearnerError(Fault):
    """One of several learners does not answer any more."""

    exit_code = 8


class DataError(Fault):
    """A data set is missing, damaged or not what it should be."""

    exit_code = 9


class Interrupted(Fault):
    """Ctrl-C where there is nothing to save."""

    exit_code = 130


def closest(word: str, known: Iterable[str]) -> str:
    """The part of an error line that helps: ` Did you mean 'x'?` if something known is near, else the known names."""
    names = sorted(known)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(word.lower(), lowered, n=3, cutoff=0.5)
    if near:
        return " Did you mean " + " or ".join(f"'{lowered[name]}'" for name in near) + "?"
    return f" Known: {', '.join(names)}." if len(names) <= 12 else ""


def check_range(key: str, value: float, low: float | None, high: float | None, *, open_low: bool = False) -> None:
    """Refuses a setting outside [low, high] (or (low, high] with `open_low`); None means unbounded. NaN is outside.

    Raises:
        ConfigError: naming the key, the allowed range and the value.
    """
    above = low is None or (value > low if open_low else value >= low)
    below = value < float("inf") if high is None else value <= high
    if above and below:
        return
    if high is None:
        bound = f"{'above' if open_low else 'at least'} {low:g}"
    else:
        bound = f"in {'(' if open_low else '['}{low:g}, {high:g}]"
    raise ConfigError(f"{key} must be {bound}, got {value:g}")


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Refuses a setting that is none of `choices`.

    Raises:
        ConfigError: naming the key, the value and the nearest choice.
    """
    choices = list(choices)
    if value not in choices:
        raise ConfigError(f"{key} must be one of {', '.join(choices)}, got '{value}'")
