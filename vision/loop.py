"""The loop of supervised and self-supervised learning: draw, descend, then log, validate and save when due.

Every random number is a function of the seed and of the number of the update (or epoch) that it is for. So a checkpoint
needs no random streams, and an interrupted run continues bit for bit.
"""

from __future__ import annotations

from math import cos, pi
from typing import Any, Protocol

import torch
from torch import Tensor

from contract import Metrics, State, Streams
from faults import CheckpointError
from networks.backbones import Backbone
from networks.optimizer import descend, load_optimizer_state, optimizer_state
from training import checkpoint
from training.logging import LiveLine, Means, Speed, Writer
from training.loop import Saver, StopSignal, naming_last_checkpoint, newest_valid
from training.run import Run
from vision.batches import Batches
from vision.config import LearnConfig


class Learner(Protocol):
    """What learns: a network, its loss on a batch, and what to tell about it."""

    num_images: int
    """That it learns from."""

    @property
    def backbone(self) -> Backbone:
        """What agents and other runs may begin with."""
        ...

    def parameters(self) -> list[Tensor]:
        """The weights that learn."""
        ...

    def loss(self, index: Tensor, generator: torch.Generator) -> tuple[Tensor, Metrics]:
        """The loss () of the images `index` (B,) of these, and metrics of it."""
        ...

    def validate(self, writer: Writer, updates: int) -> float:
        """Writes how good it is on images that it does not learn from; returns what the best has least of."""
        ...

    def policy_state_dict(self) -> State:
        """What predicting needs."""
        ...

    def rest_state_dict(self) -> State:
        """Weights that only learning needs."""
        ...

    def load_state_dict(self, policy: State, rest: State) -> None: ...


def fit(learner: Learner, config: LearnConfig, device: torch.device, run: Run, stop: StopSignal, resume: bool) -> int:
    """Learns for `config.epochs` passes over the images or until a signal; returns the updates done.

    Args:
        learner: freshly built.
        config: the keys.
        device: where it learns.
        run: where to write.
        stop: noted signals.
        resume: continue from the newest valid checkpoint, if there is one.
    """
    streams, means = Streams(config.seed), Means()
    optimizer = make_optimizer(learner.parameters(), config, device)
    per_epoch, total = count_updates(learner.num_images, config)
    updates, best, written = 0, float("inf"), None
    checkpoint.remove_leftovers(run.checkpoints)
    if resume:
        written = {"metrics_bytes": 0, "updates": -1}  # without a checkpoint everything starts again
        found = newest_valid(run)
        if found is not None:
            updates, best, written = restore(*found, learner, optimizer, means)
    writer = Writer(run.path, config.log.tensorboard, written, axis="updates")
    saver = Saver(run, config.checkpoint.keep, axis="updates")
    speed = Speed(updates)

    def save(must: bool) -> None:
        state = {
            "policy": learner.policy_state_dict(),
            "learner": {"optimizer": optimizer_state(optimizer), "rest": learner.rest_state_dict()},
            "means": means.state_dict(),
            "loop": {"updates": updates, "best": best if best < float("inf") else None},
            "log": writer.state_dict(updates),
        }
        saver.save(f"step_{updates:09d}", state, updates, must)

    validate_every = config.validate_every_epochs * per_epoch
    live_line = LiveLine(total, updates, config.log.progress, figure="loss")
    batches = Batches(learner.num_images, config.batch_size, streams)
    with writer, naming_last_checkpoint(run), live_line as line:
        while updates < total and not stop:
            loss, metrics = learner.loss(
                batches.index(updates).to(device), streams.torch("batch", updates, device=device)
            )
            rate = learning_rate(updates, total, round(config.warmup_epochs * per_epoch), config.learning_rate)
            optimizer.param_groups[0]["lr"] = rate
            norm = descend(optimizer, loss, updates + 1, "training")
            updates += 1
            means.add([{"train/loss": loss.detach(), **metrics, "train/learning_rate": rate, "train/grad_norm": norm}])
            line.update(updates, float(loss.detach()))
            last = updates == total
            if updates % config.log.every_updates == 0 or last:
                seen = {"time/fps": speed.read(updates) * config.batch_size, "time/epochs": updates / per_epoch}
                writer.write(updates, means.row() | seen)
            if validate_every and (updates % validate_every == 0 or last):
                score = learner.validate(writer, updates)
                if score < best:
                    best = score
                    saver.save(f"best_{updates:09d}", {"policy": learner.policy_state_dict()}, updates)
            if last or (config.checkpoint.every_updates and updates % config.checkpoint.every_updates == 0):
                save(must=last)
        if stop and updates:
            save(must=True)
    return updates


def count_updates(num_images: int, config: LearnConfig) -> tuple[int, int]:
    """Updates of an epoch, and of the whole run."""
    per_epoch = max(1, num_images // config.batch_size)
    return per_epoch, per_epoch * config.epochs


def learning_rate(update: int, total: int, warmup: int, highest: float) -> float:
    """Linear warm-up, then half a cosine.

    Equation:
        highest * (update + 1) / warmup                                      for update < warmup
        highest * (1 + cos(pi (update - warmup) / (total - warmup))) / 2     from then on

    Args:
        update: those done before this one.
        total: of the run.
        warmup: how many of them.
        highest: the rate at the end of the warm-up.

    Source:
        Loshchilov and Hutter 2017, arXiv:1608.03983, equation 5 (one period); Goyal et al. 2017, arXiv:1706.02677,
        section 2.2 (warm-up).
    """
    if update < warmup:
        return highest * (update + 1) / warmup
    return highest * (1 + cos(pi * (update - warmup) / max(1, total - warmup))) / 2


def make_optimizer(parameters: list[Tensor], config: LearnConfig, device: torch.device) -> torch.optim.Optimizer:
    """The optimiser that the keys describe; weight decay applies to every weight, as in the papers that the settings of
    `configs/vision/data/` come from."""
    rate, decay, fused = config.learning_rate, config.weight_decay, device.type != "meta"
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            parameters, rate, config.momentum, weight_decay=decay, nesterov=config.momentum > 0, fused=fused
        )
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay, fused=fused)


def restore(
    path: Any, state: State, learner: Learner, optimizer: torch.optim.Optimizer, means: Means
) -> tuple[int, float, State]:
    """Puts a checkpoint's state where it belongs; returns the updates, the best score and the log's state.

    Raises:
        CheckpointError: if the state is another learner's.
    """
    try:
        learner.load_state_dict(state["policy"], state["learner"]["rest"])
        load_optimizer_state(optimizer, state["learner"]["optimizer"])
        means.load_state_dict(state["means"])
        best = state["loop"]["best"]
        return int(state["loop"]["updates"]), float("inf") if best is None else float(best), state["log"]
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{path} does not fit the run's configuration: {reason}") from error
