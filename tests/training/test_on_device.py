"""Rollouts on the device: the same steps as the usual interaction, exact resume, nothing that waits for the device."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import warp as wp

from agents import ppo, pqn
from contract import LearnsFromRollouts, Mode, StepsOnDevice, Streams, Task
from envs.device.endings import KEPT
from envs.make import make_env
from envs.settings import DrivingSettings, GymnasiumSettings, register_environments
from tests.runs import equal_trees
from training.loop import Interaction
from training.on_device import RolloutInteraction

register_environments()
CARTPOLE = GymnasiumSettings("CartPole-v1", vectorization="device")
PQN = pqn.Settings(rollout_steps=7, minibatch_size=32, hidden_sizes=[16], epsilon_decay_env_steps=200)
PPO = ppo.Settings(rollout_steps=7, batch_size=32, hidden_sizes=[16])
CITY = {"num_cities": 2, "size": 12, "time_limit": 8}


def session(kind: type, module=pqn, settings=PQN, env_settings=CARTPOLE, num_envs=8):
    """An agent and its way to advance, as training.loop.make_advance builds them."""
    streams = Streams(0)
    env = make_env(env_settings, num_envs, streams, "train")
    agent = module.make_agent(settings, Task(env.spec, 10_000, torch.device("cpu"), streams))
    generator = streams.torch("policy")
    policy = agent.policy(Mode("train"), num_envs, generator)
    more = (generator,) if kind is RolloutInteraction else ()
    return agent, kind(agent, env, policy, *more)


@pytest.mark.parametrize(("module", "settings"), [(pqn, PQN), (ppo, PPO)])
def test_a_rollout_at_a_time_teaches_what_single_steps_teach(module, settings) -> None:
    one, single = session(Interaction, module, settings)
    two, rollouts = session(RolloutInteraction, module, settings)
    assert isinstance(two, LearnsFromRollouts)
    steps = 7 * 8 * 20
    first, second = single(steps), rollouts(steps)
    assert first.env_steps == second.env_steps == steps
    assert equal_trees(one.state_dict(), two.state_dict())
    assert len(first.episodes) > 10
    key = lambda episode: (episode.env_index, episode.seed)  # noqa: E731
    assert sorted(first.episodes, key=key) == sorted(second.episodes, key=key)


def test_resuming_between_rollouts_is_exact() -> None:
    agent, advance = session(RolloutInteraction, env_settings=DrivingSettings("Driving/Events-v0", **CITY))
    advance(600)
    saved = agent.state_dict(), advance.state_dict()
    saved = [_copied(tree) for tree in saved]
    expected = advance(600)
    other, continued = session(RolloutInteraction, env_settings=DrivingSettings("Driving/Events-v0", **CITY))
    other.load_state_dict(saved[0])
    continued.load_state_dict(saved[1])
    got = continued(600)
    assert equal_trees(agent.state_dict(), other.state_dict())
    assert got.episodes == expected.episodes


def _copied(tree):
    if isinstance(tree, dict):
        return {key: _copied(value) for key, value in tree.items()}
    return tree.clone() if isinstance(tree, torch.Tensor) else tree.copy() if isinstance(tree, np.ndarray) else tree


def test_the_log_gives_the_episodes_that_looking_at_every_step_gives() -> None:
    watched, unwatched = (make_env(DrivingSettings("Driving/Traffic-v0", **CITY), 6, Streams(1), "x") for _ in range(2))
    assert isinstance(unwatched, StepsOnDevice)
    watched.reset()
    unwatched.reset()
    rng, seen, drained = np.random.default_rng(0), [], []
    for t in range(120):
        action = torch.from_numpy(rng.choice([0, 0, 3, 4, 1], 6))
        seen += watched.step(action).episodes
        unwatched.launch(action)
        if t % 17 == 16 or t == 119:
            found = unwatched.drain()
            assert [e.env_index for e in found] == sorted(e.env_index for e in found)
            drained += found
    assert len(seen) > 50
    for i in range(6):
        assert [e for e in drained if e.env_index == i] == [e for e in seen if e.env_index == i]
    assert unwatched.drain() == []


def test_of_too_many_episodes_the_newest_are_kept() -> None:
    env = make_env(DrivingSettings("Driving/Route-v0", **(CITY | {"time_limit": 1})), 2, Streams(0), "x")
    env.reset()
    for t in range(KEPT + 5):
        if t == 5:
            sixth = env.seed_of(0)
        env.launch(torch.tensor([0, 0]))
    last = env.seed_of(1)
    episodes = env.drain()
    assert [e.env_index for e in episodes] == [0] * KEPT + [1] * KEPT
    assert episodes[0].seed == sixth
    assert last not in [e.seed for e in episodes]
    env.launch(torch.tensor([0, 0]))
    assert [e.seed for e in env.drain()][1] == last


# Without a GPU: torch's meta device has shapes and no content, so whatever looks at a number fails.


class MetaStreams(Streams):
    """There is no generator on the meta device."""

    def torch(self, name: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
        return super().torch(name, *index)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Kernels do nothing but note their names; what they would fill lies on the meta device."""
    names: list[str] = []
    shared_with_torch = wp.to_torch

    class Recorded:
        def __init__(self, name: str) -> None:
            self.launch = lambda: names.append(name)

    monkeypatch.setattr(wp, "launch", lambda kernel, *args, **kwargs: Recorded(kernel.key))
    monkeypatch.setattr("envs.device.launches.laid_out", lambda command: command.launch)
    monkeypatch.setattr(wp, "to_torch", lambda array: shared_with_torch(array).to("meta"))
    return names


