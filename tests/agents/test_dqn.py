"""DQN against known answers, tabular Q-learning and Stable-Baselines3."""

from __future__ import annotations

import copy
from dataclasses import replace

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3 import DQN as SB3DQN
from stable_baselines3.common.buffers import ReplayBufferSamples
from stable_baselines3.common.logger import configure
from torch import nn

from agents.dqn import DQN, Settings, make_agent, td_loss
from contract import Batch, EnvSpec, Mode, Streams, Task, Transition
from faults import ConfigError, NonFiniteError
from tests.probes import KNOWN, PROBES, host, task, train

FAST = Settings(
    gamma=0.9,
    learning_rate=3e-3,
    batch_size=32,
    samples_per_env_step=16,
    replay_capacity=1_000,
    learning_starts_env_steps=64,
    target_sync_every_env_steps=50,
    epsilon_end=0.5,
    epsilon_decay_env_steps=1,
    hidden_sizes=[32],
)


def q_of(agent: DQN, *obs: float) -> np.ndarray:
    with torch.no_grad():
        return agent.q_net(torch.tensor(obs)[:, None]).numpy()


ALWAYS = {
    "discount": [(1, False), (3, True)],
    "action for the observation": [(1, True), (3, False)],
    "time limit": [(3, False)],
}
"""(n_step, double) that are tried every time."""


@pytest.mark.parametrize(
    ("probe", "obs", "expected", "n_step", "double"),
    [
        pytest.param(
            *known,
            n_step,
            double,
            marks=() if (n_step, double) in ALWAYS.get(known[0], [(3, True)]) else pytest.mark.slow,
        )
        for known in KNOWN
        for n_step in (1, 3)
        for double in (False, True)
    ],
)
def test_learns_the_values_of_a_probe(
    probe: str, obs: list[float], expected: list[list[float]], n_step: int, double: bool
) -> None:
    env = host(PROBES[probe], 4)
    agent = make_agent(replace(FAST, n_step=n_step, double=double), task(env))
    train(agent, env, 4_000 if probe == "time limit" else 1_500)
    np.testing.assert_allclose(q_of(agent, *obs), expected, atol=0.3 if probe == "time limit" else 0.05)


