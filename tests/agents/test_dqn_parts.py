"""The later parts of DQN: distributions of returns, prioritised replay, noisy layers, and all of them together."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import sb3_contrib
import torch
from gymnasium.spaces import Box, Discrete
from torch import Tensor, nn

from agents import dqn
from agents.dqn import DQN, Settings, c51_loss, make_agent, qr_loss, td_loss
from contract import Batch, EnvSpec, Mode, Streams, Task, Transition
from envs import settings as env_settings
from faults import ConfigError
from networks.heads import CategoricalHead, QuantileHead
from tests.probes import KNOWN, PROBES, host, task, train
from training.config import CONFIG_DIR, compose_config

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
PARTS: dict[str, dict[str, Any]] = {
    "c51": {"distribution": "categorical", "v_min": -2.0, "v_max": 2.0, "num_atoms": 21},
    "qr": {"distribution": "quantile", "num_atoms": 5},
    "prioritized": {"prioritized": True},
    "noisy": {"noisy": True},
}
RAINBOW = PARTS["c51"] | PARTS["prioritized"] | PARTS["noisy"] | {"double": True, "dueling": True, "n_step": 3}
PARTS["rainbow"] = RAINBOW


def some_agent(num_envs: int = 2, **changes: Any) -> DQN:
    spec = EnvSpec("test", Box(-1, 1, (3,), np.float32), Discrete(4), num_envs)
    return make_agent(replace(FAST, **changes), Task(spec, 1_000, torch.device("cpu"), Streams(0)))


def some_batch(seed: int = 0, size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        obs=torch.randn(size, 3, generator=generator),
        action=torch.randint(4, (size,), generator=generator),
        reward=torch.randn(size, generator=generator),
        next_obs=torch.randn(size, 3, generator=generator),
        discount=torch.where(torch.rand(size, generator=generator) < 0.3, 0.0, 0.9),
    )


def feed(agent: DQN, rows: int) -> None:
    generator = torch.Generator().manual_seed(0)
    flags = torch.zeros(2, dtype=torch.bool)
    for _ in range(rows):
        obs, next_obs = torch.rand(2, 2, 3, generator=generator)
        step = Transition(obs, torch.randint(4, (2,), generator=generator), obs[:, 0], next_obs, flags, flags, ~flags)
        agent.observe(step, None)  # type: ignore[arg-type]


# ---------------------------------------------------------------- known answers


DISCOUNT, ACTION = (row for row in KNOWN if row[0] in ("discount", "action for the observation"))


@pytest.mark.parametrize(
    ("part", "probe", "obs", "expected"),
    [
        *((part, *ACTION) for part in PARTS),
        *(pytest.param(part, *DISCOUNT, marks=pytest.mark.slow) for part in ("c51", "qr")),
    ],
)
def test_learns_the_values_of_a_probe(part: str, probe: str, obs: list[float], expected: list[list[float]]) -> None:
    env = host(PROBES[probe], 4)
    agent = make_agent(replace(FAST, learning_rate_end=0.0, **PARTS[part]), task(env, 1_800))
    train(agent, env, 1_800)
    with torch.no_grad():
        q = agent.q_net(torch.tensor(obs)[:, None]).numpy()
    np.testing.assert_allclose(q.max(axis=1), np.max(expected, axis=1), atol=0.1)
    np.testing.assert_allclose(q, expected, atol=0.1)


def coin() -> gym.Env[Any, Any]:
    from tests.probes import Probe

    return Probe(lambda r: 0, lambda t, o, a, r: (0, 1.0 if r.random() < 0.25 else -1.0, True, False))


@pytest.mark.parametrize("part", ["c51", "qr"])
def test_learns_the_distribution_not_only_its_mean(part: str) -> None:
    """One step, +1 with probability 1/4, else -1."""
    env = host(coin, 4)
    agent = make_agent(replace(FAST, **PARTS[part], learning_rate_end=0.0), task(env, 2_400))
    train(agent, env, 2_400)
    backbone, head = agent.q_net
    with torch.no_grad():
        (distribution,) = head.distribution(backbone(torch.zeros(1, 1)))[0]
    if part == "c51":
        assert isinstance(head, CategoricalHead)
        probability = distribution.softmax(0)
        assert probability[head.support == 1.0].item() == pytest.approx(0.25, abs=0.08)
        assert probability[(head.support + 1.0).abs() < 1e-5].item() == pytest.approx(0.75, abs=0.08)
    else:
        # Huber's loss rounds the steps off. At tau <= 3/4 the forces balance where 3/4 (1 - tau) (x + 1) = 1/4 tau, at
        # tau = 0.9 where 3/4 * 0.1 = 1/4 * 0.9 (1 - x).
        levels = [-1 + tau / (3 * (1 - tau)) for tau in (0.1, 0.3, 0.5, 0.7)]
        np.testing.assert_allclose(distribution, [*levels, 2 / 3], atol=0.1)


# ---------------------------------------------------------------- independent implementations


def test_a_qr_dqn_update_equals_sb3_contrib() -> None:
    from stable_baselines3.common.buffers import ReplayBufferSamples
    from stable_baselines3.common.logger import configure

    quantiles, actions = 7, 2
    arguments = {
        "net_arch": [64, 64],
        "n_quantiles": quantiles,
        "optimizer_class": torch.optim.Adam,
        "optimizer_kwargs": {"eps": 1e-8},
    }
    theirs = sb3_contrib.QRDQN(
        "MlpPolicy",
        gym.make("CartPole-v1"),
        learning_rate=1e-3,
        buffer_size=100,
        seed=0,
        max_grad_norm=10,
        policy_kwargs=arguments,
    )
    theirs.set_logger(configure(None, []))
    settings = Settings(
        distribution="quantile", num_atoms=quantiles, hidden_sizes=[64, 64], batch_size=32, replay_capacity=100
    )
    env = theirs.get_env()
    spec = EnvSpec("CartPole-v1", env.observation_space, env.action_space, 1)
    agent = make_agent(settings, Task(spec, 1_000, torch.device("cpu"), Streams(0)))

    def in_our_order(parameter: Tensor, last: bool) -> Tensor:
        """Theirs has the quantiles before the actions."""
        if not last:
            return parameter
        return parameter.view(quantiles, actions, *parameter.shape[1:]).transpose(0, 1).reshape(parameter.shape)

    def pairs(ours: nn.Module, other: nn.Module) -> list[tuple[Tensor, Tensor]]:
        together = list(zip(ours.parameters(), other.parameters(), strict=True))
        return [(p, in_our_order(q, i >= len(together) - 2)) for i, (p, q) in enumerate(together)]

    for p, q in pairs(agent.q_net, theirs.quantile_net) + pairs(agent.target_q_net, theirs.quantile_net_target):
        p.data.copy_(q.data)
    agent.target_q_net[0].layers[0].bias.data += 0.5  # so that the two networks differ
    list(theirs.quantile_net_target.parameters())[1].data += 0.5
    for seed in range(50):
        generator = torch.Generator().manual_seed(seed)
        b = Batch(
            obs=torch.randn(32, 4, generator=generator),
            action=torch.randint(2, (32,), generator=generator),
            reward=3 * torch.randn(32, generator=generator),
            next_obs=torch.randn(32, 4, generator=generator),
            discount=torch.where(torch.rand(32, generator=generator) < 0.3, 0.0, 0.99),
        )
        ended = (b.discount == 0).float()[:, None]
        samples = ReplayBufferSamples(b.obs, b.action[:, None], b.next_obs, ended, b.reward[:, None])
        agent.replay.sample = lambda n, b=b: b  # type: ignore[method-assign, misc]
        theirs.replay_buffer.sample = lambda n, env=None, s=samples: s  # type: ignore[method-assign, union-attr]
        agent._gradient_step()
        theirs.train(gradient_steps=1, batch_size=32)
    for p, q in pairs(agent.q_net, theirs.quantile_net):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("loss", "part"), [(c51_loss, "c51"), (qr_loss, "qr")])
@pytest.mark.parametrize("double", [False, True])
def test_the_next_action_is_chosen_by_one_network_and_valued_by_the_other(loss: Any, part: str, double: bool) -> None:
    """The networks are constants: each action's distribution lies in the bias of the head."""
    agent = some_agent(**PARTS[part], double=double)
    online, target = agent.q_net, agent.target_q_net
    for net, best in ((online, 1), (target, 2)):
        head = net[1].outputs.q
        nn.init.zeros_(head.weight)
        width = len(head.bias) // 4
        for action in range(4):
            mean = 1.0 if action == best else -0.2 * action
            if part == "c51":  # almost all mass at one atom
                atoms = torch.linspace(-2, 2, width)
                head.bias.data[action * width : (action + 1) * width] = -1e3 * (atoms - mean).abs()
            else:
                head.bias.data[action * width : (action + 1) * width] = mean
    zero = torch.zeros(1, 3)
    batch = Batch(zero, torch.tensor([0]), torch.tensor([0.5]), zero, torch.tensor([0.5]))
    result = loss(online, target, batch, double)
    assert result.q.item() == pytest.approx(0.0, abs=1e-5)
    # target: 0.5 + 0.5 * (1.0 of action 2, or with double -0.2 of action 1)
    expected = 0.5 + 0.5 * (-0.2 if double else 1.0)
    if part == "qr":
        assert result.error.item() == pytest.approx(expected, abs=1e-6)
    else:  # the divergence from all mass at 0 is 1e3 times the distance
        assert result.error.item() == pytest.approx(1e3 * expected, rel=1e-2)


