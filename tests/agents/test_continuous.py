"""DDPG, TD3 and SAC against Stable-Baselines3, known answers and their written specification."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3
import torch
from gymnasium.spaces import Box, Discrete
from stable_baselines3.common.buffers import ReplayBufferSamples
from stable_baselines3.common.logger import configure
from torch import Tensor, nn

from agents.sac import squash
from contract import Batch, EnvSpec, Mode, Streams, Task, Transition
from faults import ConfigError, NonFiniteError
from memory.continuous import ActionBounds
from tests.probes import host, task, train
from training.loop import Interaction

NAMES = ("ddpg", "td3", "sac")
FAST = {
    "gamma": 0.9,
    "actor_learning_rate": 3e-3,
    "critic_learning_rate": 3e-3,
    "batch_size": 32,
    "samples_per_env_step": 32,
    "replay_capacity": 1_000,
    "learning_starts_env_steps": 64,
    "tau": 0.05,
    "hidden_sizes": [32, 32],
}


def fast(name: str, **changes: Any) -> Any:
    return importlib.import_module(f"agents.{name}").Settings(**(FAST | changes))


def make(name: str, settings: Any, task: Task) -> Any:
    return importlib.import_module(f"agents.{name}").make_agent(settings, task)


def spec_of(action_space: gym.Space[Any], num_envs: int = 4) -> EnvSpec:
    return EnvSpec("Test-v0", Box(-1, 1, (3,), np.float32), action_space, num_envs)


def task_of(spec: EnvSpec, seed: int = 0) -> Task:
    return Task(spec, 10_000, torch.device("cpu"), Streams(seed))


BOX = Box(np.array([-1, 0], np.float32), np.array([3, 10], np.float32))


# Stable-Baselines3 ------------------------------------------------------------------------------------------------


def critic_weights(critic: nn.Module) -> list[Tensor]:
    """Of each of Stable-Baselines3's critics, then layer by layer, in our layout."""
    stacks = [[m for m in q.modules() if isinstance(m, nn.Linear)] for q in critic.q_networks]
    layers = zip(*stacks, strict=True)
    return [
        part
        for layer in layers
        for part in (torch.stack([m.weight.T for m in layer]), torch.stack([m.bias[None] for m in layer]))
    ]


def actor_weights(actor: nn.Module) -> list[Tensor]:
    weights = list(actor.parameters())
    if not hasattr(actor, "log_std"):
        return weights
    *body, mean, mean_bias, log_std, log_std_bias = weights  # two heads there, one here
    return [*body, torch.cat([mean, log_std]), torch.cat([mean_bias, log_std_bias])]


def networks(name: str, agent: Any, sb3: Any) -> list[tuple[nn.Module, list[Tensor]]]:
    pairs = [
        (agent.actor, actor_weights(sb3.actor)),
        (agent.critic, critic_weights(sb3.critic)),
        (agent.target_critic, critic_weights(sb3.critic_target)),
    ]
    return pairs if name == "sac" else [*pairs, (agent.target_actor, actor_weights(sb3.actor_target))]


class Ours:
    """A replay that always answers the same batch."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def sample(self, batch_size: int) -> Batch:
        return self.batch


class Theirs(Ours):
    """The same batch in Stable-Baselines3's shapes."""

    def sample(self, batch_size: int, env: object = None) -> Any:
        b = self.batch
        ended = (b.discount == 0).float()[:, None]
        return ReplayBufferSamples(b.obs, b.action, b.next_obs, ended, b.reward[:, None])