def test_equals_tabular_q_learning_step_for_step() -> None:
    """One-hot observations, a linear network without bias, plain gradient steps, a target synced at every step."""
    num_states, num_actions, gamma, eta = 6, 3, 0.9, 0.25
    rng = np.random.default_rng(0)
    table = np.zeros((num_states, num_actions))
    q_net = nn.Linear(num_states, num_actions, bias=False).double()
    nn.init.zeros_(q_net.weight)
    optimizer = torch.optim.SGD(q_net.parameters(), eta)
    one_hot = torch.eye(num_states, dtype=torch.float64)
    for _ in range(500):
        s, a, s2 = rng.integers(num_states), rng.integers(num_actions), rng.integers(num_states)
        reward, terminal = rng.uniform(-0.05, 0.05), rng.random() < 0.2
        batch = Batch(
            obs=one_hot[[s]],
            action=torch.tensor([a]),
            reward=torch.tensor([reward], dtype=torch.float64),
            next_obs=one_hot[[s2]],
            discount=torch.tensor([0.0 if terminal else gamma], dtype=torch.float64),
        )
        loss = td_loss(q_net, copy.deepcopy(q_net), batch, double=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        table[s, a] += eta * (reward + gamma * table[s2].max() * (not terminal) - table[s, a])
        np.testing.assert_allclose(q_net.weight.detach().numpy().T, table, atol=1e-12)
    assert np.abs(table).max() > 0.01


@pytest.mark.parametrize("updates", [1, 100])
def test_an_update_equals_stable_baselines3(updates: int) -> None:
    env = gym.make("CartPole-v1")
    sb3 = SB3DQN(
        "MlpPolicy", env, learning_rate=1e-3, gamma=0.99, buffer_size=100, seed=0, policy_kwargs={"net_arch": [64, 64]}
    )
    sb3.set_logger(configure(None, []))
    settings = Settings(gamma=0.99, learning_rate=1e-3, batch_size=32, hidden_sizes=[64, 64], replay_capacity=100)
    spec = EnvSpec("CartPole-v1", env.observation_space, env.action_space, 1)
    agent = make_agent(settings, Task(spec, 1_000, torch.device("cpu"), Streams(0)))
    for ours, theirs in ((agent.q_net, sb3.q_net), (agent.target_q_net, sb3.q_net_target)):
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.data.copy_(q.data)
    agent.target_q_net[1].q.bias.data += 0.5  # so that the two networks differ
    sb3.q_net_target.q_net[-1].bias.data += 0.5
    generator = torch.Generator().manual_seed(1)

    class Scripted:
        batch: Batch

        def sample(self, batch_size: int, env: object = None) -> Batch | ReplayBufferSamples:
            if env is None and self.ours:
                return self.batch
            b = self.batch
            ended = (b.discount == 0).float()[:, None]
            return ReplayBufferSamples(b.obs, b.action[:, None], b.next_obs, ended, b.reward[:, None])

        ours = True

    scripted = Scripted()
    agent.replay = scripted  # type: ignore[assignment]
    sb3.replay_buffer = scripted  # type: ignore[assignment]
    for _ in range(updates):
        scripted.batch = Batch(
            obs=torch.randn(32, 4, generator=generator),
            action=torch.randint(2, (32,), generator=generator),
            reward=3 * torch.randn(32, generator=generator),
            next_obs=torch.randn(32, 4, generator=generator),
            discount=torch.where(torch.rand(32, generator=generator) < 0.3, 0.0, 0.99),
        )
        scripted.ours = True
        agent._gradient_step()
        scripted.ours = False
        sb3.train(gradient_steps=1, batch_size=32)
    for p, q in zip(agent.q_net.parameters(), sb3.q_net.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def vector_spec(num_envs: int) -> EnvSpec:
    return EnvSpec("test", Box(-1, 1, (3,), np.float32), Discrete(4), num_envs)


def some_transition(num_envs: int, generator: torch.Generator) -> Transition:
    flags = torch.zeros(num_envs, dtype=torch.bool)
    return Transition(
        torch.rand(num_envs, 3, generator=generator),
        torch.randint(4, (num_envs,), generator=generator),
        torch.rand(num_envs, generator=generator),
        torch.rand(num_envs, 3, generator=generator),
        flags,
        flags,
        ~flags,
    )


@pytest.mark.parametrize("num_envs", [1, 4, 5])
@pytest.mark.parametrize("batch_size", [8, 32])
def test_updates_and_target_syncs_follow_environment_steps(num_envs: int, batch_size: int) -> None:
    settings = replace(
        FAST,
        batch_size=batch_size,
        samples_per_env_step=4,
        learning_starts_env_steps=100,
        target_sync_every_env_steps=60,
    )
    agent = make_agent(settings, Task(vector_spec(num_envs), 1_000, torch.device("cpu"), Streams(0)))
    generator = torch.Generator().manual_seed(0)
    synced_at = []
    for vector_step in range(1, 600 // num_envs + 1):
        agent.observe(some_transition(num_envs, generator), None)  # type: ignore[arg-type]
        before = copy.deepcopy(agent.target_q_net.state_dict())
        agent.update()
        after = agent.target_q_net.state_dict()
        env_steps = vector_step * num_envs
        assert agent.learner.updates == max(0, env_steps - 100) * 4 // batch_size
        if any(not torch.equal(before[k], after[k]) for k in after):
            synced_at.append(env_steps)
            assert all(torch.equal(after[k], v) for k, v in agent.q_net.state_dict().items())
    crossings = [s for s in range(num_envs, 600 + 1, num_envs) if s // 60 > (s - num_envs) // 60]
    first_update = next(s for s in crossings if (s - 100) * 4 // batch_size >= 1)
    assert synced_at == [s for s in crossings if s >= first_update]
    assert all(p.grad is None and not p.requires_grad for p in agent.target_q_net.parameters())
    trained = {id(p) for group in agent.learner.optimizer.param_groups for p in group["params"]}
    assert trained == {id(p) for p in agent.q_net.parameters()}


@pytest.mark.parametrize("num_envs", [1, 4])
def test_epsilon_is_a_function_of_environment_steps(num_envs: int) -> None:
    settings = replace(
        FAST, epsilon_start=1.0, epsilon_end=0.1, epsilon_decay_env_steps=1_000, learning_starts_env_steps=10_000
    )
    agent = make_agent(settings, Task(vector_spec(num_envs), 2_000, torch.device("cpu"), Streams(0)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(500 // num_envs):
        agent.observe(some_transition(num_envs, generator), None)  # type: ignore[arg-type]
    assert agent.epsilon == pytest.approx(0.55)


def test_every_environment_throws_its_own_coin() -> None:
    agent = make_agent(FAST, Task(vector_spec(8), 1_000, torch.device("cpu"), Streams(0)))
    obs, start = torch.zeros(8, 3), torch.zeros(8, dtype=torch.bool)
    greedy = agent.policy(Mode("greedy"), 8, torch.Generator()).act(obs, start).action
    policy = agent.policy(Mode("epsilon", 0.5), 8, torch.Generator().manual_seed(0))
    explored = torch.stack([policy.act(obs, start).action != greedy for _ in range(400)]).float()
    assert explored.mean() == pytest.approx(0.5 * 3 / 4, abs=0.03)
    share = explored.mean(dim=1)
    assert ((share > 0) & (share < 1)).float().mean() > 0.9  # one coin for all gives 0


def test_policy_modes() -> None:
    agent = make_agent(FAST, Task(vector_spec(2), 1_000, torch.device("cpu"), Streams(0)))
    obs, start = torch.rand(2, 3), torch.zeros(2, dtype=torch.bool)
    greedy = agent.policy(Mode("greedy"), 2, torch.Generator())
    cold = agent.policy(Mode("temperature", 1e-6), 2, torch.Generator().manual_seed(0))
    never = agent.policy(Mode("epsilon", 0.0), 2, torch.Generator().manual_seed(0))
    for policy in (cold, never):
        assert torch.equal(policy.act(obs, start).action, greedy.act(obs, start).action)
    hot = agent.policy(Mode("temperature", 1e6), 2, torch.Generator().manual_seed(0))
    actions = torch.cat([hot.act(obs, start).action for _ in range(2_000)])
    assert torch.bincount(actions, minlength=4).min() > 900
    with pytest.raises(ConfigError, match="no stochastic policy"):
        agent.policy(Mode("sample"), 2, torch.Generator())


def test_learns_from_clipped_rewards_only_if_told() -> None:
    for clip, expected in ((False, [-7.0, 0.5, 200.0]), (True, [-1.0, 0.5, 1.0])):
        spec = vector_spec(3)
        agent = make_agent(replace(FAST, clip_reward=clip, n_step=1), Task(spec, 100, torch.device("cpu"), Streams(0)))
        step = some_transition(3, torch.Generator().manual_seed(0))._replace(reward=torch.tensor([-7.0, 0.5, 200.0]))
        agent.observe(step, None)  # type: ignore[arg-type]
        assert sorted(set(agent.replay.sample(200).reward.tolist())) == expected


def test_a_non_finite_gradient_stops_before_the_step() -> None:
    agent = make_agent(FAST, Task(vector_spec(2), 1_000, torch.device("cpu"), Streams(0)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(31):
        agent.observe(some_transition(2, generator), None)  # type: ignore[arg-type]
    bad = some_transition(2, generator)._replace(reward=torch.full((2,), float("inf")))
    for _ in range(40):
        agent.observe(bad, None)  # type: ignore[arg-type]
    before = copy.deepcopy(agent.q_net.state_dict())
    with pytest.raises(NonFiniteError, match=r"update 1 has loss inf .* smaller agent\.learning_rate"):
        agent.update()
    assert all(torch.equal(v, before[k]) for k, v in agent.q_net.state_dict().items())


def test_nothing_is_allocated_before_the_first_observation() -> None:
    spec = EnvSpec("pixels", Box(0, 255, (4, 84, 84), np.uint8), Discrete(6), 8, frame_stack=4)
    settings = Settings(replay_capacity=100_000_000, backbone="nips_cnn")  # 706 GB
    agent = make_agent(settings, Task(spec, 1_000, torch.device("cpu"), Streams(0)))
    agent.policy(Mode("greedy"), 8, torch.Generator())
    assert agent.memory_bytes > 700e9


def test_continuous_actions_are_refused_with_names_of_agents_that_fit() -> None:
    spec = EnvSpec("Pendulum-v1", Box(-1, 1, (3,), np.float32), Box(-2, 2, (1,), np.float32), 1)
    with pytest.raises(ConfigError, match=r"Pendulum-v1 has Box actions \(agent=ppo, a2c and sac take them\)"):
        make_agent(Settings(), Task(spec, 1_000, torch.device("cpu"), Streams(0)))


def test_the_mean_image_of_the_warm_up_is_subtracted() -> None:
    spec = EnvSpec("pixels", Box(0, 255, (2, 36, 36), np.uint8), Discrete(2), 2, frame_stack=2)
    settings = replace(FAST, backbone="nips_cnn", center_pixels=True, learning_starts_env_steps=16, batch_size=8)
    agent = make_agent(settings, Task(spec, 100, torch.device("cpu"), Streams(0)))
    flags, generator = torch.zeros(2, dtype=torch.bool), torch.Generator().manual_seed(0)
    frames = torch.randint(256, (12, 2, 2, 36, 36), generator=generator, dtype=torch.uint8)
    for t in range(9):
        step = Transition(frames[t], torch.zeros(2).long(), torch.zeros(2), frames[t + 1], flags, flags, ~flags)
        agent.observe(step, None)  # type: ignore[arg-type]
        agent.update()
    mean = frames[:9, :, -1].double().mean(dim=(0, 1)).float()
    for net in (agent.q_net, agent.target_q_net):
        torch.testing.assert_close(net[0].pixel_mean, mean.expand(2, 36, 36))