# ---------------------------------------------------------------- prioritised replay


@pytest.mark.parametrize(("loss", "part"), [(td_loss, None), (c51_loss, "c51"), (qr_loss, "qr")])
def test_importance_weights_scale_the_gradient_and_not_the_priority(loss: Any, part: str | None) -> None:
    agent = some_agent(**(PARTS[part] if part else {}))
    batch, weight = some_batch(), torch.rand(16, generator=torch.Generator().manual_seed(1))
    plain = loss(agent.q_net, agent.target_q_net, batch, False)
    weighted = loss(agent.q_net, agent.target_q_net, batch, False, weight)
    assert torch.equal(plain.error, weighted.error)
    singles = []
    for i in range(16):
        single = loss(agent.q_net, agent.target_q_net, Batch(*(part[i : i + 1] for part in batch)), False)
        singles.append(weight[i] * single.loss)
    torch.testing.assert_close(weighted.loss, torch.stack(singles).mean())
    assert not torch.isclose(weighted.loss, plain.loss)


def test_an_update_uses_the_weights_and_returns_unweighted_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = some_agent(prioritized=True, learning_rate=1e-2)
    batch = some_batch()
    noted: list[Tensor] = []
    monkeypatch.setattr(agent.replay, "sample", lambda n, beta: (batch, torch.zeros(16)))
    monkeypatch.setattr(agent.replay, "update_priorities", noted.append)
    before = copy.deepcopy(agent.q_net.state_dict())
    with torch.no_grad():
        next_value = agent.target_q_net(batch.next_obs).amax(1)
        q = agent.q_net(batch.obs)[torch.arange(16), batch.action]
    agent._gradient_step()
    assert all(torch.equal(v, before[k]) for k, v in agent.q_net.state_dict().items()), "weights of 0 teach nothing"
    torch.testing.assert_close(noted[0], batch.reward + batch.discount * next_value - q)