def twins(name: str) -> tuple[Any, Any]:
    """Our agent and theirs with the same weights, and targets that differ from the networks."""
    env = gym.make("Pendulum-v1")
    kwargs = {"policy_kwargs": {"net_arch": [32, 32]}, "learning_rate": 1e-3, "gamma": 0.97, "tau": 0.02}
    sb3 = getattr(stable_baselines3, name.upper())("MlpPolicy", env, buffer_size=100, seed=0, **kwargs)
    sb3.set_logger(configure(None, []))
    settings = fast(name, actor_learning_rate=1e-3, critic_learning_rate=1e-3, tau=0.02)
    agent = make(name, settings, task_of(EnvSpec("Pendulum-v1", env.observation_space, env.action_space, 1)))
    with torch.no_grad():
        for target in (sb3.critic_target, getattr(sb3, "actor_target", nn.Module())):
            for p in target.parameters():
                p += 0.01 * torch.randn(p.shape)
        for net, weights in networks(name, agent, sb3):
            for p, q in zip(net.parameters(), weights, strict=True):
                p.copy_(q)
    if name == "sac":
        sb3.actor.action_dist.epsilon = 0.0  # its log-probability is approximate: log(1 - a**2 + epsilon)
    return agent, sb3


@pytest.mark.parametrize("updates", [1, 20])
@pytest.mark.parametrize("name", NAMES)
def test_updates_equal_stable_baselines3(name: str, updates: int) -> None:
    agent, sb3 = twins(name)
    generator = torch.Generator().manual_seed(1)
    for update in range(updates):
        batch = Batch(
            obs=torch.randn(32, 3, generator=generator),
            action=2 * torch.rand(32, 1, generator=generator) - 1,
            reward=3 * torch.randn(32, generator=generator),
            next_obs=torch.randn(32, 3, generator=generator),
            discount=torch.where(torch.rand(32, generator=generator) < 0.3, 0.0, 0.97),
        )
        agent.replay, sb3.replay_buffer = Ours(batch), Theirs(batch)
        same = torch.Generator().manual_seed(update)
        noises = [torch.randn(32, 1, generator=same) for _ in range(2 if name == "sac" else 1)]
        agent._standard_normal = lambda shape, noises=noises: noises.pop()  # SAC there draws for the actor first
        metrics = agent._gradient_step()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(update)
            sb3.train(gradient_steps=1, batch_size=32)
        theirs = sb3.logger.name_to_value
        for tag in metrics.keys() & {f"train/{t}" for t in ("critic_loss", "actor_loss", "ent_coef", "ent_coef_loss")}:
            assert float(metrics[tag]) == pytest.approx(theirs[tag], abs=1e-6, rel=1e-6), tag
    for net, weights in networks(name, agent, sb3):
        for p, q in zip(net.parameters(), weights, strict=True):
            torch.testing.assert_close(p, q, atol=1e-6, rtol=0, check_stride=False)
    if name == "sac":
        torch.testing.assert_close(agent.log_temperature, sb3.log_ent_coef[0], atol=1e-6, rtol=0)


# Known answers ----------------------------------------------------------------------------------------------------


class Script(gym.Env[Any, Any]):
    """`reward(action)` for ever; every episode ends after `length` steps, by a terminal or by a time limit."""

    def __init__(self, reward: Callable[[float], float], length: int, terminal: bool) -> None:
        self.observation_space = Box(-1, 1, (1,), np.float32)
        self.action_space = Box(-1, 3, (1,), np.float32)
        self._reward, self._length, self._terminal = reward, length, terminal

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        assert action in self.action_space
        self._t += 1
        end = self._t == self._length
        reward = self._reward(float(action[0]))
        return np.zeros(1, np.float32), reward, end and self._terminal, end and not self._terminal, {}


BEST = 2.2


def cold(name: str) -> dict[str, Any]:
    """SAC at a temperature that hardly matters."""
    return {"temperature": 0.01, "temperature_learning_rate": 0.0} if name == "sac" else {}


@pytest.mark.parametrize("name", NAMES)
def test_finds_the_best_of_a_line_of_actions(name: str) -> None:
    env = host(lambda: Script(lambda a: -((a - BEST) ** 2), 1, True), 4)
    quick = {
        "critic_learning_rate": 2e-2,
        "learning_starts_env_steps": 160,
        "batch_size": 64,
        "samples_per_env_step": 64,
    }
    agent = make(name, fast(name, **cold(name), **quick), task(env))
    train(agent, env, 520)
    action = agent.policy(Mode("greedy"), 1, torch.Generator()).act(torch.zeros(1, 1), torch.ones(1)).action
    assert float(action) == pytest.approx(BEST, abs=0.15)
    unit = agent._bounds.to_unit(torch.tensor([[BEST]]))
    assert agent.critic(torch.zeros(1, 1), unit).detach().numpy() == pytest.approx(0.0, abs=0.2)


