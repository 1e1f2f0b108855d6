"""What tests/learners/test_learners.py starts under torchrun, and in part calls itself: the same work for any number of
learners."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor

import learners
from agents import load_algorithm
from contract import Acted, EnvSpec, Streams, Task, Transition
from memory.replay import Replay
from tests.runs import SMALL, break_at, run_train
from training.config import typed

NUM_ENVS, STEPS = 8, 200
ROLLOUTS = {"rollout_steps": 4, "hidden_sizes": [16]}
REPLAYED = {"batch_size": 32, "samples_per_env_step": 2.0, "learning_starts_env_steps": 160, "hidden_sizes": [16]}
CASES: dict[str, dict[str, Any]] = {
    # Each minibatch is a whole rollout: in which order its rows are summed does not matter.
    "a2c": {**ROLLOUTS, "normalize_advantage": True, "entropy_coef": 0.01},
    "ppo": {**ROLLOUTS, "num_epochs": 3, "batch_size": 32, "value_clip": 0.2, "target_kl": 0.05},
    "pqn": {**ROLLOUTS, "epochs": 2, "minibatch_size": 32},
    "dqn": {**REPLAYED, "double": True, "n_step": 3, "target_sync_every_env_steps": 80, "epsilon_start": 0.5},
    "softmax_dqn": {**REPLAYED, "target_entropy": 0.5, "target_sync_every_env_steps": 80},
    "ddpg": REPLAYED,
}
INTERRUPTED_AT = 40
"""The second learner's call of `update` in which it gets a signal."""


def learn(name: str) -> tuple[dict[str, Tensor], float]:
    """Feeds this learner's rows of one recorded history to an agent; returns its weights and its number of updates."""
    many, rank = learners.count(), learners.rank()
    own = NUM_ENVS // many
    rows = slice(rank * own, (rank + 1) * own)
    continuous = name == "ddpg"
    actions = Box(-2, 2, (2,), np.float32) if continuous else Discrete(3)
    spec = EnvSpec("recorded", Box(-10, 10, (4,), np.float32), actions, own)
    algorithm = load_algorithm(name)
    settings = learners.share(typed(algorithm.Settings, {"algorithm": name, **CASES[name]}))
    total = learners.share_of_steps(NUM_ENVS * STEPS)
    agent = algorithm.make_agent(settings, Task(spec, total, torch.device("cpu"), Streams(0, rank)))
    rng, updates = np.random.default_rng(1), 0.0
    obs = rng.normal(size=(STEPS + 1, NUM_ENVS, 4)).astype(np.float32)
    for t in range(STEPS):
        terminal = rng.random(NUM_ENVS) < 0.1
        episode_end = terminal | (rng.random(NUM_ENVS) < 0.05)
        other = rng.normal(size=(NUM_ENVS, 4)).astype(np.float32)
        recorded = (
            obs[t],
            rng.uniform(-2, 2, (NUM_ENVS, 2)).astype(np.float32) if continuous else rng.integers(0, 3, NUM_ENVS),
            obs[t, :, 0] + rng.normal(size=NUM_ENVS).astype(np.float32),
            np.where(episode_end[:, None], other, obs[t + 1]),
            terminal,
            episode_end,
            np.ones(NUM_ENVS, bool),
        )
        transition = Transition(*(torch.from_numpy(part[rows].copy()) for part in recorded))
        agent.observe(transition, acted(name, agent, transition))
        updates = float(agent.update().get("train/n_updates", updates))
    return {key: value.clone() for key, value in networks(agent).items()}, updates


def acted(name: str, agent: Any, transition: Transition) -> Acted:
    """What the policy would have noted, had it chosen the recorded action."""
    if name == "pqn":
        return Acted(transition.action, {"value": agent.q_net(transition.obs).detach().amax(1)})
    if name in ("a2c", "ppo"):
        count = len(transition.reward)
        with torch.no_grad():
            logits, value, _ = agent.net(
                transition.obs, agent.net.initial_state(count), torch.zeros(count, dtype=torch.bool)
            )
        log_prob = logits.log_softmax(1).gather(1, transition.action[:, None]).squeeze(1)
        return Acted(transition.action, {"raw_action": transition.action, "log_prob": log_prob, "value": value})
    return Acted(transition.action)


def networks(agent: Any) -> dict[str, Tensor]:
    """Every weight that the agent learns, target networks too."""
    nets = {name: net for name, net in vars(agent).items() if isinstance(net, torch.nn.Module)}
    tensors = {f"{name}.{key}": value for name, net in nets.items() for key, value in net.state_dict().items()}
    return tensors | ({"temperature": torch.tensor(agent.temperature)} if hasattr(agent, "temperature") else {})


def draw_the_same_for_any_number(patch: pytest.MonkeyPatch) -> None:
    """Lets a replay draw half of a batch from each half of the environments, whoever holds them."""
    streams = [np.random.default_rng(half) for half in range(2)]

    def draw(replay: Any, batch_size: int) -> tuple[Tensor, Tensor]:
        halves = range(2) if learners.count() == 1 else [learners.rank()]
        size = batch_size // len(halves)
        rows = [streams[half].integers(0, replay._added, size) for half in halves]
        envs = [streams[half].integers(0, NUM_ENVS // 2, size) + i * NUM_ENVS // 2 for i, half in enumerate(halves)]
        return torch.from_numpy(np.concatenate(rows)), torch.from_numpy(np.concatenate(envs))

    patch.setattr(Replay, "_draw", draw)


def main(folder: Path) -> None:
    rank = learners.rank()
    for name in CASES:
        with pytest.MonkeyPatch.context() as patch:
            draw_the_same_for_any_number(patch)
            weights, updates = learn(name)
        safetensors.torch.save_file(weights, folder / f"{name}-{rank}.safetensors", {"updates": str(updates)})
    gathered = learners.largest(rank), learners.from_first(f"from {rank}")
    codes = [run_train(*SMALL, f"run_dir={folder / 'straight'}")]
    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            break_at(patch, INTERRUPTED_AT, "SIGINT")
        codes.append(run_train(*SMALL, f"run_dir={folder / 'interrupted'}"))
    codes.append(run_train("resume=latest", f"run_dir={folder / 'interrupted'}"))
    (folder / f"{rank}.json").write_text(json.dumps({"codes": codes, "gathered": gathered}))


if __name__ == "__main__":
    with learners.joined():
        main(Path(sys.argv[1]))