def test_beta_rises_to_one_over_the_run() -> None:
    agent = some_agent(prioritized=True, priority_beta=0.4)
    assert agent.priority_beta == pytest.approx(0.4)
    agent.learner.env_steps = 500
    assert agent.priority_beta == pytest.approx(0.7)
    agent.learner.env_steps = 1_000
    assert agent.priority_beta == 1.0


def test_alpha_zero_draws_as_often_and_weighs_nothing() -> None:
    agent = some_agent(prioritized=True, priority_alpha=0.0)
    feed(agent, 50)
    for _ in range(3):
        _, weight = agent.replay.sample(32, 0.4)  # type: ignore[misc, call-arg]
        assert weight.tolist() == [1.0] * 32
        agent.replay.update_priorities(torch.rand(32))  # type: ignore[union-attr]


# ---------------------------------------------------------------- noise


def test_noise_explores_in_training_and_never_in_evaluation() -> None:
    agent = some_agent(8, noisy=True)
    obs, start = torch.zeros(8, 3), torch.zeros(8, dtype=torch.bool)
    policy = agent.policy(Mode("train"), 8, torch.Generator().manual_seed(0))
    q = policy.act(obs, start).extras["q"]
    assert len(q.unique(dim=0)) == 8, "every environment has its own noise"
    greedy = agent.policy(Mode("greedy"), 8, torch.Generator().manual_seed(0))
    values = [greedy.act(obs, start).extras["q"] for _ in range(2)]
    assert torch.equal(values[0], values[1])
    assert len(values[0].unique(dim=0)) == 1
    again = agent.policy(Mode("train"), 8, torch.Generator().manual_seed(0))
    assert torch.equal(again.act(obs, start).extras["q"], q), "evaluating moved no generator"