@pytest.mark.parametrize(("length", "terminal", "value"), [(1, True, 1.0), (4, False, 5.0)])
@pytest.mark.parametrize("name", NAMES)
def test_only_a_terminal_cuts_the_bootstrap(name: str, length: int, terminal: bool, value: float) -> None:
    """Reward 1 for ever is worth 1 / (1 - 0.8), whatever the time limit; 2.5 if the limit were taken for a terminal."""
    env = host(lambda: Script(lambda a: 1.0, length, terminal), 4)
    quick = {"critic_learning_rate": 3e-2, "tau": 0.5, "hidden_sizes": [16], "learning_starts_env_steps": 32}
    agent = make(name, fast(name, **cold(name), gamma=0.8, **quick), task(env))
    train(agent, env, 150)
    q = agent.critic(torch.zeros(1, 1), torch.zeros(1, 1)).detach().numpy()
    assert q == pytest.approx(value, rel=0.15)


@pytest.mark.parametrize("target", [-1.0, 0.3])
def test_the_temperature_steers_the_entropy_to_its_target(target: float) -> None:
    env = host(lambda: Script(lambda a: -((a - 1) ** 2), 1, True), 4)
    quick = {"critic_learning_rate": 2e-2, "actor_learning_rate": 2e-2, "temperature_learning_rate": 4e-2}
    settings = fast("sac", temperature=0.5, target_entropy=target, hidden_sizes=[16, 16], **quick)
    agent = make("sac", settings, task(env))
    metrics = train(agent, env, 300)
    entropy = np.mean([float(m["train/entropy"]) for m in metrics[-40:]])
    assert entropy == pytest.approx(target, abs=0.2)