def on_meta(module, settings, env_settings, num_envs=4):
    streams, device = MetaStreams(0), torch.device("meta")
    env = make_env(env_settings, num_envs, streams, "train")
    agent = module.make_agent(settings, Task(env.spec, 10_000, device, streams))
    generator = streams.torch("policy")
    return agent, RolloutInteraction(agent, env, agent.policy(Mode("train"), num_envs, generator), generator)


META_ENVS = [
    CARTPOLE,
    *(DrivingSettings("Driving/Events-v0", **CITY, obs=obs) for obs in ("features", "window", "camera", "fusion")),
]


@pytest.mark.parametrize("env_settings", META_ENVS, ids=lambda s: getattr(s, "obs", None) or s.id)
def test_collecting_and_learning_never_look_at_a_number(env_settings, launched: list[str]) -> None:
    agent, advance = on_meta(pqn, replace(PQN, rollout_steps=3, minibatch_size=6), env_settings)
    for _ in range(2):
        launched.clear()
        advance.collect()
        assert launched.count("step") == 3
        metrics = agent.update()
    assert metrics["train/loss"].is_meta
    assert metrics["train/n_updates"] == 2 * 2 * 2


@pytest.mark.parametrize("look", [torch.Tensor.item, torch.Tensor.cpu, torch.Tensor.numpy, torch.Tensor.any])
def test_looking_at_a_number_would_be_noticed(look, launched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    agent, advance = on_meta(pqn, PQN, CARTPOLE)
    observe = agent.observe

    def curious(transition, acted) -> None:
        observe(transition, acted)
        if look(transition.reward[:1].flatten()[0]):
            pass

    monkeypatch.setattr(agent, "observe", curious)
    with pytest.raises((RuntimeError, NotImplementedError, TypeError), match="meta"):
        advance.collect()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("steps", [4, 5])
def test_replayed_graphs_play_what_single_steps_play(steps: int) -> None:
    """The environments' episodes follow from the actions: equal episodes, equal rollouts."""
    settings = replace(PQN, rollout_steps=steps, learning_rate=1e-12, epsilon_start=0.5, epsilon_end=0.5)
    device, found = torch.device("cuda"), []
    for captured in (True, False):
        streams = Streams(0)
        env = make_env(DrivingSettings("Driving/Events-v0", **CITY, device="cuda"), 64, streams, "train")
        agent = pqn.make_agent(settings, Task(env.spec, 10_000, device, streams))
        generator = streams.torch("policy", device=device)
        advance = RolloutInteraction(agent, env, agent.policy(Mode("greedy"), 64, generator), generator)
        if not captured:
            advance._can_be_captured = lambda: False
        found.append(advance(64 * steps * 20).episodes)
    assert found[0] == found[1]
    assert len(found[0]) > 20