def test_noise_leaves_epsilon_in_force() -> None:
    """Before learning, an untrained network prefers one action almost everywhere, with noise too."""
    agent = some_agent(400, noisy=True, noisy_sigma=0.1)
    policy = agent.policy(Mode("train"), 400, torch.Generator().manual_seed(0))
    action = policy.act(torch.zeros(400, 3), torch.zeros(400, dtype=torch.bool)).action
    assert torch.bincount(action, minlength=4).min() > 60


def test_noise_is_learned() -> None:
    agent = some_agent(noisy=True, n_step=1)
    feed(agent, 60)
    before = copy.deepcopy(agent.q_net.state_dict())
    agent.update()
    assert agent.learner.updates
    after = agent.q_net.state_dict()
    assert any("sigma" in k for k in after)
    assert all(not torch.equal(v, before[k]) for k, v in after.items())


# ---------------------------------------------------------------- settings


def test_heads_follow_the_keys() -> None:
    assert isinstance(some_agent(**PARTS["c51"]).q_net[1], CategoricalHead)
    assert isinstance(some_agent(**PARTS["qr"]).q_net[1], QuantileHead)
    q = some_agent(**RAINBOW).q_net(torch.zeros(5, 3))
    assert q.shape == (5, 4)
    assert set(dqn.LOSSES) == {"none", "categorical", "quantile"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"distribution": "c51"}, r"agent\.distribution must be one of none, categorical, quantile, got 'c51'"),
        ({"v_min": 3.0, "v_max": 3.0}, r"agent\.v_max must be above 3, got 3"),
        ({"priority_alpha": 1.5}, r"agent\.priority_alpha must be in \[0, 1\], got 1.5"),
        ({"num_atoms": 1}, r"agent\.num_atoms must be in \[2, 10000\], got 1"),
        ({"noisy_sigma": -0.1}, r"agent\.noisy_sigma must be at least 0, got -0.1"),
    ],
)
def test_settings_out_of_range_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(FAST, **changes)


PRESETS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("rainbow_no_*.yaml"))


@pytest.mark.parametrize("preset", PRESETS)
def test_an_ablation_is_rainbow_without_one_part(preset: str) -> None:
    env_settings.register_environments()
    whole, without = (
        compose_config([chosen, "env=CartPole-v1"], env_settings)["agent"]
        for chosen in ("agent=rainbow", f"experiment={preset}")
    )
    changed = {key for key in whole if whole[key] != without[key]}
    assert len(changed) == 1
    assert without[changed.pop()] in (False, "none", 1)


def test_every_part_has_its_ablation() -> None:
    assert len(PRESETS) == 6