def test_the_target_entropy_is_one_nat_below_zero_for_each_dimension() -> None:
    assert make("sac", fast("sac"), task_of(spec_of(BOX))).target_entropy == -2.0


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-0.3, 0.5)])
def test_the_density_of_a_squashed_gaussian_by_numerical_integration(mean: float, log_std: float) -> None:
    raw = torch.linspace(-12, 12, 200_001, dtype=torch.float64)[:, None]
    parameters = torch.tensor([[mean, log_std]], dtype=torch.float64).expand(len(raw), 2)
    action, log_prob = squash(parameters, (raw - mean) / np.exp(log_std))
    x, p = action[:, 0].numpy(), log_prob.exp().numpy()
    assert np.trapezoid(p, x) == pytest.approx(1, abs=1e-6)
    draws = squash(parameters, torch.randn(raw.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    assert np.trapezoid(p * x, x) == pytest.approx(draws[0].mean().item(), abs=6e-3)
    entropy = -np.trapezoid(p * np.log(np.maximum(p, 1e-300)), x)
    assert entropy == pytest.approx(-draws[1].mean().item(), abs=1e-2)


def test_squashed_densities_of_independent_axes_multiply_and_stay_finite_at_the_edge() -> None:
    parameters = torch.tensor([[0.2, -0.5, 0.1, -0.3]])
    noise = torch.tensor([[0.7, -1.1]])
    both = squash(parameters, noise)[1]
    single = [squash(parameters[:, [d, 2 + d]], noise[:, [d]])[1] for d in range(2)]
    torch.testing.assert_close(both, single[0] + single[1])
    parameters = torch.tensor([[30.0, 0.0]], requires_grad=True)
    action, log_prob = squash(parameters, torch.zeros(1, 1))
    assert action.item() == 1.0  # rounded
    assert log_prob.item() == pytest.approx(-0.5 * np.log(2 * np.pi) - 2 * (np.log(2) - 30), rel=1e-6)
    assert torch.isfinite(torch.autograd.grad(log_prob.sum(), parameters)[0]).all()


# Acting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_policy_modes(name: str) -> None:
    agent = make(name, fast(name), task_of(spec_of(BOX, 500)))
    obs, start = torch.rand(1, 3).expand(500, 3), torch.zeros(500, dtype=torch.bool)

    def act(mode: str, seed: int = 0) -> Tensor:
        policy = agent.policy(Mode(mode), 500, torch.Generator().manual_seed(seed))
        return torch.cat([policy.act(obs, start).action for _ in range(10)])

    low, high = torch.from_numpy(BOX.low), torch.from_numpy(BOX.high)
    warm_up, greedy, drawn = act("train"), act("greedy"), act("sample")
    for action in (warm_up, greedy, drawn):
        assert ((action >= low) & (action <= high)).all()
    share = (warm_up - low) / (high - low)
    torch.testing.assert_close(share.mean(0), torch.full((2,), 0.5), atol=0.02, rtol=0)
    torch.testing.assert_close(share.std(0), torch.full((2,), 12**-0.5), atol=0.01, rtol=0)
    assert (greedy == greedy[0]).all()
    assert len(drawn.unique(dim=0)) > 4_000  # every environment and step has noise of its own
    if name != "sac":  # noise in proportion to the range along each axis
        torch.testing.assert_close(drawn.std(0), 0.1 * (high - low) / 2, atol=0.05, rtol=0)
        torch.testing.assert_close(drawn.mean(0), greedy[0], atol=0.05, rtol=0)
    assert torch.equal(drawn, act("sample"))
    assert not torch.equal(drawn, act("sample", seed=1))
    agent._env_steps = 64
    assert torch.equal(act("train"), drawn)
    with pytest.raises(ConfigError, match=r"use sample or greedy, not epsilon=0\.1"):
        agent.policy(Mode("epsilon", 0.1), 1, torch.Generator())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "space", [Discrete(2), Box(-1, np.inf, (2,)), Box(-3e38, 3e38, (1,)), Box(1, 1, (1,)), Box(-1, 1, (2, 2))]
)
def test_other_action_spaces_are_refused_in_one_line(name: str, space: gym.Space[Any]) -> None:
    with pytest.raises(ConfigError, match=rf"agent={name} needs continuous actions.*Test-v0 has [DB]") as refusal:
        make(name, fast(name), task_of(spec_of(space)))
    assert "\n" not in str(refusal.value)


def test_units_of_the_box() -> None:
    bounds = ActionBounds(spec_of(BOX), "test", torch.device("cpu"))
    unit = torch.tensor([[-1.0, 1.0], [0.0, 0.0], [0.5, -0.5]])
    env = torch.tensor([[-1.0, 10.0], [1.0, 5.0], [2.0, 2.5]])
    assert torch.equal(bounds.to_env(unit), env)
    assert torch.equal(bounds.to_unit(env), unit)


# Learning ---------------------------------------------------------------------------------------------------------


def observe(agent: Any, generator: torch.Generator, reward: float | None = None) -> None:
    n = agent.replay._num_envs
    flags = torch.zeros(n, dtype=torch.bool)
    step = Transition(
        torch.rand(n, 3, generator=generator),
        torch.rand(n, 2, generator=generator),
        torch.rand(n, generator=generator) if reward is None else torch.full((n,), reward),
        torch.rand(n, 3, generator=generator),
        flags,
        flags,
        ~flags,
    )
    agent.observe(step, None)


@pytest.mark.parametrize("num_envs", [1, 4, 5])
@pytest.mark.parametrize("batch_size", [8, 32])
@pytest.mark.parametrize("name", NAMES)
def test_updates_follow_environment_steps(name: str, num_envs: int, batch_size: int) -> None:
    settings = fast(name, batch_size=batch_size, samples_per_env_step=2, learning_starts_env_steps=40, hidden_sizes=[4])
    agent = make(name, settings, task_of(spec_of(BOX, num_envs)))
    generator = torch.Generator().manual_seed(0)
    for vector_step in range(1, 160 // num_envs + 1):
        observe(agent, generator)
        agent.update()
        assert agent._updates == max(0, vector_step * num_envs - 40) * 2 // batch_size


def test_actor_and_targets_of_td3_move_at_every_second_update() -> None:
    agent = make("td3", fast("td3", policy_delay=2, tau=0.25), task_of(spec_of(BOX)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(16):
        observe(agent, generator)
    for update in range(1, 7):
        nets = (agent.critic, agent.actor, agent.target_actor, agent.target_critic)
        before = [copy.deepcopy(net) for net in nets]
        agent._gradient_step()
        moved = [
            any(not torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
            for a, b in zip(before, nets, strict=True)
        ]
        assert moved == [True] + [update % 2 == 0] * 3
        if update % 2 == 0:
            triples = zip(
                before[3].parameters(), agent.critic.parameters(), agent.target_critic.parameters(), strict=True
            )
            for old, online, target in triples:
                torch.testing.assert_close(target, 0.75 * old + 0.25 * online)


@pytest.mark.parametrize("name", NAMES)
def test_each_optimiser_has_the_weights_of_its_network_and_targets_learn_nothing(name: str) -> None:
    agent = make(name, fast(name), task_of(spec_of(BOX)))
    for optimizer, net in ((agent.actor_optimizer, agent.actor), (agent.critic_optimizer, agent.critic)):
        assert [id(p) for g in optimizer.param_groups for p in g["params"]] == [id(p) for p in net.parameters()]
    assert not any(p.requires_grad for p in agent.target_critic.parameters())


def test_critics_are_independent() -> None:
    critic = make("td3", fast("td3"), task_of(spec_of(BOX))).critic
    first, second = critic(torch.rand(5, 3), torch.rand(5, 2))
    assert not torch.allclose(first, second)
    gradients = torch.autograd.grad(first.sum(), list(critic.parameters()))
    assert all(g[0].abs().sum() > 0 and g[1].abs().sum() == 0 for g in gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_non_finite_loss_stops_before_the_step(name: str) -> None:
    agent = make(name, fast(name), task_of(spec_of(BOX)))
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        observe(agent, generator, reward=float("inf"))
    before = copy.deepcopy(agent.critic.state_dict())
    with pytest.raises(NonFiniteError, match=r"update 1 has critic loss inf .* smaller learning rate"):
        agent.update()
    assert all(torch.equal(v, before[k]) for k, v in agent.critic.state_dict().items())


@pytest.mark.parametrize("name", NAMES)
def test_training_continues_from_a_checkpoint_bit_for_bit(name: str) -> None:
    def session() -> tuple[Any, Interaction]:
        env = host(lambda: Script(lambda a: -abs(a), 7, False), 3)
        agent = make(name, replace(fast(name), replay_capacity=100), task(env))
        return agent, Interaction(agent, env, agent.policy(Mode("train"), 3, Streams(0).torch("policy")))

    agent, advance = session()
    advance(99)
    saved = copy.deepcopy((agent.state_dict(), advance.state_dict()))
    advance(30)
    resumed, resumed_advance = session()
    resumed.load_state_dict(saved[0])
    resumed_advance.load_state_dict(saved[1])
    resumed_advance(30)
    assert resumed._updates == agent._updates > 60
    for net in ("actor", "critic", "target_critic"):
        pairs = zip(getattr(agent, net).parameters(), getattr(resumed, net).parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_read_by_a_cnn_and_nothing_is_allocated_before_the_first_observation(name: str) -> None:
    spec = EnvSpec("pixels", Box(0, 255, (4, 84, 84), np.uint8), BOX, 2, frame_stack=4)
    agent = make(name, fast(name, replay_capacity=20_000_000), task_of(spec))  # 141 GB
    action = agent.policy(Mode("greedy"), 2, torch.Generator()).act(
        torch.randint(256, (2, 4, 84, 84), dtype=torch.uint8), torch.ones(2)
    )
    assert action.action.shape == (2, 2)
    assert agent.memory_bytes > 140e9
