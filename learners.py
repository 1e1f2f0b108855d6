"""Several processes that learn one set of weights, and what they tell each other.

    torchrun --nproc-per-node 2 train.py agent=ppo num_envs=16

Every learner has its share of the environments and of whatever counts samples or environment steps (`share`), and
learns from what it saw itself; each gradient is then averaged. Shares are equal, for no environment that `make_env`
builds returns empty rows, so the average is the gradient of the mean over all samples. Weights begin equal, are stepped
by equal gradients, and stay equal bit for bit. In a single process every function here is the identity.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from faults import ConfigError, LearnerError

S = TypeVar("S")
SAMPLES = ("batch_size", "minibatch_size", "replay_capacity")
"""Settings that count samples: each learner has its part of them. Those in `*_env_steps` are shared as well."""
LONGEST_WAIT = datetime.timedelta(days=1)
"""The others wait while the first learner evaluates. One that has died is noticed at once."""


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Meets the other learners that torchrun has started: over gloo for tensors on the CPU, nccl for those on GPUs.

    Raises:
        LearnerError: if they do not come.
    """
    if not dist.is_torchelastic_launched() or os.environ["WORLD_SIZE"] == "1" or dist.is_initialized():
        yield
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=LONGEST_WAIT)
    except RuntimeError as error:
        raise LearnerError(f"learner {os.environ['RANK']} does not reach the others") from error
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank() else sys.stdout):
        yield
    dist.destroy_process_group()  # not after a failure: first this one says what has happened, then the others hear


def count() -> int:
    """How many learners there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Which one this is. Number 0 logs, evaluates and speaks."""
    return dist.get_rank() if dist.is_initialized() else 0


def on_this_machine() -> int:
    """How many learners share this machine's memory."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def device_name(name: str) -> str:
    """The `device` of this learner: each has a GPU of its own, if GPUs are what it asks for."""
    wants_gpu = name.startswith("cuda") or (name == "auto" and torch.cuda.is_available())
    return f"cuda:{os.environ['LOCAL_RANK']}" if dist.is_initialized() and wants_gpu else name


def total(x: Tensor) -> Tensor:
    """The sum over learners of a tensor of any shape."""
    return _reduced(x, dist.ReduceOp.SUM) if count() > 1 else x


def average(x: Tensor) -> Tensor:
    """The mean over learners of a tensor of any shape."""
    return total(x) / count() if count() > 1 else x


def largest(number: int) -> int:
    """The largest of the learners' numbers."""
    return int(_reduced(torch.tensor(number), dist.ReduceOp.MAX)) if count() > 1 else number


def average_gradients(gradients: Sequence[Tensor]) -> None:
    """Replaces gradients by their means over learners, in place and in one message."""
    if count() > 1:
        flat = average(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, torch.split(flat, [g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def from_first(text: str) -> str:
    """The first learner's text, up to 4096 bytes."""
    if count() == 1:
        return text
    content = torch.zeros(4096, dtype=torch.uint8)
    if rank() == 0:
        content[: len(text.encode())] = torch.tensor(list(text.encode()), dtype=torch.uint8)
    return bytes(_reduced(content, dist.ReduceOp.MAX).tolist()).rstrip(b"\0").decode()


def share(settings: S) -> S:
    """The settings of one learner: its part of all that counts samples or environment steps.

    A learner counts its own environment steps only. Per environment step of its own, everything then happens as often
    as with all learners' steps and the whole settings. Numbers of environment steps that do not divide are rounded up.

    Args:
        settings: a dataclass of `agent.*` keys.

    Raises:
        ConfigError: if a batch cannot be shared out evenly.
    """
    many, parts = count(), dict[str, Any]()
    for f in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, f.name)
        if f.name in SAMPLES:
            check_shares(f"agent.{f.name}", value)
            parts[f.name] = value // many
        elif f.name.endswith("_env_steps"):
            parts[f.name] = share_of_steps(value)
    return replace(settings, **parts)  # type: ignore[type-var]


def share_of_steps(env_steps: int) -> int:
    """One learner's part of a number of environment steps, rounded up."""
    return -(-env_steps // count())


def check_shares(key: str, value: int) -> None:
    """Refuses what cannot be shared out evenly.

    Raises:
        ConfigError: naming the key.
    """
    if value % count():
        raise ConfigError(f"{key} must be a multiple of the {count()} learners, got {value}")


def has_last_word() -> bool:
    """Whether this process is the first of all learners to tell why the run ends: later ones keep silent."""
    if not dist.is_torchelastic_launched():
        return True
    try:
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(host, port, is_master=False, timeout=datetime.timedelta(seconds=5))  # type: ignore[attr-defined]
        return bool(store.add("last word", 1) == 1)
    except RuntimeError:  # torchrun itself has gone
        return True


def _reduced(x: Tensor, how: Any) -> Tensor:
    result = x.clone()
    try:
        dist.all_reduce(result, how)
    except RuntimeError as error:
        raise LearnerError(f"learner {rank()} has lost another one, which has ended without a word") from error
    return result
